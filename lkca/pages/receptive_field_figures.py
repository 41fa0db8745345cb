"""The figures and tables of the chapter on receptive fields: fields, learned kernels, attention as a kernel.

Each draws what `lkca.studies.receptive_field` computes, and stands with its numbers (`lkca.pages.rendering.show`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from torch import Tensor

from lkca.data import images as data
from lkca.ledger.provenance import Number
from lkca.ledger.records import RESULTS
from lkca.ledger.runs import Record
from lkca.models import zoo
from lkca.models.vit import ViT
from lkca.operator import LKCA
from lkca.pages import rendering
from lkca.studies import receptive_field as rf
from lkca.studies import weights

COLOURS = ("#D55E00", "#0072B2", "#009E73")  # Okabe and Ito's vermillion, blue and green
DASHES = ("-", "-", "--")  # where two curves are one, both show
MOST = 10_000  # images at a time: as many as a test set has
THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
TOKENS = {"centre": (4, 4), "edge": (0, 4), "corner": (0, 0)}  # on the 8 x 8 grid
GRID = (zoo.GRID, zoo.GRID)
Models = Mapping[str, ViT]


def summary(vit: Record, lkca: Record, images: Tensor, results_root: Path = RESULTS) -> dict[str, float]:
    """The chapter in four numbers, for one pair.

    ``vit`` and ``lkca``: r(50 %) of the centre token, as shares of the image; ``radius`` of the most local kernel,
    against a flat one's; ``explained``: the share of the ViT's attention that a kernel explains (variance about
    uniform, mean over layers and heads).
    """
    models = [weights.model_of(record, trained=True, results_root=results_root) for record in (vit, lkca)]
    token, kernels = TOKENS["centre"], kernels_of(models[1])
    areas = [rf.curve(rf.shares(m, images, token), rf.centre(m, token), [0.5]).mean() for m in models]
    flat = rf.kernel_statistics(torch.ones_like(kernels[0]))["radius"]
    _, kernel = rf.explained(rf.attention_maps(models[0], images), GRID)
    least = min(rf.kernel_statistics(k)["radius"] for k in kernels) / flat
    return {"vit": float(areas[0]), "lkca": float(areas[1]), "radius": least, "explained": kernel.mean().item()}


def summaries(num_images: int, results_root: Path = RESULTS) -> pd.DataFrame:
    """`summary` of every kept pair on so many photographs, a line each (strings)."""
    lines = []
    for vit, lkca in weights.pairs(results_root):
        found = summary(vit, lkca, images_for(vit, num_images), results_root)
        lines.append(
            {
                "ViT": f"{vit.row}, {data.NAMES[vit.dataset]}, {vit.protocol}",
                "half of the gradient, ViT": Number(f"{100 * found['vit']:.1f} %", [vit]),
                "half of the gradient, its LKCA": Number(f"{100 * found['lkca']:.1f} %", [lkca]),
                "most local kernel": Number(f"{found['radius']:.2f}", [lkca]),
                "attention that a kernel explains": Number(f"{100 * found['explained']:.1f} %", [vit]),
            }
        )
    return pd.DataFrame(lines, dtype=object)


def images_for(record: Record, n: int, source: str = "photographs", data_root: Path = data.ROOT) -> Tensor:
    """Real images, normalised as the record's data set is: (n, 3, size, size).

    ``source`` is "photographs", see `lkca.data.images.photographs`, or "dataset" for the record's own test images.
    """
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST:
        raise ValueError(f"num_images={n!r} is not a whole number from 1 to {MOST:,}")
    if source == "photographs":
        images = data.photographs(n, record.image_size)
    elif source == "dataset":
        images = data.load(record.dataset, data_root).test_images[:n]
    else:
        raise ValueError(f"source={source!r} is not one of 'photographs', 'dataset'")
    mean, std = (torch.tensor(v)[:, None, None] for v in data.stats(record.dataset))
    return (images / 255 - mean) / std


class Field(NamedTuple):
    """One token's receptive field in one model: shares (B, X, Y), and where the token is centred, in pixels."""

    shares_BXY: np.ndarray
    at: tuple[float, float]


Fields = Mapping[tuple[str, str, str], Field]  # by token, state of training, and row


