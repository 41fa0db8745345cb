"""Parameters and multiply-accumulates (MACs) of the rows: in the paper's convention and in full.

The columns "# Params" and "Flops" of Tables 1-5 are ptflops 0.7.1.2's counts, in Tables 1-4 at 32 px and 10 classes
whatever the table's data set, in Table 5 at one of three settings (`printed_at`). Its rules, found by running it on the
released models: a bias counts once a layer, not once a token; GELU counts twice, LayerNorm and softmax once an element.
It leaves out what is called as a function rather than as a module: q kᵀ, the product of scores and values, and the LKCA
convolution itself.

ViT and LKCA are counted in closed form. The comparators are counted by running them, with ptflops itself and with
torch's counter, and the counts kept in ``lkca/published/complexity.csv``: ``lkca bench counts`` makes them
anew.
"""

import csv
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lkca import published
from lkca.models import zoo
from lkca.models.comparators import ROWS as COMPARATORS
from lkca.models.comparators import Comparator
from lkca.models.vit import Attention
from lkca.operator import LKCA

COUNTED = published.FOLDER / "complexity.csv"
PTFLOPS = "0.7.1.2"  # another version gives other counts: of ViT, 0.7.5's defaults give 103 MMac in place of 174
PRINTED_SETTING = {"image_size": 32, "num_classes": 10}  # what the columns of Tables 1-4 were counted at
SETTINGS = ((32, 10), (32, 100), (64, 10), (64, 200))  # image size and classes of the data sets and of the print


@dataclass(frozen=True)
class Complexity:
    """Counts of one model: parameters, and MACs for one image forward."""

    params: int  # as built
    params_paper: int  # with the [class] token that the released LKCA models hold but never use
    macs_paper: int  # ptflops 0.7.1.2
    macs: int  # plus what ptflops leaves out; of LKCA's taps, those inside the map. Of a comparator, all products
    macs_all_taps: int  # the same with all taps, as the released convolution executes them


