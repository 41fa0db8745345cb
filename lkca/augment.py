"""The recipe's augmentation: flip, padded crop, AutoAugment, normalise, random erasing, and Mixup or CutMix.

As in the authors' released code, in their order. Everything random is drawn from the generator that is passed in.

AutoAugment's 25 sub-policies are torchvision's (they equal the released ones entry by entry); the operations are
Pillow's, with the released code's interpolation, fill and signs, which differ from torchvision's: shear is bicubic
about the image's corner, rotation is always counter-clockwise, and what comes in from outside is grey (128).
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

GREY = (128, 128, 128)
POLICIES = {
    "cifar10": AutoAugmentPolicy.CIFAR10,
    "cifar100": AutoAugmentPolicy.CIFAR10,
    "svhn": AutoAugmentPolicy.SVHN,
    "tiny-imagenet": AutoAugmentPolicy.IMAGENET,
    "digits": AutoAugmentPolicy.SVHN,
}


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
_SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Color", "Contrast", "Sharpness", "Brightness"}
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
            image = operate(image, name, level, rng.choice((-1, 1)) if name in _SIGNED else 1)
    return image


def augment(
    images_BCHW: Tensor,
    rng: np.random.Generator,
    *,
    flip: float,
    crop_padding: int,
    policy: AutoAugmentPolicy | None,
) -> Tensor:
    """Flip, padded crop and AutoAugment, each image by its own draw.

    Args:
        images_BCHW: uint8, (B, 3, H, W), on the CPU.
        rng: where every draw comes from.
        flip: probability of a horizontal flip.
        crop_padding: black pixels added on each side before a crop of the old size.
        policy: AutoAugment's, or None for none.

    Returns:
        uint8, (B, 3, H, W).
    """
    sub_policies = AutoAugment(policy).policies if policy else None
    height, width = images_BCHW.shape[2:]
    batch = images_BCHW.permute(0, 2, 3, 1).numpy()
    batch = np.pad(batch, ((0, 0), (crop_padding, crop_padding), (crop_padding, crop_padding), (0, 0)))
    out = np.empty((len(batch), height, width, 3), np.uint8)
    for i, padded in enumerate(batch):
        flipped = rng.random() < flip  # padding is symmetric: flipping before or after it is the same
        top, left = rng.integers(0, 2 * crop_padding + 1, size=2)
        pixels = (padded[:, ::-1] if flipped else padded)[top : top + height, left : left + width]
        if sub_policies:
            pixels = _auto_augment(Image.fromarray(np.ascontiguousarray(pixels)), sub_policies, rng)
        out[i] = pixels
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def normalise(images_BCHW: Tensor, mean: tuple, std: tuple) -> Tensor:
    """uint8 (B, 3, H, W) to float32, channel by channel (x / 255 - mean) / std, on the same device."""
    mean_, std_ = (torch.tensor(v, device=images_BCHW.device).view(3, 1, 1) for v in (mean, std))
    return (images_BCHW.float() / 255 - mean_) / std_


def erase(
    images_BCHW: Tensor,
    rng: np.random.Generator,
    *,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    fill: tuple,
) -> Tensor:
    """Random erasing (Zhong et al. 2020) of normalised images, in place: one rectangle in some of them.

    ``area`` is a share of the image and ``aspect`` height over width, both drawn uniformly. ``fill`` is written as it
    is: the released code fills normalised images with the *un*-normalised mean.
    """
    height, width = images_BCHW.shape[2:]
    value = torch.tensor(fill, device=images_BCHW.device).view(3, 1, 1)
    for image in images_BCHW:
        if rng.random() >= probability:
            continue
        for _ in range(100):  # until a rectangle fits
            share, ratio = rng.uniform(*area) * height * width, rng.uniform(*aspect)
            h, w = round(np.sqrt(share * ratio)), round(np.sqrt(share / ratio))
            if h < height and w < width:
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                image[:, top : top + h, left : left + w] = value
                break
    return images_BCHW


def mix(
    images_BCHW: Tensor, rng: np.random.Generator, *, probability: float, cutmix_share: float, beta: float
) -> tuple[Tensor, Tensor, float]:
    """Mix a batch with a permutation of itself, all by one share drawn from Beta(beta, beta): CutMix or Mixup.

    Returns the images, the permutation (B,), and the share of each image's own label; an unmixed batch has share 1.
    """
    unmixed = torch.arange(len(images_BCHW), device=images_BCHW.device)
    if rng.random() >= probability:
        return images_BCHW, unmixed, 1.0
    cutmix, share = rng.random() < cutmix_share, rng.beta(beta, beta)
    other = torch.from_numpy(rng.permutation(len(images_BCHW))).to(images_BCHW.device)
    if not cutmix:
        return share * images_BCHW + (1 - share) * images_BCHW[other], other, share
    height, width = images_BCHW.shape[2:]
    y, x = rng.integers(height), rng.integers(width)  # the centre; the box is clipped at the border
    h, w = int(height * np.sqrt(1 - share)), int(width * np.sqrt(1 - share))
    top, bottom = np.clip((y - h // 2, y + h // 2), 0, height)
    left, right = np.clip((x - w // 2, x + w // 2), 0, width)
    mixed = images_BCHW.clone()
    mixed[:, :, top:bottom, left:right] = images_BCHW[other, :, top:bottom, left:right]
    return mixed, other, 1 - (bottom - top) * (right - left) / (height * width)
