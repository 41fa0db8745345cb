"""What must hold within a record; each check raises RecordError with what is wrong.

Comparisons are written so that NaN fails them.
"""

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from lkca.data import images, scenes
from lkca.models import complexity, rows, zoo

PRECISIONS = ("fp32", "bf16", "tf32", "fp64")
CLOSE = 1e-9  # how far two ways to the same percentage may lie apart, by rounding


class RecordError(ValueError):
    """A record that cannot be trusted: the message names the file or field and says what is wrong."""


def require(holds: bool, otherwise: str) -> None:
    """Raise RecordError saying ``otherwise`` unless ``holds``."""
    if not holds:
        raise RecordError(otherwise)


def close(a: float, b: float) -> bool:
    """Whether two percentages are one but for rounding; False if one is NaN."""
    return abs(a - b) <= CLOSE


def field_types(obj: Any) -> None:
    """Every field is of its annotated type, and what is in it can be written: finite, and text that UTF-8 holds."""
    for field in dataclasses.fields(obj):
        value = getattr(obj, field.name)
        wanted = typing.get_origin(field.type) or field.type
        if isinstance(wanted, types.GenericAlias) or wanted not in (int, float, str, bool, list, dict):
            raise TypeError(f"{field.name}: no check for {field.type}")
        if wanted is float and type(value) is int:
            value = _float(field.name, value)
            object.__setattr__(obj, field.name, value)
        require(type(value) is wanted, f"{field.name} should be {wanted.__name__}, is {type(value).__name__}")
        _can_be_written(field.name, value)
        if isinstance(value, list):
            (inner,) = typing.get_args(field.type)
            fits = all(type(item) is inner or (inner is float and type(item) is int) for item in value)
            require(fits, f"{field.name} should hold only {inner.__name__}")