def fields(states: Mapping[str, Models], images: Tensor) -> Fields:
    """The fields of TOKENS in models by their state of training and their row, after all blocks."""
    return {
        (where, state, name): Field(rf.shares(model, images, token), rf.centre(model, token))
        for where, token in TOKENS.items()
        for state, models in states.items()
        for name, model in models.items()
    }


def fields_figure(found: Fields, *, log: bool) -> HTML:
    """Effective receptive fields on one colour scale: a row a model, a column one of TOKENS and a state of training."""
    maps = {(f"{where}, {state}", name): f.shares_BXY.mean(0) for (where, state, name), f in found.items()}
    titles, names = (list(dict.fromkeys(key[i] for key in maps)) for i in (0, 1))
    images = len(next(iter(found.values())).shares_BXY)
    top = max(m.max() for m in maps.values())
    low = top * 1e-4
    with rendering.style():
        figure = Figure(figsize=(1.7 * len(titles) + 1.2, 1.7 * len(names) + 0.3), layout="compressed")
        axes = figure.subplots(len(names), len(titles), squeeze=False)
        for (title, name), share in maps.items():
            ax = axes[names.index(name), titles.index(title)]
            shown = np.log10(np.maximum(share, low)) if log else share
            limits = (np.log10(low), np.log10(top)) if log else (0, top)
            image = ax.imshow(shown, cmap="viridis", vmin=limits[0], vmax=limits[1])
            ax.set_xticks([])
            ax.set_yticks([])
            if name == names[0]:
                ax.set_title(title, fontsize=10)
            if title == titles[0]:
                ax.set_ylabel(name, fontsize=10)
        label = "share of the gradient a pixel" + (", powers of ten" if log else "")
        figure.colorbar(image, ax=axes, shrink=0.6, label=label)
        caption = (
            f"Effective receptive fields, mean over {images} images, {'logarithmic' if log else 'linear'} scale, "
            f"the same for all panels{', its lowest colour for all that is less' if log else ''}. "
            f"Rows: {', '.join(names)}. Columns: {'; '.join(titles)}."
        )
        reached = {
            f"{name}, {title}": {
                "largest share of a pixel": f"{m.max():.4f}",
                "pixels above 1/100 of it": f"{100 * (m > m.max() / 100).mean():.0f} %",
            }
            for (title, name), m in maps.items()
        }
        return rendering.show(figure, caption, pd.DataFrame.from_dict(reached, orient="index"))


def _percents(thresholds: Sequence[float], ratios: Sequence[float] | np.ndarray) -> dict[str, str]:
    return {f"{100 * t:.0f} %": f"{100 * r:.1f}" for t, r in zip(thresholds, ratios, strict=True)}


def reach_table(found: Fields) -> pd.DataFrame:
    """r(t) in percent at THRESHOLDS, mean over images, for centre, edge and corner tokens (strings)."""
    lines = {
        (name, where, state): _percents(THRESHOLDS, rf.curve(*field, THRESHOLDS).mean(0))
        for (where, state, name), field in found.items()
    }
    order = list(dict.fromkeys(name for _, _, name in found))
    frame = pd.DataFrame.from_dict(lines, orient="index")
    return frame.loc[sorted(lines, key=lambda line: order.index(line[0]))]


