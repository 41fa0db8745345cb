"""The recipe's augmentation against Pillow, torchvision and its own definition."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import AutoAugment

from lkca import augment


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_operation_of_the_policies_exists():
    for policy in augment.POLICIES.values():
        sub_policies = AutoAugment(policy).policies
        assert len(sub_policies) == 25
        assert {name for pair in sub_policies for name, *_ in pair} <= set(augment._OPERATIONS)


@pytest.mark.parametrize("name", augment._OPERATIONS)
def test_operations_keep_shape_and_level_zero_is_the_identity(image, name):
    assert augment.operate(image, name, 9).size == image.size
    if name not in ("AutoContrast", "Equalize", "Invert"):
        assert np.array_equal(augment.operate(image, name, 0), image)


def test_directions_and_fill(image):
    x = np.asarray(image)
    right = np.asarray(augment.operate(image, "TranslateX", 9, -1))  # a negative shift samples from the left
    assert (right[:, :15] == 128).all() and np.array_equal(right[:, 15:], x[:, :17])  # 150 / 331 of 32 is 14.5
    turned = augment.operate(image, "Rotate", 9)
    assert np.array_equal(turned, image.rotate(30, Image.Resampling.NEAREST, fillcolor=augment.GREY))
    sheared = np.asarray(augment.operate(image, "ShearX", 9))
    assert (sheared[31, 25:] == 128).all() and not (
        sheared[31, :20] == 128
    ).all()  # about the corner: the last row moves most
    assert (
        np.abs(sheared[0, :28].astype(int) - x[0, :28]).mean()
        < 40
        < np.abs(sheared[31, :20].astype(int) - x[31, :20]).mean()
    )
    assert np.array_equal(augment.operate(image, "Posterize", 9), ImageOps.posterize(image, 4))
    assert np.array_equal(augment.operate(image, "Invert", None), 255 - x)


def test_augment_flips_and_crops():
    images = torch.arange(4 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(4, 3, 8, 8)
    off = {"flip": 0.0, "crop_padding": 0, "policy": None}
    assert torch.equal(augment.augment(images, rng(), **off), images)
    assert torch.equal(augment.augment(images, rng(), **off | {"flip": 1.0}), images.flip(3))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for out, source in zip(augment.augment(images, rng(), **off | {"crop_padding": 2}), padded, strict=True):
        assert any(torch.equal(out, source[:, t : t + 8, x : x + 8]) for t in range(5) for x in range(5))


def test_erase_fills_one_rectangle_as_asked():
    x = torch.zeros(400, 3, 16, 16)
    kw = {"area": (0.02, 0.4), "aspect": (0.3, 1 / 0.3), "fill": (1.0, 2.0, 3.0)}
    augment.erase(x, rng(), probability=0.25, **kw)
    erased = x[:, 0].flatten(1).sum(1)
    assert 0.15 < (erased > 0).float().mean() < 0.35 and erased.max() <= 0.45 * 256
    for image in x[erased > 0]:
        ys, xs = image[0].nonzero(as_tuple=True)
        box = image[:, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert all((box[c] == c + 1).all() for c in range(3))


def test_mix_shares_are_what_the_pixels_show():
    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 16, 16).clone()
    kinds = set()
    for seed in range(200):
        mixed, other, share = augment.mix(x, rng(seed), probability=0.5, cutmix_share=0.5, beta=1.0)
        assert torch.equal(other.sort().values, torch.arange(8)) and 0 <= share <= 1
        expected = share * x.mean((1, 2, 3)) + (1 - share) * x[other].mean((1, 2, 3))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, rtol=0, atol=1e-4)
        cut = torch.isin(mixed, x).all() if share < 1 else None
        kinds.add("unmixed" if share == 1 else "cutmix" if cut else "mixup")
    assert kinds == {"unmixed", "cutmix", "mixup"}
    assert torch.equal(x[:, 0, 0, 0], torch.arange(8.0))


def test_normalise():
    x = augment.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))
