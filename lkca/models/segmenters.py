"""Tables 6 and 7: backbones, necks, decoders, and every row by name.

No code was released for these tables. What a row is was recovered from its printed size: the widths of MMSegmentation's
models (the paper's section 4.2 names the library) were varied until parameters and FLOPs agreed to the printed digits.
Where that gave more than the text says, the row's ``findings`` tell it. All rows start from random weights, as stated.

A model is backbone -> four maps -> (neck) -> decoder -> classifier. Comparators come from timm; the plain transformers
are here, see `lkca.models.decoders` for the rest.

Shape suffixes: B images, N = hw tokens, D channels, K classes, H x W a map.
"""

import copy
import csv
import dataclasses
import functools
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from lkca import published
from lkca.models import complexity, zoo
from lkca.models.decoders import FPN, MultiLevelNeck, UPerNet, resize
from lkca.models.vit import Attention, Block, check_images
from lkca.operator import LKCA

COUNTED = published.FOLDER / "segmenters.csv"
PRINTED_SETTING = (512, 150)  # crop and classes that the tables' sizes are of


@dataclass(frozen=True)
class Row:
    """What a row is built from; ``dim`` to ``projections`` are of the plain transformers, or Swin's width."""

    backbone: str
    decoder: str
    channels: int  # of the decoder
    head: int | None = None  # of FPN's head, if not the same
    dim: int = 0
    depth: int = 12
    heads: int = 0
    patch_size: int = 4
    mlp_ratio: int = 4
    projections: bool = True  # of LKCA: V and output; without them the MLP takes their parameters
    drop_path: float = 0.0
    findings: tuple[str, ...] = ()  # what the printed size tells beyond the text
    matched: bool = True  # whether the printed size was found
    first_weights: int = 1  # raised when the code begins with other ones


class _Width(TypedDict, total=False):
    """Settings that some rows share."""

    dim: int
    depth: int
    heads: int
    patch_size: int
    drop_path: float


