"""What tells two versions of a row apart, whatever its task: a hash of what it is built from and how it begins."""

import dataclasses
import hashlib
import json
from typing import Any

from lkca.models import comparators, segmenters, zoo

WORDS = {"deviation", "printed_at", "findings", "matched"}  # what a row's settings say of the paper, not of the model


def exists(name: str) -> bool:
    """Whether there is a row of this name, by its first name."""
    return name in zoo.ROWS or name in comparators.ROWS or name in segmenters.ROWS


def row_hash(name: str, first_weights: int | None = None) -> str:
    """Ten hexadecimal digits that change when a row's settings do, or how its weights begin.

    ``first_weights`` asks for an earlier way of beginning, counted from 1; None is the present one. Raises ValueError
    on a row that does not exist.
    """
    found: Any = segmenters.row(name) if name in segmenters.ROWS else zoo.row(name)
    if first_weights is not None:
        found = dataclasses.replace(found, first_weights=first_weights)
    settings = {  # what is as usual is left out, so that a new setting changes no hash of a row that does not use it
        field.name: getattr(found, field.name)
        for field in dataclasses.fields(found)
        if field.name not in WORDS and getattr(found, field.name) != field.default
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode()).hexdigest()[:10]
