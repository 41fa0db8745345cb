"""The batched augmentation: against Pillow pixel by pixel, its draws against their probabilities, and as a whole."""

import numpy as np
import pillow_recipe
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images
from torchvision.transforms import AutoAugment

from lkca.data import augment

RECIPE = {"flip": 0.5, "crop_padding": 4}


def rng(seed=0):
    return np.random.default_rng(seed)


def photographs(size, stride):
    """Squares cut from scikit-learn's two photographs, uint8 (N, size, size, 3)."""
    whole = np.stack(load_sample_images().images)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.ascontiguousarray(np.moveaxis(windows, 3, -1).reshape(-1, size, size, 3))


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def awkward(h, w):
    """Images at which a look-up table or a histogram may go wrong: flat, two-valued, narrow, ramps, noise."""
    x = rng().integers(0, 256, (16, h, w, 3), np.uint8)
    x[0], x[1], x[2] = 77, 0, 255
    x[3, :, :, 0] = 3
    x[4] = rng(1).integers(100, 130, (h, w, 3))
    x[5] = rng(2).choice([3, 200], (h, w, 3))
    x[6] = np.linspace(0, 255, w)[None, :, None]
    return x


def test_every_operation_of_the_policies_exists():
    for policy in augment.POLICIES.values():
        sub_policies = AutoAugment(policy).policies
        assert len(sub_policies) == 25
        assert {name for pair in sub_policies for name, *_ in pair} <= set(augment.OPERATIONS)
    assert {name for name, op in augment.OPERATIONS.items() if op.signed} == pillow_recipe.SIGNED


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (64, 64), (12, 20)])
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_operations_are_pillow_s_to_the_last_grey_level(name, size):
    images = awkward(*size)
    if size == (32, 32):
        images = np.concatenate([images, photographs(32, 90)])
    op = augment.OPERATIONS[name]
    for level in range(10):
        for sign in (-1, 1) if op.signed else (1,):
            m = torch.full((len(images),), sign * op.levels[level], dtype=torch.float64)
            ours = op.apply(tensor(images), m).permute(0, 2, 3, 1).numpy()
            theirs = [np.asarray(pillow_recipe.operate(Image.fromarray(x), name, level, sign)) for x in images]
            assert np.array_equal(ours, theirs), (level, sign)


@pytest.mark.parametrize("policy", sorted(set(augment.POLICIES.values()), key=str))
def test_draws_have_the_policy_s_frequencies(policy):
    """Chi-squared over what each of the two places of a sub-policy does: operation, magnitude and sign together."""
    n = 100_000
    draws = augment.draw(rng(), n, **RECIPE, policy=policy)
    for place in (0, 1):
        expected = {}
        for pair in AutoAugment(policy).policies:
            name, probability, level = pair[place]
            op, k = augment.OPERATIONS[name], list(augment.OPERATIONS).index(name)
            for sign in (-1, 1) if op.signed else (1,):
                key = (k, round(sign * op.levels[level or 0], 6) + 0.0)
                expected[key] = expected.get(key, 0) + n * probability / 25 / (1 + op.signed)
        expected[-1, None] = n - sum(expected.values())
        drawn = dict.fromkeys(expected, 0)
        for k, m in zip(draws.operation[:, place], draws.magnitude[:, place], strict=True):
            drawn[(-1, None) if k < 0 else (k, round(m, 6) + 0.0)] += 1
        possible = [key for key in expected if expected[key] > 1e-6]
        assert sum(drawn[key] for key in possible) == n
        assert stats.chisquare([drawn[k] for k in possible], [expected[k] for k in possible]).pvalue > 1e-3
    assert stats.chisquare(np.bincount(draws.flip)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(draws.corner @ (9, 1))).pvalue > 1e-3  # 81 corners


def test_the_two_operations_of_an_image_come_from_one_sub_policy():
    policy = augment.POLICIES["cifar10"]
    names = [*augment.OPERATIONS, None]
    pairs = {tuple(name for name, *_ in pair) for pair in AutoAugment(policy).policies}
    for pair in augment.draw(rng(), 2000, **RECIPE, policy=policy).operation:
        assert None in (a := tuple(names[k] for k in pair)) or a in pairs


