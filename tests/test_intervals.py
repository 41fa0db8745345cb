"""The rule of the intervals on records whose answers are known."""

import dataclasses

import numpy as np
import pytest

from lkca import intervals, records, variability

START = ("cifar100", "ViT/0.5M", "sketch", 0)
TEMPLATE = next(r for r in records.read()[0] if (r.dataset, r.row, r.protocol, r.seed) == START)


def run(seed, right, **kw):
    """A record of a run that got these test images right."""
    right = np.asarray(right, bool)
    top1 = float(100 * right.mean())
    curve = [dataclasses.replace(point, top1=top1) for point in TEMPLATE.curve]
    settings = {"seed": seed, "num_test": len(right), "correct": records.pack(right), "curve": curve, "top1": top1,
                "top1_best": top1, "best_epoch": 1, "per_class_top1": [top1] * TEMPLATE.num_classes}  # fmt: skip
    return dataclasses.replace(TEMPLATE, **settings | kw)


def without_answers(runs):
    return [dataclasses.replace(r, correct="") for r in runs]


def runs(rng, seeds=5, images=600, gain=0.0, of_seed=0.0, difficulty=1.5):
    """Two rows on images of varied difficulty; ``gain`` and its standard deviation over seeds in log-odds."""
    hardness = difficulty * rng.standard_normal(images)
    found = ([], [])
    for seed in range(seeds):
        for row, shift in zip(found, (0.0, gain + of_seed * rng.standard_normal()), strict=True):
            row.append(run(seed, rng.random(images) < 1 / (1 + np.exp(hardness - shift))))
    return found


def test_what_both_rows_find_hard_cancels():
    """All that one gets right the other does too, and two in a hundred more: no doubt, though n is small."""
    rng = np.random.default_rng(0)
    before = [run(s, rng.permutation(1000) < 600) for s in range(3)]
    after = [run(r.seed, r.right | (np.cumsum(~r.right) <= 20)) for r in before]
    d = intervals.paired(before, after)
    assert d.mean == pytest.approx(2) and 0.5 < d.low < 2 < d.high < 3.5 and d.n == 3
    unpaired = intervals.paired(without_answers(before), without_answers(after))
    assert unpaired.mean == pytest.approx(2) and unpaired.low < 0 < unpaired.high
    assert unpaired.high - unpaired.low > 2 * (d.high - d.low)


def test_seeds_that_disagree_leave_it_open_however_many_images():
    right = np.arange(20_000) % 2 == 0
    more, fewer = right.copy(), right.copy()
    more[1:2000:2], fewer[:1000:2] = True, False
    d = intervals.paired([run(s, right) for s in range(3)], [run(0, more), run(1, fewer), run(2, right)])
    assert d.mean == pytest.approx(100 * 500 / 20_000 / 3) and d.low < 0 < d.high


def test_few_images_leave_it_open_however_many_seeds():
    right, other = np.arange(30) < 15, np.arange(30) < 16
    d = intervals.paired([run(s, right) for s in range(50)], [run(s, other) for s in range(50)])
    assert d.low == pytest.approx(0) and d.high == pytest.approx(10)


def test_the_interval_is_the_variance_of_both_crossed():
    """Against the analytic variance: over seeds, over images, and what is left over both."""
    before, after = runs(np.random.default_rng(3), seeds=8, images=400, gain=0.4, of_seed=0.3)
    gains = 100 * np.stack([b.right.astype(int) - a.right for a, b in zip(before, after, strict=True)])
    s, n = gains.shape
    rows, columns = gains.mean(1).var() / s, gains.mean(0).var() / n
    rest = (gains - gains.mean(1, keepdims=True) - gains.mean(0) + gains.mean()).var() / (s * n)
    d = intervals.paired(before, after)
    half = 1.96 * (rows + columns + rest) ** 0.5
    assert (d.high - d.low) / 2 == pytest.approx(half, rel=0.05)
    assert (d.high + d.low) / 2 == pytest.approx(d.mean, abs=0.1 * half)


