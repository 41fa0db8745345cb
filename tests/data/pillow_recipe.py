"""The recipe's augmentation on uint8, image by image with Pillow: the oracle of test_augment.py."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import AutoAugment

GREY = (128, 128, 128)


def _affine(image: Image.Image, matrix: tuple, resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=GREY)


def _enhance(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, m: kind(image).enhance(1 + m)


_LEVELS = {
    "ShearX": np.linspace(0, 0.3, 10),
    "ShearY": np.linspace(0, 0.3, 10),
    "TranslateX": np.linspace(0, 150 / 331, 10),  # of the side
    "TranslateY": np.linspace(0, 150 / 331, 10),
    "Rotate": np.linspace(0, 30, 10),  # degrees
    "Color": np.linspace(0, 0.9, 10),  # factor 1 ± m
    "Contrast": np.linspace(0, 0.9, 10),
    "Sharpness": np.linspace(0, 0.9, 10),
    "Brightness": np.linspace(0, 0.9, 10),
    "Posterize": np.round(np.linspace(8, 4, 10)).astype(int),  # bits kept
    "Solarize": np.linspace(256, 0, 10),  # threshold
    "AutoContrast": np.zeros(10),
    "Equalize": np.zeros(10),
    "Invert": np.zeros(10),
}
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Color", "Contrast", "Sharpness", "Brightness"}
_BICUBIC, _NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "ShearX": lambda image, m: _affine(image, (1, m, 0, 0, 1, 0), _BICUBIC),
    "ShearY": lambda image, m: _affine(image, (1, 0, 0, m, 1, 0), _BICUBIC),
    "TranslateX": lambda image, m: _affine(image, (1, 0, m * image.width, 0, 1, 0), _NEAREST),
    "TranslateY": lambda image, m: _affine(image, (1, 0, 0, 0, 1, m * image.height), _NEAREST),
    "Rotate": lambda image, m: image.rotate(m, _NEAREST, fillcolor=GREY),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "Solarize": lambda image, m: ImageOps.solarize(image, m),
    "AutoContrast": lambda image, m: ImageOps.autocontrast(image),
    "Equalize": lambda image, m: ImageOps.equalize(image),
    "Invert": lambda image, m: ImageOps.invert(image),
}


def operate(image: Image.Image, name: str, level: int | None, sign: int = 1) -> Image.Image:
    """One AutoAugment operation at a magnitude level 0-9 (None for those without), on an RGB image."""
    return _OPERATIONS[name](image, sign * _LEVELS[name][level or 0])


def _auto_augment(image: Image.Image, policy: list, rng: np.random.Generator) -> Image.Image:
    for name, probability, level in policy[rng.integers(len(policy))]:
        if rng.random() < probability:
            image = operate(image, name, level, rng.choice((-1, 1)) if name in SIGNED else 1)
    return image


def augment(images: np.ndarray, rng: np.random.Generator, *, flip: float, crop_padding: int, policy) -> np.ndarray:
    """Flip, padded crop and AutoAugment of uint8 (B, H, W, 3)."""
    p, (height, width), out = crop_padding, images.shape[1:3], []
    for image in images:
        image = image[:, ::-1] if rng.random() < flip else image
        top, left = rng.integers(0, 2 * p + 1, size=2)
        image = np.pad(image, ((p, p), (p, p), (0, 0)))[top : top + height, left : left + width]
        out.append(_auto_augment(Image.fromarray(np.ascontiguousarray(image)), AutoAugment(policy).policies, rng))
    return np.stack([np.asarray(image) for image in out])
