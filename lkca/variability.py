"""How far a run can be trusted: what choosing its best epoch adds, what another seed and other test images would do.

Measured over the whole ledger, by data set and protocol, at the protocols' present settings.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lkca.intervals import binomial_error, paired, shared
from lkca.protocols import PROTOCOLS
from lkca.provenance import Number
from lkca.records import Record
from lkca.tables import LISTED, NAMES, NOT_RUN, of_cell, pairs


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

    The first is the standard deviation over seeds, pooled over all cells with two or more made by one engine at one
    precision; the second the binomial standard error of one accuracy on the test set, the root of its mean square over
    the same runs.
    """
    lines = []
    for (dataset, protocol), found in _by_setting(ledger).items():
        alike: dict[tuple[str, bool, str], list[Record]] = {}
        for r in found:
            alike.setdefault((r.row, r.draws[1], r.precision), []).append(r)
        cells = [runs for runs in alike.values() if len(runs) > 1]
        if not cells:
            continue
        freedom = sum(len(runs) - 1 for runs in cells)
        squares = sum(np.var([r.top1 for r in runs]) * len(runs) for runs in cells)
        several = [r for runs in cells for r in runs]
        test = np.mean([binomial_error(r.top1, r.num_test) ** 2 for r in several]) ** 0.5
        lines.append(
            {
                "data set": NAMES.get(dataset, dataset),
                "protocol": protocol,
                "rows": str(len({r.row for r in several})),
                "runs": str(len(several)),
                "over seeds": Number(f"{(squares / freedom) ** 0.5:.2f}", several),
                "of the test set": Number(f"{test:.2f}", several),
            }
        )
    return pd.DataFrame(lines, dtype=object)


def one_seed(ledger: Sequence[Record]) -> pd.DataFrame:
    """How good the interval of a single seed is: tried on the pairs of Tables 1-3 that have several (strings).

    By data set and protocol, of LKCA - ViT of one seed: its variance over seeds on these test images, as the standard
    deviation; the variance that other test images would add, what an image does to all seeds alike (the covariance
    between seeds over the number of images); both pooled over the pairs whose seeds know which images were right, of
    one engine and precision. Then 1.96 times the root of their sum, what an interval of one seed should have to either
    side, and what the rule gives it.
    """
    lines = []
    for (dataset, protocol), found in _by_setting(ledger).items():
        cells: dict[tuple, list[tuple[Record, Record]]] = {}
        for pair in pairs(1):
            for ends in zip(*shared(*(of_cell(found, dataset, protocol, row) for row in pair))[0], strict=True):
                if all(r.correct for r in ends):
                    cells.setdefault((pair, ends[0].draws[1], *(r.precision for r in ends)), []).append(ends)
        several = [cell for cell in cells.values() if len(cell) > 1]
        if not several:
            continue
        degrees, seeds, images = [len(cell) - 1 for cell in several], [], []
        for cell in several:
            gains = 100.0 * np.stack([lkca.right.astype(int) - vit.right for vit, lkca in cell])  # (seeds, images)
            between = np.cov(gains)
            seeds.append(gains.mean(1).var(ddof=1))
            images.append((between.sum() - between.trace()) / (len(cell) * (len(cell) - 1)) / gains.shape[1])
        over_seeds, over_images = (float(np.average(v, weights=degrees)) for v in (seeds, images))
        ends = [ends for cell in several for ends in cell]
        given = [(d.high - d.low) / 2 for d in (paired([vit], [lkca]) for vit, lkca in ends)]
        runs = [r for pair in ends for r in pair]
        lines.append(
            {
                "data set": NAMES.get(dataset, dataset),
                "protocol": protocol,
                "pairs": str(len(several)),
                "differences": str(len(ends)),
                "over seeds": Number(f"{over_seeds**0.5:.2f}", runs),
                "over test images": Number(f"{max(over_images, 0) ** 0.5:.2f}", runs),
                "an interval should have": Number(f"± {1.96 * max(over_seeds + over_images, 0) ** 0.5:.2f}", runs),
                "the rule's has": Number(f"± {np.mean(given):.2f}", runs),
            }
        )
    return pd.DataFrame(lines, dtype=object)
