"""The rule of the intervals on records whose answers are known."""

import dataclasses

import numpy as np
import pytest

from lkca.ledger import intervals, records
from lkca.ledger.runs import pack

START = ("cifar100", "ViT/0.5M", "sketch", 0)
FIRST = next(r for r in records.read()[0] if (r.dataset, r.row, r.protocol, r.seed) == START)
# of two classes: each record is checked when it is made, which would take most of the time here with a hundred
TEMPLATE = dataclasses.replace(FIRST, num_classes=2, per_class_top1=FIRST.per_class_top1[:2])


def run(seed, right, **kw):
    """A record of a run that got these test images right."""
    right = np.asarray(right, bool)
    top1 = float(100 * right.mean())
    curve = [dataclasses.replace(point, top1=top1) for point in TEMPLATE.curve]
    settings = {"seed": seed, "num_test": len(right), "correct": pack(right), "curve": curve, "top1": top1,
                "top1_best": top1, "best_epoch": 1, "per_class_top1": [top1] * TEMPLATE.num_classes}  # fmt: skip
    return dataclasses.replace(TEMPLATE, **settings | kw)


def without_answers(runs):
    return [dataclasses.replace(r, correct="") for r in runs]


def runs(rng, seeds=5, images=600, gain=0.0, of_seed=0.0, difficulty=1.5):
    """Two rows on images of varied difficulty; ``gain`` of the second and each run's deviation in log-odds."""
    hardness = difficulty * rng.standard_normal(images)
    found = ([], [])
    for seed in range(seeds):
        for name, row, mean in zip(("ViT/0.5M", "ViT/0.5M-LKCA"), found, (0.0, gain), strict=True):
            shift = mean + of_seed * rng.standard_normal()
            row.append(run(seed, rng.random(images) < 1 / (1 + np.exp(hardness - shift)), row=name))
    return found


def paired(before, after, more=()):
    return intervals.paired(before, after, [*before, *after, *more])


def seeds_of(row, top1, **kw):
    """Runs of a row whose seeds have these accuracies, on 10,000 images."""
    return [run(seed, np.arange(10_000) < 100 * value, row=row, **kw) for seed, value in enumerate(top1)]


def half(d):
    return (d.high - d.low) / 2


def test_what_both_rows_find_hard_cancels():
    """All that one gets right the other does too, and two in a hundred more: no doubt, though n is small."""
    rng = np.random.default_rng(0)
    before = [run(s, rng.permutation(1000) < 600) for s in range(3)]
    after = [run(r.seed, r.right | (np.cumsum(~r.right) <= 20), row="ViT/0.5M-LKCA") for r in before]
    d = paired(before, after)
    assert d.mean == pytest.approx(2) and 0.5 < d.low < 2 < d.high < 3.5 and d.n == 3
    unpaired = paired(without_answers(before), without_answers(after))
    assert unpaired.mean == pytest.approx(2) and unpaired.low < 0 < unpaired.high
    assert half(unpaired) > 2 * half(d)


def test_seeds_that_disagree_leave_it_open_however_many_images():
    right = np.arange(20_000) % 2 == 0
    more, fewer = right.copy(), right.copy()
    more[1:2000:2], fewer[:1000:2] = True, False
    after = [run(seed, answers, row="ViT/0.5M-LKCA") for seed, answers in enumerate((more, fewer, right))]
    d = paired([run(s, right) for s in range(3)], after)
    assert d.mean == pytest.approx(100 * 500 / 20_000 / 3) and d.low < 0 < d.high


def test_few_images_leave_it_open_however_many_seeds():
    right, other = np.arange(30) < 15, np.arange(30) < 16
    d = paired([run(s, right) for s in range(50)], [run(s, other, row="ViT/0.5M-LKCA") for s in range(50)])
    assert d.low == pytest.approx(0) and d.high == pytest.approx(10)


def test_a_runs_own_chance_counts_once():
    """Answers that are nothing but chance: seeds and images do nothing of their own, the interval is the binomial's."""
    rng, n, images = np.random.default_rng(0), 40, 2000
    before = [run(s, rng.random(images) < 0.5) for s in range(n)]
    after = [run(s, rng.random(images) < 0.5, row="ViT/0.5M-LKCA") for s in range(n)]
    assert half(paired(before, after)) == pytest.approx(1.96 * 100 * (0.5 / images / n) ** 0.5, rel=0.15)


@pytest.mark.parametrize("seeds, of_seed", [(1, 0.3), (2, 0.3), (3, 0.0), (3, 0.3), (8, 0.3)])
def test_nineteen_of_twenty_intervals_hold_the_truth(seeds, of_seed, monkeypatch):
    """Rows that do not differ in truth, beside others that say how far seeds lie apart.

    Of 200 intervals some 190 contain zero; with one seed, whose own chance counts twice, more.
    """
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    rng = np.random.default_rng(seeds)
    found = []
    for _ in range(200):
        before, after = runs(rng, seeds, images=400, of_seed=of_seed)
        others = [dataclasses.replace(r, row=f"ViT/{i}M") for i in range(3) for r in runs(rng, 3, 400, 0, of_seed)[1]]
        found.append(intervals.paired(before, after, [*before, *after, *others]))
    assert 0.91 <= np.mean([d.sign == 0 for d in found]) <= 1.0
    assert np.mean([d.sign == 0 for d in found]) < 0.99 or seeds == 1