_PATCH_32 = (
    "The printed FLOPs hold only at patch size 32: 16 x 16 tokens at 512 px, which the neck resizes to maps of 64, "
    "32, 16 and 8. The pyramids of Table 7 decode maps of 128, 64, 32 and 16."
)
_FPN = (
    "The printed sizes hold only at patch size 16, with four equal maps of 32 x 32 (no neck between), FPN and head 384 "
    "wide, and cut off instead of rounded."
)
_BASE: _Width = {"dim": 768, "heads": 12, "patch_size": 32}
_SWAPPED = "Table 6 seems to print its parameters as FLOPs and its FLOPs as parameters: these are the two, exchanged."
_SMALL: _Width = {"dim": 384, "heads": 6, "patch_size": 32}
_TINY: _Width = {"dim": 96, "depth": 6, "heads": 4, "patch_size": 8}
_SWIN: _Width = {"dim": 84, "heads": 3, "drop_path": 0.3}
ROWS = {
    "ViT-B/UPerNet": Row("vit", "upernet", 512, **_BASE, findings=(_PATCH_32,)),
    "LKCA-B/UPerNet": Row(
        "lkca", "upernet", 512, **_BASE, mlp_ratio=3,
        findings=(_PATCH_32, _SWAPPED),
    ),
    "ViT-S/UPerNet": Row("vit", "upernet", 512, **_SMALL, findings=(_PATCH_32,)),
    "ResNet-50/UPerNet": Row(
        "resnet50", "upernet", 512, findings=("MMSegmentation's ResNetV1c: it begins with three 3 x 3 convolutions.",),
    ),
    "Twins_PCPVT-S/UPerNet": Row("twins", "upernet", 512, drop_path=0.2),
    "Swin-S/UPerNet": Row(
        "swin", "upernet", 512, **_SWIN,
        findings=("Not Swin-S: the depths of Swin-T (2, 2, 6, 2), at width 84 instead of its 96.",),
    ),
    "LKCA-S/UPerNet": Row("lkca", "upernet", 512, **_SMALL, mlp_ratio=3, findings=(_PATCH_32,)),
    "ViT-S/FPN": Row("vit", "fpn", 384, **_SMALL | {"patch_size": 16}, findings=(_FPN,)),
    "Twins_PCPVT-S/FPN": Row(
        "twins", "fpn", 256, head=128, drop_path=0.2,
        matched=False,
        findings=("MMSegmentation's model of this name has 27.86M parameters and, by its own counter, 44.65G; the "
        "paper prints 33.43M and 49.74G. No width, neck or head tried gives the printed pair, so the library's own "
        "model stands here.",),
    ),
    "LKCA-S/FPN": Row("lkca", "fpn", 384, **_SMALL | {"patch_size": 16}, mlp_ratio=3, findings=(_FPN,)),
}  # fmt: skip
FAIR = {  # rows of our own: the plain transformers at patch 16, so that UPerNet decodes maps as large as the pyramids'
    "ViT-S-p16/UPerNet": Row("vit", "upernet", 512, **_SMALL | {"patch_size": 16}),
    "LKCA-S-p16/UPerNet": Row("lkca", "upernet", 512, **_SMALL | {"patch_size": 16}, mlp_ratio=3),
}
SECOND = {  # the other reading of the LKCA block, of the same size: no projections, a wider MLP
    "LKCA-S-bare/UPerNet": Row("lkca", "upernet", 512, **_SMALL, projections=False),
    "LKCA-S-bare/FPN": Row("lkca", "fpn", 384, **_SMALL | {"patch_size": 16}, projections=False),
}
TINY = {  # rows of our own, small enough to learn CamVid on a CPU
    "ViT-XS/UPerNet": Row("vit", "upernet", 32, **_TINY),
    "LKCA-XS/UPerNet": Row("lkca", "upernet", 32, **_TINY | {"depth": 9}, mlp_ratio=3),  # deeper, for the same size
}
TABLES = {6: tuple(ROWS)[:2], 7: tuple(ROWS)[2:]}
ROWS |= FAIR | SECOND | TINY


