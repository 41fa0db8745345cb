"""What the engine asks of a task, for classification: the model, its batches, its loss, its evaluation, its record.

`lkca.training.engine` calls these for a data set of `lkca.data.images`. Shape suffixes as there: S seeds, G steps of a
block, B images a batch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lkca.data import augment
from lkca.data import images as data
from lkca.ledger.protocols import Protocol, ShortProtocol
from lkca.ledger.runs import Epoch, Record, pack
from lkca.models import complexity, zoo
from lkca.training.stack import Stack

BLOCK = 8  # steps whose images are augmented together
AT, SHOWN = "epoch", "top1"  # what a point of the curve is counted in, and what a log line shows of it


def build(row: str, ds: data.Dataset, p: Protocol) -> nn.Module:
    """A freshly initialised model of a row for a data set; raises ValueError as `zoo.build` does."""
    return zoo.build(row, image_size=ds.image_size, num_classes=ds.num_classes, drop_path=p.drop_path)


def count(row: str, ds: data.Dataset) -> complexity.Complexity:
    """Parameters and MACs of a row on a data set."""
    return complexity.count(row, image_size=ds.image_size, num_classes=ds.num_classes)


def subset(ds: data.Dataset, p: Protocol) -> data.Dataset:
    """The data set with the training images that the protocol shows, and the test images if it does not want all.

    Raises ValueError if the protocol wants an AutoAugment policy and there is none for the data set.
    """
    if p.auto_augment and ds.policy is None:
        raise ValueError(f"{ds.name} has no AutoAugment policy: name one in POLICIES of lkca/data/augment.py")
    if isinstance(p, ShortProtocol) and p.test_images < ds.num_test:
        ds = ds.tested_on(p.test_images)
    return ds.subset(p.train_images) if p.train_images and p.train_images < ds.num_train else ds


def block(
    ds: data.Dataset,
    p: Protocol,
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
        num_draws: uniform numbers an image for stochastic depth.
        dtype: of the draws that enter products.

    Returns:
        (S, G, B, …) each: uint8 images, labels, boxes to erase, the permutation to mix with (all by image), share,
        weight and box of the mixing (by batch), and the uniform numbers.
    """
    device, size, batch, length = ds.train_images.device, (ds.image_size,) * 2, p.batch_size, len(orders[0])
    policy = ds.policy if p.auto_augment else None
    made = [
        (
            augment.draw(rng, length, flip=p.flip, crop_padding=p.crop_padding, policy=policy),
            augment.draw_erasing(
                rng, length, size, probability=p.erase_probability, area=p.erase_area, aspect=p.erase_aspect
            ),
            augment.draw_mixing(
                rng, length // batch, batch, size, probability=p.mix_probability, cutmix_share=p.cutmix_share,
                beta=p.mix_beta,
            ),
            rng.random((length, num_draws), np.float32),
        )
        for rng in rngs
    ]  # fmt: skip
    draws, boxes, mixing, uniform = zip(*made, strict=True)
    shape = (len(rngs), length // batch, batch)
    chosen = augment.upload(np.concatenate(orders), device)
    images = augment.augment(ds.train_images[chosen], augment.Draws.concatenate(draws), crop_padding=p.crop_padding)

    def stacked(arrays: Iterable[np.ndarray], kind: torch.dtype | None = None) -> Tensor:
        tensor = augment.upload(np.stack(list(arrays)), device)
        return tensor.to(kind) if kind else tensor

    return [
        images.view(*shape, *images.shape[1:]),
        ds.train_labels[chosen].view(shape),
        stacked(boxes).view(*shape, 4),
        stacked(m.other for m in mixing),
        stacked((m.share for m in mixing), dtype),
        stacked((m.weight for m in mixing), dtype),
        stacked(m.box for m in mixing),
        stacked(uniform).view(*shape, num_draws),
    ]


def loss(ds: data.Dataset, p: Protocol, device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """One seed's loss on one batch of a `block`: normalise, erase, mix, label-smoothed cross entropy."""
    mean, std = (torch.tensor(v, dtype=dtype, device=device) for v in ds.stats)

    def one(call: Callable[..., Tensor], images: Tensor, labels: Tensor, erased: Tensor, other: Tensor, share: Tensor,
            weight: Tensor, box: Tensor, uniform: Tensor) -> Tensor:  # fmt: skip
        x = augment.normalise(images, mean, std)
        x = augment.erase(x, erased, mean)
        x = augment.mix(x, other, weight, box)
        logits = call(x, uniform) if uniform.shape[-1] else call(x)
        own, theirs = (F.cross_entropy(logits, y, label_smoothing=p.label_smoothing) for y in (labels, labels[other]))
        return share * own + (1 - share) * theirs

    return one


def evaluate(stack: Stack, ds: data.Dataset, batch_size: int = 500) -> list[tuple[dict, dict]]:
    """Test every seed on the whole test set, on its device, ``batch_size`` images at a time.

    Returns:
        For each seed the curve's part (``test_loss``: mean cross entropy in nats, ``top1`` in percent) and what else a
        record says of its last epoch (``per_class_top1``, ``correct``).
    """
    mean, std = (torch.tensor(v, dtype=stack.dtype, device=stack.device) for v in ds.stats)
    nats = torch.zeros((), dtype=torch.float64, device=stack.device)
    right: list[Tensor] = []
    for x, y in zip(ds.test_images.split(batch_size), ds.test_labels.split(batch_size), strict=True):
        out = stack.predict(augment.normalise(x, mean, std))  # (S, batch, classes)
        picked = out.double().log_softmax(-1).gather(-1, y.expand(len(out), -1)[..., None])
        nats = nats - picked.sum((1, 2))
        right.append(out.argmax(-1) == y)
    answers, labels = torch.cat(right, dim=1).cpu(), ds.test_labels.cpu()
    return [
        (
            {"test_loss": mean_nats, "top1": 100 * r.double().mean().item()},
            {
                "per_class_top1": [100 * r[labels == c].double().mean().item() for c in range(ds.num_classes)],
                "correct": pack(r.numpy()),
            },
        )
        for mean_nats, r in zip((nats / ds.num_test).tolist(), answers, strict=True)
    ]


def record(curve: list[dict], end: dict, **common: Any) -> Record:
    """The record of a finished run, from its curve and what `evaluate` said last."""
    points = [Epoch(**point) for point in curve]
    best = max(points, key=lambda e: e.top1)
    return Record(
        curve=points,
        top1=points[-1].top1,
        top1_best=best.top1,
        best_epoch=best.epoch,
        test_loss=points[-1].test_loss,
        **end,
        **common,
    )
