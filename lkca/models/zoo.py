"""Every row of every table by the paper's name, and the control rows: what they are built from, and the builder.

Settings: the authors' released code (dim, depth, heads, MLP ratio; drop path 0.1 in every block). All rows see an 8 x 8
grid of patches, whatever the image size, so an LKCA kernel is 15 x 15.

A control row differs from the ViT or the ViT-LKCA of its size in the one thing that its name ends in:

- ``-mean``: a ViT that reads the mean of its tokens and has no [class] token, as ViT-LKCA does.
- ``-same``: ViT-LKCA at that ViT's width and depth.
- ``-both``: that ViT with LKCA after its self-attention, as section 3.2.3 has it.
- ``-heads``, ``-channels``: ViT-LKCA with a kernel for each group of channels (as many as the ViT has heads, or the
  nearest number that divides the channels), or for each channel.
- ``-3x3``: ViT-LKCA whose kernels are 3 x 3 and reach only the neighbours.
- ``-random``: ViT-LKCA whose kernels start at random instead of zero.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lkca.models import comparators
from lkca.models.comparators import Comparator
from lkca.models.vit import ViT

GRID = 8  # patches a side


@dataclass(frozen=True)
class Row:
    """What a row is built from. ``deviation``: why our counts cannot equal the printed ones, if they cannot."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: int = 2
    mixer: str = "attention"
    pooling: str = "class"
    drop_path: float = 0.1
    kernels: int = 1
    kernel_size: int | None = None
    kernel_init: str = "zeros"
    deviation: str | None = None
    first_weights: int = 1  # raised when the code begins with other ones


