"""What the paper says and what was found: its claims with their verdicts, and the findings in sentences.

Every sentence that holds a measured number is made here from the ledger, by the rules of `lkca.tables` and
`lkca.intervals`, so that the front page and the pages of the tables and controls cannot say more than was measured.
"""

import re
from collections.abc import Sequence

import pandas as pd

from lkca import records, segmentation_tables, tables, zoo
from lkca.intervals import Difference, paired
from lkca.protocols import PROTOCOLS
from lkca.records import Record, SegmentationRecord
from lkca.tables import FULL, NOT_RUN, SHOWN, VERDICTS

PLURAL = {
    "holds": "hold",
    "holds in part": "hold in part",
    "does not hold": "do not hold",
    "undecided": "are undecided",
    "mixed": "hold for some comparisons only",
    NOT_RUN: "wait for runs",
    "not examined": "are not examined",
}
PAIRED = (1, 2, 3)  # of pairs: a ViT and the ViT-LKCA of its size
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "tiny-imagenet": "Tiny-ImageNet"}


def claims(ledger: Sequence[Record]) -> pd.DataFrame:
    """Each claim of the paper with its verdict: by its proof as written down, or by the ledger where it is of a table.

    Columns ``where``, ``quote``, ``basis``, ``verdict``, ``evidence`` and ``link`` (a page of the book, without its
    ending, or nothing), as text. The basis of a claim that the ledger judges is the comparisons it is about, see
    `verdict`; without a run of them the verdict is "not run".
    """
    frame = pd.read_csv(records.RESULTS / "paper" / "claims.csv", dtype=str, keep_default_na=False)
    of_ledger = frame.basis.str.startswith("table ")
    frame.loc[of_ledger, "verdict"] = [verdict(basis, ledger) for basis in frame.basis[of_ledger]]
    return frame


def verdict(basis: str, ledger: Sequence[Record]) -> str:
    """The verdict over the comparisons that a claim is about, in words; raises ValueError if it names none.

    Args:
        basis: "table 1, 2" is all comparisons of these tables. " at ViT/1M and ViT/2M" leaves only these pairs, or
            groups of Tables 4 and 5; " against CaiT-S and Swin-S" only these rivals in a group; " on svhn" only this
            data set.
        ledger: the records.
    """
    parts = re.fullmatch(r"table ([\d, ]+)(?: at (.+?))?(?: against (.+?))?(?: on (.+))?", basis)
    if not parts:
        raise ValueError(f"{basis!r} names no comparisons; write it like 'table 4 at S against CaiT-S on cifar10'")
    at, against, on = (part.split(" and ") if part else () for part in parts.groups()[1:])
    found = []
    for t in (int(number) for number in parts[1].split(", ")):
        spec = zoo.TABLES[t]
        for dataset in on or spec.datasets:
            groups = [group for group in spec.groups if group in at or not at]
            found += [tables.group_verdict(t, ledger, group, dataset, against) for group in groups]
            found += [tables.verdict(t, ledger, *pair) for pair in tables.pairs(t) if pair[0] in at or not at]
    if at and not found:
        raise ValueError(f"{basis!r} names no comparisons: there is no {' or '.join(at)}")
    counted = {word: found.count(word) for word in VERDICTS if word in found}
    if set(counted) <= {NOT_RUN}:
        return NOT_RUN
    if len(counted) == 1:
        return next(iter(counted))
    return ", ".join(f"{word} for {n} of {len(found)}" for word, n in counted.items())


def counts(frame: pd.DataFrame) -> dict[str, int]:
    """How many of `claims` have each verdict; one that differs by comparison is "mixed"."""
    found = [verdict if verdict in PLURAL else "mixed" for verdict in frame.verdict]
    return {verdict: found.count(verdict) for verdict in PLURAL if verdict in found}


