"""Ledger and published numbers side by side: what the book's tables show, and the rule behind every verdict.

A table shows what the ledger holds and says "not run" for the rest. Only the protocols `released` and `paper` stand
beside the paper's numbers; the short ones, `brief` and `sketch`, have columns of their own, and `smoke` none.

For each pair (a ViT, the ViT-LKCA of its size) the difference LKCA - ViT stands with the interval of
`lkca.ledger.intervals`. The paper's claim "LKCA is better" *holds* if the interval lies above 0, *does not hold* if it
lies below 0, and is *undecided* if it contains 0. A pair without a seed in common is *not run*.

For a group of Tables 4 and 5 the claim is "LKCA is the best of its group". It *holds* if LKCA is better than each of
its rivals by the rule above, *does not hold* if one of them is better than LKCA, is *undecided* if neither, and *not
run* as long as a rival that could decide it has not been run. The intervals are of single comparisons: for *holds* all
must lie above 0, so that it errs no more often than one of them; for *does not hold* one of several is enough, and by
chance that happens more often.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from lkca.data.images import NAMES
from lkca.ledger.cells import FULL, LISTED, SHORT, SHOWN, of_cell, select
from lkca.ledger.intervals import Difference, binomial_error, of_seeds, paired
from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.provenance import Number
from lkca.ledger.runs import Record
from lkca.models import complexity, zoo
from lkca.published import FOLDER

NOT_RUN = "not run"
VERDICTS = ("holds", "does not hold", "undecided", NOT_RUN)


def published(table: int, dataset: str | None = None) -> pd.DataFrame:
    """The paper's numbers: ``top1`` in percent on a data set of the table, ``params``, ``flops`` as printed, by row."""
    file = FOLDER / f"table{table}.csv"
    frame = pd.read_csv(file, dtype={"params": str, "flops": str}).set_index("model")
    return frame.rename(columns={dataset or zoo.TABLES[table].dataset: "top1"})


def length(protocol: str) -> str:
    """How long a protocol trains, in words."""
    p = PROTOCOLS[protocol]
    images = f"{p.train_images:,}" if p.train_images else "all"
    return f"{p.epochs * p.passes_per_epoch} passes over {images} training images"


def images_an_epoch(run: Record) -> int:
    """Training images that a run sees in an epoch, repetitions counted."""
    fields = run.protocol_fields
    return fields["passes_per_epoch"] * run.num_train // fields["batch_size"] * fields["batch_size"]


def pairs(table: int) -> list[tuple[str, str]]:
    """The (ViT, ViT-LKCA) pairs of a table, in its order."""
    return [(row, f"{row}-LKCA") for row in zoo.TABLES[table].rows if f"{row}-LKCA" in zoo.TABLES[table].rows]


def columns(found: Sequence[Record]) -> tuple[str, ...]:
    """The protocols that a table of these runs has columns for: the full ones, and the short ones that ran."""
    return (*FULL, *(p for p in SHORT if any(r.protocol == p for r in found)))


def difference(table: int, ledger: Sequence[Record], protocol: str, vit: str, lkca: str) -> Difference | None:
    """LKCA - ViT over the seeds that both rows have; None without any."""
    return paired(select(table, ledger, protocol, vit), select(table, ledger, protocol, lkca), ledger)


def verdict(table: int, ledger: Sequence[Record], vit: str, lkca: str) -> str:
    """Whether "LKCA is better" holds for a pair, by the rule above; `released` speaks before `paper`."""
    for protocol in FULL:
        d = difference(table, ledger, protocol, vit, lkca)
        if d:
            return {1: "holds", -1: "does not hold", 0: "undecided"}[d.sign]
    return NOT_RUN


def group_verdict(table: int, ledger: Sequence[Record], group: str, dataset: str, against: Sequence[str] = ()) -> str:
    """Whether "LKCA is the best of its group" holds, by the rule above; `released` speaks before `paper`.

    With ``against``, whether it is better than these rivals.
    """
    for protocol in FULL:
        found = rivals(table, ledger, protocol, group, dataset)
        found = {row: d for row, d in found.items() if row in against or not against}
        signs = [d.sign for d in found.values() if d]
        if -1 in signs:
            return "does not hold"
        if signs and len(signs) == len(found):
            return "holds" if min(signs) == 1 else "undecided"
    return NOT_RUN


