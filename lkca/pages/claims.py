"""What the paper says and what was found: its claims with their verdicts, and the findings.

Every sentence and small table of measured numbers is made here from the ledger, by the rules of `lkca.pages.tables` and
`lkca.ledger.intervals`, so that the front page and the pages of the tables and controls cannot say more than was
measured.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise, product

import numpy as np
import pandas as pd

from lkca import published
from lkca.data.images import NAMES
from lkca.ledger.cells import FULL, SHORT, SHOWN, of_cell, select
from lkca.ledger.intervals import Difference, paired, shared
from lkca.ledger.provenance import Number
from lkca.ledger.runs import Record, SegmentationRecord
from lkca.models import complexity, segmenters, zoo
from lkca.pages import segmentation_tables, tables
from lkca.pages.tables import NOT_RUN, VERDICTS

WORDS = {  # of one claim, and of several
    "holds": ("holds", "hold"),
    "holds in part": ("holds in part", "hold in part"),
    "does not hold": ("does not hold", "do not hold"),
    "undecided": ("is undecided", "are undecided"),
    "mixed": ("differs by comparison or waits in part for runs", "differ by comparison or wait in part for runs"),
    NOT_RUN: ("waits for runs", "wait for runs"),
    "not examined": ("is not examined", "are not examined"),
}
PAIRED = (1, 2, 3)  # of pairs: a ViT and the ViT-LKCA of its size


def claims(ledger: Sequence[Record]) -> pd.DataFrame:
    """Each claim of the paper with its verdict: by its proof as written down, or by the ledger where it is of a table.

    Columns ``where``, ``quote``, ``basis``, ``verdict``, ``evidence`` and ``link`` (a page of the book, without its
    ending, or nothing), as text. The basis of a claim that the ledger judges is the comparisons it is about, see
    `verdict`; without a run of them the verdict is "not run".
    """
    frame = pd.read_csv(published.FOLDER / "claims.csv", dtype=str, keep_default_na=False)
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
    found, known = [], set()
    for t in (int(number) for number in parts[1].split(", ")):
        spec = zoo.table(t)
        known |= {*spec.groups, *spec.datasets, *(row for rows in spec.groups.values() for row in rows[:-1])}
        known |= {vit for vit, _ in tables.pairs(t)}
        groups = [group for group in spec.groups if group in at or not at]
        pairs = [pair for pair in tables.pairs(t) if pair[0] in at or not at]
        for dataset in [name for name in spec.datasets if name in on or not on]:
            found += [
                tables.group_verdict(t, ledger, group, dataset, against)
                for group in groups
                if not against or set(against) & set(spec.groups[group])
            ]
            found += [tables.verdict(t, ledger, *pair) for pair in pairs]
    if unknown := {*at, *against, *on} - known:
        raise ValueError(f"{basis!r} names no comparisons: there is no {' or '.join(sorted(unknown))}")
    counted = {word: found.count(word) for word in VERDICTS if word in found}
    if set(counted) <= {NOT_RUN}:
        return NOT_RUN
    if len(counted) == 1:
        return next(iter(counted))
    return ", ".join(f"{word} for {n} of {len(found)}" for word, n in counted.items())


def counts(frame: pd.DataFrame) -> dict[str, int]:
    """How many of `claims` have each verdict; one that differs by comparison is "mixed"."""
    found = [verdict if verdict in WORDS else "mixed" for verdict in frame.verdict]
    return {verdict: found.count(verdict) for verdict in WORDS if verdict in found}


def board(ledger: Sequence[Record]) -> pd.DataFrame:
    """The status of each table: cells run under a full protocol, verdicts on its comparisons, cells run short (counts).

    A comparison is a pair, in Tables 4 and 5 a group.
    """
    lines = {}
    for t, dataset in [(table, name) for table in zoo.TABLES for name in zoo.TABLES[table].datasets]:
        found = tables.verdicts(t, ledger, dataset)
        full, short = (
            {r.row for p in protocols for r in select(t, ledger, p, dataset=dataset)} for protocols in (FULL, SHORT)
        )
        lines[f"Table {t}, {NAMES[dataset]}"] = {
            "rows": len(zoo.TABLES[t].rows),
            "run in full": len(full),
            "run short": len(short),
            "comparisons": len(found),
            **{word: found.count(word) for word in VERDICTS},
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def gaps(ledger: Sequence[Record]) -> pd.DataFrame:
    """LKCA - ViT of every pair of Tables 1-3, as the paper prints it and as measured.

    Columns ``dataset``, ``size``, ``printed`` (points), one for each protocol (a `Difference` or None) and ``full``,
    that of the fullest of the full ones.
    """
    lines = []
    for t in PAIRED:
        paper = tables.published(t).top1
        for vit, lkca in sorted(tables.pairs(t), key=_parameters):
            found = {p: tables.difference(t, ledger, p, vit, lkca) for p in SHOWN}
            line = {"dataset": NAMES[zoo.TABLES[t].dataset], "size": _size(vit), "printed": paper[lkca] - paper[vit]}
            lines.append(line | found | {"full": next((found[p] for p in FULL if found[p]), None)})
    return pd.DataFrame(lines)


def _parameters(pair: tuple[str, str]) -> int:
    return complexity.count(pair[0], **complexity.PRINTED_SETTING).params


def standing(ledger: Sequence[Record]) -> pd.DataFrame:
    """Who is ahead in the pairs of Tables 1-3, and by how many points: a column a protocol (strings).

    "the paper's" is what it prints for the same pairs; "interval narrower than that" in how many of them it is, so
    that it would tell such a difference from none nearly always; "beside the full run" how often a short one has the
    same row ahead, or the other, or either of the two leaves it undecided.
    """
    frame, columns = gaps(ledger), {}
    for protocol in SHOWN:
        found = frame.dropna(subset=[protocol])
        both = found.dropna(subset=["full"]) if protocol in SHORT else found[:0]
        differences = list(found[protocol])
        signs = [d.sign for d in differences]
        products = [full.sign * d.sign for full, d in zip(both.full, both[protocol], strict=True)]
        words = {1: "the same", -1: "the other way", 0: "undecided"}
        points = Number(_span((d.mean for d in differences), "+.2f"), [r for d in differences for r in d.runs])
        columns[protocol] = {
            f"pairs run, of {len(frame)}": str(len(found)),
            "LKCA ahead": str(signs.count(1)),
            "ViT ahead": str(signs.count(-1)),
            "undecided": str(signs.count(0)),
            "LKCA − ViT": points or NOT_RUN,
            "the paper's": _span(found.printed, "+.2f"),
            "interval narrower than that": str(sum(found.printed > [d.high - d.low for d in differences])),
            "seeds a pair": _span((d.n for d in differences), "d"),
            "beside the full run": ", ".join(f"{products.count(s)} {words[s]}" for s in words if s in products),
        }
    return pd.DataFrame(columns, dtype=object)


def gap_sentence(ledger: Sequence[Record]) -> str:
    """Who is ahead in full runs of the pairs of Tables 1-3."""
    signs = [d.sign if d else None for d in gaps(ledger).full]
    full = len(signs) - signs.count(None)
    if not full:
        return f"None of the {len(signs)} pairs of Tables 1–3 has had a full run here."
    ahead, behind, undecided = (signs.count(sign) or "none" for sign in (1, -1, 0))
    return (
        f"{full} of the {len(signs)} pairs of Tables 1–3 {'have' if full > 1 else 'has'} had a full run here: ViT-LKCA "
        f"is ahead of its ViT in {ahead}, behind in {behind}, undecided in {undecided}."
    )


def lead(ledger: Sequence[Record]) -> pd.DataFrame:
    """LKCA - ViT along the training, of the pairs of Tables 1-3 that have full runs: a line an epoch.

    Columns ``dataset``, ``size``, ``protocol`` (a full one, or a short one of the same pair), ``epoch``, ``images``
    (seen in training so far), ``points`` (top-1, mean over the seeds that both rows have) and ``runs``.
    """
    lines = []
    for t, (vit, lkca) in product(PAIRED, sorted(tables.pairs(1), key=_parameters)):
        dataset = zoo.TABLES[t].dataset
        runs = {p: shared(*(of_cell(ledger, dataset, p, row) for row in (vit, lkca)))[0] for p in SHOWN}
        for protocol in SHOWN if any(runs[p][0] for p in FULL) else ():
            curves = [[[e.top1 for e in r.curve] for r in found] for found in runs[protocol]]
            points = np.subtract(curves[1], curves[0]).mean(0) if curves[0] else []
            for epoch, value in enumerate(points, 1):
                images = epoch * tables.images_an_epoch(runs[protocol][0][0])
                cell = (NAMES[dataset], _size(vit), protocol)
                lines.append((*cell, epoch, images, float(value), [r for found in runs[protocol] for r in found]))
    return pd.DataFrame(lines, columns=["dataset", "size", "protocol", "epoch", "images", "points", "runs"])


def leads(ledger: Sequence[Record]) -> pd.DataFrame:
    """From which epoch on a full run of a pair had the row ahead that is ahead at its end: a line a run (strings)."""
    lines = {}
    for (dataset, size, protocol), run in lead(ledger).groupby(["dataset", "size", "protocol"], sort=False):
        if protocol in FULL:
            ahead = np.sign(run.points.to_numpy())
            first = int(np.flatnonzero(ahead != ahead[-1]).max(initial=-1)) + 1  # position of the first epoch of it
            lines[f"{dataset} {size}, {protocol}"] = {
                "ahead at the end": {1: "ViT-LKCA", -1: "ViT", 0: "neither"}[int(ahead[-1])],
                "from epoch": Number(f"{run.epoch.iloc[first]} of {len(run)}", run.runs.iloc[0]),
                "images seen by then": f"{run['images'].iloc[first]:,}",
            }
    empty = {"": dict.fromkeys(("ahead at the end", "from epoch", "images seen by then"), NOT_RUN)}
    return pd.DataFrame.from_dict(lines or empty, orient="index", dtype=object)


def _size(vit: str) -> str:
    return vit.partition("/")[2] or "2.69M"


def protocol_sentence(ledger: Sequence[Record]) -> str:
    """Which protocol and which epoch give the printed accuracies of the main rows, see `tables.from_print`."""
    frame, said = tables.from_print(ledger), []
    for protocol, found in frame.groupby("protocol", sort=False):
        parts = [
            f"{_span(of.points, '+.2f')} at the {epoch} epoch "
            f"({(of.points.abs() <= of.half).sum()} of {len(of)} within the error of one run)"
            for epoch, of in found.groupby("epoch", sort=False)
        ]
        said.append(f"under {protocol} {' and '.join(parts)}")
    if not said:
        return "Which protocol gives the printed numbers is open: no main row has a full run yet."
    printed = len(PAIRED) * len(zoo.MAIN_ROWS)
    return f"The main rows have {printed} printed numbers. Ours minus the print, in points: {'; '.join(said)}."


def _span(values: Iterable[float], form: str) -> str:
    """The smallest and the largest, or the one value there is, or nothing."""
    texts = [format(value, form) for value in sorted(values)]
    return " to ".join(dict.fromkeys((*texts[:1], *texts[-1:])))


def _seeds(*numbers: int) -> str:
    return f"{_span(numbers, 'd')} seed{'s' * (max(numbers) > 1)}"


def steps(ledger: Sequence[Record], size: str) -> pd.DataFrame:
    """The published difference of a size and the three steps that it is the sum of: a line a data set and protocol.

    As strings, from the shortest protocol on, over the seeds that all four rows have; without such seeds the steps are
    "not run" and the difference is over the seeds of its two rows. A data set that has no steps at all has no line.
    """
    vit, *others = dict.fromkeys(row for c in zoo.contrasts(size)[1:4] for row in (c.before, c.after))
    names, lines = (f"LKCA − ViT, {size}", "reading the mean", "the mixer", "width and depth"), {}
    for dataset in dict.fromkeys((*NAMES, *(r.dataset for r in ledger))):
        cells = {p: [of_cell(ledger, dataset, p, row) for row in (vit, *others)] for p in reversed(SHOWN)}
        apart = {p: shared(*runs) for p, runs in cells.items()}
        for protocol, (runs, seeds) in apart.items() if any(seeds for _, seeds in apart.values()) else ():
            ends = runs if seeds else cells[protocol]
            whole = paired(ends[0], ends[-1], ledger)
            if whole:
                found = [whole, *(paired(*pair, ledger) for pair in pairwise(runs))]
                texts = (Number(str(d), d.runs) if d else NOT_RUN for d in found)
                lines[f"{NAMES.get(dataset, dataset)}, {protocol}"] = dict(zip(names, texts, strict=True)) | {
                    "seeds": str(whole.n)
                }
    empty = {"": dict.fromkeys((*names, "seeds"), NOT_RUN)}
    return pd.DataFrame.from_dict(lines or empty, orient="index", dtype=object)


def contrasts(ledger: Sequence[Record], dataset: str, size: str) -> dict[str, tuple[str, Difference]]:
    """The contrasts of a size that have been run on a data set: the fullest protocol of each, and the effect."""
    found = {}
    for c in zoo.contrasts(size):
        cells = {protocol: tables.cells(ledger, dataset, protocol, c) for protocol in SHOWN}
        effects = ((protocol, paired(*runs, ledger)) for protocol, runs in cells.items())
        effect = next(((protocol, d) for protocol, d in effects if d), None)
        if effect:
            found[c.change] = effect
    return found


def contrast_sentences(ledger: Sequence[Record], dataset: str, size: str) -> dict[str, str]:
    """What each contrast of a size did to accuracy on a data set, by its name."""
    words = {1: "gained accuracy", -1: "cost accuracy", 0: "no difference that these runs can tell from none"}
    found, sentences = contrasts(ledger, dataset, size), {}
    for c in zoo.contrasts(size):
        effect = NOT_RUN
        if c.change in found:
            protocol, d = found[c.change]
            effect = f"{words[d.sign]}, {d} ({protocol}, n = {d.n})"
        sentences[c.change] = f"{c.tells[0].upper()}{c.tells[1:]}: {effect}."
    return sentences


def camvid_sentence(ledger: Sequence[SegmentationRecord]) -> str:
    """How the two small rows of segmentation compare on CamVid, and how many classes neither has learned."""
    names = tuple(segmenters.TINY)
    rows = [segmentation_tables.of_cell(ledger, "camvid", "reduced", row) for row in names]
    vit, lkca = ({r.seed: r for r in runs} for runs in rows)
    deltas = [lkca[seed].miou - vit[seed].miou for seed in sorted(vit.keys() & lkca.keys())]
    if not deltas:
        return f"On CamVid: {NOT_RUN}."
    hits, union = (np.array([np.sum([getattr(r, key) for r in runs], axis=0) for runs in rows])
                   for key in ("intersection", "union"))  # fmt: skip
    unknown = int(((100 * hits / np.maximum(union, 1) < 0.05) & (union > 0)).all(0).sum())
    return (
        f"{names[1]} − {names[0]} is {np.mean(deltas):+.2f} points of mIoU (from {min(deltas):+.2f} to "
        f"{max(deltas):+.2f}, {_seeds(len(deltas))}); {unknown} of {hits.shape[1]} classes stand "
        "at 0.0 in both."
    )


def findings(ledger: Sequence[Record], scenes: Sequence[SegmentationRecord]) -> dict[str, str]:
    """What was found, for the front page to quote: a sentence or two under each name."""
    frame = claims(ledger)
    measured = (frame.basis.str.startswith("table ") & (frame.verdict != NOT_RUN)).sum()
    counted = ", ".join(f"{n} {WORDS[word][n > 1]}" for word, n in counts(frame).items())
    return {
        "claims": f"Of {len(frame)} claims, some of which say the same, {counted}. "
        f"{measured or 'No'} verdict{'s rest' if measured > 1 else ' rests'} on accuracies that were measured here.",
        "short": " and ".join(f"{p} ({tables.length(p)})" for p in SHORT),
        "gap": gap_sentence(ledger),
        "protocol": protocol_sentence(ledger),
        "camvid": camvid_sentence(scenes),
        **contrast_sentences(ledger, "cifar100", "0.5M"),
    }
