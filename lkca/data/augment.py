"""The recipe's augmentation for whole batches, each image by its own draw, on the device where the images are.

As in the authors' released code, in their order: flip, padded crop, AutoAugment on uint8, then normalise, random
erasing, and Mixup or CutMix. Two halves:

- *draws*: everything random, as numpy arrays on the host, from the generator that is passed in. So they are the same
  on every device, and which image gets which operation is known without asking the device.
- *operations*: what the draws say, on torch tensors. Images that get the same operation are worked on together, so
  each costs what its own operations cost and nothing waits for the host.

AutoAugment's 25 sub-policies (Cubuk et al. 2019) are torchvision's; they equal the released ones entry by entry. Its
operations are Pillow's, bit for bit, with the released code's interpolation, fill and signs, which differ from
torchvision's: shear is bicubic about the image's corner, rotation always counter-clockwise, and what comes in from
outside is grey (128). Shape suffixes: B images, C = 3 channels, H x W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

GREY = 128
POLICIES = {
    "cifar10": AutoAugmentPolicy.CIFAR10,
    "cifar100": AutoAugmentPolicy.CIFAR10,
    "svhn": AutoAugmentPolicy.SVHN,
    "tiny-imagenet": AutoAugmentPolicy.IMAGENET,
    **dict.fromkeys(("digits", "digits-32", "digits-64"), AutoAugmentPolicy.SVHN),
}


# Pieces of the operations. m is each image's magnitude, float64 (B,).


def _take(images_BCHW: Tensor, y_BHW: Tensor, x_BHW: Tensor) -> Tensor:
    """The pixels at rows y and columns x, int64 and inside the image, that broadcast to (B, H, W)."""
    position = y_BHW * images_BCHW.shape[3] + x_BHW  # (B, H, W)
    index = position.flatten(1)[:, None].expand(-1, 3, -1)
    return images_BCHW.flatten(2).gather(2, index).view(-1, 3, *position.shape[1:])


def _rows_columns(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    h, w = images_BCHW.shape[2:]
    rows = torch.arange(h, device=images_BCHW.device).view(1, h, 1)
    return rows, torch.arange(w, device=images_BCHW.device).view(1, 1, w)


def _nearest(images_BCHW: Tensor, matrix: tuple) -> Tensor:
    """Affine warp, output to input pixel centres, nearest pixel; in Pillow's 16-bit fixed point."""
    one = torch.ones((1, 1, 1), dtype=torch.float64, device=images_BCHW.device)
    a, b, c, d, e, f = (one * (v.view(-1, 1, 1) if isinstance(v, Tensor) else v) for v in matrix)
    (y, x), (h, w) = _rows_columns(images_BCHW), images_BCHW.shape[2:]

    def fixed(v: Tensor) -> Tensor:
        return (v * 65536 + 0.5).floor().long()

    column = (fixed(c + a / 2 + b / 2) + x * fixed(a) + y * fixed(b)) >> 16
    row = (fixed(f + d / 2 + e / 2) + x * fixed(d) + y * fixed(e)) >> 16
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    found = _take(images_BCHW, row.clamp(0, h - 1), column.clamp(0, w - 1))
    return found.masked_fill(~inside[:, None], GREY)


def _shear_x(images_BCHW: Tensor, m: Tensor) -> Tensor:
    """Shift row y by m (y + 1/2) pixels, interpolating along it with Pillow's cubic (a = -1)."""
    (y, x), w = _rows_columns(images_BCHW), images_BCHW.shape[3]
    position = (x + 0.5) + m.view(-1, 1, 1) * (y + 0.5)
    inside = (position >= 0) & (position < w)
    position = position - 0.5
    left = position.floor()
    d = (position - left)[:, None]
    v1, v2, v3, v4 = (_take(images_BCHW, y, (left.long() + k).clamp(0, w - 1)).double() for k in (-1, 0, 1, 2))
    value = v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 - v3 + v4)))
    return value.clamp(0, 255).byte().masked_fill(~inside[:, None], GREY)


def _rotate(images_BCHW: Tensor, m: Tensor) -> Tensor:
    (h, w), angle = images_BCHW.shape[2:], -torch.deg2rad(m)
    cos, sin = angle.cos(), angle.sin()
    c = w / 2 - cos * (w / 2) - sin * (h / 2)
    f = h / 2 + sin * (w / 2) - cos * (h / 2)
    return _nearest(images_BCHW, (cos, sin, c, -sin, cos, f))


