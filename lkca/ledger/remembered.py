"""The outcome of checking each record, remembered by its file's name, size and time.

One line a file, JSON. Whatever is wrong with the file that holds them, the records are checked anew: it may be deleted.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lkca
from lkca.ledger.checks import RecordError
from lkca.ledger.runs import KINDS, Epoch, Run, Stage


@functools.cache
def _code() -> str:
    """Changes when the code does that checks records, or says what they should be."""
    package = Path(lkca.__file__).parent
    files = sorted(file for floor in ("ledger", "models", "data") for file in (package / floor).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class Outcomes:
    """What is remembered, as a context that writes down what was learnt when it ends without an error."""

    def __init__(self, file: Path):
        self._file, self._learnt = file, False
        self._lines: dict[str, str] = {}
        self._shared: dict[str, Any] = {}

    def __enter__(self) -> "Outcomes":
        """Read what is remembered, if it is of this code."""
        with contextlib.suppress(OSError, ValueError), self._file.open(encoding="utf-8") as lines:
            if next(lines, "").strip() == _code():
                self._lines = {name: line for name, _, line in (line.partition("\t") for line in lines)}
        return self

    def of(self, entry: os.DirEntry, check: Callable[[Path], Run]) -> Run | str:
        """The run in a file, or a sentence saying what is wrong with it."""
        mark = self._mark(entry)
        known, _, text = self._lines.get(entry.name, "").partition("\t")
        if known == mark:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return self._run(json.loads(text), entry)
        self._learnt = True
        try:
            run = check(Path(entry.path))
        except RecordError as error:
            self._remember(entry.name, mark, json.dumps(str(error).removeprefix(f"{entry.path}: ")))
            return str(error)
        self._remember(entry.name, mark, _text(run))
        return run

    def _remember(self, name: str, mark: str, text: str) -> None:
        if mark and not {"\t", "\n", "\r"} & set(name):  # such a name does not fit into a line
            self._lines[name] = f"{mark}\t{text}\n"

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Write down what was learnt, aside and renamed; a folder that cannot be written is only slower."""
        if kind is not None or not self._learnt:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self._file.parent, prefix=".aside-", delete=False
            ) as aside:
                aside.write(f"{_code()}\n")
                aside.writelines(f"{name}\t{line}" for name, line in self._lines.items())
            os.replace(aside.name, self._file)

    @staticmethod
    def _mark(entry: os.DirEntry) -> str:
        with contextlib.suppress(OSError):
            status = entry.stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        return ""

    def _run(self, fields: Any, entry: os.DirEntry) -> Run | str:
        """The run of remembered fields: nothing is checked again, and what is equal is one object."""
        if isinstance(fields, str):
            return f"{entry.path}: {fields}"
        kind, kind_of_point = KINDS[fields["task"]]
        fields["curve"] = _points(kind_of_point, fields["curve"])
        for name, value in fields.items():
            if isinstance(value, str) and name != "correct":
                fields[name] = sys.intern(value)
        for name in ("protocol_fields", "versions"):
            fields[name] = self._shared.setdefault(repr(fields[name]), fields[name])
        run: Run = object.__new__(kind)
        run.__dict__.update(fields)
        return run


def _text(run: Run) -> str:
    """A run's fields in a line; its curve as rows of numbers."""
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    fields["curve"] = [list(dataclasses.astuple(point)) for point in fields["curve"]]
    return json.dumps(fields, separators=(",", ":"))


def _points(kind: type[Epoch] | type[Stage], rows: list[list]) -> list:
    return [kind(*row) for row in rows]