@dataclass(frozen=True)
class Table:
    """A table of the paper, or the controls: rows trained on a data set, in Table 4 also on ``others``.

    Tables 4 and 5 have groups of about one size, in each of which the last row is the LKCA. ``extra`` rows are not the
    paper's; they are trained when asked for. ``smoke``: the digits that its rows can take; ``smoke_rows``: those of
    its rows that `smoke` trains, if not all, so that it takes few minutes.
    """

    dataset: str
    rows: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    smoke: str = "digits"
    smoke_rows: tuple[str, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """All of its data sets."""
        return (self.dataset, *self.others)


@dataclass(frozen=True)
class Contrast:
    """Two rows to compare: what changes from one to the other, and what that tells."""

    change: str
    before: str
    after: str
    tells: str


def _lkca(dim: int, depth: int, mlp_ratio: int = 2, deviation: str | None = None) -> Row:
    return Row(dim, depth, heads=1, mlp_ratio=mlp_ratio, mixer="lkca", pooling="mean", deviation=deviation)


ROWS = {
    "ViT": Row(192, 9, 12),
    "ViT-LKCA": _lkca(210, 10),
    "ViT/0.5M": Row(120, 4, 4),
    "ViT/0.5M-LKCA": _lkca(100, 8),
    "ViT/1M": Row(136, 7, 8),
    "ViT/1M-LKCA": _lkca(136, 9),
    "ViT/2M": Row(200, 6, 8),
    "ViT/2M-LKCA": _lkca(192, 9),
    "ViT/4M": Row(264, 7, 8),
    "ViT/4M-LKCA": _lkca(246, 11),
    "ViT/8M": Row(312, 10, 8),
    "ViT/8M-LKCA": _lkca(
        306,
        14,
        deviation="The released settings (dim 306, depth 14, MLP ratio 2) give 7.94M parameters and 505.99M MACs where "
        "the paper prints 7.98M and 506.00M. No width, depth and MLP ratio near them gives the printed pair.",
    ),
    "LKCA-L": _lkca(360, 12, mlp_ratio=3),
}


def _controls(size: str) -> dict[str, Row]:
    vit, lkca = ROWS[size], ROWS[f"{size}-LKCA"]
    change = dataclasses.replace
    heads = min((g for g in range(1, lkca.dim + 1) if lkca.dim % g == 0), key=lambda g: abs(g - vit.heads))
    return {
        f"{size}-mean": change(vit, pooling="mean"),
        f"{size}-LKCA-same": change(lkca, dim=vit.dim, depth=vit.depth),
        f"{size}-both": change(vit, mixer="both", pooling="mean"),
        f"{size}-LKCA-heads": change(lkca, kernels=heads),
        f"{size}-LKCA-channels": change(lkca, kernels=lkca.dim),
        f"{size}-LKCA-3x3": change(lkca, kernel_size=3),
        f"{size}-LKCA-random": change(lkca, kernel_init="random"),
    }


# Tables 4 and 5 call rows of Tables 1-3 by other names; `canonical` maps them to one, so that their runs are shared.
ALIASES = {"ViT-Lite": "ViT/1M", "ViT-Small": "ViT", "LKCA-T": "ViT/1M-LKCA", "LKCA-B": "ViT-LKCA"}

MAIN_ROWS = ("ViT", "ViT-LKCA", "ViT/0.5M", "ViT/0.5M-LKCA")  # of Tables 1-3: those that decide most
_TABLES_1_TO_3 = tuple(row for row in ROWS if row != "LKCA-L")
ROWS |= _controls("ViT/0.5M") | _controls("ViT/2M") | _controls("ViT")
_TABLE_4 = {
    "T": ("ViT-Lite", "Swin-T", "CaiT-T", "MobileViTv2-T", "LKCA-T"),
    "S": ("ViT-Small", "Swin-S", "CaiT-S", "MobileViTv2-S", "LKCA-B"),
}
_TABLE_5 = {
    "T": ("T2T-T", "RvT-T", "Swin-T", "CaiT-T", "XCiT-T", "ViT-Lite", "DeepViT-T", "RegionViT-T", "CrossViT-T",
          "LKCA-T"),
    "S": ("T2T-S", "RvT-S", "Swin-S", "CaiT-S", "XCiT-S", "ViT-Small", "DeepViT-S", "Twins_SVT-S", "RegionViT-S",
          "CrossViT-S", "LKCA-B"),
    "B": ("T2T-B", "CvT-B", "MobileViTv2", "Twins_SVT-B", "RegionViT-B", "LKCA-L"),
}  # fmt: skip


TABLES = {
    1: Table("cifar10", _TABLES_1_TO_3),
    2: Table("cifar100", _TABLES_1_TO_3),
    3: Table("tiny-imagenet", _TABLES_1_TO_3),
    4: Table(
        "cifar10", sum(_TABLE_4.values(), ()), _TABLE_4, others=("cifar100", "svhn"),
        extra=("MobileViTv2-T-separable", "MobileViTv2-S-separable"), smoke="digits-32",
    ),
    5: Table(
        "tiny-imagenet", sum(_TABLE_5.values(), ()), _TABLE_5, extra=("MobileViTv2-separable",), smoke="digits-64",
        smoke_rows=(*_TABLE_5["T"], "CvT-B", "MobileViTv2"),  # Twins_SVT would take longer than all of these together
    ),
}  # fmt: skip


CONTROLS = Table("cifar100", tuple(row for row in ROWS if row not in _TABLES_1_TO_3 and row != "LKCA-L"))


def table(key: int | str) -> Table:
    """A table by its number, or "controls"; raises ValueError naming those there are."""
    if key == "controls":
        return Table(CONTROLS.dataset, (*_TABLES_1_TO_3, *CONTROLS.rows))
    if key not in TABLES:
        raise ValueError(f"table {key!r} does not exist; the tables are {', '.join(map(str, TABLES))}, 'controls'")
    return TABLES[key]


def contrasts(size: str) -> tuple[Contrast, ...]:
    """What the controls of one size ("0.5M", "2M", "2.69M") compare; raises ValueError on another size.

    The first contrast is the published comparison; the next three are its steps, and their differences add up to it.
    """
    vits = {"0.5M": "ViT/0.5M", "2M": "ViT/2M", "2.69M": "ViT"}
    if size not in tuple(vits):  # of a tuple, because a list has no hash to be looked up by
        raise ValueError(f"size={size!r} is not one of {', '.join(map(repr, vits))}")
    vit, lkca = vits[size], f"{vits[size]}-LKCA"
    return (
        Contrast("everything", vit, lkca, "the published comparison"),
        Contrast("pooling", vit, f"{vit}-mean", "reading the mean of the tokens instead of a [class] token"),
        Contrast(
            "mixer",
            f"{vit}-mean",
            f"{lkca}-same",
            "LKCA instead of self-attention in a ViT that reads the mean, same width and depth, fewer parameters",
        ),
        Contrast("size", f"{lkca}-same", lkca, "the published width and depth instead of the ViT's, more parameters"),
        Contrast(
            "both mixers",
            f"{vit}-mean",
            f"{vit}-both",
            "LKCA added after self-attention in a ViT that reads the mean, more parameters",
        ),
        Contrast("as the text", vit, f"{vit}-both", "the text's model, with both mixers, instead of the ViT"),
        Contrast("reach", f"{lkca}-3x3", lkca, "a kernel over the whole image instead of 3 x 3"),
        Contrast("kernels, groups", lkca, f"{lkca}-heads", "a kernel for each group of channels"),
        Contrast("kernels, channels", lkca, f"{lkca}-channels", "a kernel for each channel"),
        Contrast("initialisation", lkca, f"{lkca}-random", "kernels that start at random instead of zero"),
    )


def control_rows(size: str) -> tuple[str, ...]:
    """The rows that the contrasts of a size compare, each once."""
    return tuple(dict.fromkeys(name for c in contrasts(size) for name in (c.before, c.after)))


def comparators_of(group: str) -> tuple[str, ...]:
    """The rows of a group of Table 5 that are no ViT and no LKCA; as released, none has LKCA's stochastic depth."""
    return tuple(name for name in TABLES[5].groups[group] if isinstance(row(name), Comparator))


def canonical(name: str) -> str:
    """The one name of a row, whichever of the paper's names it is called by; raises ValueError on what is no text."""
    if not isinstance(name, str):
        raise ValueError(f"row {name!r} is no name of a row; the rows are {', '.join((*ROWS, *comparators.ROWS))}")
    return ALIASES.get(name, name)


def row(name: str) -> Row | Comparator:
    """The settings of a row; raises ValueError naming the rows there are."""
    name = canonical(name)
    found = ROWS.get(name) or comparators.ROWS.get(name)
    if not found:
        raise ValueError(f"row {name!r} does not exist; the rows are {', '.join((*ROWS, *comparators.ROWS))}")
    return found


def step(name: str) -> int:
    """What a row's image sizes are multiples of; raises ValueError on an unknown row."""
    r = row(name)
    return comparators.FAMILIES[r.family].step if isinstance(r, Comparator) else GRID


def check_size(name: str, image_size: int, num_classes: int) -> None:
    """Raise ValueError unless a row can be built for images of so many pixels a side and for so many classes."""
    if image_size % step(name) or image_size <= 0:
        raise ValueError(f"image_size={image_size} does not suit {name}: use a multiple of {step(name)}")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is no number of classes: use 1 or more")


def build(
    name: str, *, image_size: int, num_classes: int, drop_path: float | None = None, form: str = "auto"
) -> nn.Module:
    """A freshly initialised model of row ``name``.

    Args:
        name: as in the paper's tables, e.g. "ViT/2M-LKCA".
        image_size: pixels a side, a multiple of 8: 32 and 64 in the paper, 8 for scikit-learn's digits. The rows of
            `lkca.models.comparators` need a multiple of 32, or 64.
        num_classes: outputs.
        drop_path: rate of stochastic depth in every block; None for the row's own.
        form: of LKCA, see `lkca.operator.lkca`.

    Returns:
        A module of (B, 3, image_size, image_size) and, for stochastic depth, (B, num_draws) -> (B, num_classes).

    Raises:
        ValueError: on a name that does not exist or a size that does not suit the row.
    """
    r = row(name)
    check_size(name, image_size, num_classes)
    if isinstance(r, Comparator):
        size = {"image_size": image_size, "num_classes": num_classes}
        return comparators.build(canonical(name), **size, drop_path=drop_path)
    return ViT(
        image_size=image_size,
        patch_size=image_size // GRID,
        num_classes=num_classes,
        dim=r.dim,
        depth=r.depth,
        heads=r.heads,
        mlp_ratio=r.mlp_ratio,
        mixer=r.mixer,
        pooling=r.pooling,
        drop_path=r.drop_path if drop_path is None else drop_path,
        kernels=r.kernels,
        kernel_size=r.kernel_size,
        kernel_init=r.kernel_init,
        form=form,
    )