def _blend(start_BCHW: Tensor, images_BCHW: Tensor, m: Tensor) -> Tensor:
    """From ``start`` through the image (m = 0) and beyond, cut off to a whole grey level: Pillow's enhance(1 + m)."""
    factor = (1 + m).float().view(-1, 1, 1, 1)
    start = start_BCHW.float()
    return (start + factor * (images_BCHW.float() - start)).clamp(0, 255).byte()


def _grey(images_BCHW: Tensor) -> Tensor:
    r, g, b = images_BCHW.int().unbind(1)
    return ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16)[:, None]  # ITU-R 601-2 luma


def _smooth(images_BCHW: Tensor) -> Tensor:
    """3 x 3 mean with five-fold centre, rounded; the border keeps its pixels."""
    x = images_BCHW.int()
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
    out = images_BCHW.clone()
    out[:, :, 1:-1, 1:-1] = ((2 * sums + 13) // 26).byte()
    return out


def _contrast(images_BCHW: Tensor, m: Tensor) -> Tensor:
    grey = _grey(images_BCHW)
    mean = (grey.sum((1, 2, 3)).double() / grey[0].numel() + 0.5).floor()
    return _blend(mean.view(-1, 1, 1, 1), images_BCHW, m)


def _histogram(images_BCHW: Tensor) -> Tensor:
    """How many pixels of each grey level, int64 (B, 3, 256)."""
    flat = images_BCHW.flatten(2).long()
    return torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=flat.device).scatter_add_(
        2, flat, torch.ones_like(flat)
    )


def _look_up(images_BCHW: Tensor, table_BC256: Tensor) -> Tensor:
    return table_BC256.gather(2, images_BCHW.flatten(2).long()).view_as(images_BCHW)


def _auto_contrast(images_BCHW: Tensor, m: Tensor) -> Tensor:
    low, high = (v.double()[..., None, None] for v in (images_BCHW.flatten(2).amin(2), images_BCHW.flatten(2).amax(2)))
    scale = torch.full_like(low, 255) / (high - low)  # not 255 / …, which torch rounds twice
    stretched = (images_BCHW * scale - low * scale).clamp(0, 255).byte()
    return torch.where(high > low, stretched, images_BCHW)


def _equalize(images_BCHW: Tensor, m: Tensor) -> Tensor:
    counts = _histogram(images_BCHW)
    last = counts.gather(2, images_BCHW.flatten(2).amax(2).long()[..., None])
    step = (images_BCHW[0, 0].numel() - last) // 255
    table = ((step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)).clamp(0, 255)
    return _look_up(images_BCHW, torch.where(step > 0, table, torch.arange(256, device=table.device)).byte())


def _posterize(images_BCHW: Tensor, m: Tensor) -> Tensor:
    return images_BCHW & (256 - 2 ** (8 - m.long())).byte().view(-1, 1, 1, 1)


def _solarize(images_BCHW: Tensor, m: Tensor) -> Tensor:
    return torch.where(images_BCHW < m.view(-1, 1, 1, 1), images_BCHW, 255 - images_BCHW)


@dataclass(frozen=True)
class Operation:
    """One of AutoAugment's: what it does to uint8 (B, 3, H, W) by magnitudes (B,), and the ten magnitudes."""

    apply: Callable[[Tensor, Tensor], Tensor]
    levels: np.ndarray
    signed: bool = False  # whether a sign is drawn


_FACTORS = np.linspace(0, 0.9, 10)  # 1 ± m
_SHIFTS = np.linspace(0, 150 / 331, 10)  # of the side
_NO_LEVELS = np.zeros(10)
OPERATIONS: dict[str, Operation] = {
    "ShearX": Operation(_shear_x, np.linspace(0, 0.3, 10), True),
    "ShearY": Operation(lambda x, m: _shear_x(x.mT.contiguous(), m).mT, np.linspace(0, 0.3, 10), True),
    "TranslateX": Operation(lambda x, m: _nearest(x, (1, 0, m * x.shape[3], 0, 1, 0)), _SHIFTS, True),
    "TranslateY": Operation(lambda x, m: _nearest(x, (1, 0, 0, 0, 1, m * x.shape[2])), _SHIFTS, True),
    "Rotate": Operation(_rotate, np.linspace(0, 30, 10)),  # degrees
    "Color": Operation(lambda x, m: _blend(_grey(x), x, m), _FACTORS, True),
    "Contrast": Operation(_contrast, _FACTORS, True),
    "Sharpness": Operation(lambda x, m: _blend(_smooth(x), x, m), _FACTORS, True),
    "Brightness": Operation(lambda x, m: _blend(torch.zeros_like(x), x, m), _FACTORS, True),
    "Posterize": Operation(_posterize, np.round(np.linspace(8, 4, 10))),  # bits kept
    "Solarize": Operation(_solarize, np.linspace(256, 0, 10)),  # threshold
    "AutoContrast": Operation(_auto_contrast, _NO_LEVELS),
    "Equalize": Operation(_equalize, _NO_LEVELS),
    "Invert": Operation(lambda x, m: 255 - x, _NO_LEVELS),
}
_NAMES = list(OPERATIONS)