@pytest.mark.parametrize("policy", sorted(set(augment.POLICIES.values()), key=str))
def test_the_whole_gives_the_same_distribution_as_the_pillow_pipeline(policy):
    """Kolmogorov-Smirnov on what 4,000 photographs' squares look like afterwards; the two draw differently."""
    images = photographs(32, 11)[:4000]
    ours = augment.augment(tensor(images), augment.draw(rng(), len(images), **RECIPE, policy=policy), crop_padding=4)
    ours = ours.permute(0, 2, 3, 1).numpy().astype(float)
    theirs = pillow_recipe.augment(images, rng(1), **RECIPE, policy=policy).astype(float)
    for look in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2)).mean(1),
        lambda x: np.abs(np.diff(x, axis=2)).mean((1, 2, 3)),
        lambda x: x.max(3).mean((1, 2)) - x.min(3).mean((1, 2)),  # colourfulness
        lambda x: (x == 128).all(3).mean((1, 2)),  # what came in from outside
        lambda x: (x == 0).all(3).mean((1, 2)),
        lambda x: x[:, :16].mean((1, 2, 3)) - x[:, 16:].mean((1, 2, 3)),
    ):
        assert stats.ks_2samp(look(ours), look(theirs)).pvalue > 1e-3


def test_flip_and_crop():
    images = torch.arange(4 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(4, 3, 8, 8)
    off = {"flip": 0.0, "crop_padding": 0, "policy": None}

    def augmented(**kw):
        kw = off | kw
        return augment.augment(images, augment.draw(rng(), 4, **kw), crop_padding=kw["crop_padding"])

    assert torch.equal(augmented(), images)
    assert torch.equal(augmented(flip=1.0), images.flip(3))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for flip, source in ((0.0, padded), (1.0, padded.flip(3))):
        for out, of in zip(augmented(crop_padding=2, flip=flip), source, strict=True):
            assert any(torch.equal(out, of[:, t : t + 8, x : x + 8]) for t in range(5) for x in range(5))


def test_erasing_draws_boxes_as_asked_and_fills_them():
    kw = {"area": (0.02, 0.4), "aspect": (0.3, 1 / 0.3)}
    boxes = augment.draw_erasing(rng(), 40_000, (32, 32), probability=0.25, **kw)
    top, bottom, left, right = boxes.T
    h, w, erased = bottom - top, right - left, bottom > top
    assert stats.binomtest(int(erased.sum()), len(boxes), 0.25).pvalue > 1e-3
    assert boxes.min() >= 0 and boxes.max() <= 32 and (h < 32).all() and (w < 32).all()
    share = (h * w)[erased] / 1024
    assert share.min() > 0.015 and share.max() < 0.42 and 0.3 < (h[erased] / w[erased]).mean() < 1 / 0.3
    boxes = boxes[:300]
    x = augment.erase(torch.zeros(300, 3, 32, 32), torch.from_numpy(boxes), torch.tensor([1.0, 2.0, 3.0]))
    for image, (t, b, lft, r) in zip(x, boxes, strict=True):
        assert all((image[c, t:b, lft:r] == c + 1).all() for c in range(3))
        assert image.sum() == 6 * (b - t) * (r - lft)


def test_mixing_shares_are_what_the_pixels_show():
    x = torch.arange(8.0, dtype=torch.float64).view(8, 1, 1, 1).expand(8, 3, 16, 16).clone()
    m = augment.draw_mixing(rng(), 4000, 8, (16, 16), probability=0.5, cutmix_share=0.5, beta=1.0)
    kinds = []
    for i in range(400):
        other, weight, box = (torch.as_tensor(v[i]) for v in (m.other, m.weight, m.box))
        mixed = augment.mix(x, other, weight, box)
        assert torch.equal(other.sort().values, torch.arange(8)) and 0 <= m.share[i] <= 1
        expected = m.share[i] * x.mean((1, 2, 3)) + (1 - m.share[i]) * x[other].mean((1, 2, 3))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected)
        kinds.append("mixup" if weight < 1 else "cutmix" if m.share[i] < 1 else "unmixed")
        if kinds[-1] == "cutmix":
            assert torch.isin(mixed, x).all()
    assert set(kinds) == {"mixup", "cutmix", "unmixed"}
    assert stats.binomtest(int((m.weight < 1).sum()), 4000, 0.25).pvalue > 1e-3
    assert stats.kstest(m.weight[m.weight < 1], "uniform").pvalue > 1e-3  # Beta(1, 1)


def test_normalise():
    x = augment.normalise(
        torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.25, 0.5, 1.0])
    )
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))
