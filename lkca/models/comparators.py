"""Every model that Tables 4 and 5 compare LKCA with: settings as data, built from timm and vit-pytorch.

The settings are those of the authors' released code, whose models follow vit-pytorch's, resized by hand; Swin follows
Microsoft's and timm's. As configured below, every row has the number of parameters of the released model at every
image size and number of classes, and the paper's multiply-accumulates. Three models had to be adapted for that:

- timm's Swin has no absolute position embedding; the released one has, added after the patch embedding.
- vit-pytorch's T2T-ViT has lost the LayerNorm of its head, which the released one has; it is put back.
- Swin and MobileViT average their map by a module, as released, where the libraries now call a function: the same
  numbers, but the paper's counter sees modules.

The rows that the paper calls MobileViTv2 are MobileViT, version 1: softmax attention over patches of one pixel. They
are built as released. Rows that end in ``-separable`` are ours: timm's MobileViTv2 with its separable self-attention,
at the width whose size is nearest.

Stochastic depth is one mechanism for all, `DropPath`, and draws from the engine's streams: the libraries' own would
draw from torch's generator, and neither stack nor resume. As released: 0.1 in every block for ViT and LKCA, 0 to 0.1
from the first block to the last for Swin, none for the others; CrossViT has dropout 0.1 instead.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from lkca.models.vit import check_images


class DropPath(nn.Module):
    """A classifier whose residual branches are dropped sample by sample, by numbers from outside.

    Args:
        model: images to logits, its own stochastic depth at rate 0.
        rates: of the branches, by the branch's module name. A branch's output is what is added to the stream.
        calls: how often a forward pass calls these branches in all, more than once each in RegionViT.
        image_size: pixels a side of the images that the model is built for; None takes any input.
        stackable, capturable: see `Family`; for the engine.

    Shapes: (B, 3, image_size, image_size) -> (B, classes). ``num_draws`` is how many uniform numbers a sample needs,
    one a call in the order of the calls, or 0 if every rate is 0.
    """

    def __init__(
        self, model: nn.Module, rates: Mapping[str, float], calls: int, *, image_size: int | None = None,
        stackable: bool, capturable: bool,
    ):  # fmt: skip
        super().__init__()
        self.image_size = image_size
        self.model, self.stackable, self.capturable = model, stackable, capturable
        self.num_draws = calls if any(rates.values()) else 0
        self._draws = _Draws()
        if self.num_draws:
            for name, rate in rates.items():
                model.get_submodule(name).register_forward_hook(_Dropped(self._draws, rate))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(_in_the_weight_s_precision)

    def forward(self, image_BCHW: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """Logits, (B, classes), of normalised images.

        ``uniform_BR`` (B, num_draws), from [0, 1), decides what is dropped; None draws it from torch's generator in
        training mode. In evaluation mode nothing is dropped. Raises ValueError on images of another shape.
        """
        if self.image_size:
            check_images(image_BCHW, self.image_size, self.image_size)
        if not self.training or not self.num_draws:
            return self.model(image_BCHW)
        if uniform_BR is None:
            uniform_BR = torch.rand(image_BCHW.shape[0], self.num_draws, device=image_BCHW.device)
        self._draws.left = list(uniform_BR.unbind(1))
        try:
            return self.model(image_BCHW)
        finally:
            self._draws.left = []


def _in_the_weight_s_precision(conv: nn.Conv2d, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Under `torch.vmap` autocast passes convolutions by, and they would meet a bf16 image with fp32 weights."""
    return (args[0].to(conv.weight.dtype), *args[1:])


class _Draws:
    """The columns of a forward pass's draws that no branch has taken yet; shared by a model and its hooks."""

    def __init__(self) -> None:
        self.left: list[Tensor] = []


