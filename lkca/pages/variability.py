"""How far a run can be trusted: what its best epoch adds, what another seed, other test images and a precision do.

Measured over the whole ledger, by data set and protocol, at the protocols' present settings.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lkca.data.images import NAMES
from lkca.ledger.cells import LISTED, of_cell
from lkca.ledger.intervals import DRAWS, Difference, Spread, binomial_error, has_lkca, pooled, shared
from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.provenance import Number
from lkca.ledger.runs import Record
from lkca.pages.tables import NOT_RUN, pairs


def _by_setting(ledger: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of all protocols but `smoke` at their present settings, by data set and protocol."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in ledger:
        if r.protocol in LISTED and r.protocol_hash == PROTOCOLS[r.protocol].hash:
            groups.setdefault((r.dataset, r.protocol), []).append(r)
    return dict(sorted(groups.items()))


def selection(ledger: Sequence[Record]) -> pd.DataFrame:
    """What choosing the best epoch on the test set adds to the last one's, by data set and protocol (strings).

    To accuracy, over all runs; and to LKCA - ViT, over the pairs of Tables 1-3 by the seeds that both rows have.
    """
    lines = []
    for (dataset, protocol), runs in _by_setting(ledger).items():
        largest = max(runs, key=lambda r: r.top1_best - r.top1)
        cells = [shared(*(of_cell(runs, dataset, protocol, row) for row in pair))[0] for pair in pairs(1)]
        ends = [pair for cell in cells for pair in zip(*cell, strict=True)]
        moved = [(lkca.top1_best - lkca.top1) - (vit.top1_best - vit.top1) for vit, lkca in ends]
        lines.append(
            {
                "data set": NAMES.get(dataset, dataset),
                "protocol": protocol,
                "runs": str(len(runs)),
                "epochs to choose from": str(len(runs[0].curve)),
                "best − last, mean": Number(f"{np.mean([r.top1_best - r.top1 for r in runs]):+.2f}", runs),
                "largest": Number(f"{largest.top1_best - largest.top1:+.2f}", [largest]),
                "what it does to LKCA − ViT": Number(f"{np.mean(moved):+.2f}", [r for pair in ends for r in pair])
                if moved
                else NOT_RUN,
            }
        )
    return pd.DataFrame(lines, dtype=object)


def spread(ledger: Sequence[Record]) -> pd.DataFrame:
    """How far seeds of one cell lie apart, beside what the test set alone would do, by data set and protocol (strings).

    "ViT" and "LKCA" are the standard deviations over seeds on which every interval rests
    (`lkca.ledger.intervals.pooled`), of rows without LKCA and with it, in brackets their degrees of freedom; "of the
    test set" the binomial standard error of one accuracy, the root of its mean square over the same runs. "LKCA − ViT"
    is the deviation over seeds of that difference, pooled over the pairs of Tables 1-3 with several; "by the rule" what
    follows for it from the first two.
    """
    lines = []
    for (dataset, protocol), found in _by_setting(ledger).items():
        vit, lkca = (pooled([r for r in found if has_lkca(r) == has]) for has in (False, True))
        runs = vit.runs + lkca.runs
        if not runs:
            continue
        test = np.mean([binomial_error(r.top1, r.num_test) ** 2 for r in runs]) ** 0.5
        rule = Number(f"{np.hypot(vit.deviation, lkca.deviation):.2f}", runs)
        lines.append(
            {
                "data set": NAMES.get(dataset, dataset),
                "protocol": protocol,
                "ViT": _with_freedom(vit),
                "LKCA": _with_freedom(lkca),
                "of the test set": Number(f"{test:.2f}", runs),
                "LKCA − ViT": _of_differences(found, dataset, protocol),
                "by the rule": rule if vit.freedom and lkca.freedom else NOT_RUN,
            }
        )
    return pd.DataFrame(lines, dtype=object)


def precisions(ledger: Sequence[Record]) -> pd.DataFrame:
    """What `fp32` adds to last-epoch top-1 in `bf16`, by protocol, for rows without LKCA and with it (strings).

    The mean over the cells that have runs of both, made by one engine, each weighted by how well its runs tell; with
    the 95 % interval that the spread over seeds of these cells leaves. The runs of a cell are not paired: other seeds,
    on other machines.
    """
    cells: dict[tuple, dict[tuple, dict[str, list[Record]]]] = {}
    for (dataset, protocol), found in _by_setting(ledger).items():
        for r in found:
            cell = cells.setdefault((protocol, has_lkca(r)), {}).setdefault((dataset, r.row, r.draws), {})
            cell.setdefault(r.precision, []).append(r)
    lines = []
    for (protocol, lkca), by_cell in sorted(cells.items()):
        both = {name: (cell["fp32"], cell["bf16"]) for name, cell in by_cell.items() if {"fp32", "bf16"} <= set(cell)}
        spread = pooled([r for cell in both.values() for runs in cell for r in runs])
        if not spread.freedom:
            continue
        added = {name: float(np.mean([r.top1 for r in a]) - np.mean([r.top1 for r in b]))
                 for name, (a, b) in both.items()}  # fmt: skip
        weights = [1 / (1 / len(a) + 1 / len(b)) for a, b in both.values()]
        error = spread.deviation / sum(weights) ** 0.5
        mean = float(np.average(list(added.values()), weights=weights))
        low, high = np.percentile(
            mean + error * np.random.default_rng(0).standard_t(spread.freedom, DRAWS), (2.5, 97.5)
        )
        fp32, bf16 = (tuple(r for cell in both.values() for r in cell[i]) for i in (0, 1))
        most = max(added, key=lambda name: abs(added[name]))
        lines.append(
            {
                "protocol": protocol,
                "rows": "LKCA" if lkca else "ViT",
                "cells": str(len(both)),
                "runs in fp32": str(len(fp32)),
                "in bf16": str(len(bf16)),
                "fp32 − bf16": Number(str(Difference(mean, float(low), float(high), len(both))), (*fp32, *bf16)),
                "farthest apart": Number(
                    f"{added[most]:+.2f}, {most[1]} on {NAMES.get(most[0], most[0])}",
                    [r for a in both[most] for r in a],
                ),
            }
        )
    return pd.DataFrame(lines, dtype=object)


def _with_freedom(spread: Spread) -> str:
    return Number(f"{spread.deviation:.2f} ({spread.freedom})", spread.runs) if spread.freedom else NOT_RUN


def _of_differences(found: Sequence[Record], dataset: str, protocol: str) -> str:
    cells: dict[tuple, list[tuple[Record, Record]]] = {}
    for pair in pairs(1):
        for ends in zip(*shared(*(of_cell(found, dataset, protocol, row) for row in pair))[0], strict=True):
            cells.setdefault((pair, ends[0].draws, *(r.precision for r in ends)), []).append(ends)
    several = [cell for cell in cells.values() if len(cell) > 1]
    if not several:
        return NOT_RUN
    freedom = sum(len(cell) - 1 for cell in several)
    squares = sum(np.var([lkca.top1 - vit.top1 for vit, lkca in cell]) * len(cell) for cell in several)
    runs = tuple(r for cell in several for ends in cell for r in ends)
    return _with_freedom(Spread(float(squares / freedom) ** 0.5, freedom, runs))
