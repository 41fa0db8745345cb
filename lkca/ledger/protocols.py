"""Protocols: how a cell is trained, every field of it as data, with a hash that names the settings for good.

The recipe is the authors' (their released code; where the paper's text states a setting the two agree, except in the
number of passes an epoch). What each field is, and where text and code part, is in the book under "Text, tables, code".
Of segmentation the paper's section 4.2 states the data set, the decoders, that nothing is pre-trained, and the
iteration counts of its tables; it names MMSegmentation and no setting. `ORIGIN` says of every field whether it is
stated or that library's usual value, assumed here.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """A protocol's name, and its other fields as data with a hash. Each task's protocol adds its fields."""

    name: str
    cost: str  # what it costs and what to expect, in a line

    @property
    def fields(self) -> dict:
        """The settings as they stand in a record, name and cost left out."""
        settings = dataclasses.asdict(self)
        del settings["name"], settings["cost"]
        return json.loads(json.dumps(settings))

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits that change when, and only when, a setting does."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Protocol(Settings):
    """How a cell of Tables 1-5 is trained. The defaults are the settings on which paper and released code agree."""

    epochs: int = 100
    passes_per_epoch: int = 1  # over the training set
    train_images: int | None = None  # of a fixed, seeded, stratified subset; None for all
    batch_size: int = 128
    lr: float = 1e-3
    lr_floor: float = 1e-6  # where warm-up starts and the cosine ends
    warmup_epochs: int = 10
    weight_decay: float = 0.05  # on all parameters
    betas: tuple[float, float] = (0.9, 0.999)
    label_smoothing: float = 0.1
    flip: float = 0.5
    crop_padding: int = 4  # pixels
    auto_augment: bool = True  # the data set's policy, see augment.POLICIES
    erase_probability: float = 0.25
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    mix_probability: float = 0.5  # of a batch
    cutmix_share: float = 0.5  # of the mixed batches; the others get Mixup
    mix_beta: float = 1.0
    drop_path: float | None = None  # None: the row's own
    precision: str = "fp32"  # the authors'; what a run used stands in its record

    def stages(self, n: int) -> list[int]:
        """The steps at which a run on ``n`` training images is evaluated: the end of each epoch.

        Raises ValueError if they do not fill a batch.
        """
        steps = self._steps(n)
        if not steps:
            raise ValueError(f"there are {n} training images, fewer than a batch of {self.batch_size}")
        return list(range(steps, steps * self.epochs + 1, steps))

    def _steps(self, n: int) -> int:
        return self.passes_per_epoch * n // self.batch_size

    def learning_rate(self, step: int, n: int) -> float:
        """Of a step (0-based): linear warm-up from ``lr_floor`` to ``lr``, then cosine back; ``n`` training images."""
        warmup, total = self.warmup_epochs * self._steps(n), self.epochs * self._steps(n)
        if step < warmup:
            return self.lr_floor + (self.lr - self.lr_floor) * step / warmup
        progress = (step - warmup) / (total - warmup)
        return self.lr_floor + (self.lr - self.lr_floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class ShortProtocol(Protocol):
    """A protocol that does not test on the whole test set; a field of all would change the hashes of the others."""

    test_images: int = 40  # evenly from all of them


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            "released",
            "What the authors' code does: 300 passes, 15 million images on CIFAR. About four hours a 2.7M cell on a "
            "2080 Ti, by the authors' README; meant for a GPU.",
            passes_per_epoch=3,
        ),
        Protocol("paper", "What the paper's text says: 100 passes, a third of `released`."),
        Protocol(
            "brief",
            "10 passes over all training images, a tenth of `paper`: from ten minutes (CIFAR) to two hours "
            "(Tiny-ImageNet) for a 0.5M row on one CPU core. Who is ahead after more training than `sketch` has, never "
            "a reproduction.",
            epochs=10,
            warmup_epochs=1,
        ),
        Protocol(
            "sketch",
            "16 passes over 10,000 training images, tested on the whole test set: about ten minutes for a 0.5M row on "
            "two CPU cores. Who is ahead early, never a reproduction.",
            epochs=8,
            passes_per_epoch=2,
            train_images=10_000,
            warmup_epochs=1,
        ),
        ShortProtocol(
            "smoke",
            "Five steps of the whole recipe on ten of scikit-learn's digits, tested on 40: a few seconds a row on a "
            "CPU core. It shows that the way works; it is too short to learn from: expect chance, about 10 %.",
            epochs=1,
            train_images=10,
            batch_size=2,
            warmup_epochs=0,
            flip=0.0,
            crop_padding=1,
        ),
    )
}
PROTOCOLS |= {
    name: dataclasses.replace(
        PROTOCOLS[of], name=name, cost=f"As `{of}`, with drop path 0.1 for every row.", drop_path=0.1
    )
    for of in ("released", "sketch")
    for name in (f"{of}-drop-path",)
}  # Table 5's small rows once more: as released, only some have stochastic depth


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


Recipe = Protocol | SegmentationProtocol
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

SEGMENTATION = {
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
