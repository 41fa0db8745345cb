"""The JSON Schema of a record, for whoever reads or writes records without this package.

What it cannot say - that a curve tells the story of its summary, that settings have their hash - `lkca.ledger.checks`
says. It is made from the records' classes; ``lkca/published/record.schema.json`` is a copy that a test holds to it.
"""

import dataclasses
import typing
from typing import Any

from lkca.ledger.checks import PRECISIONS
from lkca.ledger.runs import KINDS, SCHEMA, Run

TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", dict: "object", list: "array"}
COUNTS = {"num_classes", "num_train", "num_test", "image_size", "stacked", "draws"}  # 1 or more
PERCENTAGES = {"top1", "top1_best", "aacc", "miou", "miou10"}
PATTERNS = {
    "git_commit": "^([0-9a-f]{40}|unknown)$",
    "protocol_hash": "^[0-9a-f]{10}$",
    "row_hash": "^[0-9a-f]{10}$",
    "finished": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$",
    "correct": "^[A-Za-z0-9+/]*={0,2}$",
}
LATER = {"row_hash", "draws"}  # what schema 1 does not have


def record_schema() -> dict[str, Any]:
    """Of a record of either task, in JSON Schema 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The record of a run",
        "description": f"Version {SCHEMA}; version 1 has no row_hash and no draws.",
        "type": "object",
        "oneOf": [_of_task(task, version) for task in KINDS for version in range(1, SCHEMA + 1)],
    }


def _of_task(task: str, version: int) -> dict[str, Any]:
    kind, kind_of_point = KINDS[task]
    fields = [f for f in dataclasses.fields(kind) if version > 1 or f.name not in LATER]
    properties = {field.name: _field(field, kind) for field in fields}
    properties["curve"] = {"type": "array", "minItems": 1, "items": _object(dataclasses.fields(kind_of_point))}
    properties["task"] = {"const": task}
    properties["schema"] = {"const": version}
    optional = {field.name for field in fields if field.default is not dataclasses.MISSING} - {"schema"}
    optional -= {"task"} if task != "classification" else set()
    return {
        "title": f"{task}, version {version}",
        "properties": properties,
        "required": sorted(set(properties) - optional),
        "additionalProperties": False,
    }


def _object(fields: typing.Iterable[dataclasses.Field]) -> dict[str, Any]:
    fields = list(fields)
    return {
        "type": "object",
        "properties": {field.name: _field(field) for field in fields},
        "required": [field.name for field in fields],
        "additionalProperties": False,
    }


def _field(field: dataclasses.Field, kind: type[Run] | None = None) -> dict[str, Any]:
    origin: Any = typing.get_origin(field.type) or field.type
    found: dict[str, Any] = {"type": TYPES[origin]}
    if origin in (int, float):
        found["minimum"] = 1 if field.name in COUNTS else 0
    if field.name in PERCENTAGES:
        found["maximum"] = 100
    if field.name in PATTERNS:
        found["pattern"] = PATTERNS[field.name]
    if field.name == "precision":
        found["enum"] = list(PRECISIONS)
    if field.name == "versions":
        found |= {"required": ["lkca"], "additionalProperties": {"type": "string"}}
    if origin is list and kind is not None and field.name != "curve":
        (inner,) = typing.get_args(field.type)
        found["items"] = {"type": TYPES[inner], "minimum": 0}
        if field.name == "per_class_top1":
            found["items"]["maximum"] = 100
    return found
