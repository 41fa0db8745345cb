"""What the engine asks of a task, for segmentation: protocols, batches, loss, evaluation, record.

`lkca.train` calls these for a data set of `lkca.scenes`. The paper's section 4.2 states the data set, the decoders,
that nothing is pre-trained, and the iteration counts of its tables; it names MMSegmentation and no setting. `ORIGIN`
says of every field whether it is stated or that library's usual value, assumed here.

Shape suffixes: S seeds, G steps of a block, B images, K classes, H x W an image.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lkca import augment, records, scene_augment, scenes, segmentation
from lkca.protocols import Settings
from lkca.records import SegmentationRecord, Stage
from lkca.stack import Stack

BLOCK = 8  # steps whose images are augmented together
AT, SHOWN = "iteration", "miou"  # what a point of the curve is counted in, and what a log line shows of it
WINDOWS = 32  # crops that are evaluated at a time
PIXELS = 1_500_000  # of pictures that are evaluated at a time, at least one picture


@dataclass(frozen=True)
class SegmentationProtocol(Settings):
    """How a cell of Tables 6 and 7 is trained. The defaults are Table 7's."""

    iterations: tuple[int, ...] = (10_000, 20_000)  # at which the one run is evaluated; the last ends it
    batch_size: int = 16
    lr: float = 6e-5
    warmup: int = 1_500  # iterations of linear warm-up, from a millionth of lr
    power: float = 1.0  # of the decay to zero after it
    weight_decay: float = 0.01  # on all parameters
    betas: tuple[float, float] = (0.9, 0.999)
    auxiliary: float = 0.4  # weight of the auxiliary head's loss
    crop: int = 512  # pixels a side
    short_side: int = 512  # of an image at scale 1
    scale: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75  # of a crop, the largest share of one class
    tries: int = 10  # crops drawn to find such a one
    flip: float = 0.5
    distort: float = 0.5  # probability of each photometric distortion
    stride: int = 341  # of the sliding window in evaluation
    train_images: int | None = None  # the first so many; None for all
    test_images: int | None = None
    precision: str = "fp32"  # the library's; what a run used stands in its record

    def stages(self, n: int) -> list[int]:
        """The steps at which a run is evaluated, whatever the number of training images."""
        return list(self.iterations)

    def learning_rate(self, step: int, n: int) -> float:
        """Of a step (0-based): linear warm-up to ``lr``, then polynomial decay to zero at the last step."""
        if step < self.warmup:
            return self.lr * (1e-6 + (1 - 1e-6) * step / self.warmup)
        return self.lr * (1 - (step - self.warmup) / (self.iterations[-1] - self.warmup)) ** self.power


ORIGIN = {
    "iterations": "stated: in Tables 6 and 7; that they are one run, and not one run each, is assumed",
    "weight_decay": "assumed: MMSegmentation spares norms and position embeddings, here all parameters decay",
    "train_images": "stated: the data set, without leaving any out",
    "test_images": "stated: the data set, without leaving any out",
} | dict.fromkeys(
    ("batch_size", "lr", "warmup", "power", "betas", "auxiliary", "crop", "short_side", "scale", "cat_max_ratio",
     "tries", "flip", "distort", "stride", "precision"),
    "assumed: MMSegmentation's usual value",
)  # fmt: skip

PROTOCOLS = {
    p.name: p
    for p in (
        SegmentationProtocol(
            "table6", "16,000 iterations of 16 crops of 512 px, in one run; meant for a GPU.",
            iterations=(2_000, 4_000, 8_000, 16_000),
        ),
        SegmentationProtocol("table7", "20,000 iterations of 16 crops of 512 px, in one run; meant for a GPU."),
        SegmentationProtocol(
            "reduced",
            "The same recipe at a size for a CPU: crops of 96 px from images of 180, for small rows. Some twenty "
            "minutes on one free core for CamVid. Who is ahead early, never a reproduction.",
            iterations=(500, 1_000, 1_500), batch_size=8, lr=2e-3, warmup=100, crop=96, short_side=180,
            stride=84,
        ),
        SegmentationProtocol(
            "smoke",
            "Four iterations of two crops: it shows that the way works and is far too short to learn from.",
            iterations=(2, 4), batch_size=2, warmup=1, crop=64, short_side=64, stride=43, train_images=16,
            test_images=4,
        ),
    )
}  # fmt: skip


def build(row: str, ds: scenes.Scenes, p: SegmentationProtocol) -> nn.Module:
    """A freshly initialised model of a row for a data set; raises ValueError as `segmentation.build` does."""
    return segmentation.build(row, crop=p.crop, num_classes=ds.num_classes)


def count(row: str, ds: scenes.Scenes) -> segmentation.Size:
    """Parameters and MACs of a row on a data set, as a protocol looks at it."""
    return segmentation.count(row, crop=ds.crop, num_classes=ds.num_classes)


def subset(ds: scenes.Scenes, p: SegmentationProtocol) -> scenes.Scenes:
    """The data set as the protocol looks at it: its pictures, crop, sliding window and scale."""
    parts = {"train": p.train_images, "test": p.test_images}
    parts = {part: getattr(ds, part).first(n) for part, n in parts.items() if n}
    return replace(ds, **parts, crop=p.crop, stride=p.stride, short_side=p.short_side)


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
    settings = {"crop": p.crop, "short_side": p.short_side, "scale": p.scale, "flip": p.flip, "tries": p.tries}
    draws = [
        scene_augment.draw(rng, order, ds.train.sizes, **settings, distort=p.distort)
        for rng, order in zip(rngs, orders, strict=True)
    ]
    images, labels = scene_augment.augment(
        ds.train,
        scene_augment.Draws.concatenate(draws),
        crop=p.crop,
        num_classes=ds.num_classes,
        cat_max_ratio=p.cat_max_ratio,
    )
    shape = (len(rngs), len(orders[0]) // p.batch_size, p.batch_size)
    return [images.view(*shape, *images.shape[1:]), labels.view(*shape, *labels.shape[1:])]


def _statistics(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(v, dtype=dtype, device=device) for v in (scenes.MEAN, scenes.STD))


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


def whole(model: segmentation.Segmenter, x_BCHW: Tensor) -> Tensor:
    """Scores (B, K, H, W) of whole images, the other way: position embeddings and kernels are resized to them."""
    (h, w), patch = x_BCHW.shape[2:], model.backbone.patch_size
    size = (-(-h // patch) * patch, -(-w // patch) * patch)
    x = F.pad(x_BCHW, (0, size[1] - w, 0, size[0] - h))
    return _at(segmentation.resized(model, size)(x), size)[:, :, :h, :w]


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
    return [(records.measures(**counts), counts)]


def record(curve: list[dict], end: dict, **common: object) -> SegmentationRecord:
    """The record of a finished run, from its curve and what `evaluate` said last."""
    points = [Stage(**point) for point in curve]
    last = points[-1]
    return SegmentationRecord(curve=points, aacc=last.aacc, miou=last.miou, miou10=last.miou10, **end, **common)


def load(run: SegmentationRecord, results_root: Path = records.RESULTS) -> segmentation.Segmenter:
    """The trained model of a run whose weights were kept, in evaluation mode; raises RecordError if they were not."""
    model = segmentation.build(run.row, crop=run.image_size, num_classes=run.num_classes)
    model.load_state_dict(records.read_weights(run, results_root))
    return model.eval()