def curve_figure(found: Fields, token: str = "centre") -> HTML:
    """r(t) of one of TOKENS, a curve a model and a panel a state: mean over images, with the middle 80 % of them."""
    thresholds = np.union1d(np.arange(5, 101, 5), 100 * np.array(THRESHOLDS)).round() / 100
    states, names = (list(dict.fromkeys(key[i] for key in found)) for i in (1, 2))
    images = len(next(iter(found.values())).shares_BXY)
    with rendering.style():
        figure = Figure(figsize=(3.1 * len(states), 3.2), layout="constrained")
        axes = figure.subplots(1, len(states), squeeze=False, sharey=True)[0]
        for ax, state in zip(axes, states, strict=True):
            for name, colour, dash in zip(names, COLOURS, DASHES, strict=False):
                r = 100 * rf.curve(*found[token, state, name], thresholds)
                low, high = np.percentile(r, (10, 90), axis=0)
                ax.plot(100 * thresholds, r.mean(0), color=colour, lw=1.8, ls=dash, label=name)
                ax.fill_between(100 * thresholds, low, high, color=colour, alpha=0.15, lw=0)
                marked = np.isin(thresholds, THRESHOLDS)
                ax.plot(100 * thresholds[marked], r.mean(0)[marked], "o", color=colour, ms=4)
            ax.set_title(state, loc="left", fontsize=11)
            ax.set_xlabel("share of the gradient held, %")
            ax.grid(alpha=0.15, color=rendering.INK)
        axes[0].set_ylabel("area of the square, % of the image")
        axes[0].legend(fontsize=9)
        caption = (
            f"How large a square around the {token} token must be to hold a share of its gradient, r(t). From left to "
            f"right: {', '.join(states)}. Mean over {images} images; the band is the middle 80 % of them, the dots are "
            f"the shares {', '.join(_percents(THRESHOLDS, THRESHOLDS))}. The data: other tokens as well."
        )
        return rendering.show(figure, caption, reach_table(found))


def reach_sentence(found: Fields, token: str = "centre", threshold: float = 0.5) -> str:
    """How large a square holds a share of a token's gradient after training, by model."""
    areas = [
        f"{100 * rf.curve(*field, [threshold]).mean():.1f} % for {name}"
        for (where, state, name), field in found.items()
        if (where, state) == (token, "trained")
    ]
    return (
        f"After training, {100 * threshold:.0f} % of the {token} token's gradient lies in a square of so much of the "
        f"image: {', '.join(areas)}."
    )


def depth_figure(models: Models, images: Tensor, token: tuple[int, int] = (4, 4), threshold: float = 0.5) -> HTML:
    """How the field grows from block to block: r at one threshold, with the middle 80 % of images."""
    lines = {}
    with rendering.style():
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        ax = figure.subplots()
        for (name, model), colour in zip(models.items(), COLOURS, strict=False):
            depths = range(len(model.blocks) + 1)
            r = [
                100 * rf.curve(rf.shares(model, images, token, d), rf.centre(model, token), [threshold])[:, 0]
                for d in depths
            ]
            low, high = np.percentile(r, (10, 90), axis=1)
            ax.plot(depths, np.mean(r, axis=1), "o-", color=colour, lw=1.8, label=name)
            ax.fill_between(depths, low, high, color=colour, alpha=0.15, lw=0)
            lines[name] = {f"{d} blocks": f"{np.mean(v):.1f}" for d, v in zip(depths, r, strict=True)}
        ax.set_xlabel("blocks")
        ax.set_ylabel(f"r({100 * threshold:.0f} %), % of the image")
        ax.grid(alpha=0.15, color=rendering.INK)
        ax.legend(fontsize=9)
        caption = (
            f"Area of the square around the centre token that holds {100 * threshold:.0f} % of its gradient, after "
            f"each block, trained. Mean over {len(images)} images; the band is the middle 80 % of them."
        )
        return rendering.show(figure, caption, pd.DataFrame(lines).T.fillna(""))


def kernels_of(model: ViT) -> list[Tensor]:
    """The kernel of every LKCA layer, from the first block to the last."""
    return [m.kernel.detach() for m in model.modules() if isinstance(m, LKCA)]


