"""Tables 6 and 7 beside the ledger: sizes, the comparison, what the paper prints twice, and the runs of our own.

Only the protocols of the two tables, on ADE20K, stand beside the paper's numbers. The small rows of our own, on CamVid
or on digit scenes, have tables of their own under their own names, and no verdict about the paper.

The paper's mIoU is "in 10 high-score categories": the mean over the ten classes with the best IoU. It picks the classes
on the test set after the fact, so it is at least the mean over all, and much more where most classes fail; it always
stands beside the mean over all here.
"""

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import pandas as pd
import torch

from lkca.data import scenes
from lkca.ledger.protocols import ORIGIN, SEGMENTATION
from lkca.ledger.provenance import Number
from lkca.ledger.runs import MEASURES, SegmentationRecord, measures
from lkca.models import segmenters
from lkca.pages.tables import NOT_RUN
from lkca.published import FOLDER
from lkca.training import segmentation

DATASET = "ade20k"
SETTING = {"crop": 512, "num_classes": 150}  # what the columns were counted at


def selection(num_classes: int) -> str:
    """What the two mIoU columns are, and what the paper's selection leaves out of so many classes."""
    return (
        "mIoU is the mean over all classes that occur. mIoU, 10 best, is the paper's: the mean over the ten with "
        f"the highest IoU, chosen on the test set after training. Of {num_classes} classes it leaves out the "
        f"{num_classes - 10} that a model does worst."
    )


def published(table: int) -> pd.DataFrame:
    """The paper's numbers: ``row``, ``iterations``, ``aacc`` and ``miou`` in percent, sizes as printed."""
    file = FOLDER / f"table{table}.csv"
    frame = pd.read_csv(file, dtype={"params": str, "flops": str})
    frame.insert(0, "row", frame.backbone + "/" + frame.algorithm)
    return frame.drop(columns=["backbone", "algorithm"])


def of_cell(ledger: Sequence[SegmentationRecord], dataset: str, protocol: str, row: str) -> list[SegmentationRecord]:
    """The records of a cell under a protocol, by seed: those made with that protocol's present settings."""
    settings = (dataset, row, protocol, SEGMENTATION[protocol].hash)
    found = [r for r in ledger if (r.dataset, r.row, r.protocol, r.protocol_hash) == settings and not r.apart]
    return sorted(found, key=lambda r: r.seed)


def match(printed: tuple[str, str], counted: segmenters.Size) -> str:
    """How the printed sizes of a row relate to the counted ones."""
    if printed == counted.printed:
        return "equal"
    if tuple(text[:-1] for text in printed) == tuple(text[:-1] for text in counted.printed[::-1]):
        return "equal with the two columns swapped"
    cut = (f"{int(counted.params_paper / 1e4) / 100:.2f}M", counted.printed[1])
    return "equal when cut off, not rounded" if printed == cut else "not found"


def sizes(table: int) -> pd.DataFrame:
    """Printed sizes beside counted ones for each row of a table, at 512 px and 150 classes (strings)."""
    lines = {}
    for row, paper in published(table).groupby("row", sort=False).first().iterrows():
        counted = segmenters.count(row, **SETTING)
        printed = (paper.params, paper.flops)
        lines[row] = {
            ("paper", "params"): printed[0],
            ("paper", "FLOPs"): printed[1],
            ("counted here", "params"): counted.printed[0],
            ("counted here", "FLOPs"): counted.printed[1],
            ("", "printed and counted"): match(printed, counted),
        }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def findings(table: int) -> list[str]:
    """What the printed sizes tell of the rows beyond the text, a sentence or two each."""
    told: dict[str, list[str]] = {}
    for row in segmenters.TABLES[table]:
        r = segmenters.row(row)
        for text in r.findings:
            told.setdefault(text, []).append(row)
    return [f"{', '.join(rows)}: {text}" for text, rows in told.items()]


def patch_sizes() -> pd.DataFrame:
    """UPerNet's FLOPs on plain transformers at patch 32, as printed, and at patch 16, beside the pyramids (strings)."""
    lines, coarse = [], segmenters.count("LKCA-S/UPerNet", **SETTING).macs_paper
    for row in ("ViT-S/UPerNet", "LKCA-S/UPerNet", *segmenters.FAIR, "ResNet-50/UPerNet", "Twins_PCPVT-S/UPerNet",
                "Swin-S/UPerNet"):  # fmt: skip
        counted, r = segmenters.count(row, **SETTING), segmenters.row(row)
        plain = r.backbone in ("vit", "lkca")
        largest = 512 // r.patch_size * (4 if plain else 1)
        lines.append(
            {
                "row": row + (" (ours)" if row in segmenters.FAIR else ""),
                "patch": str(r.patch_size),
                "largest map decoded": f"{largest} x {largest}",
                "params": counted.printed[0],
                "FLOPs": f"{counted.macs_paper / 1e9:.1f}G",
                "over LKCA-S/UPerNet's": f"{counted.macs_paper / coarse:.1f}",
            }
        )
    return pd.DataFrame(lines, dtype=object)