def board(ledger: Sequence[Record]) -> pd.DataFrame:
    """The status of each table: cells run under a full protocol, verdicts on its comparisons, cells sketched (counts).

    A comparison is a pair, in Tables 4 and 5 a group.
    """
    lines = {}
    for t, dataset in [(table, name) for table in zoo.TABLES for name in zoo.TABLES[table].datasets]:
        found = tables.verdicts(t, ledger, dataset)
        full = {r.row for p in FULL for r in tables.select(t, ledger, p, dataset=dataset)}
        lines[f"Table {t}, {NAMES[dataset]}"] = {
            "rows": len(zoo.TABLES[t].rows),
            "rows run in full": len(full),
            "comparisons": len(found),
            **{word: found.count(word) for word in VERDICTS},
            "rows sketched": len({r.row for r in tables.select(t, ledger, "sketch", dataset=dataset)}),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def gaps(ledger: Sequence[Record]) -> pd.DataFrame:
    """LKCA - ViT of every pair of Tables 1-3, as the paper prints it and as measured.

    Columns ``dataset``, ``size``, ``paper`` (points), ``full`` and ``sketch`` (each a `Difference` or None).
    """
    lines = []
    for t in PAIRED:
        paper = tables.published(t).top1
        for vit, lkca in tables.pairs(t):
            found = {p: tables.difference(t, ledger, p, vit, lkca) for p in SHOWN}
            line = {"dataset": NAMES[zoo.TABLES[t].dataset], "size": vit.partition("/")[2] or "2.69M"}
            line["paper"] = paper[lkca] - paper[vit]
            line["full"] = next((found[p] for p in FULL if found[p]), None)
            lines.append(line | {"sketch": found["sketch"]})
    return pd.DataFrame(lines)


def gap_sentence(ledger: Sequence[Record]) -> str:
    """Who is ahead in the pairs of Tables 1-3, and by how much, in full runs and in short ones."""
    frame, sentences = gaps(ledger), []
    for key, where in (("full", "In full"), ("sketch", "In short runs")):
        found = [(paper, d) for paper, d in zip(frame.paper, frame[key], strict=True) if d]
        if not found:
            sentences.append(f"{where}, none of the {len(frame)} pairs of Tables 1–3 has been run.")
            continue
        ahead, behind, undecided = ([d.sign for _, d in found].count(sign) or "none" for sign in (1, -1, 0))
        sentences.append(
            f"{where}, {len(found)} of the {len(frame)} pairs of Tables 1–3: ViT-LKCA is ahead of its ViT in {ahead}, "
            f"behind in {behind}, undecided in {undecided}. The differences are {_range([d.mean for _, d in found])} "
            f"points, where the paper prints {_range([paper for paper, _ in found])}."
        )
    return " ".join(sentences)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):+.2f}", f"{max(values):+.2f}"
    return low if low == high else f"from {low} to {high}"


def contrasts(ledger: Sequence[Record], dataset: str, size: str) -> dict[str, tuple[str, Difference]]:
    """The contrasts of a size that have been run on a data set: the fullest protocol of each, and the effect."""
    found = {}
    for c in zoo.contrasts(size):
        for protocol in reversed(SHOWN):  # the fullest last, so that it stays
            d = paired(*tables.cells(ledger, dataset, protocol, c))
            found |= {c.change: (protocol, d)} if d else {}
    return found


def contrast_sentences(ledger: Sequence[Record], dataset: str, size: str) -> dict[str, str]:
    """What each contrast of a size does to accuracy on a data set, by its name."""
    words = {1: "gains accuracy", -1: "costs accuracy", 0: "no difference that these runs can tell"}
    found, sentences = contrasts(ledger, dataset, size), {}
    for c in zoo.contrasts(size):
        _, d = found.get(c.change, (None, None))
        effect = f"{words[d.sign]}, {tables.interval(d)}" if d else NOT_RUN
        sentences[c.change] = f"{c.tells[0].upper()}{c.tells[1:]}: {effect}."
    return sentences


def findings(ledger: Sequence[Record], segmentation: Sequence[SegmentationRecord]) -> dict[str, str]:
    """What was found, for the front page to quote: a sentence or two under each name."""
    frame, sketch = claims(ledger), PROTOCOLS["sketch"]
    counted = ", ".join(f"{n} {PLURAL[word]}" for word, n in counts(frame).items())
    camvid = segmentation_tables.difference(segmentation, "camvid")["mIoU"].item()
    return {
        "claims": f"Of {len(frame)} claims, {counted}.",
        "short": f"{sketch.epochs * sketch.passes_per_epoch} passes over {sketch.train_images:,} training images",
        "camvid": f"LKCA-XS − ViT-XS in mIoU on CamVid: {camvid}.",
        **contrast_sentences(ledger, "cifar100", "0.5M"),
    }