@dataclass
class Draws:
    """What happens to each of n uint8 images; numpy arrays, images first."""

    flip: np.ndarray  # bool (n,)
    corner: np.ndarray  # top and left of the crop in the padded image (n, 2)
    operation: np.ndarray  # index into OPERATIONS, or -1 for none (n, 2)
    magnitude: np.ndarray  # with its sign (n, 2)

    @classmethod
    def concatenate(cls, parts: "Sequence[Draws]") -> "Draws":
        """The draws of several batches as one."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def draw(
    rng: np.random.Generator, n: int, *, flip: float, crop_padding: int, policy: AutoAugmentPolicy | None
) -> Draws:
    """Draw what `augment` does to ``n`` images.

    Args:
        rng: where every draw comes from.
        n: images.
        flip: probability of a horizontal flip.
        crop_padding: black pixels added on each side before a crop of the old size.
        policy: AutoAugment's, or None for none: one of its 25 sub-policies an image, each of whose two operations is
            applied with its own probability and, where it has one, a sign.
    """
    flips = rng.random(n) < flip
    corner = rng.integers(0, 2 * crop_padding + 1, size=(n, 2))
    operation, magnitude = np.full((n, 2), -1), np.zeros((n, 2))
    if policy is not None:
        entries = AutoAugment(policy).policies  # 25 of ((name, probability, level or None), (…))
        index = np.array([[_NAMES.index(name) for name, *_ in pair] for pair in entries])
        probability = np.array([[p for _, p, _ in pair] for pair in entries])
        level = np.array([[OPERATIONS[name].levels[lv or 0] for name, _, lv in pair] for pair in entries])
        signed = np.array([OPERATIONS[name].signed for name in _NAMES])
        choice = rng.integers(len(entries), size=n)
        applied = rng.random((n, 2)) < probability[choice]
        sign = np.where(signed[index[choice]], rng.choice((-1.0, 1.0), size=(n, 2)), 1.0)
        operation = np.where(applied, index[choice], -1)
        magnitude = sign * level[choice]
    return Draws(flips, corner, operation, magnitude)


def upload(array: np.ndarray, device: torch.device | str) -> Tensor:
    """An array as a tensor on the device, without waiting for what the device is doing."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor


def augment(images_BCHW: Tensor, draws: Draws, *, crop_padding: int) -> Tensor:
    """Flip, padded crop and AutoAugment: uint8 (B, 3, H, W) to the same, on the same device."""
    device, (h, w) = images_BCHW.device, images_BCHW.shape[2:]

    def here(array: np.ndarray) -> Tensor:
        return upload(array, device)

    rows, columns = _rows_columns(images_BCHW)
    top, left = (here(draws.corner[:, k] - crop_padding).view(-1, 1, 1) for k in (0, 1))
    y, x = rows + top, columns + left
    x = torch.where(here(draws.flip).view(-1, 1, 1), w - 1 - x, x)  # the padding is symmetric
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    out = _take(images_BCHW, y.clamp(0, h - 1), x.clamp(0, w - 1)).masked_fill(~inside[:, None], 0)
    for operation, magnitude in zip(draws.operation.T, draws.magnitude.T, strict=True):
        by_operation = np.argsort(operation, kind="stable")
        ends = np.bincount(operation + 1, minlength=len(_NAMES) + 1).cumsum()
        index, m = here(by_operation), here(magnitude[by_operation])
        for name, first, last in zip(_NAMES, ends, ends[1:], strict=False):
            if last > first:
                group = index[first:last]
                out[group] = OPERATIONS[name].apply(out[group], m[first:last])
    return out


