"""How the book shows segmentation: curves over iterations, and predictions pictured beside the truth."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from lkca.data import scenes
from lkca.ledger import records
from lkca.ledger.protocols import SEGMENTATION
from lkca.ledger.runs import SegmentationRecord
from lkca.models import segmenters
from lkca.pages import segmentation_tables as tables
from lkca.pages.rendering import INK, LKCA, VIT, show, style
from lkca.training import segmentation

PICTURES = records.RESULTS / "predictions"
_COLOURS = ("#4D4D4D", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999933",
            "#882255", "#44AA99")  # fmt: skip
_VOID = (255, 255, 255)
_MARKS = {"vit": (VIT, "o"), "lkca": (LKCA, "s"), "resnet50": ("#009E73", "^"), "swin": ("#CC79A7", "v"),
          "twins": ("#E69F00", "D")}  # fmt: skip


def curves(table: int, ledger: Sequence[SegmentationRecord]) -> HTML:
    """aAcc and mIoU of the ten best classes over iterations: the paper's points dashed, ours whole where run."""
    paper = tables.published(table)
    with style():
        figure = Figure(figsize=(6.2, 6.8), layout="constrained")
        for ax, key, ours, label in zip(
            figure.subplots(2, 1), ("aacc", "miou"), ("aacc", "miou10"), ("aAcc, %", "mIoU, 10 best, %"), strict=True
        ):
            for row, lines in paper.groupby("row", sort=False):
                r = segmenters.row(row)
                colour, marker = _MARKS[r.backbone]
                fill = {"upernet": colour, "fpn": "none"}[r.decoder]
                ax.plot(lines.iterations, lines[key], ls="--", color=colour, marker=marker, mfc=fill, label=row, lw=1.4)
                points = [p for run in tables.of_cell(ledger, tables.DATASET, f"table{table}", row) for p in run.curve]
                mean = pd.DataFrame([(p.iteration, getattr(p, ours)) for p in points], columns=["at", "value"])
                mean = mean.groupby("at").value.mean()
                ax.plot(mean.index, mean, color=colour, marker=marker, mfc=fill, lw=2.2)
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted(set(paper.iterations)), [f"{n:,}" for n in sorted(set(paper.iterations))])
            ax.minorticks_off()
            ax.set_xlabel("iterations")
            ax.set_ylabel(label)
            ax.grid(axis="y", alpha=0.15, color=INK)
        figure.legend(*ax.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
        last = paper[paper.iterations == paper.iterations.max()]
        words = "; ".join(f"{line.row} {line.aacc:.2f} and {line.miou:.2f}" for line in last.itertuples())
        run = sum(bool(tables.of_cell(ledger, tables.DATASET, f"table{table}", row)) for row in set(paper.row))
        caption = (
            f"Table {table} over iterations, the paper's numbers dashed. At {paper.iterations.max():,} iterations, "
            f"aAcc and mIoU of the ten best classes: {words}. Of its {paper.row.nunique()} rows, {run or 'none'} "
            f"{'has' if run == 1 else 'have'} been run here in full."
        )
        return show(figure, caption)


def own_curves(ledger: Sequence[SegmentationRecord], dataset: str, protocol: str = "reduced") -> HTML:
    """mIoU of the small rows over iterations, a line a seed, and what guessing one class would score."""
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        ax, words, known = figure.subplots(), [], None
        for row in segmenters.TINY:
            colour, marker = _MARKS[segmenters.row(row).backbone]
            runs = tables.of_cell(ledger, dataset, protocol, row)
            for i, run in enumerate(runs):
                at, value = zip(*((p.iteration, p.miou) for p in run.curve), strict=True)
                ax.plot(at, value, color=colour, marker=marker, lw=1.6, label=row if i == 0 else None)
            known = known or (runs[0] if runs else None)
            ends = [run.miou for run in runs]
            words.append(f"{row} ends at {', '.join(f'{v:.1f}' for v in ends)}" if ends else f"{row} has not been run")
        if known:
            guess = tables.constant(known)["miou"]
            ax.axhline(guess, color=INK, lw=1, ls=":")
            words.append(f"predicting the most frequent class everywhere scores {guess:.1f}")
            ax.legend(fontsize=9, loc="center right")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("iterations")
        ax.set_ylabel("mIoU, %")
        ax.grid(axis="y", alpha=0.15, color=INK)
        return show(figure, f"mIoU on {dataset} over iterations under {protocol}, a line a seed: {'; '.join(words)}.")


def predict(model: segmenters.Segmenter, run: SegmentationRecord, pictures: scenes.Pictures) -> list[np.ndarray]:
    """What a run's model makes of pictures, by sliding window: labels (H, W) of each."""
    p = SEGMENTATION[run.protocol]
    found: dict[int, np.ndarray] = {}

    def scores(x: torch.Tensor) -> torch.Tensor:
        return segmentation.slide(model, x, p.crop, p.stride)

    with torch.no_grad():
        for members, labels in segmentation.predictions(scores, pictures, p.short_side, torch.float32):
            found |= dict(zip(members, labels.byte().numpy(), strict=True))
    return [found[i] for i in range(len(pictures))]


def _png(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _coloured(labels: np.ndarray) -> Image.Image:
    """Labels as a picture with a palette; what does not count is white."""
    image = Image.fromarray(labels, mode="P")
    rgb = [int(colour[i : i + 2], 16) for colour in _COLOURS for i in (1, 3, 5)]
    image.putpalette(rgb + list(_VOID) * (256 - len(_COLOURS)))
    return image


def _gallery(columns: dict[str, list[Image.Image]], classes: Sequence[str], caption: str, beside: str) -> HTML:
    """Pictures in columns with names, any two of one line laid on each other with a border that moves.

    It opens with the columns "truth" and ``beside``. The classes' colours stand below, and every picture has words.
    It needs nothing but a browser.
    """
    rows = f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in columns)}</tr>"
    for i in range(len(next(iter(columns.values()), []))):
        cells = ((_png(images[i]), f"{html.escape(name)}, picture {i + 1}") for name, images in columns.items())
        rows += "<tr>" + "".join(f'<td><img src="{png}" alt="{alt}"></td>' for png, alt in cells) + "</tr>"
    square = "display:inline-block;width:.8em;height:.8em"
    key = " ".join(
        f'<span style="white-space:nowrap"><span style="background:{colour};{square}"></span> '
        f"{html.escape(name)}</span>"
        for name, colour in zip(classes, _COLOURS, strict=True)
    )
    page = (Path(__file__).parent / "comparing.html").read_text(encoding="utf-8")
    for place, text in (
        ("beside", html.escape(beside)),
        ("caption", html.escape(caption)),
        ("key", key),
        ("gallery", rows),
    ):
        page = page.replace(f"{{{{{place}}}}}", text)
    return HTML(page)


