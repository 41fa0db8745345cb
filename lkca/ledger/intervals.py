"""The rule behind every interval and verdict: how sure a difference between two rows is.

The difference after - before of last-epoch top-1, in points, is the mean over the seeds that both rows have (a seed
that one of them has from 0.1 alone is none: that engine drew other images for it), and stands with a 95 % interval of
what two chances add up to:

- Other test images. The bootstrap over test images of what an image gains by the second row, mean over the seeds: what
  is easy or hard for both rows cancels. Of its variance only what an image does to all seeds alike counts, because the
  rest, a run's own chance, is in the spread over seeds; one seed cannot tell them apart, and its interval has both.
  Seeds whose records do not hold which images were right (some made before 0.3) are left out of this; if all are, it
  is the normal distribution with the binomial errors of two accuracies, as if each row had images of its own.
- Other seeds. A few seeds cannot tell how far seeds lie apart, and a bootstrap of them is far too narrow. So that is
  pooled over rows that have several (`of_seeds`): those with LKCA and those without apart, because under some protocols
  the first lie much farther apart. It is divided by the root of the number of shared seeds, and has the t distribution
  of as many degrees of freedom as it was measured with. It takes both rows' seeds for independent.

More seeds do not shrink the interval below what the test set allows, nor more images below what the seeds allow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lkca.ledger.runs import Record

DRAWS = 10_000
ENOUGH = 5  # degrees of freedom: t's 95 % half-width is then 2.6 deviations, of two degrees 4.3


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

    def __str__(self) -> str:
        """The mean with its interval, as tables and sentences show it."""
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Spread:
    """How far runs lie apart that differ in their seed alone: standard deviation in points of top-1, pooled."""

    deviation: float
    freedom: int  # degrees of freedom that it was measured with; 0 of no cell with several seeds
    runs: tuple[Record, ...] = field(default=(), compare=False, repr=False)


def binomial_error(top1: float, images: int) -> float:
    """Standard error in points of an accuracy in percent, measured on that many test images."""
    return float(np.sqrt(top1 * (100 - top1) / images))


def shared(*rows: Sequence[Record]) -> tuple[list[list[Record]], list[int]]:
    """Of each row the runs whose draws all rows have, by seed; and these seeds."""
    known = [{r.same_draws: r for r in runs} for runs in rows]
    draws = sorted(set.intersection(*map(set, known)))
    return [[runs[d] for d in draws] for runs in known], [seed for seed, _ in draws]


def pooled(runs: Sequence[Record]) -> Spread:
    """The spread over seeds, pooled over all cells with two or more made by one engine at one precision."""
    alike: dict[tuple, list[Record]] = {}
    for r in runs:
        alike.setdefault((r.dataset, r.row, r.protocol_hash, r.draws, r.row_hash, r.precision), []).append(r)
    cells = [cell for cell in alike.values() if len(cell) > 1]
    freedom = sum(len(cell) - 1 for cell in cells)
    squares = sum(np.var([r.top1 for r in cell]) * len(cell) for cell in cells)
    return Spread(float(np.sqrt(squares / max(freedom, 1))), freedom, tuple(r for cell in cells for r in cell))


def has_lkca(run: Record) -> bool:
    """Whether a run's row is an LKCA, by its name; ``-both``, which has LKCA after self-attention, counts as a ViT."""
    return "LKCA" in run.row


def of_seeds(ledger: Sequence[Record], run: Record) -> Spread:
    """The spread over seeds to expect of a run: that of the nearest cells which have `ENOUGH` degrees of freedom.

    The nearest are those of its data set and protocol whose rows, like its own, have LKCA or have not; then such rows'
    of its protocol; then those of all rows of its protocol; then, of the protocols, the ones of that whose seeds lie
    farthest apart. If none has enough, it is the spread with the most degrees of freedom.
    """
    found = []
    for spread in _from_near_to_far(ledger, run):
        if spread.freedom >= ENOUGH:
            return spread
        found.append(spread)
    return max(found, key=lambda spread: spread.freedom)


def _from_near_to_far(ledger: Sequence[Record], run: Record) -> Iterator[Spread]:
    protocols: dict[str, list[Record]] = {}
    for r in ledger:
        protocols.setdefault(r.protocol_hash, []).append(r)
    own = protocols.pop(run.protocol_hash, [])
    alike = [r for r in own if has_lkca(r) == has_lkca(run)]
    yield pooled([r for r in alike if r.dataset == run.dataset])
    yield pooled(alike)
    yield pooled(own)
    others = [runs for runs in protocols.values() if runs[0].protocol != "smoke"]  # too short to tell of anything
    yield from sorted(map(pooled, others), key=lambda spread: -spread.deviation)


def paired(before: Sequence[Record], after: Sequence[Record], ledger: Sequence[Record]) -> Difference | None:
    """After - before over the seeds that both have, by the rule above; None without any.

    The ledger says how far seeds lie apart; one that has no row with several leaves other seeds out.
    """
    (a, b), seeds = shared(before, after)
    if not seeds:
        return None
    mean = float(np.mean([after.top1 - before.top1 for before, after in zip(a, b, strict=True)]))
    rng, known = np.random.default_rng(0), [pair for pair in zip(a, b, strict=True) if all(r.correct for r in pair)]
    if known and len({r.data_fingerprint for pair in known for r in pair}) == 1:
        draws = mean + _other_images(known, rng)
    else:
        one, other = (binomial_error(float(np.mean([r.top1 for r in runs])), runs[0].num_test) for runs in (a, b))
        draws = mean + np.hypot(one, other) * rng.standard_normal(DRAWS)
    apart_a, apart_b = (of_seeds(ledger, runs[0]) for runs in (a, b))
    if freedom := min(apart_a.freedom, apart_b.freedom):
        error = np.hypot(apart_a.deviation, apart_b.deviation) / len(seeds) ** 0.5
        draws = draws + error * rng.standard_t(freedom, DRAWS)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Difference(mean, float(low), float(high), len(seeds), (*a, *b))


def _other_images(pairs: Sequence[tuple[Record, Record]], rng: np.random.Generator) -> np.ndarray:
    """What DRAWS samples of the test images add to a difference, in points, without the runs' own chance: (DRAWS,).

    Images with the same gain over all seeds are alike, so that how often each gain is drawn says all.
    """
    gains = 100 * np.stack([after.right.astype(float) - before.right for before, after in pairs])  # (seeds, images)
    seeds, images = gains.shape
    mean = gains.mean(0)
    kinds, counts = np.unique(mean, return_counts=True)
    draws = rng.multinomial(images, counts / images, size=DRAWS) @ kinds / images - mean.mean()
    own = gains.var(0, ddof=1).mean() / seeds if seeds > 1 else 0.0
    return max(0.0, 1 - own / (mean.var() or 1.0)) ** 0.5 * draws
