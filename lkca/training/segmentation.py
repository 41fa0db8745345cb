"""What the engine asks of a task, for segmentation: batches, loss, evaluation, record.

`lkca.training.engine` calls these for a data set of `lkca.data.scenes`.

Shape suffixes: S seeds, G steps of a block, B images, K classes, H x W an image.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lkca.data import augment, scene_augment, scenes
from lkca.ledger import records, trained
from lkca.ledger.protocols import SegmentationProtocol
from lkca.ledger.runs import SegmentationRecord, Stage, measures
from lkca.models import segmenters
from lkca.training.stack import Stack

BLOCK = 8  # steps whose images are augmented together
AT, SHOWN = "iteration", "miou"  # what a point of the curve is counted in, and what a log line shows of it
WINDOWS = 32  # crops that are evaluated at a time
PIXELS = 1_500_000  # of pictures that are evaluated at a time, at least one picture


def build(row: str, ds: scenes.Scenes, p: SegmentationProtocol) -> nn.Module:
    """A freshly initialised model of a row for a data set; raises ValueError as `segmentation.build` does."""
    return segmenters.build(row, crop=p.crop, num_classes=ds.num_classes)


def count(row: str, ds: scenes.Scenes) -> segmenters.Size:
    """Parameters and MACs of a row on a data set, as a protocol looks at it."""
    return segmenters.count(row, crop=ds.crop, num_classes=ds.num_classes)


def subset(ds: scenes.Scenes, p: SegmentationProtocol) -> scenes.Scenes:
    """The data set as the protocol looks at it: its pictures, crop, sliding window and scale."""
    train = ds.train.first(p.train_images) if p.train_images else ds.train
    test = ds.test.first(p.test_images) if p.test_images else ds.test
    return replace(ds, train=train, test=test, crop=p.crop, stride=p.stride, short_side=p.short_side)


def block(
    ds: scenes.Scenes,
    p: SegmentationProtocol,
    rngs: Sequence[np.random.Generator],
    orders: Sequence[np.ndarray],
    *,
    num_draws: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """A block of batches for every seed, each from its own generator: what `Stack.train` takes and `loss` reads.

    Args:
        ds: the data set, on the device to train on.
        p: the recipe.
        rngs: one for each of S seeds.
        orders: for each seed, which images, G * p.batch_size of them.
        num_draws, dtype: of no use here: dropout and stochastic depth draw from torch's generator.

    Returns:
        Images (S, G, B, 3, crop, crop) and labels (S, G, B, crop, crop), uint8.
    """
    draws = [
        scene_augment.draw(
            rng, order, ds.train.sizes, crop=p.crop, short_side=p.short_side, scale=p.scale, flip=p.flip, tries=p.tries,
            distort=p.distort,
        )
        for rng, order in zip(rngs, orders, strict=True)
    ]  # fmt: skip
    images, labels = scene_augment.augment(
        ds.train,
        scene_augment.Draws.concatenate(draws),
        crop=p.crop,
        num_classes=ds.num_classes,
        cat_max_ratio=p.cat_max_ratio,
    )
    shape = (len(rngs), len(orders[0]) // p.batch_size, p.batch_size)
    return [images.view(*shape, *images.shape[1:]), labels.view(*shape, *labels.shape[1:])]


def _statistics(device: str | torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v, dtype=dtype, device=device) for v in (scenes.MEAN, scenes.STD))
    return mean, std


def cross_entropy(logits_BKHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Mean over all pixels, those to ignore counted as zero (MMSegmentation's), of logits brought to their size."""
    logits = F.interpolate(logits_BKHW.float(), size=labels_BHW.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels_BHW.long(), ignore_index=scenes.IGNORE, reduction="sum")
    return total / labels_BHW.numel()