def count(name: str, *, image_size: int, num_classes: int) -> Complexity:
    """Count row ``name``; raises ValueError where `zoo.build` does: an unknown row, or a size that does not suit it.

    A comparator is looked up, or counted by running it at a setting that was not; that needs ptflops.
    """
    r = zoo.row(name)
    zoo.check_size(name, image_size, num_classes)
    if isinstance(r, Comparator):
        key = (zoo.canonical(name), image_size, num_classes)
        params, macs_paper, macs = _counted().get(key) or tuple(_run(*key))
        return Complexity(params, params, macs_paper, macs, macs)
    n, d, k = zoo.GRID, r.dim, num_classes
    c = 3 * (image_size // n) ** 2  # numbers in a patch
    patches, hidden = n * n, r.mlp_ratio * d
    class_token = r.pooling == "class"
    attention, lkca = r.mixer != "lkca", r.mixer != "attention"
    tokens = patches + class_token
    side = r.kernel_size or 2 * n - 1
    taps = side * side
    inside = sum(max(0, n - abs(d)) for d in range(-(side // 2), side // 2 + 1)) ** 2  # of all taps, those in the map

    mlp_params = 2 * d + (d * hidden + hidden) + (hidden * d + d)
    attention_params = 2 * d + 3 * d * d + (d * d + d)
    lkca_params = 2 * d + d * d + r.kernels * taps + (d * d + d)
    block_params = mlp_params + attention * attention_params + lkca * lkca_params
    params = (c * d + d) + (tokens + class_token) * d + r.depth * block_params + 2 * d + (d * k + k)

    mlp_macs = tokens * d + 2 * tokens * d * hidden + hidden + d + 2 * tokens * hidden
    attention_macs = tokens * d + 4 * tokens * d * d + d + r.heads * tokens**2
    lkca_macs = tokens * d + 2 * tokens * d * d + d
    block_macs = mlp_macs + attention * attention_macs + lkca * lkca_macs
    macs_paper = (patches * c * d + d) + r.depth * block_macs + d + (d * k + k)

    scores_and_values = attention * 2 * tokens**2 * d
    return Complexity(
        params=params,
        params_paper=params + (d if lkca and not attention else 0),
        macs_paper=macs_paper,
        macs=macs_paper + r.depth * (scores_and_values + lkca * inside * d),
        macs_all_taps=macs_paper + r.depth * (scores_and_values + lkca * taps * patches * d),
    )


def printed_at(name: str) -> dict[str, int]:
    """The setting at which the paper counts a row's parameters and FLOPs."""
    r = zoo.row(name)
    size, classes = r.printed_at if isinstance(r, Comparator) else PRINTED_SETTING.values()
    return {"image_size": size, "num_classes": classes}


@functools.cache
def products(name: str, image_size: int, num_classes: int) -> int:
    """MACs of a row in products and convolutions alone: one measure for rows of any architecture.

    A comparator is looked up, as in `count`; other rows are counted by running them.
    """
    kept = _counted().get((zoo.canonical(name), image_size, num_classes))
    return kept[-1] if kept else _products_of(name, image_size, num_classes)


def _products_of(name: str, image_size: int, num_classes: int) -> int:
    with torch.device("meta"):
        model = zoo.build(name, image_size=image_size, num_classes=num_classes, form="matrix")  # taps inside the map
    return _products(model, torch.zeros(1, 3, image_size, image_size, device="meta"))


def _attention(q: Tensor, k: Tensor, *_: object, out_val: tuple[Tensor, ...], **__: object) -> int:
    return 2 * k.shape[-2] * (q.numel() + out_val[0].numel())


def counter_of_products(**also: Callable[..., int]) -> FlopCounterMode:
    """torch's counter of the operations of products and convolutions, two for a multiply-accumulate.

    torch 2.11's does not know attention on a CPU, and takes apart what it does not know by overload.

    Args:
        also: what other operations of `torch.ops.aten` count, by name, from the tensors they take and make (`out_val`).
    """
    counts: dict[str, Callable[..., int]] = {"_scaled_dot_product_flash_attention_for_cpu": _attention, **also}
    for count_tensors in counts.values():
        # FlopCounterMode gives a function with this attribute, which no type tells of, the tensors, not their shapes
        count_tensors._get_raw = True  # type: ignore[attr-defined]
    known = {getattr(torch.ops.aten, name): count for name, count in counts.items()}
    overloads = {getattr(op, name): count for op, count in known.items() for name in op.overloads()}
    return FlopCounterMode(display=False, custom_mapping=known | overloads)


def _products(model: nn.Module, image: Tensor) -> int:
    model.eval().requires_grad_(False)
    with counter_of_products() as counter:
        model(image)
    return counter.get_total_flops() // 2


def paper_macs(model: nn.Module, image_size: int) -> int:
    """MACs by the paper's counter; raises ImportError unless ptflops is installed, in the version that it is."""
    from ptflops import get_model_complexity_info

    if (found := version("ptflops")) != PTFLOPS:
        raise ImportError(
            f"ptflops {found} counts otherwise than {PTFLOPS}, the paper's: pip install ptflops=={PTFLOPS}"
        )

    with torch.no_grad():
        macs, _ = get_model_complexity_info(
            model, (3, image_size, image_size), as_strings=False, print_per_layer_stat=False
        )
    return int(macs)


def _run(name: str, image_size: int, num_classes: int) -> Iterator[int]:
    """Parameters, MACs in the paper's convention, all products."""
    with torch.random.fork_rng(devices=[]):  # counting leaves no trace in a run's random numbers
        model = zoo.build(name, image_size=image_size, num_classes=num_classes)
    yield sum(p.numel() for p in model.parameters())
    yield paper_macs(model, image_size)
    yield _products_of(name, image_size, num_classes)


@functools.cache
def _counted() -> dict[tuple[str, int, int], tuple[int, int, int]]:
    with COUNTED.open(newline="", encoding="utf-8") as file:
        _, *lines = csv.reader(file)
    return {(name, int(size), int(classes)): (int(n), int(m), int(p)) for name, size, classes, n, m, p in lines}


class LKA(nn.Module):
    """Large Kernel Attention of VAN (Guo et al. 2023), with its projections: a gate instead of a sum.

    A 5 x 5 and a dilated 7 x 7 depthwise convolution and a 1 x 1 one make the gate. (B, h*w, D) -> (B, h*w, D).
    """

    def __init__(self, dim: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.before, self.after = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.near = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.far = nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim)
        self.mix = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Mix the tokens of x, (B, h*w, D)."""
        u = rearrange(nn.functional.gelu(self.before(x_BND)), "b (h w) d -> b d h w", h=self.grid[0])
        return self.after(rearrange(u * self.mix(self.far(self.near(u))), "b d h w -> b (h w) d"))


def mixers(dim: int, heads: int, grid: tuple[int, int]) -> dict[str, nn.Module]:
    """The token mixers to compare, each with its projections, (B, h*w, D) -> (B, h*w, D)."""
    return {
        "self-attention, fused": Attention(dim, heads, form="fused"),
        "self-attention, products": Attention(dim, heads, form="products"),
        "LKCA, matrix": LKCA(dim, grid, form="matrix"),
        "LKCA, convolution": LKCA(dim, grid, form="conv"),
        "depthwise large kernel (RepLKNet)": LKCA(dim, grid, kernels=dim, form="conv"),
        "LKA (VAN)": LKA(dim, grid),
    }


def measured(layer: nn.Module, dim: int, grid: tuple[int, int], images: int = 8) -> dict[str, float]:
    """What a layer costs an image, measured by running it: parameters, MACs forward, bytes kept for the backward pass.

    MACs are those of products and convolutions as executed, taps on padding included. Bytes are of float32, parameters
    left out.
    """
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    x = torch.randn(images, grid[0] * grid[1], dim, requires_grad=True)
    with counter_of_products() as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = layer(x)
    del out
    return {
        "params": sum(p.numel() for p in layer.parameters()),
        "macs": counter.get_total_flops() / 2 / images,
        "bytes": sum(kept.values()) / images,
    }


def write() -> Path:
    """Count every comparator at every setting that it takes, and write ``lkca/published/complexity.csv``; its path."""
    lines: list[list[str | int]] = [["row", "image_size", "num_classes", "params", "macs_paper", "macs"]]
    for name in COMPARATORS:
        for size, classes in SETTINGS:
            if size % zoo.step(name) == 0:
                lines.append([name, size, classes, *_run(name, size, classes)])
                print(*lines[-1], file=sys.stderr, flush=True)
    with COUNTED.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    return COUNTED