class _Dropped:
    """A hook on a branch. An object, not a closure: a deep copy of the model then shares the copy's own draws."""

    def __init__(self, draws: _Draws, rate: float):
        self.draws, self.rate = draws, rate

    def __call__(self, module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        """0 where the draw is below the rate, else ``out`` / (1 - rate); a sample may be several lines of ``out``."""
        if not self.draws.left:  # evaluation
            return out
        uniform_B = self.draws.left.pop(0)
        keep_B = (uniform_B >= self.rate).to(out.dtype) / (1 - self.rate)
        keep = keep_B.repeat_interleave(len(out) // len(keep_B))  # windows of a sample follow one another
        return out * keep.view(-1, *[1] * (out.ndim - 1))


class _Position(nn.Module):
    """Swin's absolute position embedding, added to (B, h, w, D), initialised as Microsoft's."""

    def __init__(self, side: int, dim: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(side, side, dim))
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return x_BHWD + self.embedding


def _timm() -> ModuleType:
    with warnings.catch_warnings():  # of a progress bar for downloads, in a notebook without widgets
        warnings.filterwarnings("ignore", "IProgress not found")
        import timm
    return timm


def _swin(size: int, classes: int, *, dim: int, depths: tuple, heads: tuple) -> nn.Module:
    model = _timm().models.swin_transformer.SwinTransformer(
        img_size=size, patch_size=size // 16, num_classes=classes, embed_dim=dim, depths=depths, num_heads=heads,
        window_size=4, mlp_ratio=2.0, drop_path_rate=0.0,
        weight_init="skip",  # timm's own is a truncated normal; the released one begins as PyTorch's layers do
    )  # fmt: skip
    model.patch_embed = nn.Sequential(model.patch_embed, _Position(16, dim))
    model.head.global_pool = nn.Sequential(
        Rearrange("b h w d -> b d (h w)"), nn.AvgPool1d(16), nn.Flatten()
    )  # of the last, 4 x 4 map
    return model


def _cait(size: int, classes: int, **settings: int) -> nn.Module:
    from vit_pytorch.cait import CaiT

    return CaiT(image_size=size, patch_size=size // 8, num_classes=classes, **settings)


def _mobilevit(size: int, classes: int, *, dims: tuple, channels: tuple) -> nn.Module:
    from vit_pytorch.mobile_vit import MobileViT

    whole = {"image_size": (size, size), "patch_size": (1, 1)}
    model = MobileViT(**whole, num_classes=classes, dims=dims, channels=channels)
    model.to_logits[1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model


def _mobilevitv2(size: int, classes: int, *, width: str) -> nn.Module:
    return _timm().create_model(f"mobilevitv2_{width}", num_classes=classes)


def _t2t(size: int, classes: int, **settings: int | tuple) -> nn.Module:
    from vit_pytorch.t2t import T2TViT

    model = T2TViT(image_size=size, num_classes=classes, **settings)
    model.mlp_head = nn.Sequential(nn.LayerNorm(settings["dim"]), model.mlp_head)
    return model


def _rvt(size: int, classes: int, **settings: int) -> nn.Module:
    from vit_pytorch.rvt import RvT

    return RvT(image_size=size, patch_size=size // 8, num_classes=classes, **settings)


def _xcit(size: int, classes: int, **settings: int) -> nn.Module:
    from vit_pytorch.xcit import XCiT

    return XCiT(image_size=size, patch_size=size // 8, num_classes=classes, **settings)


def _deepvit(size: int, classes: int, **settings: int) -> nn.Module:
    from vit_pytorch.deepvit import DeepViT

    return DeepViT(image_size=size, patch_size=size // 8, num_classes=classes, **settings)


def _regionvit(size: int, classes: int, *, dim: tuple, depth: tuple) -> nn.Module:
    from vit_pytorch.regionvit import RegionViT

    return RegionViT(dim=dim, depth=depth, window_size=size // 8, local_patch_size=size // 16, num_classes=classes)


def _crossvit(size: int, classes: int, *, dim: int, cross_depth: int, depth: int, dropout: float) -> nn.Module:
    from vit_pytorch.cross_vit import CrossViT

    encoders = {"patch_size": size // 8, "dim": dim, "enc_heads": 8, "enc_dim_head": 16, "enc_mlp_dim": dim}
    both = {f"{branch}_{name}": value for branch in ("sm", "lg") for name, value in encoders.items()}
    return CrossViT(
        image_size=size, num_classes=classes, **both, sm_enc_depth=1, lg_enc_depth=4, cross_attn_depth=cross_depth,
        cross_attn_heads=8, cross_attn_dim_head=16, depth=depth, dropout=dropout, emb_dropout=dropout,
    )  # fmt: skip


def _twins(size: int, classes: int, *, dims: tuple, depths: tuple) -> nn.Module:
    from vit_pytorch.twins_svt import TwinsSVT

    stage = {"patch_size": 2, "local_patch_size": 8, "global_k": 3}
    stages = [stage | {"emb_dim": dim, "depth": depth} for dim, depth in zip(dims, depths, strict=True)]
    settings = {f"s{i}_{name}": value for i, s in enumerate(stages, 1) for name, value in s.items()}
    return TwinsSVT(num_classes=classes, peg_kernel_size=3, **settings)


def _cvt(size: int, classes: int, *, dims: tuple, heads: tuple, depths: tuple) -> nn.Module:
    from vit_pytorch.cvt import CvT

    stages = zip(dims, heads, depths, (7, 3, 3), (4, 2, 2), strict=True)
    names = ("emb_dim", "heads", "depth", "emb_kernel", "emb_stride")
    settings = {f"s{i}_{n}": v for i, s in enumerate(stages, 1) for n, v in zip(names, s, strict=True)}
    return CvT(num_classes=classes, **settings)


@dataclass(frozen=True)
class Family:
    """An architecture: where it comes from, and what of it the engine must know.

    Attributes:
        library: that has it.
        build: (image size, classes, a row's settings) -> module.
        branches: patterns of the names of its residual branches, with how often a forward pass calls each.
        step: image sizes are multiples of it.
        stackable: whether `torch.vmap` computes over stacked parameters what each model alone would. CrossViT's dropout
            draws from torch's generator.
        capturable: whether a CUDA graph can hold its step. RegionViT's forward pass copies a constant from the host.
    """

    library: str
    build: Callable[..., nn.Module]
    branches: Mapping[str, int]
    step: int = 32
    stackable: bool = True
    capturable: bool = True


_LAYERS = r"(.+\.)?layers\.\d+\.[01]"  # vit-pytorch's: attention, feed-forward
_STAGE_LAYERS = r"layers\.\d+\.2\.layers\.\d+\."  # the same below a stage

FAMILIES = {
    "Swin": Family("timm", _swin, {r"layers\.\d+\.blocks\.\d+\.drop_path[12]": 1}),
    "CaiT": Family("vit-pytorch", _cait, {_LAYERS: 1}),
    "MobileViT": Family("vit-pytorch", _mobilevit, {r"stem\.[23]\.conv": 1, _LAYERS: 1}),
    "MobileViTv2": Family(
        "timm", _mobilevitv2, {r"stages\.1\.1\.drop_path": 1, r"stages\..+\.transformer\.\d+\.drop_path[12]": 1}
    ),
    "T2T-ViT": Family("vit-pytorch", _t2t, {_LAYERS: 1}),
    "RvT": Family("vit-pytorch", _rvt, {_LAYERS: 1}),
    "XCiT": Family("vit-pytorch", _xcit, {r".+\.layers\.\d+\.[012]": 1}),
    "DeepViT": Family("vit-pytorch", _deepvit, {_LAYERS: 1}),
    "RegionViT": Family("vit-pytorch", _regionvit, {_STAGE_LAYERS + "0": 2, _STAGE_LAYERS + "1": 1}, capturable=False),
    "CrossViT": Family("vit-pytorch", _crossvit, {r".+\.layers\.\d+\.[012]\.layers\.\d+\.[01]": 1}, stackable=False),
    "Twins-SVT": Family("vit-pytorch", _twins, {r"layers\.\d+\.[13]\.layers\.\d+\.\d+\.fn": 1}, step=64),
    "CvT": Family("vit-pytorch", _cvt, {_STAGE_LAYERS + "[01]": 1}),
}


@dataclass(frozen=True)
class Comparator:
    """A row of Tables 4 and 5.

    Attributes:
        family: its architecture.
        settings: of it.
        drop_path: as released, in the first block and in the last.
        printed_at: image size and classes at which the paper counts its parameters and FLOPs.
        deviation: why our counts differ from the printed ones, if they do.
        first_weights: raised when the code begins with other ones.
    """

    family: str
    settings: Mapping
    drop_path: tuple[float, float] = (0.0, 0.0)
    printed_at: tuple[int, int] = (64, 200)
    deviation: str | None = None
    first_weights: int = 1


ROWS: dict[str, Comparator] = {
    "Swin-T": Comparator(
        "Swin", {"dim": 64, "depths": (1, 2, 1), "heads": (2, 4, 8)}, (0.0, 0.1), (32, 10), first_weights=2
    ),
    "Swin-S": Comparator(
        "Swin", {"dim": 84, "depths": (1, 3, 2), "heads": (3, 6, 12)}, (0.0, 0.1), (32, 10), first_weights=2
    ),
    "CaiT-T": Comparator(
        "CaiT",
        {"dim": 72, "depth": 16, "cls_depth": 1, "mlp_dim": 144, "heads": 4, "dim_head": 32},
        printed_at=(32, 10),
    ),
    "CaiT-S": Comparator(
        "CaiT",
        {"dim": 96, "depth": 18, "cls_depth": 2, "mlp_dim": 192, "heads": 4, "dim_head": 64},
        printed_at=(32, 10),
    ),
    "MobileViTv2-T": Comparator(
        "MobileViT",
        {"dims": (54, 60, 72), "channels": (10, 20, 36, 36, 54, 54, 72, 72, 94, 94, 384)},
        printed_at=(32, 10),
    ),
    "MobileViTv2-S": Comparator(
        "MobileViT",
        {"dims": (144, 180, 224), "channels": (24, 48, 54, 54, 72, 72, 108, 108, 120, 120, 384)},
        printed_at=(32, 10),
    ),
    "MobileViTv2": Comparator(
        "MobileViT", {"dims": (224, 302, 324), "channels": (48, 53, 72, 72, 80, 80, 120, 120, 156, 156, 384)}
    ),
    "MobileViTv2-T-separable": Comparator("MobileViTv2", {"width": "050"}, printed_at=(32, 10)),
    "MobileViTv2-S-separable": Comparator("MobileViTv2", {"width": "100"}, printed_at=(32, 10)),
    "MobileViTv2-separable": Comparator("MobileViTv2", {"width": "125"}),
    "T2T-T": Comparator(
        "T2T-ViT", {"dim": 128, "depth": 10, "heads": 4, "dim_head": 32, "mlp_dim": 128, "t2t_layers": ((11, 8),)}
    ),
    "T2T-S": Comparator(
        "T2T-ViT", {"dim": 96, "depth": 3, "heads": 4, "dim_head": 24, "mlp_dim": 96, "t2t_layers": ((11, 8), (7, 4))}
    ),
    "T2T-B": Comparator(
        "T2T-ViT",
        {"dim": 256, "depth": 8, "heads": 4, "dim_head": 64, "mlp_dim": 256, "t2t_layers": ((7, 4), (3, 2), (2, 1))},
    ),
    "RvT-T": Comparator(
        "RvT",
        {"dim": 64, "depth": 6, "heads": 8, "mlp_dim": 64},
        printed_at=(64, 10),
        deviation="1.09M at 64 px and 10 classes, where its printed FLOPs are counted; the printed 1.07M is 1.0765M, "
        "at 32 px and 10 classes, cut off.",
    ),
    "RvT-S": Comparator("RvT", {"dim": 128, "depth": 7, "heads": 8, "mlp_dim": 128}, printed_at=(64, 10)),
    "XCiT-T": Comparator(
        "XCiT",
        {"dim": 120, "depth": 8, "cls_depth": 2, "heads": 4, "dim_head": 30, "mlp_dim": 120},
        deviation="0.955M, which the paper cuts off to 0.95M and the authors' README rounds to 0.96M.",
    ),
    "XCiT-S": Comparator("XCiT", {"dim": 192, "depth": 10, "cls_depth": 2, "heads": 4, "dim_head": 48, "mlp_dim": 192}),
    "DeepViT-T": Comparator("DeepViT", {"dim": 80, "depth": 10, "heads": 4, "dim_head": 64, "mlp_dim": 80}),
    "DeepViT-S": Comparator(
        "DeepViT",
        {"dim": 136, "depth": 14, "heads": 4, "dim_head": 64, "mlp_dim": 136},
        deviation="2.545M at 64 px and 200 classes, where its printed FLOPs are counted; the printed 2.53M is that at "
        "100 classes. The authors' README has 2.54M.",
    ),
    "RegionViT-T": Comparator("RegionViT", {"dim": (48, 72, 108, 112), "depth": (1, 1, 2, 1)}),
    "RegionViT-S": Comparator("RegionViT", {"dim": (48, 96, 128, 256), "depth": (1, 2, 3, 2)}),
    "RegionViT-B": Comparator("RegionViT", {"dim": (64, 128, 256, 512), "depth": (2, 2, 8, 2)}),
    "CrossViT-T": Comparator("CrossViT", {"dim": 102, "cross_depth": 1, "depth": 2, "dropout": 0.1}),
    "CrossViT-S": Comparator("CrossViT", {"dim": 128, "cross_depth": 2, "depth": 3, "dropout": 0.1}),
    "Twins_SVT-S": Comparator("Twins-SVT", {"dims": (16, 16, 24, 48), "depths": (1, 1, 2, 1)}),
    "Twins_SVT-B": Comparator("Twins-SVT", {"dims": (16, 32, 64, 128), "depths": (1, 1, 3, 2)}),
    "CvT-B": Comparator("CvT", {"dims": (32, 96, 192), "heads": (1, 3, 6), "depths": (1, 2, 10)}, printed_at=(32, 10)),
}


def build(name: str, *, image_size: int, num_classes: int, drop_path: float | None = None) -> DropPath:
    """A freshly initialised model of a row of `ROWS`; arguments and errors as `lkca.models.zoo.build`'s."""
    row = ROWS[name]
    family = FAMILIES[row.family]
    model = family.build(image_size, num_classes, **row.settings)
    calls = {
        name: times
        for name, _ in model.named_modules()
        for pattern, times in family.branches.items()
        if re.fullmatch(pattern, name)
    }
    blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in calls))
    first, last = row.drop_path if drop_path is None else (drop_path, drop_path)
    slope = (last - first) / (len(blocks) - 1)
    rates = {name: first + slope * blocks.index(name.rpartition(".")[0]) for name in calls}
    kind = {"stackable": family.stackable, "capturable": family.capturable}
    return DropPath(model, rates, sum(calls.values()), image_size=image_size, **kind)