def test_the_spread_is_pooled_over_cells_of_one_engine_and_precision():
    vit, lkca = seeds_of("ViT", (60.0, 62.0)), seeds_of("ViT-LKCA", (60.0, 60.0))
    other = seeds_of("ViT/1M", (90.0,))
    found = intervals.pooled([*vit, *lkca, *other])
    assert (found.deviation, found.freedom, found.runs) == (1.0, 2, (*vit, *lkca))  # root of (2 + 0) / 2
    now = dataclasses.replace(vit[1], versions=vit[1].versions | {"lkca": "0.3.1"}, draws=2)
    assert intervals.pooled([vit[0], now]).freedom == 0
    assert intervals.pooled([vit[0], dataclasses.replace(vit[1], precision="bf16")]).freedom == 0
    assert intervals.pooled([]).freedom == 0


def test_the_spread_of_a_run_is_that_of_the_nearest_cells_with_enough_seeds():
    """Of its own kind of row there; then of its protocol; then of the protocol whose seeds lie farthest apart."""

    def under(protocol, dataset, apart, n, row="ViT"):
        return seeds_of(row, [50 + apart * (-1) ** s for s in range(n)],
                        protocol=protocol, protocol_hash=protocol, dataset=dataset)  # fmt: skip

    (run,) = under("paper", "cifar100", 0.0, 1)
    own, same = under("paper", "cifar100", 3.0, 6), under("paper", "cifar10", 2.0, 8)
    brief, sketch, smoke = (under(p, "cifar100", x, 6) for p, x in (("brief", 1.0), ("sketch", 0.5), ("smoke", 9.0)))

    def deviation(*ledger):
        return intervals.of_seeds([r for runs in ledger for r in runs], run).deviation

    n = 6 / 5
    assert deviation(smoke, sketch, brief, same, own) == pytest.approx(3.0 * n**0.5)
    pool = ((2 * 9.0 + 8 * 4.0) / 8) ** 0.5
    assert deviation(smoke, sketch, brief, same, own[:2]) == pytest.approx(pool)  # two seeds are not enough
    others = [under("paper", d, 5.0, 6, "ViT-LKCA") for d in ("cifar100", "cifar10")]
    assert deviation(smoke, own, *others) == pytest.approx(3.0 * n**0.5)
    assert deviation(smoke, same, own[:2], *others) == pytest.approx(pool)
    among = ((2 * 9.0 + 2 * 6 * 25.0) / 11) ** 0.5
    assert deviation(smoke, sketch, own[:2], *others) == pytest.approx(among)
    assert deviation(smoke, sketch, brief) == pytest.approx(1.0 * n**0.5)
    assert deviation(smoke, sketch[:2], brief[:3]) == pytest.approx(intervals.pooled(brief[:3]).deviation)
    assert intervals.of_seeds(smoke, run).freedom == 0


def test_one_seed_has_an_interval_of_other_seeds():
    vit, lkca = seeds_of("ViT", (60.0,)), seeds_of("ViT-LKCA", (63.0,))
    alone = paired(vit, lkca)
    assert alone.n == 1 and alone.low > 2  # nothing is known of seeds: the images' alone
    others = [r for i in range(6) for r in seeds_of(f"ViT/{i}M", (50.0, 54.0))]  # deviation 2.83, 6 degrees of freedom
    d = paired(vit, lkca, others)
    assert d.mean == alone.mean and half(d) == pytest.approx(2.447 * 8**0.5 * 2**0.5, rel=0.05)
    more = paired(seeds_of("ViT", (60.0, 60.0)), seeds_of("ViT-LKCA", (63.0, 63.0)), others)
    assert half(more) == pytest.approx(half(d) * (6 / 8) ** 0.5 / 2**0.5, rel=0.1)


def test_seeds_without_answers_count_but_not_for_the_images():
    before, after = runs(np.random.default_rng(0), gain=0.5)
    after = [dataclasses.replace(r, row="ViT/0.5M-LKCA") for r in after]
    all_of_them, none = paired(before, after), paired(without_answers(before), without_answers(after))
    some = paired(before, [*without_answers(after[:1]), *after[1:]])
    assert all_of_them.mean == none.mean == some.mean and all_of_them.n == none.n == some.n == 5
    assert half(all_of_them) < half(none) and half(some) == pytest.approx(half(all_of_them), rel=0.1)
    other = [dataclasses.replace(r, data_fingerprint="other") for r in after]
    assert half(paired(before, other)) == pytest.approx(half(none), rel=0.01)
    assert paired(before[:2], after[2:]) is None


def test_without_answers_the_images_are_binomial():
    vit, lkca = without_answers(seeds_of("ViT", (60.0,))), without_answers(seeds_of("ViT-LKCA", (65.0,)))
    d = paired(vit, lkca)
    assert half(d) == pytest.approx(1.96 * (60 * 40 / 1e4 + 65 * 35 / 1e4) ** 0.5, rel=0.03)


def test_a_seed_that_another_engine_drew_is_another_seed():
    before, after = runs(np.random.default_rng(0), gain=0.5)
    assert TEMPLATE.versions["lkca"].startswith("0.1.")
    now = [dataclasses.replace(r, versions=r.versions | {"lkca": "0.3.1"}, draws=2) for r in after]
    assert paired(before, now) is None and paired(before, now[:2] + after[2:]).n == 3