class Transformer(nn.Module):
    """A plain vision transformer that gives the tokens of four of its blocks as maps of one size.

    As in MMSegmentation: a patch convolution without bias, no LayerNorm after the last block, and for self-attention a
    [class] token among the others, dropped from the maps.

    Args:
        crop: pixels a side that it is built for, see `resized` for others.
        mixer: "vit" for self-attention or "lkca".
        projections: of LKCA; without, the kernel alone mixes the tokens.
        form: of LKCA, see `lkca.operator.lkca`.

    Shapes: (B, 3, crop, crop) -> four of (B, dim, crop / patch_size, crop / patch_size).
    """

    def __init__(
        self, *, crop: int, patch_size: int, dim: int, depth: int, heads: int, mlp_ratio: int, mixer: str,
        projections: bool = True, form: str = "auto",
    ):  # fmt: skip
        super().__init__()
        if crop % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide a crop of {crop} pixels")
        if depth < 4:
            raise ValueError(f"depth={depth} is less than the four maps")
        self.patch_size, self.channels = patch_size, [dim] * 4
        self.grid = (crop // patch_size, crop // patch_size)
        self.embed = nn.Conv2d(3, dim, patch_size, stride=patch_size, bias=False)
        self.class_token = nn.Parameter(torch.zeros(dim)) if mixer == "vit" else None
        self.pos_embed = nn.Parameter(torch.zeros(self.grid[0] * self.grid[1] + (mixer == "vit"), dim))

        def block() -> Block:
            layer = LKCA(dim, self.grid, form=form) if mixer == "lkca" else Attention(dim, heads, bias=True)
            if isinstance(layer, LKCA) and not projections:
                layer.v = layer.proj = nn.Identity()
            mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
            return Block(layer, mlp, dim=dim, drop_path=0.0)

        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.taps = [math.ceil(depth * (i + 1) / 4) - 1 for i in range(4)]
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """The tokens after each quarter of the blocks, each (B, D, h, w)."""
        check_images(image_BCHW, *(side * self.patch_size for side in self.grid))
        x = rearrange(self.embed(image_BCHW), "b d h w -> b (h w) d")
        if self.class_token is not None:
            x = torch.cat([repeat(self.class_token, "d -> b 1 d", b=x.shape[0]), x], dim=1)
        x = x + self.pos_embed
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                tokens = x if self.class_token is None else x[:, 1:]
                maps.append(rearrange(tokens, "b (h w) d -> b d h w", h=self.grid[0]))
        return maps


def _timm(name: str, **settings: Any) -> Any:
    """A backbone of timm; Any, for its types do not say what its backbones have in common."""
    with warnings.catch_warnings():  # it would ask for ipywidgets, which only its downloads use
        warnings.simplefilter("ignore")
        import timm  # here, so that a machine that trains other rows need not have it

    return timm.create_model(name, pretrained=False, num_classes=0, **settings)


class Pyramid(nn.Module):
    """A comparator of timm: (B, 3, H, W) -> its four maps at 1/4, 1/8, 1/16 and 1/32, ``channels`` of them wide."""

    def __init__(self, name: str, **settings: Any):
        super().__init__()
        self.body = _timm(name, **settings)
        self.channels: list[int] = [info["num_chs"] for info in self.body.feature_info][-4:]
        self.body.prune_intermediate_layers(4, prune_norm=True, prune_head=True)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """The four maps."""
        return self.body.forward_intermediates(image_BCHW, indices=4, intermediates_only=True)


class Segmenter(nn.Module):
    """Backbone, neck, decoder, classifier, and for UPerNet an auxiliary head that only training uses.

    Shapes: (B, 3, crop, crop) -> logits (B, K, h, w) at the size of the decoder's map. In training a tuple: these, and
    the auxiliary head's if there is one.
    """

    stackable = False  # dropout and stochastic depth draw from torch's generator

    def __init__(self, backbone: Transformer | Pyramid, r: Row, num_classes: int):
        super().__init__()
        plain, upernet, maps = isinstance(backbone, Transformer), r.decoder == "upernet", backbone.channels
        self.backbone: Transformer | Pyramid = backbone
        self.neck = MultiLevelNeck(maps[0]) if plain and upernet else nn.Identity()
        head = r.head or r.channels
        self.decoder = UPerNet(maps, r.channels, norms=r.backbone == "swin") if upernet else FPN(maps, r.channels, head)
        last = also = nn.Conv2d(head, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), last)
        self.auxiliary: nn.Sequential | None = None
        self.tap = 3 if plain else 2  # MMSegmentation's choice of map
        if upernet:
            width = r.channels // 2
            first = Conv2dNormActivation(maps[self.tap], width, 3)
            also = nn.Conv2d(width, num_classes, 1)
            self.auxiliary = nn.Sequential(first, nn.Dropout2d(0.1), also)
        for part in (self.neck, self.decoder, self.auxiliary or nn.Identity()):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        for conv in (last, also):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, image_BCHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits of normalised images."""
        maps = self.neck(self.backbone(image_BCHW))
        logits = self.classifier(self.decoder(maps[:]))
        if not self.training:
            return logits
        return (logits, self.auxiliary(maps[self.tap])) if self.auxiliary else (logits,)


def table(number: int) -> zoo.Table:
    """Table 6 or 7: its rows on ADE20K, and those of our own that are trained when asked for."""
    return zoo.Table("ade20k", TABLES[number], extra=(*FAIR, *SECOND, *TINY), smoke="digit-scenes",
                     smoke_rows=tuple(TINY))  # fmt: skip


def row(name: str) -> Row:
    """The settings of a row; raises ValueError naming the rows there are."""
    if name not in ROWS:
        raise ValueError(f"row {name!r} does not exist; the rows are {', '.join(ROWS)}")
    return ROWS[name]


def build(name: str, *, crop: int, num_classes: int, form: str = "auto") -> Segmenter:
    """A freshly initialised model of row ``name``.

    Args:
        name: backbone and decoder as in the paper's tables, e.g. "LKCA-S/UPerNet".
        crop: pixels a side of what it sees, a multiple of 32 (of the patch size for the rows of our own).
        num_classes: K.
        form: of LKCA, see `lkca.operator.lkca`.

    Raises:
        ValueError: on a name that does not exist, or a crop that the patches do not fill.
    """
    r = row(name)
    if r.backbone in ("vit", "lkca"):
        names = ("patch_size", "dim", "depth", "heads", "mlp_ratio", "projections")
        settings = {key: getattr(r, key) for key in names}
        backbone: Transformer | Pyramid = Transformer(crop=crop, mixer=r.backbone, **settings, form=form)
    elif r.backbone == "resnet50":
        backbone = Pyramid("resnet50c")
    elif r.backbone == "twins":
        backbone = Pyramid("twins_pcpvt_small", img_size=crop, drop_path_rate=r.drop_path)
    else:
        heads = tuple(r.heads * 2**i for i in range(4))
        backbone = Pyramid(
            "swin_tiny_patch4_window7_224", img_size=crop, embed_dim=r.dim, num_heads=heads,
            drop_path_rate=r.drop_path, always_partition=True,
        )  # fmt: skip
    return Segmenter(backbone, r, num_classes)


def resize_kernel(kernel: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """An LKCA kernel for an ``old`` grid of tokens, for a ``new`` one: (2h-1, 2w-1) to (2h'-1, 2w'-1).

    A tap stays at its distance as a share of the map, interpolated linearly. Between grids of n and n' tokens the taps
    are weighed by n / n', so that what a token gathers keeps its size.
    """
    if old == new:
        return kernel
    axes = []
    for before, after in zip(old, new, strict=True):
        offset = torch.arange(1 - after, after, dtype=torch.float64, device=kernel.device) * (before / after)
        axes.append((offset / max(before - 1, 1)).to(kernel.dtype))  # -1 and 1 are the outermost taps
    y, x = torch.meshgrid(*axes, indexing="ij")
    where = torch.stack([x, y], dim=-1)[None]
    found = F.grid_sample(kernel[None, None], where, mode="bilinear", padding_mode="border", align_corners=True)[0, 0]
    return found * (math.prod(old) / math.prod(new))


def plain(model: Segmenter) -> Transformer:
    """A model's backbone; raises ValueError if it is not a plain transformer."""
    if not isinstance(model.backbone, Transformer):
        raise ValueError("this model cannot be resized: its backbone is not a plain transformer")
    return model.backbone


