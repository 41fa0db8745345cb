"""The figures and tables of the chapter on the equivalence: what `lkca.operator` claims, in numbers."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lkca.models import complexity
from lkca.operator import FORMS, attention_matrix, lkca
from lkca.pages import rendering, speed

COLOURS = dict(zip(FORMS, ("#0072B2", "#D55E00", "#009E73"), strict=True))  # Okabe and Ito's
TYPES = (torch.float64, torch.float32, torch.bfloat16)
Grid = tuple[int, int]


def _drawn(grid: Grid, images: int = 4, dim: int = 16) -> tuple[Tensor, Tensor]:
    g, (h, w) = torch.Generator().manual_seed(0), grid
    v = torch.randn(images, h * w, dim, generator=g, dtype=torch.float64)
    return v, torch.randn(2 * h - 1, 2 * w - 1, generator=g, dtype=torch.float64)


def sliding_figure(kernel: Tensor, grid: Grid) -> HTML:
    """The interactive figure: one token's window on the kernel, its row of the matrix, its footprint on the image.

    ``kernel`` is (2h-1, 2w-1); the matrix it shows is `attention_matrix`'s. It needs nothing but a browser.
    """
    template = (Path(__file__).parent / "sliding.html").read_text(encoding="utf-8")
    top = kernel.abs().max()
    numbers = {
        "grid": grid,
        "kernel": (kernel / top).round(decimals=3).tolist(),
        "matrix": (attention_matrix(kernel, grid) / top).round(decimals=3).tolist(),
    }
    return HTML(template.replace("/*NUMBERS*/", json.dumps(numbers, separators=(",", ":"))))


def windows_figure(grid: Grid = (3, 3)) -> HTML:
    """Three tokens, the window that each owns on the kernel, and the row that the window is in the score matrix.

    The kernel's numbers are those of its cells, read row by row: the matrix is `attention_matrix`'s.
    """
    h, w = grid
    tokens = (0, 0), (h // 2, w // 2), (h - 1, w - 1)
    kernel = torch.arange((2 * h - 1) * (2 * w - 1), dtype=torch.float64).reshape(2 * h - 1, 2 * w - 1)
    panels = {"tokens": torch.full(grid, torch.nan), "kernel": kernel, "score matrix": attention_matrix(kernel, grid)}
    corners = {  # of the three boxes in each panel: top, left, height, width
        "tokens": lambda r, c: (r, c, 1, 1),
        "kernel": lambda r, c: (h - 1 - r, w - 1 - c, h, w),
        "score matrix": lambda r, c: (r * w + c, 0, 1, h * w),
    }
    with rendering.style():
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        axes = figure.subplots(1, 3, width_ratios=[2.2, 4, 7])
        for ax, (name, values) in zip(axes, panels.items(), strict=True):
            ax.imshow(values.numpy(), cmap="cividis", alpha=0.55)
            ax.set_title(name, fontsize=11)
            ax.set_xticks(np.arange(values.shape[1] + 1) - 0.5, [])
            ax.set_yticks(np.arange(values.shape[0] + 1) - 0.5, [])
            ax.tick_params(length=0)
            ax.grid(color=rendering.INK, lw=0.4, alpha=0.4)
            for i, j in itertools.product(*map(range, values.shape)):
                if name != "tokens":
                    ax.text(j, i, f"{int(values[i, j]) + 1}", ha="center", va="center", fontsize=7.5)
            for colour, (r, c) in zip(COLOURS.values(), tokens, strict=True):
                top, left, height, width = corners[name](r, c)
                box = Rectangle(
                    (left - 0.5, top - 0.5), width, height, ec=colour, lw=3, fill=name == "tokens", fc=colour
                )
                ax.add_patch(box)
        caption = (
            f"A convolution as an attention, on {h} × {w} tokens. Each token owns a {h} × {w} window of the "
            f"{2 * h - 1} × {2 * w - 1} kernel (blue: the first token, orange: another, green: the last). Flattened, "
            "that window is the token's row of the score matrix. As the token moves right and down, its window moves "
            "left and up."
        )
        return rendering.show(figure, caption)


def agreement_table(grids: Sequence[Grid]) -> pd.DataFrame:
    """Each form in each precision against the matrix form in double: largest error over largest output (strings)."""
    lines = {}
    for grid in grids:
        v, kernel = _drawn(grid)
        exact = lkca(v, kernel, grid, "matrix")
        for form in FORMS:
            errors = {t: _error(lkca(v.to(t), kernel.to(t), grid, form), exact) for t in TYPES}
            words = {str(t).removeprefix("torch."): f"{error:.0e}" for t, error in errors.items()}
            if form == "matrix":
                words["float64"] = "the reference"
            lines[f"{grid[0]} × {grid[1]}", form] = words
    return pd.DataFrame.from_dict(lines, orient="index")


def _error(out: Tensor, exact: Tensor) -> float:
    return ((out.double() - exact).abs().max() / exact.abs().max()).item()


def counts_table(sides: Sequence[int]) -> pd.DataFrame:
    """Entries of the score matrix, how many different numbers they are, its rank, and taps for each useful one."""
    lines = {}
    for n in sides:
        matrix = attention_matrix(_drawn((n, n))[1], (n, n))
        lines[f"{n} × {n}"] = {
            "entries": f"{matrix.numel():,}",
            "different": f"{len(matrix.unique()):,}",
            "rank": f"{torch.linalg.matrix_rank(matrix).item():,}",
            "taps / useful taps": f"{(2 * n - 1) ** 2 / n**2:.2f}",
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def walks(grid: Grid) -> dict[str, list[tuple[int, int]]]:
    """The eight ways to visit all windows of a kernel line by line: corners (row, column) in order, by name."""
    h, w = grid
    found = {}
    for up, leftward, by_rows in itertools.product((True, False), (True, False), (True, False)):
        rows, columns = (list(range(side))[:: -1 if back else 1] for side, back in ((h, up), (w, leftward)))
        corners = [(r, c) for r in rows for c in columns] if by_rows else [(r, c) for c in columns for r in rows]
        ends = (
            f"{'bottom' if row == h - 1 else 'top'} {'right' if column == w - 1 else 'left'}"
            for row, column in (corners[0], corners[-1])
        )
        name = " to ".join(ends)
        found[f"{name}, by {'rows' if by_rows else 'columns'}"] = corners
    return found


def walks_table(grid: Grid) -> pd.DataFrame:
    """What each walk's matrix computes: how far from the convolution, and what it does to its output (strings).

    The grid must be square, so that transposing keeps it.
    """
    (h, w), (v, kernel) = grid, _drawn(grid)
    exact = lkca(v, kernel, grid, "conv").unflatten(1, grid)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "the convolution": lambda x: x,
        "flipped left to right": lambda x: x.flip(2),
        "flipped top to bottom": lambda x: x.flip(1),
        "turned by 180°": lambda x: x.flip(1, 2),
        "transposed": lambda x: x.transpose(1, 2),
        "turned by 90°": lambda x: x.transpose(1, 2).flip(2),
        "turned by 270°": lambda x: x.transpose(1, 2).flip(1),
        "transposed the other way": lambda x: x.transpose(1, 2).flip(1, 2),
    }
    lines = {}
    for name, corners in walks(grid).items():
        scores = torch.stack([kernel[r : r + h, c : c + w].flatten() for r, c in corners])
        out = (scores @ v).unflatten(1, grid)
        (what,) = [change for change, f in changes.items() if _error(out, f(exact)) < 1e-12]
        lines[name] = {"difference from the convolution": f"{_error(out, exact):.0e}", "its output is": what}
    return pd.DataFrame.from_dict(lines, orient="index")


def mixers_table(dim: int, heads: int, grids: Sequence[Grid]) -> pd.DataFrame:
    """What the token mixers cost, measured by running them (`complexity.measured`), as text."""
    lines = {}
    for grid in grids:
        for name, layer in complexity.mixers(dim, heads, grid).items():
            cost = complexity.measured(layer, dim, grid)
            lines[f"{grid[0]} × {grid[1]}", name] = {
                "parameters": f"{cost['params']:,}",
                "MACs, millions": f"{cost['macs'] / 1e6:.2f}",
                "kept for backward, KiB": f"{cost['bytes'] / 1024:.0f}",
            }
    return pd.DataFrame.from_dict(lines, orient="index")


def macs_table(vit: str = "ViT", lkca_row: str = "ViT-LKCA") -> pd.DataFrame:
    """MACs of a pair of rows under three ways to count, and their ratio, as text."""
    a, b = (complexity.count(row, **complexity.PRINTED_SETTING) for row in (vit, lkca_row))
    ways = {
        "as printed: LKCA's convolution, scores and values left out": "macs_paper",
        "as printed, plus all products, every tap, as the released code runs": "macs_all_taps",
        "as printed, plus all products, taps inside the image": "macs",
    }
    return pd.DataFrame(
        {
            "counted": way,
            vit: f"{getattr(a, field) / 1e6:.2f}M",
            lkca_row: f"{getattr(b, field) / 1e6:.2f}M",
            "ratio": f"{getattr(b, field) / getattr(a, field):.3f}",
        }
        for way, field in ways.items()
    )


def forms_figure(machine: dict) -> HTML:
    """Measured time of the three forms against the grid's side, for one machine of `lkca.studies.benchmark`."""
    with rendering.style():
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        ax = figure.subplots()
        for form in FORMS:
            taken = [f for f in machine["forms"] if f["form"] == form and f["ms"]]
            microseconds = [1000 * f["ms"] / f["images"] / f["n"] ** 2 for f in taken]
            ax.plot([f["n"] for f in taken], microseconds, "o-", color=COLOURS[form], lw=1.8, label=form)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        sides = [n for n in sorted({f["n"] for f in machine["forms"]}) if n not in (20, 28)]
        ax.set_xticks(sides, [str(n) for n in sides])
        ax.minorticks_off()
        ax.set_xlabel("tokens a side")
        ax.set_ylabel("µs a token")
        ax.grid(alpha=0.15, color=rendering.INK)
        ax.legend(fontsize=9)
        frame = speed.forms_table(machine)
        slower = [int(times) for times in frame["conv / fastest"] if times]
        convolution = (
            f"takes {min(slower)} to {max(slower)} times as long as the fastest"
            if slower
            else "is refused at all sides"
        )
        won = {form: ", ".join(g.split()[0] for g in frame.grid[frame.fastest == form]) or "none" for form in FORMS}
        caption = (
            f"Forward and backward time of LKCA's forms for one token, 192 channels, float32, {machine['device']}. "
            f"Sides at which each is fastest: {'; '.join(f'{form} {sides}' for form, sides in won.items())}. The "
            f"convolution {convolution}."
        )
        return rendering.show(figure, caption, frame)