def _float(name: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise RecordError(f"{name} is a number of {len(str(value))} digits") from None


def _can_be_written(name: str, value: object) -> None:
    if isinstance(value, float):
        require(math.isfinite(value), f"{name} is {value}")
    elif isinstance(value, int):
        require(abs(value) < 2**63, f"{name} is a number of {value.bit_length()} bits")
    elif isinstance(value, str):
        require(not re.search("[\ud800-\udfff]", value), f"{name} holds half a character, which no file can")
    elif isinstance(value, dict):
        for key, item in value.items():
            _can_be_written(name, key)
            _can_be_written(name, item)
    elif isinstance(value, list):
        for item in value:
            _can_be_written(name, item)


def not_negative(obj: Any, names: Iterable[str]) -> None:
    """None of these fields is below 0."""
    for name in names:
        require(getattr(obj, name) >= 0, f"{name} is {getattr(obj, name)}, which cannot be")


def at_least_one(obj: Any, names: Iterable[str]) -> None:
    """Each of these counts is 1 or more."""
    for name in names:
        require(getattr(obj, name) >= 1, f"{name} is {getattr(obj, name)}, which cannot be")


def percentages(named: Mapping[str, Sequence[float]]) -> None:
    """All are from 0 to 100."""
    for name, values in named.items():
        for value in values:
            require(0 <= value <= 100, f"{name}: {value} is not a percentage")


def made(run: Any) -> None:
    """When, where and by what a run was made can be so."""
    require(run.precision in PRECISIONS, f"precision is {run.precision!r}, not one of {', '.join(PRECISIONS)}")
    commit = re.fullmatch(r"[0-9a-f]{40}|unknown", run.git_commit)
    require(bool(commit), f"git_commit is {run.git_commit!r}, not 40 hexadecimal digits or 'unknown'")
    words = all(isinstance(item, str) for pair in run.versions.items() for item in pair)
    require(words, "versions should hold texts only")
    version = str(run.versions.get("lkca", "")).split(", then ")[-1]
    require(bool(re.fullmatch(r"\d+\.\d+\.\d+\S*", version)), f"versions say {version!r} of lkca, not N.N.N")
    try:
        finished = datetime.fromisoformat(run.finished)
    except ValueError:
        raise RecordError(f"finished is {run.finished!r}, not a date of ISO 8601") from None
    require(finished.tzinfo is not None, f"finished is {run.finished!r}, without a time zone")
    sane = datetime(2024, 1, 1, tzinfo=UTC) <= finished <= datetime.now(UTC) + timedelta(days=2)
    require(sane, f"finished is {run.finished}, before the paper or in the future")


def settings(run: Any) -> None:
    """The settings have the hash that stands beside them."""
    told = hashlib.sha256(json.dumps(run.protocol_fields, sort_keys=True).encode()).hexdigest()[:10]
    require(told == run.protocol_hash, f"protocol_hash is {run.protocol_hash} but protocol_fields give {told}")
    require(number(run.protocol_fields, "batch_size") >= 1, "protocol_fields have a batch_size below 1")


def number(fields: dict, name: str) -> int:
    """A whole number among the settings; raises RecordError if it is none."""
    value = fields.get(name)
    if type(value) is not int:
        raise RecordError(f"protocol_fields have no whole number {name}")
    return value


def numbers(fields: dict, name: str) -> list[int]:
    """Whole numbers among the settings; raises RecordError if they are none."""
    values = fields.get(name)
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        raise RecordError(f"protocol_fields have no whole numbers {name}")
    return values


def curve(points: Sequence[Any], at: str, expected: Iterable[int]) -> None:
    """The curve has the points that the settings ask for, in order, and nothing in them is below 0."""
    found, wanted = [getattr(point, at) for point in points], list(expected)
    require(found == wanted, f"curve has {at}s {found[:3]}… ({len(found)}), the settings ask for {wanted[:3]}… "
            f"({len(wanted)})")  # fmt: skip
    for point in points:
        not_negative(point, (field.name for field in dataclasses.fields(point)))


def pixels(intersection: Sequence[int], union: Sequence[int], truth: Sequence[int]) -> None:
    """Counts of pixels that can be: 0 <= intersection <= truth <= union, and some pixel has a class."""
    for c, (inside, outside, true) in enumerate(zip(intersection, union, truth, strict=True)):
        possible = 0 <= inside <= true <= outside
        require(possible, f"class {c}: {inside} pixels found of {true}, {outside} in the union, which cannot be")
    require(sum(truth) > 0, "truth has no pixel of any class")


def sizes(run: Any) -> None:
    """Sizes are the row's and the data set's, where this version knows them."""
    require(run.row == zoo.canonical(run.row), f"row is {run.row!r}, another name of {zoo.canonical(run.row)!r}")
    spec: Any = (images.DATASETS | scenes.DATASETS).get(run.dataset)
    if spec:
        require(run.num_classes == spec.classes, f"num_classes is {run.num_classes}, {run.dataset} has {spec.classes}")
        for name, most in (("num_train", spec.train), ("num_test", spec.test)):
            require(getattr(run, name) <= most, f"{name} is {getattr(run, name)}, {run.dataset} has {most}")
    at = {"image_size": run.image_size, "num_classes": run.num_classes}
    if (
        run.row in zoo.ROWS and run.row_hash == rows.row_hash(run.row) and run.image_size % zoo.GRID == 0
    ):  # others are counted by running them, which takes longer than a look at the ledger may
        counted = complexity.count(run.row, **at)
        for name in ("params", "params_paper", "macs", "macs_paper"):
            told = getattr(counted, name)
            require(getattr(run, name) == told, f"{name} is {getattr(run, name)}, {run.row} has {told} at this size")


def by_class(record: Any, right: np.ndarray | None) -> None:
    """The accuracies of the classes average to the whole's and are what the answers say, in class order.

    One image more is 0.004 points at least; the first engine rounded to float32. Test images come by class; how many
    each has is known of the data sets here.
    """
    known = record.dataset in images.DATASETS and images.spec(record.dataset).test == record.num_test
    if not known:
        return
    counts = images.test_counts(record.dataset)
    told = float(np.dot(record.per_class_top1, counts) / sum(counts))
    require(abs(told - record.top1) <= 1e-4, f"top1 is {record.top1} but per_class_top1 averages to {told}")
    if right is not None:
        parts = np.split(right, np.cumsum(counts)[:-1])
        for c, (part, own) in enumerate(zip(parts, record.per_class_top1, strict=True)):
            top1 = 100 * part.mean()
            require(close(top1, own), f"per_class_top1 of class {c} is {own} but correct says {top1}")