def _mosaic(panels: Sequence[Sequence[Tensor]], titles: Sequence[Sequence[str]], width: float) -> Figure:
    """Kernels on one diverging scale, symmetric about zero."""
    rows, columns = len(panels), max(len(row) for row in panels)
    figure = Figure(figsize=(width, width * 0.86 * rows / columns + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    top = max(k.abs().max().item() for row in panels for k in row)
    for ax in axes.flat:
        ax.set_axis_off()
    for line, row, names in zip(axes, panels, titles, strict=True):
        for ax, kernel, name in zip(line, row, names, strict=False):
            image = ax.imshow(kernel, cmap="PuOr", vmin=-top, vmax=top)
            ax.set_title(name, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.7)
    return figure


def kernels_figure(model: ViT) -> HTML:
    """The learned kernel of every layer on one scale, with its statistics as data."""
    kernels = kernels_of(model)
    half = -(-len(kernels) // 2)
    flat = rf.kernel_statistics(torch.ones_like(kernels[0]))["radius"]
    statistics = {
        f"layer {i}": {name: f"{value:+.2f}" if name in ("down", "right") else f"{value:.2f}"
                       for name, value in rf.kernel_statistics(k).items()}
        for i, k in enumerate(kernels, 1)
    }  # fmt: skip
    with rendering.style():
        names = [f"layer {i}" for i in range(1, len(kernels) + 1)]
        figure = _mosaic([kernels[:half], kernels[half:]], [names[:half], names[half:]], 8)
        caption = (
            "The learned kernel of every LKCA layer. The middle of a panel is the token itself, a point above it a "
            "token that lies above. Purple is positive, orange negative, on one scale. The data: centre of mass and "
            f"radius in tokens (a flat kernel's radius is {flat:.2f}), the share of the energy that a rotation by 180 "
            "degrees keeps (0.50 for noise), and the norm."
        )
        return rendering.show(figure, caption, pd.DataFrame.from_dict(statistics, orient="index"))


def kernels_sentence(model: ViT) -> str:
    """How local the learned kernels are: radius against a flat kernel's, and where their largest weights are."""
    kernels = kernels_of(model)
    flat = rf.kernel_statistics(torch.ones_like(kernels[0]))["radius"]
    radii = [rf.kernel_statistics(k)["radius"] for k in kernels]
    rows, columns = kernels[0].shape
    tops = [divmod(int(k.abs().argmax()), columns) for k in kernels]
    rim = sum(min(r, rows - 1 - r, c, columns - 1 - c) <= 1 for r, c in tops)
    return (
        f"Layers whose weights lie farther from the middle than a flat kernel's ({flat:.2f} tokens): "
        f"{sum(radius > flat for radius in radii)} of {len(kernels)}; the nearest has {min(radii):.2f}. Layers with "
        f"their largest weight at the rim or next to it, where a weight serves few pairs of tokens: {rim}."
    )


def attention_figure(model: ViT, images: Tensor) -> HTML:
    """ViT's mean attention by offset from query to key, a panel a layer and head, above the uniform attention."""
    scores = rf.attention_maps(model, images)
    kernels = rf.toeplitz_fit(scores.mean(2), GRID) * zoo.GRID**2  # 1 is uniform
    logs = kernels.clamp_min(2**-6).log2()
    shares = explained_table(scores)
    with rendering.style():
        names = [[f"layer {i + 1}, head {j + 1}" for j in range(len(row))] for i, row in enumerate(kernels)]
        figure = _mosaic([list(row) for row in logs], names, 8)
        caption = (
            f"ViT's mean attention over {len(images)} images as a function of the offset from query to "
            "key: the kernel that would give it. In powers of two of the uniform attention: purple is more than it, "
            "orange less. The data: the share of the attention that this kernel explains, of the share that any fixed "
            "matrix explains."
        )
        return rendering.show(figure, caption, shares)


def explained_table(scores: Tensor) -> pd.DataFrame:
    """By layer and head, the share of the trained attention that a fixed matrix explains, and that a kernel does."""
    fixed, kernel = rf.explained(scores, GRID)
    lines = {
        f"layer {i}": {
            f"head {j}": f"{100 * k:.0f} % of {100 * f:.0f} %" for j, (f, k) in enumerate(zip(fs, ks, strict=True), 1)
        }
        for i, (fs, ks) in enumerate(zip(fixed.tolist(), kernel.tolist(), strict=True), 1)
    }
    return pd.DataFrame.from_dict(lines, orient="index")


def explained_sentence(run: Record, model: ViT, images: Tensor) -> str:
    """The two shares of `rf.explained`, mean over layers and heads, in words."""
    fixed, kernel = (100 * share.mean().item() for share in rf.explained(rf.attention_maps(model, images), GRID))
    return (
        f"In one {run.row} ({run.protocol}, seed {run.seed}), of how its attention differs from uniform {fixed:.1f} % "
        f"is the same for every image, and {kernel:.1f} % is the same for every image and every place (variance, mean "
        f"over layers and heads). LKCA, with one kernel for all heads, could express no more than the {kernel:.1f} %."
    )