def rivals(
    table: int, ledger: Sequence[Record], protocol: str, group: str, dataset: str
) -> dict[str, Difference | None]:
    """LKCA - rival for every rival in a group of Tables 4 and 5; None where no seed is shared."""
    *others, lkca = zoo.TABLES[table].groups[group]
    ours = of_cell(ledger, dataset, protocol, lkca)
    return {row: paired(of_cell(ledger, dataset, protocol, row), ours, ledger) for row in others}


def verdicts(table: int, ledger: Sequence[Record], dataset: str | None = None) -> list[str]:
    """The verdict on each of a table's comparisons on a data set: its pairs, in Tables 4 and 5 its groups."""
    spec = zoo.TABLES[table]
    if spec.groups:
        return [group_verdict(table, ledger, group, dataset or spec.dataset) for group in spec.groups]
    return [verdict(table, ledger, *pair) for pair in pairs(table)]


def compare(table: int, ledger: Sequence[Record], dataset: str | None = None) -> pd.DataFrame:
    """The table on a data set of it: paper beside ours, one line a row, columns in groups, all as shown (strings).

    Rows of ours that a table has besides the paper's have empty columns of the paper's.
    """
    paper, spec = published(table, dataset), zoo.TABLES[table]
    rows, lines = (*spec.rows, *spec.extra), {}
    shown = columns([r for protocol in SHORT for row in rows for r in select(table, ledger, protocol, row, dataset)])
    for row in rows:
        ours = complexity.count(row, **complexity.printed_at(row))
        mark = "*" if zoo.row(row).deviation else ""
        printed = paper.loc[row] if row in paper.index else None
        line = {
            ("the paper's", "top-1"): "" if printed is None else f"{printed.top1:.2f}",
            ("the paper's", "params"): "" if printed is None else printed.params,
            ("the paper's", "FLOPs"): "" if printed is None else printed.flops,
            ("counted here", "params"): f"{ours.params_paper / 1e6:.2f}M{mark}",
            ("counted here", "FLOPs"): f"{ours.macs_paper / 1e6:.2f}M{mark}",
        }
        for protocol in shown:
            runs = select(table, ledger, protocol, row, dataset)
            line[f"ours, {protocol}", "last epoch"] = _accuracy(runs)
            best = f"{np.mean([r.top1_best for r in runs]):.2f}" if runs else ""
            line[f"ours, {protocol}", "best epoch"] = Number(best, runs)
        lines[row] = line
    frame = pd.DataFrame.from_dict(lines, orient="index", dtype=object)
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def _accuracy(runs: list[Record]) -> str:
    if not runs:
        return NOT_RUN
    values = [r.top1 for r in runs]
    text = (
        f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} ({len(runs)} seeds)"
        if len(runs) > 1
        else (f"{values[0]:.2f} ± {binomial_error(values[0], runs[0].num_test):.2f} (1 seed)")
    )
    return Number(text, runs)


def interval(d: Difference | None) -> str:
    """A difference with its interval, as text."""
    return Number(f"{d}, n = {d.n}", d.runs) if d else NOT_RUN


def differences(table: int, ledger: Sequence[Record]) -> pd.DataFrame:
    """LKCA - ViT for each pair: published, under each protocol with its interval, and the verdict (strings)."""
    paper = published(table).top1
    words = {1: "LKCA ahead", -1: "ViT ahead", 0: "undecided"}
    shown, lines = columns([r for protocol in SHORT for r in select(table, ledger, protocol)]), {}
    for vit, lkca in pairs(table):
        found = {p: difference(table, ledger, p, vit, lkca) for p in reversed(shown)}
        line = {"the paper's": f"{paper[lkca] - paper[vit]:+.2f}", "claim": verdict(table, ledger, vit, lkca)}
        line |= {f"ours, {protocol}": interval(d) for protocol, d in found.items()}
        line |= {f"ahead in {p}": words[d.sign] if d else NOT_RUN for p, d in found.items() if p in SHORT}
        lines[f"{lkca} − {vit}"] = line
    return pd.DataFrame.from_dict(lines, orient="index", dtype=object)


def table_runs(table: int, ledger: Sequence[Record]) -> list[Record]:
    """Every record behind a table, those of rows of ours among them."""
    spec = zoo.TABLES[table]
    cells = [(protocol, d, row) for protocol in LISTED for d in spec.datasets for row in (*spec.rows, *spec.extra)]
    return [r for protocol, d, row in cells for r in of_cell(ledger, d, protocol, row)]