def readings() -> pd.DataFrame:
    """The two readings of the LKCA block beside each other: different blocks, one size (strings)."""
    words = {True: "V and output projections, MLP ratio 3", False: "no projections, MLP ratio 4"}
    lines = []
    for decoder in ("UPerNet", "FPN"):
        for row in (f"LKCA-S/{decoder}", f"LKCA-S-bare/{decoder}"):
            c = segmenters.count(row, **SETTING)
            block = words[segmenters.row(row).projections]
            lines.append({"row": row, "block": block, "params": f"{c.params_paper:,}", "MACs": f"{c.macs_paper:,}"})
    return pd.DataFrame(lines, dtype=object)


def compare(table: int, ledger: Sequence[SegmentationRecord]) -> pd.DataFrame:
    """The table: paper beside ours at each iteration count, everything as shown (strings)."""
    protocol, lines = f"table{table}", []
    for paper in published(table).itertuples():
        runs = of_cell(ledger, DATASET, protocol, paper.row)
        points = [point for r in runs for point in r.curve if point.iteration == paper.iterations]
        lines.append(
            {
                ("", "row"): paper.row,
                ("", "iterations"): f"{paper.iterations:,}",
                ("paper", "aAcc"): f"{paper.aacc:.2f}",
                ("paper", "mIoU, 10 best"): f"{paper.miou:.2f}",
                **{
                    ("ours", name): _mean([getattr(point, key) for point in points], runs)
                    for name, key in (("aAcc", "aacc"), ("mIoU, 10 best", "miou10"), ("mIoU", "miou"))
                },
            }
        )
    frame = pd.DataFrame(lines, dtype=object)
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def _mean(values: Sequence[float], runs: Sequence[SegmentationRecord]) -> str:
    if not values:
        return NOT_RUN
    if len(values) == 1:
        return Number(f"{values[0]:.2f} (1 seed)", runs)
    return Number(f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} ({len(values)} seeds)", runs)


def inconsistencies(table: int) -> list[str]:
    """What the printed table says against its text or against itself, found in the transcribed numbers."""
    paper, found = published(table), []
    for iterations, lines in paper.groupby("iterations"):
        by_row = lines.set_index("row")
        for row, line in by_row.iterrows():
            vit = row.replace("LKCA", "ViT")
            if row.startswith("LKCA") and vit in by_row.index:
                behind = [name for name in ("aacc", "miou") if line[name] < by_row[name][vit]]
                found += [
                    f"At {iterations:,} iterations {row} has {MEASURES[name]} {line[name]:.2f} and {vit} "
                    f"{by_row[name][vit]:.2f}, though the text says that LKCA leads at every count."
                    for name in behind
                ]
    for (aacc, miou), lines in paper.groupby(["aacc", "miou"]):
        if len(lines) > 1:
            cells = " and ".join(f"{line.row} at {line.iterations:,} iterations" for line in lines.itertuples())
            found.append(f"{cells} have the same pair of numbers to the last digit, {aacc:.2f} and {miou:.2f}.")
    for row, line in paper.groupby("row").first().iterrows():
        how = match((line.params, line.flops), segmenters.count(row, **SETTING))
        if not how.startswith("equal") or "swapped" in how:
            found.append(f"{row} is printed with {line.params} and {line.flops}: {how}.")
    return found


def settings(*names: str) -> pd.DataFrame:
    """Every field of the protocols, and whether the tables' value is stated or assumed (strings)."""
    lines = []
    for f in ORIGIN:
        values = {name: _shown(getattr(SEGMENTATION[name], f)) for name in names}
        lines.append({"setting": f, **values, "": ORIGIN[f].split(":")[0]})
    return pd.DataFrame(lines, dtype=object)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return "all" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def origins() -> list[str]:
    """What "stated" and "assumed" mean for each setting, the same text once."""
    told: dict[str, list[str]] = {}
    for name, text in ORIGIN.items():
        told.setdefault(text, []).append(name)
    return [f"{', '.join(names)}: {text}." for text, names in told.items()]