def digit_pictures(ledger: Sequence[SegmentationRecord], numbers: Sequence[int] = (0, 1, 2, 3)) -> HTML:
    """Test scenes of digits, their truth, and what the small rows' kept models make of them now."""
    ds = scenes.load("digit-scenes")
    shown = [int(i) for i in numbers]
    columns = {
        "scene": [Image.fromarray(ds.test.image(i).permute(1, 2, 0).numpy()) for i in shown],
        "truth": [_coloured(ds.test.label(i).numpy()) for i in shown],
    }
    for row in segmenters.TINY:
        for run in tables.of_cell(ledger, ds.name, "reduced", row)[:1]:
            found = predict(segmentation.load(run), run, ds.test.first(max(shown) + 1))
            columns[f"{row}, mIoU {run.miou:.1f}"] = [_coloured(found[i]) for i in shown]
    caption = (
        f"Scenes from the test set with their truth, and the predictions of {', '.join(list(columns)[2:]) or 'none'}."
    )
    return _gallery(columns, ds.classes, caption, "scene")


def keep_predictions(
    run: SegmentationRecord, ds: scenes.Scenes, numbers: Sequence[int], folder: Path = PICTURES
) -> None:
    """Write the truth and a run's predictions of some test pictures as small label maps; no image of the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    part = ds.test.pick(numbers)
    found = predict(segmentation.load(run), run, part)
    for i, number in enumerate(numbers):
        for name, labels in (
            ("truth", part.label(i).numpy()),
            (f"{run.row.replace('/', '_')}-seed{run.seed}", found[i]),
        ):
            _coloured(labels[::2, ::2]).save(folder / f"{ds.name}--{number}--{name}.png", optimize=True)


def kept_pictures(dataset: str, classes: Sequence[str], folder: Path = PICTURES) -> HTML:
    """The label maps of `keep_predictions`: the truth and what the small rows made of it."""
    columns: dict[str, list[Image.Image]] = {}
    stem = f"{dataset}--"
    for file in sorted(folder.glob(f"{stem}*.png"), key=lambda file: (int(file.name.split("--")[1]), file.name)):
        part = file.stem.split("--")[2]
        row, _, seed = part.rpartition("-seed")
        columns.setdefault(f"{row.replace('_', '/')}, seed {seed}" if row else part, []).append(Image.open(file))
    columns = {
        name: columns[name] for name in sorted(columns, key=lambda name: (name != "truth", "LKCA" in name, name))
    }
    caption = (
        f"Label maps of {len(columns.get('truth', []))} test images of {dataset}: the truth, white where it does not "
        f"count, and the predictions of {' and '.join(list(columns)[1:]) or 'none'}. The images themselves are not "
        "ours to show."
    )
    return _gallery(columns, classes, caption, list(columns)[-1] if columns else "")