def resized(model: Segmenter, size: tuple[int, int]) -> Segmenter:
    """A copy of a model for images of another size, (H, W): position embeddings and LKCA kernels are resized.

    At the same size it is the same model. Raises ValueError for a backbone that is not a plain transformer, or a size
    that the patches do not fill.
    """
    patch = plain(model).patch_size
    if any(side % patch for side in size):
        raise ValueError(f"this model cannot be resized to {size[0]} x {size[1]} pixels")
    model = copy.deepcopy(model)
    body, grid = plain(model), (size[0] // patch, size[1] // patch)
    first = int(body.class_token is not None)
    with torch.no_grad():
        positions = rearrange(body.pos_embed[first:], "(h w) d -> 1 d h w", h=body.grid[0])
        positions = rearrange(resize(positions, grid), "1 d h w -> (h w) d")
        body.pos_embed = nn.Parameter(torch.cat([body.pos_embed[:first], positions]))
        for module in body.modules():
            if isinstance(module, LKCA):
                module.kernel = nn.Parameter(resize_kernel(module.kernel, module.grid, grid))
                module.grid = grid
    body.grid = grid
    return model


@dataclass(frozen=True)
class Size:
    """Counts of one model: parameters, and multiply-accumulates (MACs) for one image forward, auxiliary head left out.

    ``params`` and ``macs`` are of the model as built, auxiliary head included in ``params``: products and convolutions,
    of LKCA's taps those inside the map. ``params_paper`` and ``macs_paper`` follow the tables' convention, found by
    running MMSegmentation's counter: no auxiliary head, all taps, and one to five a number for what is no product.
    """

    params: int
    params_paper: int
    macs: int
    macs_paper: int

    @property
    def printed(self) -> tuple[str, str]:
        """Parameters and FLOPs in the units and digits of Tables 6 and 7."""
        return as_printed(self.params_paper), as_printed(self.macs_paper)


def as_printed(count: int) -> str:
    """A count as Tables 6 and 7 print it: T from 1e11, G from 1e8, else M; three decimals below one, else two."""
    value, unit = next((count / scale, u) for limit, scale, u in _UNITS if count >= limit)
    return f"{value:.3f}{unit}" if value < 1 else f"{value:.2f}{unit}"


_UNITS = ((1e11, 1e12, "T"), (1e8, 1e9, "G"), (0, 1e6, "M"))


def _each(operations: int, *, of_input: bool = False) -> Callable[..., int]:
    """MACs of an operation as FlopCounterMode takes them (twice as many): so many a number that it makes, or takes."""

    def count(x: Tensor, *_: object, out_val: Tensor | tuple, **__: object) -> int:
        out = out_val[0] if isinstance(out_val, tuple) else out_val
        same = operations == 4 and out.shape == x.shape  # a resizing that changes nothing
        return 0 if same else 2 * operations * (x if of_input else out).numel()

    return count


_AS_PRINTED = {
    "native_batch_norm": _each(2),
    "native_layer_norm": _each(5),
    "upsample_bilinear2d": _each(4),
    "upsample_nearest2d": _each(1),
    "_adaptive_avg_pool2d": _each(1, of_input=True),
    "mean": _each(1, of_input=True),  # pooling to 1 x 1
}


def count(name: str, *, crop: int, num_classes: int) -> Size:
    """Count row ``name``: looked up at the tables' setting, elsewhere by running it."""
    if (crop, num_classes) == PRINTED_SETTING and name in _counted():
        return _counted()[name]
    return run(name, crop=crop, num_classes=num_classes)


@functools.cache
def run(name: str, *, crop: int, num_classes: int) -> Size:
    """Count row ``name`` by running it without data (on the meta device), in about a second."""
    with torch.device("meta"):
        model = build(name, crop=crop, num_classes=num_classes).eval()
    layers = [module for module in model.modules() if isinstance(module, LKCA)]

    def macs(form: str, **also: Callable[..., int]) -> int:
        for layer in layers:
            layer.form = form
        with torch.no_grad(), complexity.counter_of_products(**also) as counter:
            model(torch.empty(1, 3, crop, crop, device="meta"))
        return counter.get_total_flops() // 2

    params = sum(p.numel() for p in model.parameters())
    auxiliary = sum(p.numel() for p in model.auxiliary.parameters()) if model.auxiliary else 0
    return Size(params, params - auxiliary, macs("matrix"), macs("conv", **_AS_PRINTED))


@functools.cache
def _counted() -> dict[str, Size]:
    with COUNTED.open(newline="", encoding="utf-8") as file:
        _, *lines = csv.reader(file)
    return {name: Size(*map(int, counts)) for name, *counts in lines}


def write() -> Path:
    """Count every row at the tables' setting, and write ``lkca/published/segmenters.csv``; its path."""
    crop, classes = PRINTED_SETTING
    lines = [["row", *(field.name for field in dataclasses.fields(Size))]]
    for name in ROWS:
        lines.append([name, *map(str, dataclasses.astuple(run(name, crop=crop, num_classes=classes)))])
        print(*lines[-1], file=sys.stderr, flush=True)
    with COUNTED.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    return COUNTED