def loss(ds: scenes.Scenes, p: SegmentationProtocol, device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """One seed's loss on one batch of a `block`: cross entropy, plus the auxiliary head's by its weight."""
    mean, std = _statistics(device, dtype)

    def one(call: Callable[..., tuple[Tensor, ...]], images: Tensor, labels: Tensor) -> Tensor:
        logits, *auxiliary = call(augment.normalise(images, mean, std))
        return cross_entropy(logits, labels) + sum(p.auxiliary * cross_entropy(a, labels) for a in auxiliary)

    return one


def windows(length: int, crop: int, stride: int) -> list[int]:
    """Where windows of ``crop`` begin along a side, ``stride`` apart at most, the last one at the end."""
    return [min(start, max(length - crop, 0)) for start in range(0, max(length - crop, 0) + stride, stride)]


def slide(call: Callable[[Tensor], Tensor], x_BCHW: Tensor, crop: int, stride: int) -> Tensor:
    """Scores (B, K, H, W) of images of any size: the mean over windows of ``crop`` pixels that cover them.

    ``call`` gives a window's logits at any size. An image smaller than a window is padded, at the right and the bottom.
    """
    h, w = x_BCHW.shape[2:]
    x = F.pad(x_BCHW, (0, max(crop - w, 0), 0, max(crop - h, 0)))
    corners = [(top, left) for top in windows(h, crop, stride) for left in windows(w, crop, stride)]
    cut = torch.cat([x[:, :, top : top + crop, left : left + crop] for top, left in corners])
    found = torch.cat([_at(call(part), (crop, crop)) for part in cut.split(WINDOWS)]).chunk(len(corners))
    scores = torch.zeros(len(x), found[0].shape[1], *x.shape[2:], device=x.device)
    seen = torch.zeros(x.shape[2:], device=x.device)
    for (top, left), part in zip(corners, found, strict=True):
        scores[:, :, top : top + crop, left : left + crop] += part
        seen[top : top + crop, left : left + crop] += 1
    return (scores / seen)[:, :, :h, :w]


def whole(
    model: segmenters.Segmenter,
    x_BCHW: Tensor,
    resized: Callable[[segmenters.Segmenter, tuple[int, int]], segmenters.Segmenter] = segmenters.resized,
) -> Tensor:
    """Scores (B, K, H, W) of whole images, the other way: position embeddings and kernels are resized to them."""
    (h, w), patch = x_BCHW.shape[2:], segmenters.plain(model).patch_size
    size = (-(-h // patch) * patch, -(-w // patch) * patch)
    x = F.pad(x_BCHW, (0, size[1] - w, 0, size[0] - h))
    return _at(resized(model, size)(x), size)[:, :, :h, :w]


def _at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def predictions(
    scores: Callable[[Tensor], Tensor], pictures: scenes.Pictures, short_side: int | None, dtype: torch.dtype
) -> Iterator[tuple[list[int], Tensor]]:
    """Predicted labels of all pictures, (B, H, W) at their own size, with their numbers: those of one size together.

    ``scores`` gives (B, K, H', W') of normalised images that are scaled to the short side.
    """
    mean, std = _statistics(pictures.pixels.device, dtype)
    scaled = scene_augment.scaled_sizes(pictures.sizes, short_side)
    groups = defaultdict(list)
    for i, (size, small) in enumerate(zip(pictures.sizes.tolist(), scaled.tolist(), strict=True)):
        groups[tuple(size), tuple(small)].append(i)
    for (size, small), members in groups.items():
        at_once = max(1, PIXELS // max(size[0] * size[1], small[0] * small[1]))
        for start in range(0, len(members), at_once):
            part = members[start : start + at_once]
            images = torch.stack([pictures.image(i) for i in part]).to(dtype)
            x = augment.normalise(_at(images, small).round().to(dtype), mean, std)
            yield part, _at(scores(x), size).argmax(1)


def measure(scores: Callable[[Tensor], Tensor], ds: scenes.Scenes, dtype: torch.dtype) -> dict[str, list[int]]:
    """Exact pixel counts a class over the whole test set: ``intersection``, ``union`` and ``truth``."""
    k = ds.num_classes
    confusion = torch.zeros(k * k, dtype=torch.long, device=ds.test.labels.device)
    with torch.no_grad():
        for members, found in predictions(scores, ds.test, ds.short_side, dtype):
            truth = torch.stack([ds.test.label(i) for i in members]).long()
            counted = truth != scenes.IGNORE
            confusion += torch.bincount(k * truth[counted] + found[counted], minlength=k * k)
    confusion = confusion.view(k, k).cpu()  # truth x found
    inside, truth, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return {"intersection": inside.tolist(), "union": (truth + found - inside).tolist(), "truth": truth.tolist()}


def evaluate(stack: Stack, ds: scenes.Scenes) -> list[tuple[dict, dict]]:
    """Test on the whole test set by sliding window: for the one seed the curve's part and the pixel counts."""

    def scores(x: Tensor) -> Tensor:
        return slide(lambda part: stack.predict(part)[0], x, ds.crop, ds.stride)

    counts = measure(scores, ds, stack.dtype)
    return [(measures(**counts), counts)]


def record(curve: list[dict], end: dict, **common: Any) -> SegmentationRecord:
    """The record of a finished run, from its curve and what `evaluate` said last."""
    points = [Stage(**point) for point in curve]
    last = points[-1]
    return SegmentationRecord(curve=points, aacc=last.aacc, miou=last.miou, miou10=last.miou10, **end, **common)


def load(run: SegmentationRecord, results_root: Path = records.RESULTS) -> segmenters.Segmenter:
    """The trained model of a run whose weights were kept, in evaluation mode; raises RecordError if they were not."""
    model = segmenters.build(run.row, crop=run.image_size, num_classes=run.num_classes)
    model.load_state_dict(trained.read(run, results_root))
    return model.eval()