def control_runs(ledger: Sequence[Record], dataset: str, size: str) -> list[Record]:
    """Every record behind the contrasts of a size on a data set."""
    rows = zoo.control_rows(size)
    return [r for protocol in SHOWN for row in rows for r in of_cell(ledger, dataset, protocol, row)]


def controls(ledger: Sequence[Record], dataset: str, size: str) -> pd.DataFrame:
    """The contrasts of one size on a data set, a line each: what changes, at what size, by how much (strings)."""
    rows, lines = zoo.control_rows(size), []
    shown = columns([r for protocol in SHORT for row in rows for r in of_cell(ledger, dataset, protocol, row)])
    for c in zoo.contrasts(size):
        params = [complexity.count(row, **complexity.PRINTED_SETTING).params / 1e6 for row in (c.before, c.after)]
        line = {
            "what changes": c.change,
            "from": c.before,
            "to": c.after,
            "parameters": f"{params[0]:.2f}M → {params[1]:.2f}M",
        }
        for protocol in shown:
            line[f"ours, {protocol}"] = interval(paired(*cells(ledger, dataset, protocol, c), ledger))
        lines.append(line)
    return pd.DataFrame(lines, dtype=object)


def cells(
    ledger: Sequence[Record], dataset: str, protocol: str, contrast: zoo.Contrast
) -> tuple[list[Record], list[Record]]:
    """The runs before and after a contrast."""
    before, after = (of_cell(ledger, dataset, protocol, row) for row in (contrast.before, contrast.after))
    return before, after


def from_print(ledger: Sequence[Record]) -> pd.DataFrame:
    """How far full runs of the main rows land from the printed top-1: a line a cell of Tables 1-3, protocol and epoch.

    Columns ``dataset``, ``row``, ``protocol``, ``epoch`` ("last" or "best"), ``printed`` (%), ``points`` (ours, mean
    over seeds, minus the print), ``half`` and ``runs``. The print is taken for one run. The error of one run is the
    spread over seeds (`lkca.ledger.intervals.of_seeds`) or the binomial error of the print, whichever is larger;
    ``half`` is 1.96 errors of the difference between one run and the mean of ours.
    """
    lines = []
    for t, protocol, row in product((1, 2, 3), FULL, zoo.MAIN_ROWS):
        dataset, printed = zoo.TABLES[t].dataset, published(t).top1[row]
        runs = select(t, ledger, protocol, row)
        for epoch, key in (("last", "top1"), ("best", "top1_best")) if runs else ():
            top1 = [getattr(r, key) for r in runs]
            one = max(binomial_error(printed, runs[0].num_test), of_seeds(ledger, runs[0]).deviation)
            half = 1.96 * one * (1 + 1 / len(runs)) ** 0.5
            lines.append((dataset, row, protocol, epoch, printed, np.mean(top1) - printed, half, runs))
    columns = ["dataset", "row", "protocol", "epoch", "printed", "points", "half", "runs"]
    return pd.DataFrame(lines, columns=columns)


def reproduction(ledger: Sequence[Record]) -> pd.DataFrame:
    """`from_print` for the page: a line a printed number of the main rows, a column a protocol and epoch (strings)."""
    found = {
        (d.dataset, d.row, d.protocol, d.epoch): Number(f"{d.points:+.2f} ± {d.half:.2f}", d.runs)
        for d in from_print(ledger).itertuples()
    }
    lines = [
        {"data set": NAMES[zoo.TABLES[t].dataset], "row": row, "the paper's": f"{published(t).top1[row]:.2f}"}
        | {
            f"{protocol}, {epoch} epoch": found.get((zoo.TABLES[t].dataset, row, protocol, epoch), NOT_RUN)
            for protocol in FULL
            for epoch in ("last", "best")
        }
        for t in (1, 2, 3)
        for row in zoo.MAIN_ROWS
    ]
    return pd.DataFrame(lines, dtype=object)


def by_protocol(ledger: Sequence[Record], dataset: str, rows: Sequence[str], before: str, after: str) -> pd.DataFrame:
    """One protocol against another for some rows, paired by seed: what their difference in settings does (strings)."""
    lines = []
    for row in rows:
        runs = {protocol: of_cell(ledger, dataset, protocol, row) for protocol in (before, after)}
        line = {"row": row} | {protocol: _accuracy(found) for protocol, found in runs.items()}
        lines.append(line | {f"{after} − {before}": interval(paired(runs[before], runs[after], ledger))})
    return pd.DataFrame(lines, dtype=object)
