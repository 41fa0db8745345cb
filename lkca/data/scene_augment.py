"""The augmentation of segmentation for a whole batch on the device, per sample: image and labels stay in register.

MMSegmentation's usual pipeline: scale, crop, flip, photometric distortion. The draws are made on the host; the device
then computes, for every pixel of every crop, where in the flat buffers of `lkca.data.scenes` it comes from, and
gathers. Images are interpolated linearly without antialiasing, as OpenCV's resize does; labels come from the nearest
pixel.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from lkca.data.augment import upload
from lkca.data.scenes import IGNORE, MEAN, Pictures

CHUNK = 32  # crops that are gathered at a time, to bound the memory of the indices
COARSE = 32  # pixels a side on which a crop's classes are counted
LONG_SIDE = 4  # times the short side: the longest that an image is scaled to


@dataclass
class Draws:
    """What happens to each of n pictures; numpy arrays, pictures first."""

    picture: np.ndarray  # which, int64 (n,)
    scaled: np.ndarray  # height and width after scaling, int64 (n, 2)
    corners: np.ndarray  # top and left of each of the crops to choose from, int64 (n, tries, 2)
    flip: np.ndarray  # bool (n,)
    brightness: np.ndarray  # added, of 255 (n,)
    contrast: np.ndarray  # factor (n,)
    contrast_last: np.ndarray  # bool (n,): after saturation and hue instead of before
    saturation: np.ndarray  # factor (n,)
    hue: np.ndarray  # added, in degrees (n,)

    @classmethod
    def concatenate(cls, parts: "Sequence[Draws]") -> "Draws":
        """The draws of several batches as one."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def scaled_sizes(sizes_N2: np.ndarray, short_side: int | None, ratio: float | np.ndarray = 1.0) -> np.ndarray:
    """Heights and widths after scaling to ``ratio`` times the short side (None: their own), aspect kept."""
    factor = np.broadcast_to(np.asarray(ratio, np.float64), len(sizes_N2))
    if short_side:
        low, high = sizes_N2.min(axis=1), sizes_N2.max(axis=1)
        factor = factor * np.minimum(short_side / low, LONG_SIDE * short_side / high)
    return np.maximum((sizes_N2 * factor[:, None] + 0.5).astype(np.int64), 1)


def draw(
    rng: np.random.Generator,
    pictures: np.ndarray,
    sizes_N2: np.ndarray,
    *,
    crop: int,
    short_side: int | None,
    scale: tuple[float, float],
    flip: float,
    tries: int,
    distort: float,
) -> Draws:
    """Draw what `augment` does to some pictures.

    Args:
        rng: where every draw comes from.
        pictures: which, (n,).
        sizes_N2: heights and widths of all of them.
        crop: pixels a side.
        short_side: of a picture at scale 1; None for its own.
        scale: least and greatest.
        flip: probability of a horizontal flip.
        tries: crops to choose from.
        distort: probability of each of brightness (within 32), contrast and saturation (0.5 to 1.5) and hue (within 36
            degrees).
    """
    n = len(pictures)
    scaled = scaled_sizes(sizes_N2[pictures], short_side, rng.uniform(*scale, n))
    room = np.maximum(scaled - crop, 0) + 1
    corners = (rng.random((n, tries, 2)) * room[:, None]).astype(np.int64)

    def maybe(low: float, high: float, neutral: float) -> np.ndarray:
        value = rng.uniform(low, high, n)
        return np.where(rng.random(n) < distort, value, neutral)

    return Draws(
        np.asarray(pictures, np.int64),
        scaled,
        corners,
        rng.random(n) < flip,
        maybe(-32, 32, 0),
        maybe(0.5, 1.5, 1),
        rng.random(n) < 0.5,
        maybe(0.5, 1.5, 1),
        maybe(-36, 36, 0),
    )


def _rows(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1)


class _Where:
    """Where in the flat buffers the pixels of n crops lie, at the given rows and columns of the crop."""

    def __init__(self, p: Pictures, d: Draws, corner_n2: Tensor, crop: int, at: Tensor, flip: Tensor):
        device = p.pixels.device
        sizes, scaled = (upload(a, device) for a in (p.sizes[d.picture], d.scaled))
        self.start = _rows(upload(p.offsets[d.picture], device))
        self.width = _rows(sizes[:, 1])
        inner = (scaled - corner_n2).clamp(max=crop)  # of the crop, what lies in the picture; the rest is padding
        y, x = at.view(1, -1, 1), at.view(1, 1, -1)
        self.inside = (y < _rows(inner[:, 0])) & (x < _rows(inner[:, 1]))
        x = torch.where(_rows(flip), _rows(inner[:, 1]) - 1 - x, x)
        ends = sizes - 1
        # of output pixel centres, where they lie among the picture's pixels
        self.y, self.x = (
            ((v + _rows(corner_n2[:, k]) + 0.5) * (_rows(sizes[:, k]).double() / _rows(scaled[:, k])))
            for k, v in enumerate((y, x))
        )
        self.last = [_rows(ends[:, k]) for k in (0, 1)]

    def nearest(self) -> Tensor:
        """Index of the pixel that each lies in, (n, h, w)."""
        y, x = (v.long().clamp(min=0).minimum(last) for v, last in zip((self.y, self.x), self.last, strict=True))
        return self.start + y * self.width + x

    def neighbours(self) -> list[tuple[Tensor, Tensor]]:
        """The four pixels around each: indices and weights, (n, h, w)."""
        corners = []
        for v, last in zip((self.y, self.x), self.last, strict=True):
            v = (v - 0.5).clamp(min=0)
            low = v.long().minimum(last)
            part = (v - low).float()
            corners.append(((low, 1 - part), ((low + 1).minimum(last), part)))
        return [(self.start + y * self.width + x, wy * wx) for y, wy in corners[0] for x, wx in corners[1]]


