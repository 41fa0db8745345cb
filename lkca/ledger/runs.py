"""What the record of a run says, and that it does not contradict itself.

A record that contradicts itself is refused (`RecordError`). One that is sound and cannot be compared, because its row
is of another version or its data another content, stands apart (`Run.apart`): it is listed, and never paired.
"""

import base64
import binascii
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from lkca.data import images, scenes
from lkca.ledger import checks
from lkca.ledger.checks import RecordError, require
from lkca.ledger.protocols import Settings
from lkca.models import rows

SCHEMA = 2  # 1 has no row_hash and no draws: see `of_schema_1`
DRAWS = 2  # which draws the engine makes from a seed; raised when they change. 1 was the engine of 0.1


@dataclass(frozen=True, slots=True)
class Epoch:
    """One point of a run's curve: losses in nats, ``top1`` on the test set in percent, ``seconds`` with evaluation."""

    epoch: int  # 1-based
    lr: float  # learning rate of the epoch's last step
    train_loss: float  # mean of the training objective: mixed and label-smoothed cross entropy
    test_loss: float  # plain cross entropy
    top1: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One point of a segmentation run's curve: shares of the test set in percent, ``seconds`` with evaluation."""

    iteration: int  # steps taken
    lr: float  # learning rate of the stage's last step
    train_loss: float  # mean of the training objective, the auxiliary head's part included
    aacc: float  # of all labelled pixels, how many are right
    miou: float  # mean intersection over union of all classes
    miou10: float  # of the ten best classes
    seconds: float


Point = TypeVar("Point", Epoch, Stage)