@pytest.mark.parametrize("of_seed", [0.0, 0.2])
def test_nineteen_of_twenty_intervals_hold_the_truth(of_seed, monkeypatch):
    """Rows that do not differ in truth; with eight seeds, of 100 intervals some 95 contain zero."""
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    rng = np.random.default_rng(1)
    found = [intervals.paired(*runs(rng, seeds=8, images=200, of_seed=of_seed)) for _ in range(100)]
    assert 88 <= sum(d.sign == 0 for d in found) <= 100


def test_one_seed_records_without_answers_and_other_data_fall_back():
    before, after = runs(np.random.default_rng(0), gain=0.5)
    plain = intervals.paired(without_answers(before), without_answers(after))
    assert intervals.paired(before, without_answers(after)) == plain
    assert intervals.paired(before, [dataclasses.replace(r, data_fingerprint="other") for r in after]) == plain
    assert intervals.paired(before, after) != plain
    one = intervals.paired(before[:1], after[:1])
    half = 1.96 * np.hypot(*(intervals.binomial_error(r.top1, r.num_test) for r in (before[0], after[0])))
    assert (one.low, one.high, one.n) == pytest.approx((one.mean - half, one.mean + half, 1))
    assert intervals.paired(before[:2], after[2:]) is None


def test_a_seed_that_another_engine_drew_is_another_seed():
    before, after = runs(np.random.default_rng(0), gain=0.5)
    assert TEMPLATE.versions["lkca"].startswith("0.1.")
    now = [dataclasses.replace(r, versions=r.versions | {"lkca": "0.3.1"}) for r in after]
    assert intervals.paired(before, now) is None and intervals.paired(before, now[:2] + after[2:]).n == 3


def test_intervals_of_three_seeds_are_too_narrow(monkeypatch):
    """As the pages say: where seeds differ, clearly fewer than 95 of 100 contain the truth, and most do."""
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    rng = np.random.default_rng(1)
    found = [intervals.paired(*runs(rng, seeds=3, images=400, of_seed=0.4)) for _ in range(200)]
    assert 0.75 < np.mean([d.sign == 0 for d in found]) < 0.93


def test_what_the_interval_of_one_seed_should_have_had():
    more = (20, 12)  # of 400 images, which LKCA finds besides the ViT's: +5 and +3 points
    vit = [run(seed, np.arange(400) < 200) for seed in (0, 1)]
    lkca = [run(seed, np.arange(400) < 200 + n, row="ViT/0.5M-LKCA") for seed, n in enumerate(more)]
    (line,) = variability.one_seed([*vit, *lkca]).to_dict("records")
    seeds, images = 2.0, 100**2 * (0.03 - 0.05 * 0.03) / 399  # the second is what an image does to both seeds
    assert (line["pairs"], line["differences"]) == ("1", "2")
    assert (line["over seeds"], line["over test images"]) == (f"{seeds**0.5:.2f}", f"{images**0.5:.2f}")
    assert line["an interval should have"] == f"± {1.96 * (seeds + images) ** 0.5:.2f}"
    halves = [(d.high - d.low) / 2 for d in map(intervals.paired, [[r] for r in vit], [[r] for r in lkca])]
    assert line["the rule's has"] == f"± {np.mean(halves):.2f}"
    assert variability.one_seed([vit[0], lkca[0]]).empty and variability.one_seed(without_answers([*vit, *lkca])).empty
    other = [dataclasses.replace(r, precision="bf16") for r in (vit[1], lkca[1])]
    assert variability.one_seed([vit[0], lkca[0], *other]).empty  # they differ in more than the seed


def test_noise_of_a_run_alone_is_counted_once():
    """Each run's answers are its own: all of the spread over seeds is noise on the images, and none is the images'."""
    rng, n = np.random.default_rng(0), 40
    vit = [run(seed, rng.random(2000) < 0.5) for seed in range(n)]
    lkca = [run(seed, rng.random(2000) < 0.5, row="ViT/0.5M-LKCA") for seed in range(n)]
    (line,) = variability.one_seed([*vit, *lkca]).to_dict("records")
    assert float(line["over seeds"]) == pytest.approx(100 * (0.5 / 2000) ** 0.5, rel=0.25)
    assert float(line["over test images"]) < 0.4