def constant(r: SegmentationRecord) -> dict[str, float]:
    """What predicting the most frequent class everywhere would score on the test set of a record."""
    truth = np.array(r.truth)
    best = np.arange(len(truth)) == truth.argmax()
    return measures(np.where(best, truth, 0), np.where(best, truth.sum(), truth), truth)


def own(ledger: Sequence[SegmentationRecord], dataset: str, protocol: str = "reduced") -> pd.DataFrame:
    """The small rows on a data set of our own, and what guessing one class would score (strings)."""
    lines, known = [], None
    for row in segmenters.TINY:
        runs = of_cell(ledger, dataset, protocol, row)
        known = known or (runs[0] if runs else None)
        lines.append(
            {
                "row": row,
                "params": f"{runs[0].params / 1e6:.2f}M" if runs else "",
                "MACs": f"{runs[0].macs / 1e9:.2f}G" if runs else "",
                **{name: _mean([getattr(r, key) for r in runs], runs) for key, name in MEASURES.items()},
            }
        )
    if known:
        guess = {MEASURES[key]: f"{value:.2f}" for key, value in constant(known).items()}
        lines.append({"row": "the most frequent class everywhere", "params": "", "MACs": "", **guess})
    return pd.DataFrame(lines, dtype=object)


def difference(ledger: Sequence[SegmentationRecord], dataset: str, protocol: str = "reduced") -> pd.DataFrame:
    """LKCA - ViT of the small rows, paired by seed, with the range over seeds (strings)."""
    vit, lkca = ({r.seed: r for r in of_cell(ledger, dataset, protocol, row)} for row in segmenters.TINY)
    seeds, line = sorted(vit.keys() & lkca.keys()), {"LKCA − ViT": " − ".join(reversed(segmenters.TINY))}
    for key, name in MEASURES.items():
        deltas = [getattr(lkca[s], key) - getattr(vit[s], key) for s in seeds]
        seeded = f"{len(deltas)} seed{'s' * (len(deltas) != 1)}"
        spread = f" (from {min(deltas):+.2f} to {max(deltas):+.2f}, {seeded})" if deltas else ""
        both = [runs[s] for runs in (vit, lkca) for s in seeds]
        line[name] = Number(f"{np.mean(deltas):+.2f}{spread}", both) if deltas else NOT_RUN
    return pd.DataFrame([line], dtype=object)


def per_class(ledger: Sequence[SegmentationRecord], dataset: str, classes: Sequence[str]) -> pd.DataFrame:
    """IoU of each class in percent for the small rows, mean over seeds, and its share of the pixels (strings)."""
    runs = {row: of_cell(ledger, dataset, "reduced", row) for row in segmenters.TINY}
    lines = []
    for k, name in enumerate(classes):
        line, share = {"class": name}, ""
        for row, found in runs.items():
            iou = [100 * r.intersection[k] / r.union[k] for r in found if r.union[k]]
            shown = f"{np.mean(iou):.1f}" if iou else "–"  # a class that occurs nowhere has none, as in the mean
            line[row] = Number(shown, found) if found else NOT_RUN
            share = f"{100 * found[0].truth[k] / sum(found[0].truth):.2f}" if found else share
        lines.append(line | {"share of the pixels, %": share})
    return pd.DataFrame(lines, dtype=object)


def two_ways(ledger: Sequence[SegmentationRecord], dataset: str = "digit-scenes") -> pd.DataFrame:
    """The small rows' kept models tested by sliding window and on whole images, kernels resized (strings)."""
    lines, ds = [], scenes.load(dataset)
    resized = cache(segmenters.resized)  # once a size, not once a batch
    for row in segmenters.TINY:
        for run in of_cell(ledger, dataset, "reduced", row)[:1]:
            p, model = SEGMENTATION[run.protocol], segmentation.load(run)
            ways = {
                "sliding window": partial(segmentation.slide, model, crop=p.crop, stride=p.stride),
                "whole image": partial(segmentation.whole, model, resized=resized),
            }
            for way, scores in ways.items():
                found = measures(**segmentation.measure(scores, segmentation.subset(ds, p), torch.float32))
                shown = {MEASURES[key]: Number(f"{value:.2f}", [run]) for key, value in found.items()}
                lines.append({"row": row, "evaluated by": way} | shown)
    return pd.DataFrame(lines, columns=["row", "evaluated by", *MEASURES.values()], dtype=object)