def _last(curve: Sequence[Point]) -> Point:
    if not curve:
        raise RecordError("curve is empty")
    return curve[-1]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the record of any finished run says: the cell, the settings, the model's size, how and where it was made."""

    row: str
    dataset: str
    protocol: str  # its name; ``protocol_hash`` says which settings that was
    protocol_hash: str
    protocol_fields: dict
    seed: int
    params: int  # of the model as built
    params_paper: int  # in the paper's convention at the setting that was trained
    macs: int  # one image forward, all products counted, of LKCA's taps those inside the map
    macs_paper: int  # in the paper's convention at the setting that was trained
    image_size: int  # pixels a side
    num_classes: int
    num_train: int  # images trained on, after the protocol's subset
    num_test: int
    data_fingerprint: str
    precision: str  # of products: "fp32", "tf32", "bf16"
    device: str  # in words
    images_per_second: float  # training images of all seeds in the step over training seconds, evaluation left out
    wall_seconds: float  # of all seeds in the step: everything from the first step, all interruptions left out
    versions: dict
    git_commit: str  # "unknown" outside a git checkout
    git_clean: bool
    finished: str  # UTC, ISO 8601
    stacked: int = 1  # seeds that were trained in the same step
    row_hash: str  # of what the row was built from and how its weights began, see `lkca.models.rows`
    draws: int  # which draws the engine made from the seed, see `DRAWS`
    schema: int = SCHEMA

    @property
    def identity(self) -> "Identity":
        """What tells this run from any other."""
        return Identity(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Identity)})

    @property
    def same_draws(self) -> tuple[int, int]:
        """Equal for runs that saw the same images, alike augmented: the seed, and the draws that were made from it."""
        return self.seed, self.draws

    @cached_property
    def apart(self) -> str | None:
        """Why the run cannot be compared with others of its cell, in a clause; None if it can."""
        if not rows.exists(self.row):
            return f"there is no row {self.row!r} here"
        if self.row_hash != rows.row_hash(self.row):
            return f"it is of another version of {self.row} ({self.row_hash}, here {rows.row_hash(self.row)})"
        known: Any = (images.DATASETS | scenes.DATASETS).get(self.dataset)
        if known and known.fingerprint not in (None, self.data_fingerprint):
            return f"its data is not the known {self.dataset} (fingerprint {self.data_fingerprint[:12]}…)"
        for split in ("train", "test") if known else ():
            wanted, seen = self.protocol_fields.get(f"{split}_images") or getattr(known, split), f"num_{split}"
            if getattr(self, seen) != min(wanted, getattr(known, split)):
                return f"its {split} set has {getattr(self, seen)} images, not {wanted}"
        return None

    def story(self) -> dict[str, float]:
        """What the curve says of the summary's fields; raises RecordError if it is empty."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        """Check types, ranges and that the record does not contradict itself; raises RecordError."""
        checks.field_types(self)
        require(self.schema in (1, SCHEMA), f"schema is {self.schema}, this code reads 1 to {SCHEMA}")
        checks.not_negative(self, ("seed", "params", "params_paper", "macs", "macs_paper", "wall_seconds"))
        checks.at_least_one(self, ("num_classes", "num_train", "num_test", "image_size", "stacked", "draws"))
        require(self.images_per_second > 0, f"images_per_second is {self.images_per_second}, which cannot be")
        for name, told in self.story().items():
            if getattr(self, name) != told:
                raise RecordError(f"{name} is {getattr(self, name)} but the curve says {told}")

    def verify(self) -> None:
        """Check what a record says against what it says of its settings, row and data set; raises RecordError."""
        checks.made(self)
        checks.settings(self)
        checks.sizes(self)


@dataclass(frozen=True, order=True)
class Identity:
    """What tells two runs apart; two runs that differ in any of these have two records."""

    dataset: str
    row: str
    row_hash: str
    protocol: str
    protocol_hash: str
    seed: int
    precision: str
    draws: int

    @classmethod
    def of(cls, dataset: str, row: str, protocol: Settings, seed: int, precision: str = "auto") -> "Identity":
        """That of a run to be made with the present row and engine; "auto" stands for any precision."""
        return cls(dataset, row, rows.row_hash(row), protocol.name, protocol.hash, seed, precision, DRAWS)

    @property
    def cell(self) -> str:
        """Data set, row and protocol, as they begin a file's name."""
        return f"{self.dataset}--{self.row.replace('/', '_')}--{self.protocol}-{self.protocol_hash}"

    @property
    def name(self) -> str:
        """Of its files, without an ending."""
        return f"{self.cell}--seed{self.seed}--{self.precision}-{self.row_hash}-draws{self.draws}"

    @property
    def name_of_schema_1(self) -> str:
        """Of the files of a run that was recorded before 0.6.0, when the seed was taken to say all."""
        return f"{self.cell}--seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Record(Run):
    """One finished training of a cell (``row`` on ``dataset``) under a protocol with a seed.

    Accuracies are percent of the whole test set. ``top1`` is the last epoch's, the result; ``top1_best`` is the best
    over all epochs *on the test set*, which the released code prints as its result; it selects on the test set.
    """

    top1: float
    top1_best: float
    best_epoch: int  # 1-based, the first to reach top1_best
    test_loss: float  # last epoch, cross entropy in nats
    per_class_top1: list[float]  # percent, in class order
    curve: list[Epoch]
    correct: str = ""  # which test images the last epoch got right, see `pack`; "" in records that do not know
    task: str = "classification"

    def story(self) -> dict[str, float]:
        """As `Run` says."""
        last = _last(self.curve)
        best = max(self.curve, key=lambda e: e.top1)
        return {"top1": last.top1, "test_loss": last.test_loss, "top1_best": best.top1, "best_epoch": best.epoch}

    def __post_init__(self) -> None:
        """Check as `Run` does, and that classes and answers fit; raises RecordError."""
        super().__post_init__()
        checks.curve(self.curve, "epoch", range(1, len(self.curve) + 1))
        entries = f"per_class_top1 has {len(self.per_class_top1)} entries for {self.num_classes} classes"
        require(len(self.per_class_top1) == self.num_classes, entries)
        top1 = [e.top1 for e in self.curve]
        checks.percentages({"top1": top1, "top1_best": [self.top1_best], "per_class_top1": self.per_class_top1})
        checks.not_negative(self, ["test_loss"])
        if self.correct:
            told = float(100 * self.right.mean())
            require(checks.close(told, self.top1), f"top1 is {self.top1} but correct says {told}")

    def verify(self) -> None:
        """As `Run` says."""
        super().verify()
        checks.curve(self.curve, "epoch", range(1, checks.number(self.protocol_fields, "epochs") + 1))
        checks.by_class(self, self.right if self.correct else None)

    @property
    def right(self) -> np.ndarray:
        """Which test images were right in the last epoch, bool (num_test,); raises RecordError if not recorded."""
        try:
            packed = np.frombuffer(base64.b64decode(self.correct, validate=True), np.uint8)
        except binascii.Error as error:
            raise RecordError(f"correct is not base64: {error}") from None
        if len(packed) != -(-self.num_test // 8):
            raise RecordError(f"correct holds {len(packed)} bytes for {self.num_test} test images")
        return np.unpackbits(packed, count=self.num_test).astype(bool)


@dataclass(frozen=True, kw_only=True)
class SegmentationRecord(Run):
    """One finished training of a segmentation row, evaluated at several iteration counts: the curve holds each.

    The last stage's counts of pixels, a number a class, give every measure: a class's intersection over union, and as
    their mean over the classes that occur the mIoU.
    """

    aacc: float
    miou: float
    miou10: float
    curve: list[Stage]
    intersection: list[int]  # pixels of a class found as that class
    union: list[int]  # pixels of a class, or found as that class
    truth: list[int]  # pixels of a class
    task: str = "segmentation"

    def story(self) -> dict[str, float]:
        """As `Run` says."""
        last = _last(self.curve)
        return {name: getattr(last, name) for name in ("aacc", "miou", "miou10")}

    def __post_init__(self) -> None:
        """Check as `Run` does, and that the pixels give the measures; raises RecordError."""
        super().__post_init__()
        for name in ("intersection", "union", "truth"):
            entries = len(getattr(self, name))
            require(entries == self.num_classes, f"{name} has {entries} entries for {self.num_classes} classes")
        checks.pixels(self.intersection, self.union, self.truth)
        for name, told in measures(self.intersection, self.union, self.truth).items():
            require(checks.close(getattr(self, name), told), f"{name} is {getattr(self, name)}, the pixels say {told}")

    def verify(self) -> None:
        """As `Run` says."""
        super().verify()
        checks.curve(self.curve, "iteration", checks.numbers(self.protocol_fields, "iterations"))


MEASURES = {"aacc": "aAcc", "miou": "mIoU", "miou10": "mIoU, 10 best"}  # of segmentation, in percent: their names


def measures(
    intersection: Sequence[int] | np.ndarray, union: Sequence[int] | np.ndarray, truth: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """aAcc, mIoU and the mean IoU of the ten best classes, in percent, from pixel counts a class.

    Classes that occur neither in the truth nor in what was found have no IoU and are left out. Fewer than ten classes
    are all among the ten best.
    """
    inside, outside = (np.array(v, float) for v in (intersection, union))
    iou = np.sort(100 * inside[outside > 0] / outside[outside > 0])[::-1]
    return {
        "aacc": float(100 * inside.sum() / np.sum(truth)),
        "miou": float(iou.mean()),
        "miou10": float(iou[:10].mean()),
    }


KINDS = {"classification": (Record, Epoch), "segmentation": (SegmentationRecord, Stage)}


def pack(right: np.ndarray) -> str:
    """Which test images were right, bool (num_test,), as ``Record.correct``: one bit an image, in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()
