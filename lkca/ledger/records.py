"""Run records: write once, read all, check.

A *record* is the one JSON file a finished run leaves in ``results/runs/``. It is written aside and linked into place,
so it is whole or absent, and it is never edited or overwritten. The *ledger* is all records together. Of some runs the
trained weights are kept beside it, in ``results/weights/`` under the record's name, as safetensors in half precision.
"""

import base64
import binascii
import dataclasses
import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lkca.data import places

RESULTS = places.RESULTS
SCHEMA = 1


class RecordError(ValueError):
    """A record that cannot be trusted: the message names the file or field and says what is wrong."""


@dataclass(frozen=True)
class Epoch:
    """One point of a run's curve: losses in nats, ``top1`` on the test set in percent, ``seconds`` with evaluation."""

    epoch: int  # 1-based
    lr: float  # learning rate of the epoch's last step
    train_loss: float  # mean of the training objective: mixed and label-smoothed cross entropy
    test_loss: float  # plain cross entropy
    top1: float
    seconds: float


@dataclass(frozen=True)
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
    schema: int = SCHEMA

    @property
    def draws(self) -> tuple[int, bool]:
        """Equal for runs that saw the same images, alike augmented: the seed, and whether 0.1's engine drew."""
        return self.seed, self.versions.get("lkca", "").startswith("0.1.")

    def story(self) -> dict[str, float]:
        """What the curve says of the summary's fields; raises RecordError if it is empty."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        """Check types, ranges and that the curve tells the same story as the summary; raises RecordError."""
        _check_types(self)
        if self.schema != SCHEMA:
            raise RecordError(f"schema is {self.schema}, this code reads {SCHEMA}")
        for name, told in self.story().items():
            if getattr(self, name) != told:
                raise RecordError(f"{name} is {getattr(self, name)} but the curve says {told}")


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
        if [e.epoch for e in self.curve] != list(range(1, len(self.curve) + 1)):
            raise RecordError("curve does not count its epochs 1, 2, 3, …")
        if len(self.per_class_top1) != self.num_classes:
            raise RecordError(f"per_class_top1 has {len(self.per_class_top1)} entries for {self.num_classes} classes")
        if self.correct:
            top1 = 100 * self.right.mean()
            if abs(top1 - self.top1) > 1e-9:
                raise RecordError(f"top1 is {self.top1} but correct says {top1}")
        for value in (self.top1, self.top1_best, *self.per_class_top1):
            if not 0 <= value <= 100:
                raise RecordError(f"an accuracy of {value} is not a percentage")

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
            if len(getattr(self, name)) != self.num_classes:
                raise RecordError(f"{name} has {len(getattr(self, name))} entries for {self.num_classes} classes")
        for name, told in measures(self.intersection, self.union, self.truth).items():
            if abs(getattr(self, name) - told) > 1e-9:
                raise RecordError(f"{name} is {getattr(self, name)} but the pixels say {told}")


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


def _check_types(obj: Any) -> None:
    for field in dataclasses.fields(obj):
        value = getattr(obj, field.name)
        wanted = typing.get_origin(field.type) or field.type
        if isinstance(wanted, types.GenericAlias) or wanted not in (int, float, str, bool, list, dict):
            raise TypeError(f"{field.name}: no check for {field.type}")
        if wanted is float and type(value) is int:
            object.__setattr__(obj, field.name, float(value))
            value = float(value)
        if type(value) is not wanted:
            raise RecordError(f"{field.name} should be {wanted.__name__}, is {type(value).__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RecordError(f"{field.name} is {value}")
        if isinstance(value, list):
            (inner,) = typing.get_args(field.type)
            if not all(type(item) is inner or (inner is float and type(item) is int) for item in value):
                raise RecordError(f"{field.name} should hold only {inner.__name__}")
            if inner is float and not all(math.isfinite(item) for item in value):
                raise RecordError(f"{field.name} holds a value that is not finite")


def path(results_root: Path | str, row: str, dataset: str, protocol: str, protocol_hash: str, seed: int) -> Path:
    """Where the record of this run belongs: one file name for one (cell, protocol, seed)."""
    name = f"{dataset}--{row.replace('/', '_')}--{protocol}-{protocol_hash}--seed{seed}.json"
    return Path(results_root) / "runs" / name


def path_of(record: Run, results_root: Path | str) -> Path:
    """Where ``record`` belongs under ``results_root``."""
    r = record
    return path(results_root, r.row, r.dataset, r.protocol, r.protocol_hash, r.seed)


def weights_path(record: Run, results_root: Path = RESULTS) -> Path:
    """Where the trained weights of ``record`` belong, if they are kept."""
    return Path(results_root) / "weights" / path_of(record, "").with_suffix(".safetensors").name


def write_weights(record: Run, weights: dict[str, Tensor], results_root: Path = RESULTS) -> Path:
    """Keep the weights of a run, rounded to half precision; returns their path.

    Counters stay whole, and what half precision cannot hold stays as it is: a running variance can pass 65,504.
    """
    target = weights_path(record, results_root)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(".aside")
    largest = torch.finfo(torch.half).max
    halved = {name: w.is_floating_point() and bool(w.abs().max() <= largest) for name, w in weights.items()}
    kept = {name: (w.half() if halved[name] else w).cpu().contiguous() for name, w in weights.items()}
    safetensors.torch.save_file(kept, aside)
    os.chmod(aside, 0o644)
    os.replace(aside, target)
    return target


def read_weights(record: Run, results_root: Path = RESULTS) -> dict[str, Tensor]:
    """The weights of a run by name, float32, counters whole; RecordError if not kept or damaged."""
    file = weights_path(record, results_root)
    try:
        held = safetensors.torch.load_file(file)
        return {name: w.float() if w.is_floating_point() else w for name, w in held.items()}
    except FileNotFoundError:
        raise RecordError(f"{file} does not exist: the weights of this run were not kept") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RecordError(f"{file} is damaged ({error})") from None


def write(record: Run, results_root: Path = RESULTS) -> Path:
    """Write ``record`` into the ledger, whole or not at all; returns its path.

    Raises FileExistsError if that run already has a record: records are never overwritten.
    """
    target = path_of(record, results_root)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    handle, aside = tempfile.mkstemp(dir=target.parent, prefix=".aside-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        try:
            os.link(aside, target)  # unlike a rename, refuses to replace
        except FileExistsError:
            raise FileExistsError(f"{target} exists: a record is never overwritten") from None
    finally:
        os.unlink(aside)
    return target


def check_writable(results_root: Path) -> None:
    """Raise OSError saying what to do if no record can be written below ``results_root``."""
    folder = Path(results_root) / "runs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OSError(
            f"records cannot be written to {folder} ({error}): name another folder with results_root"
        ) from None


def read_one(file: Path) -> Run:
    """Read and check one record; raises RecordError naming the file."""
    try:
        fields = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise RecordError("is not a JSON object")
        task = fields.get("task", "classification")
        if task not in KINDS:
            raise RecordError(f"task {task!r} is not one of {', '.join(KINDS)}")
        kind, kind_of_point = KINDS[task]
        fields["curve"] = [kind_of_point(**point) for point in fields.get("curve", [])]
        for point in fields["curve"]:
            _check_types(point)
        record = kind(**fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecordError(f"{file}: {str(error).partition('__init__() ')[2] or error}") from error
    if path_of(record, "").name != Path(file).name:
        raise RecordError(f"{file}: holds the run that belongs in {path_of(record, '').name}")
    return record


Kind = TypeVar("Kind", bound=Run)


@overload
def read(results_root: Path = RESULTS) -> tuple[list[Record], list[str]]: ...
@overload
def read(results_root: Path = RESULTS, *, kind: type[Kind]) -> tuple[list[Kind], list[str]]: ...
@overload
def read(results_root: Path, kind: type[Kind]) -> tuple[list[Kind], list[str]]: ...
def read(results_root: Path = RESULTS, kind: type[Run] = Record) -> tuple[list, list[str]]:
    """Read the ledger: all sound records of a kind, in file-name order, and one sentence for each broken one.

    A broken record is left out and named; it never hides the others.
    """
    found, broken = [], []
    for file in sorted((Path(results_root) / "runs").glob("*.json")):
        try:
            record = read_one(file)
        except RecordError as error:
            broken.append(str(error))
            continue
        found += [record] if isinstance(record, kind) else []
    return found, broken