def choose(p: Pictures, d: Draws, *, crop: int, num_classes: int, cat_max_ratio: float) -> Tensor:
    """The first of each picture's crops in which no class fills more than ``cat_max_ratio``, else the last: (n, 2).

    Counted over a grid of COARSE x COARSE pixels of the crop, pixels that do not count left out.
    """
    device = p.labels.device
    n, tries = d.corners.shape[:2]
    corners = upload(d.corners, device)
    if tries == 1 or cat_max_ratio >= 1:
        return corners[:, 0]
    side = min(COARSE, crop)
    at = torch.arange(side, device=device) * crop // side
    flip = torch.zeros(n, dtype=torch.bool, device=device)
    accepted = []
    for k in range(tries):
        where = _Where(p, d, corners[:, k], crop, at, flip)
        label = p.labels[where.nearest()].long().masked_fill(~where.inside, IGNORE)
        counts = torch.zeros(n, IGNORE + 1, dtype=torch.long, device=device)
        counts.scatter_add_(1, label.flatten(1), torch.ones_like(label.flatten(1)))
        counts = counts[:, :num_classes]
        accepted.append(counts.amax(1) < cat_max_ratio * counts.sum(1))
    taken = torch.stack(accepted, dim=1)
    taken[:, -1] = True
    first = taken.byte().argmax(dim=1)
    return corners[torch.arange(n, device=device), first]


def augment(p: Pictures, d: Draws, *, crop: int, num_classes: int, cat_max_ratio: float) -> tuple[Tensor, Tensor]:
    """Crops of the drawn pictures: images uint8 (n, 3, crop, crop) and labels uint8 (n, crop, crop), on their device.

    What a picture does not fill is the mean colour and IGNORE.
    """
    device = p.pixels.device
    corners = choose(p, d, crop=crop, num_classes=num_classes, cat_max_ratio=cat_max_ratio)
    at = torch.arange(crop, device=device)
    fill = upload(np.array([round(255 * m) for m in MEAN], np.uint8), device).view(3, 1, 1)
    images, labels = [], []
    for first in range(0, len(d.picture), CHUNK):
        part = slice(first, first + CHUNK)
        some = Draws(*(getattr(d, f.name)[part] for f in fields(Draws)))
        where = _Where(p, some, corners[part], crop, at, upload(some.flip, device))
        parts = (p.pixels[index].float() * weight[..., None] for index, weight in where.neighbours())
        image = functools.reduce(torch.add, parts)
        image = distort(image.round().permute(0, 3, 1, 2), some)
        images.append(torch.where(where.inside[:, None], image.round().clamp(0, 255).byte(), fill))
        labels.append(p.labels[where.nearest()].masked_fill(~where.inside, IGNORE))
    return torch.cat(images), torch.cat(labels)


def distort(image_BCHW: Tensor, d: Draws) -> Tensor:
    """Photometric distortion of images from 0 to 255, floating point: brightness, contrast, saturation, hue."""

    def here(array: np.ndarray) -> Tensor:
        return upload(array.astype(np.float32), image_BCHW.device).view(-1, 1, 1, 1)

    x = (image_BCHW + here(d.brightness)).clamp(0, 255)
    x = (x * here(np.where(d.contrast_last, 1, d.contrast))).clamp(0, 255)
    x = _saturate_and_turn(x, here(d.saturation), here(d.hue))
    return (x * here(np.where(d.contrast_last, d.contrast, 1))).clamp(0, 255)


def _saturate_and_turn(x_BCHW: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Saturation times a factor and hue plus degrees, in HSV."""
    r, g, b = x_BCHW.split(1, dim=1)
    value, least = x_BCHW.amax(1, keepdim=True), x_BCHW.amin(1, keepdim=True)
    chroma = value - least
    safe = chroma.clamp(min=1e-6)
    sixth = torch.where(value == r, (g - b) / safe, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    chroma = (chroma * saturation).minimum(value)
    sixth = sixth + hue / 60
    offsets = upload(np.array([5, 3, 1], np.float32), x_BCHW.device).view(1, 3, 1, 1)  # of red, green, blue
    k = (offsets + sixth) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
