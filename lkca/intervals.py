"""The rule behind every interval and verdict: how sure a difference between two rows is.

The difference after - before of last-epoch top-1, in points, is taken over the seeds that both rows have, and stands
with a 95 % interval (a seed that one of them has from 0.1 alone is none: that engine drew other images for it):

- Where two or more seeds are shared and all their records hold which test images were right (those made since 0.2),
  the interval is the percentile bootstrap over seeds *and* test images, crossed: seeds and images are each drawn with
  replacement, and every drawn seed is tested on every drawn image. Both rows see the same draws, so what is easy or
  hard for both cancels, and what only these seeds or only these images show does not.
- Else it is the wider, at either end, of two: the percentile bootstrap of the mean over seeds, and the normal interval
  from the binomial errors of two accuracies, as if each row had been tested on images of its own.

More seeds do not shrink either below what the test set allows, nor more images below what the seeds allow. One seed
says nothing about seeds (how its interval would have done where there are several: `lkca.variability.one_seed`), two or
three say little, and a bootstrap of them is narrower than it should be: their number stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lkca.records import Record

DRAWS = 10_000


@dataclass(frozen=True)
class Difference:
    """A difference in points of top-1: mean over ``n`` paired seeds, and the interval of the rule above."""

    mean: float
    low: float
    high: float
    n: int
    runs: tuple[Record, ...] = field(default=(), compare=False, repr=False)  # of both rows, those seeds'

    @property
    def sign(self) -> int:
        """1 if the interval lies above 0, -1 if below, 0 if it contains 0."""
        return (self.low > 0) - (self.high < 0)


def binomial_error(top1: float, images: int) -> float:
    """Standard error in points of an accuracy in percent, measured on that many test images."""
    return float(np.sqrt(top1 * (100 - top1) / images))


def shared(*rows: Sequence[Record]) -> tuple[list[list[Record]], list[int]]:
    """Of each row the runs whose draws all rows have, by seed; and these seeds."""
    known = [{r.draws: r for r in runs} for runs in rows]
    draws = sorted(set.intersection(*map(set, known)))
    return [[runs[d] for d in draws] for runs in known], [seed for seed, _ in draws]


def paired(before: Sequence[Record], after: Sequence[Record]) -> Difference | None:
    """After - before over the seeds that both have, by the rule above; None without any."""
    (a, b), seeds = shared(before, after)
    if not seeds:
        return None
    deltas = np.array([after.top1 - before.top1 for before, after in zip(a, b, strict=True)])
    mean, rng = float(deltas.mean()), np.random.default_rng(0)
    if len(seeds) > 1 and all(r.correct for r in a + b) and len({r.data_fingerprint for r in a + b}) == 1:
        low, high = np.percentile(_crossed(a, b, rng), (2.5, 97.5))
        return Difference(mean, float(low), float(high), len(seeds), (*a, *b))
    low, high = np.percentile(deltas[rng.integers(len(seeds), size=(DRAWS, len(seeds)))].mean(1), (2.5, 97.5))
    half = 1.96 * np.hypot(*(binomial_error(float(np.mean([r.top1 for r in x])), x[0].num_test) for x in (a, b)))
    return Difference(mean, float(min(low, mean - half)), float(max(high, mean + half)), len(seeds), (*a, *b))


def _crossed(before: Sequence[Record], after: Sequence[Record], rng: np.random.Generator) -> np.ndarray:
    """Differences in points of DRAWS samples of seeds and test images, (DRAWS,).

    Images on which all seeds' two rows did alike are alike, so that how often each kind is drawn says all.
    """
    gains = np.stack([b.right.astype(int) - a.right for a, b in zip(before, after, strict=True)])  # (seeds, images)
    kinds, counts = np.unique(gains, axis=1, return_counts=True)
    drawn = rng.multinomial(gains.shape[1], counts / gains.shape[1], size=DRAWS)
    of_seed = drawn @ kinds.T / gains.shape[1]  # (DRAWS, seeds)
    seeds = rng.integers(len(gains), size=of_seed.shape)
    return 100 * np.take_along_axis(of_seed, seeds, axis=1).mean(1)