def normalise(images_BCHW: Tensor, mean_3: Tensor, std_3: Tensor) -> Tensor:
    """uint8 (…, 3, H, W) to the dtype of ``mean``, channel by channel (x / 255 - mean) / std, on the same device."""
    return (images_BCHW.to(mean_3.dtype) / 255 - mean_3[:, None, None]) / std_3[:, None, None]


def draw_erasing(
    rng: np.random.Generator,
    n: int,
    size: tuple[int, int],
    *,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> np.ndarray:
    """Random erasing's rectangles (Zhong et al. 2020): top, bottom, left, right of each of n images, int64 (n, 4).

    ``area`` is a share of the H x W = ``size`` image and ``aspect`` height over width, both drawn uniformly until the
    rectangle fits, at most 100 times. An image that is not erased has an empty rectangle.
    """
    height, width = size
    boxes = np.zeros((n, 4), np.int64)
    waiting = np.flatnonzero(rng.random(n) < probability)
    for _ in range(100):
        if not len(waiting):
            break
        share, ratio = rng.uniform(*area, len(waiting)) * height * width, rng.uniform(*aspect, len(waiting))
        h, w = np.round(np.sqrt(share * ratio)).astype(int), np.round(np.sqrt(share / ratio)).astype(int)
        fits = (h < height) & (w < width)
        h, w, chosen, waiting = h[fits], w[fits], waiting[fits], waiting[~fits]
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        boxes[chosen] = np.stack([top, top + h, left, left + w], axis=1)
    return boxes


def _in_box(box: Tensor, size: Sequence[int]) -> Tensor:
    """Which pixels of an H x W image lie in each box: (…, 4) to bool (…, 1, H, W)."""
    y = torch.arange(size[0], device=box.device).view(-1, 1)
    x = torch.arange(size[1], device=box.device)
    top, bottom, left, right = box[..., None, None, None].unbind(-4)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def erase(images_BCHW: Tensor, boxes_B4: Tensor, fill_3: Tensor) -> Tensor:
    """Fill each image's box. ``fill`` is written as it is: the released code writes the *un*-normalised mean."""
    return torch.where(_in_box(boxes_B4, images_BCHW.shape[-2:]), fill_3[:, None, None], images_BCHW)


@dataclass
class Mixing:
    """How each of n batches is mixed with a permutation of itself; numpy arrays, batches first."""

    other: np.ndarray  # the permutation, int64 (n, B)
    share: np.ndarray  # of an image's own label, float64 (n,)
    weight: np.ndarray  # of an image's own pixels outside the box, float64 (n,)
    box: np.ndarray  # top, bottom, left, right of what comes from the other image, int64 (n, 4)


def draw_mixing(
    rng: np.random.Generator,
    n: int,
    batch_size: int,
    size: tuple[int, int],
    *,
    probability: float,
    cutmix_share: float,
    beta: float,
) -> Mixing:
    """CutMix (Yun et al. 2019), Mixup (Zhang et al. 2018) or neither: a batch has one share, from Beta(beta, beta)."""
    height, width = size
    mixed, cut = rng.random(n) < probability, rng.random(n) < cutmix_share
    share = rng.beta(beta, beta, n)
    y, x = rng.integers(height, size=n), rng.integers(width, size=n)  # the centre; the box is clipped at the border
    h, w = (height * np.sqrt(1 - share)).astype(int), (width * np.sqrt(1 - share)).astype(int)
    box = np.stack([y - h // 2, y + h // 2, x - w // 2, x + w // 2], axis=1)
    box = np.clip(box, 0, [height, height, width, width]) * (mixed & cut)[:, None]
    outside = 1 - (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (height * width)
    weight = np.where(mixed & ~cut, share, 1.0)
    other = rng.permuted(np.tile(np.arange(batch_size), (n, 1)), axis=1)
    return Mixing(other, np.where(mixed & ~cut, share, outside), weight, box)


def mix(images_BCHW: Tensor, other_B: Tensor, weight: Tensor, box_4: Tensor) -> Tensor:
    """Mix a batch with its permutation: ``weight`` of its own pixels outside the box, none inside it."""
    own = weight * ~_in_box(box_4, images_BCHW.shape[-2:])
    return own * images_BCHW + (1 - own) * images_BCHW[other_B]
