"""Segmentation as a task of the engine: protocol, loss, sliding window, pixel counts, a run and its resumption."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from lkca.data import scenes
from lkca.data.scenes import IGNORE
from lkca.ledger import records, trained
from lkca.ledger.protocols import ORIGIN, SEGMENTATION, SegmentationProtocol
from lkca.ledger.runs import SegmentationRecord, measures
from lkca.models import segmenters
from lkca.training import engine, segmentation


@pytest.fixture(scope="module")
def digit_scenes():
    return scenes.load("digit-scenes")


@pytest.fixture
def tiny(monkeypatch):
    """The name of a row that trains in an instant."""
    row = dataclasses.replace(segmenters.ROWS["LKCA-XS/UPerNet"], dim=8, depth=4, channels=4)
    monkeypatch.setitem(segmenters.ROWS, "tiny", row)
    segmenters.run.cache_clear()
    return "tiny"


QUICK = dataclasses.replace(
    SEGMENTATION["smoke"], name="quick", iterations=(6, 20), crop=32, short_side=40, stride=20, test_images=3
)


def test_every_setting_says_whether_it_is_stated():
    fields = {f.name for f in dataclasses.fields(SegmentationProtocol)} - {"name", "cost"}
    assert set(ORIGIN) == fields
    assert {origin.split(":")[0] for origin in ORIGIN.values()} == {"stated", "assumed"}
    stated = {name for name, origin in ORIGIN.items() if origin.startswith("stated")}
    assert stated == {"iterations", "train_images", "test_images"}


def test_the_tables_protocols_are_one_run_each_at_the_papers_counts():
    assert SEGMENTATION["table6"].stages(100) == [2_000, 4_000, 8_000, 16_000]
    assert SEGMENTATION["table7"].stages(100) == [10_000, 20_000]
    assert len({p.hash for p in SEGMENTATION.values()}) == len(SEGMENTATION)


def test_learning_rate():
    p = SEGMENTATION["table7"]
    assert p.learning_rate(0, 1) == pytest.approx(6e-11) and p.learning_rate(750, 1) == pytest.approx(3e-5, rel=1e-5)
    assert p.learning_rate(1_500, 1) == 6e-5
    middle = (20_000 + 1_500) / 2
    assert p.learning_rate(middle, 1) == pytest.approx(3e-5)
    rates = [p.learning_rate(step, 1) for step in range(1_500, 20_000)]
    assert all(a > b > 0 for a, b in zip(rates, rates[1:], strict=False))
    assert rates[-1] == pytest.approx(6e-5 / 18_500)
    flat = dataclasses.replace(p, power=0.5)
    assert flat.learning_rate(middle, 1) == pytest.approx(6e-5 * 0.5**0.5)


def test_cross_entropy_is_over_all_pixels_and_ignored_ones_add_nothing():
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(3, (2, 4, 4)).byte()
    full = nn.functional.cross_entropy(logits, labels.long())
    torch.testing.assert_close(segmentation.cross_entropy(logits, labels), full)
    labels[1] = IGNORE
    half = nn.functional.cross_entropy(logits[:1], labels[:1].long()) / 2
    torch.testing.assert_close(segmentation.cross_entropy(logits, labels), half)
    labels[0] = IGNORE
    assert segmentation.cross_entropy(logits, labels) == 0


def test_the_auxiliary_head_counts_by_its_weight(digit_scenes):
    images, labels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.randint(11, (1, 8, 8)).byte()
    one, other = torch.randn(2, 1, 11, 8, 8)
    loss = segmentation.loss(digit_scenes, SEGMENTATION["table7"], "cpu", torch.float32)
    expected = segmentation.cross_entropy(one, labels) + 0.4 * segmentation.cross_entropy(other, labels)
    torch.testing.assert_close(loss(lambda x: (one, other), images, labels), expected)
    torch.testing.assert_close(loss(lambda x: (one,), images, labels), segmentation.cross_entropy(one, labels))


def test_a_model_sees_normalised_images(digit_scenes):
    seen = []
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)

    def call(x):
        seen.append(x)
        return (torch.zeros(1, 11, 2, 2),)

    segmentation.loss(digit_scenes, SEGMENTATION["table7"], "cpu", torch.float32)(call, images, torch.zeros(1, 2, 2))
    torch.testing.assert_close(
        seen[0][0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


@pytest.mark.parametrize("length, starts", [(20, [0]), (32, [0]), (33, [0, 1]), (52, [0, 20]), (60, [0, 20, 28])])
def test_windows_cover_a_side(length, starts):
    assert segmentation.windows(length, 32, 20) == starts


@pytest.mark.parametrize("size", [(32, 32), (40, 75), (20, 50), (7, 9)])
def test_sliding_a_pixelwise_model_is_applying_it(size):
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, *size), nn.Conv2d(3, 5, 1)
    with torch.no_grad():
        torch.testing.assert_close(segmentation.slide(model, x, 32, 20), model(x), atol=1e-5, rtol=1e-5)


def test_overlapping_windows_are_averaged():
    seen = iter(torch.arange(1.0, 3))
    scores = segmentation.slide(
        lambda x: torch.cat([torch.full((1, 1, 4, 4), next(seen).item()) for _ in x]), torch.zeros(1, 3, 4, 6), 4, 2
    )
    assert scores[0, 0, 0].tolist() == [1, 1, 1.5, 1.5, 2, 2]


def test_sliding_and_resizing_agree_where_the_image_is_the_crop(tiny):
    torch.manual_seed(0)
    model = segmenters.build(tiny, crop=32, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(segmentation.slide(model, x, 32, 20), segmentation.whole(model, x))
        assert segmentation.whole(model, torch.randn(1, 3, 50, 70)).shape == (1, 5, 50, 70)


def test_pixel_counts_are_exact(digit_scenes):
    ds = segmentation.subset(digit_scenes, dataclasses.replace(QUICK, short_side=None, test_images=5))
    ds = dataclasses.replace(ds, test=dataclasses.replace(ds.test, labels=ds.test.labels.clone()))
    ds.test.labels[::7] = IGNORE
    weights = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))

    def scores(x):
        return torch.einsum("kc, bchw -> bkhw", weights, x)

    counts = segmentation.measure(scores, ds, torch.float32)
    inside, union, truth = (np.zeros(11, int) for _ in range(3))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scenes.MEAN, scenes.STD))
    for i in range(5):
        found = scores(((ds.test.image(i) / 255 - mean) / std)[None])[0].argmax(0).numpy()
        label = ds.test.label(i).numpy()
        counted = label != IGNORE
        for k in range(11):
            inside[k] += ((found == k) & (label == k) & counted).sum()
            union[k] += (((found == k) | (label == k)) & counted).sum()
            truth[k] += (label == k).sum()
    assert counts == {"intersection": inside.tolist(), "union": union.tolist(), "truth": truth.tolist()}


def test_predictions_come_at_the_pictures_own_size(digit_scenes):
    pictures = digit_scenes.test.first(6)
    found = dict(
        (i, labels[j].shape)
        for members, labels in segmentation.predictions(
            lambda x: torch.ones(len(x), 2, *x.shape[2:]), pictures, 50, torch.float32
        )
        for j, i in enumerate(members)
    )
    assert found == {i: torch.Size(size) for i, size in enumerate(pictures.sizes.tolist())}


def test_a_run_leaves_a_record_and_a_killed_one_resumes_bit_for_bit(digit_scenes, tiny, tmp_path):
    fit = {"precision": "fp32", "progress": None, "keep_weights": True}
    (whole,) = engine.fit(tiny, digit_scenes, QUICK, [3], results_root=tmp_path / "a", **fit)
    calls = 0
    while (
        found := engine.fit(tiny, digit_scenes, QUICK, [3], results_root=tmp_path / "b", time_budget=0, **fit)
    ) is None:
        calls += 1
    assert calls >= 2
    one, other = (trained.path(whole, tmp_path / part).read_bytes() for part in "ab")
    assert one == other
    same = ("aacc", "miou", "miou10", "intersection", "union", "truth")
    assert [getattr(whole, name) for name in same] == [getattr(found[0], name) for name in same]
    assert [point.train_loss for point in whole.curve] == [point.train_loss for point in found[0].curve]

    assert isinstance(whole, SegmentationRecord) and [point.iteration for point in whole.curve] == [6, 20]
    assert whole == records.read_one(records.path_of(whole, tmp_path / "a"))
    assert (whole.image_size, whole.num_train, whole.num_test, whole.num_classes) == (32, 16, 3, 11)
    assert sum(whole.truth) == sum(digit_scenes.test.sizes[:3].prod(axis=1))
    assert measures(whole.intersection, whole.union, whole.truth)["miou"] == pytest.approx(whole.miou)
    assert json.loads(records.path_of(whole, tmp_path / "a").read_text())["protocol_fields"]["crop"] == 32


def test_seeds_differ_and_batch_norm_learns(digit_scenes, tiny, tmp_path):
    p = dataclasses.replace(QUICK, iterations=(2,))
    runs = [
        engine.fit(
            tiny, digit_scenes, p, [s], precision="fp32", progress=None, keep_weights=True, results_root=tmp_path
        )[0]
        for s in (0, 1)
    ]
    assert runs[0].curve[0].train_loss != runs[1].curve[0].train_loss
    weights = trained.read(runs[0], tmp_path)
    means = [value for name, value in weights.items() if name.endswith("running_mean")]
    assert means and all(mean.abs().max() > 0 for mean in means)


def test_a_short_run_learns(digit_scenes, tiny, tmp_path):
    """Over 60 iterations the mean loss falls well below that of the first ten."""
    p = dataclasses.replace(QUICK, iterations=(10, 60), lr=1e-2, warmup=5, batch_size=4)
    (run,) = engine.fit(tiny, digit_scenes, p, [0], progress=None, results_root=tmp_path)
    first, last = run.curve
    assert last.train_loss < 0.8 * first.train_loss and last.aacc > 80
