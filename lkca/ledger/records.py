"""The ledger's files: write a record once, read them all, say which are broken.

A *record* is the one JSON file a finished run leaves in ``results/runs/``, named by what tells it from other runs
(`lkca.ledger.runs.Identity`). It is whole or absent, and it is never edited or overwritten. The *ledger* is all records
together. A run that diverged leaves a note in ``results/diverged/``, which is no record.

A file is checked once: `read` remembers the outcome by name, size and time in ``.cache/`` of the ledger, which may be
deleted at any time.
"""

import dataclasses
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from lkca.data import places
from lkca.ledger import remembered
from lkca.ledger.checks import RecordError, field_types
from lkca.ledger.runs import KINDS, SCHEMA, Identity, Record, Run
from lkca.models import rows

RESULTS = places.RESULTS
LARGEST = 16_000_000  # bytes of a record's file; the longest so far has 30,000


def path(identity: Identity, results_root: Path | str) -> Path:
    """Where the record of a run belongs."""
    return Path(results_root).expanduser() / "runs" / f"{identity.name}.json"


def stem_of(run: Run) -> str:
    """The name of a run's files, without an ending; runs recorded before 0.6.0 keep the names that they have."""
    return run.identity.name_of_schema_1 if run.schema == 1 else run.identity.name


def path_of(run: Run, results_root: Path | str) -> Path:
    """Where ``run`` belongs under ``results_root``."""
    return Path(results_root).expanduser() / "runs" / f"{stem_of(run)}.json"


def write(run: Run, results_root: Path = RESULTS) -> Path:
    """Write a run's record into the ledger, whole or not at all; returns its path.

    Raises FileExistsError if that run already has a record: records are never overwritten.
    """
    fields = dataclasses.asdict(run)
    if run.schema == 1:
        del fields["row_hash"], fields["draws"]
    text = json.dumps(fields, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return write_once(path_of(run, results_root), text.encode())


def write_once(target: Path, content: bytes) -> Path:
    """Write a file that must not exist, whole or not at all, on file systems with hard links and without.

    Raises FileExistsError if it exists.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-", suffix=".aside")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        try:
            os.link(aside, target)  # unlike a rename, refuses to replace
        except FileExistsError:
            raise FileExistsError(f"{target} exists: it is never overwritten") from None
        except OSError:  # exFAT, BeeGFS and many network folders have no hard links
            _claim_and_rename(aside, target)
    finally:
        Path(aside).unlink(missing_ok=True)
    return target


def _claim_and_rename(aside: str, target: Path) -> None:
    """Put ``aside`` in the place of ``target``, which an empty file holds against others meanwhile."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        if target.stat().st_size:
            raise FileExistsError(f"{target} exists: it is never overwritten") from None
    os.replace(aside, target)  # an empty one is what a kill between the two lines leaves


def check_writable(results_root: Path) -> None:
    """Raise OSError saying what to do if records, checkpoints or weights cannot be written below ``results_root``."""
    for folder in (Path(results_root) / name for name in ("runs", "checkpoints", "weights")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.listdir(folder)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".aside-") as aside:
                write_once(Path(aside) / "x", b"x")
        except OSError as error:
            raise OSError(
                f"{folder} cannot be written and read as a ledger's must ({error}): name another folder with "
                "results_root"
            ) from None


def read_one(file: Path) -> Run:
    """Read and check one record; raises RecordError naming the file."""
    file = Path(file)
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise RecordError("is not a regular file")
        if status.st_size > LARGEST:
            raise RecordError(f"has {status.st_size:,} bytes, more than a record can")
        run = _from_fields(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise RecordError(f"{file}: {str(error).partition('__init__() ')[2] or error}") from error
    if stem_of(run) != file.stem:
        raise RecordError(f"{file}: holds the run that belongs in {stem_of(run)}.json")
    return run


def _from_fields(fields: Any) -> Run:
    if not isinstance(fields, dict):
        raise RecordError("is not a JSON object")
    task = fields.get("task", "classification")
    if not isinstance(task, str) or task not in KINDS:
        raise RecordError(f"task {task!r} is not one of {', '.join(KINDS)}")
    kind, kind_of_point = KINDS[task]
    points = fields.get("curve", [])
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise RecordError("curve is no list of points")
    fields["curve"] = [kind_of_point(**point) for point in points]
    for point in fields["curve"]:
        field_types(point)
    if fields.get("schema") == 1:
        fields |= _of_schema_1(fields)
    elif "schema" in fields and fields["schema"] != SCHEMA:
        raise RecordError(f"schema is {fields['schema']}, this code reads 1 to {SCHEMA}")
    run = kind(**fields)
    run.verify()
    return run


def _of_schema_1(fields: dict) -> dict[str, Any]:
    """What the record of a run made before 0.6.0 leaves to be known: no row had changed, and the draws did at 0.2."""
    if "row_hash" in fields or "draws" in fields:
        raise RecordError("schema is 1, which has no row_hash and no draws")
    row, versions = fields.get("row"), fields.get("versions")
    known = isinstance(row, str) and rows.exists(row)
    version = versions.get("lkca") if isinstance(versions, dict) else ""
    first = isinstance(version, str) and version.startswith("0.1.")
    return {"row_hash": rows.row_hash(str(row), first_weights=1) if known else "", "draws": 1 if first else 2}


Kind = TypeVar("Kind", bound=Run)


@overload
def read(results_root: Path = RESULTS) -> tuple[list[Record], list[str]]: ...
@overload
def read(results_root: Path = RESULTS, *, kind: type[Kind]) -> tuple[list[Kind], list[str]]: ...
@overload
def read(results_root: Path, kind: type[Kind]) -> tuple[list[Kind], list[str]]: ...
def read(results_root: Path = RESULTS, kind: type[Run] = Record) -> tuple[list, list[str]]:
    """Read the ledger: all sound records of a kind, in file-name order, and one sentence for each broken one.

    A broken record is left out and named; it never hides the others. No ledger is an empty one; one that is there and
    cannot be listed raises OSError.
    """
    found, broken = [], []
    for outcome in _outcomes(Path(results_root).expanduser()):
        if isinstance(outcome, str):
            broken.append(outcome)
        elif isinstance(outcome, kind):
            found.append(outcome)
    return found, broken


def _outcomes(results_root: Path) -> Iterator[Run | str]:
    """Of every file of the ledger the run, or a sentence saying what is wrong with it."""
    try:
        entries = sorted(
            (e for e in os.scandir(results_root / "runs") if e.name.endswith(".json") and e.name[0] not in ".~"),
            key=lambda entry: entry.name,
        )
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(
            f"the ledger {results_root} cannot be listed ({error}): name another folder with results_root"
        ) from error
    with remembered.Outcomes(results_root / ".cache" / "records.jsonl") as outcomes:
        for entry in entries:
            yield outcomes.of(entry, read_one)


def by_identity(results_root: Path) -> dict[Identity, Run]:
    """The ledger's sound records by what tells them apart; under the precision "auto" the first of any precision."""
    found: dict[Identity, Run] = {}
    for run in sorted(read(results_root, Run)[0], key=lambda run: run.finished):
        for identity in (run.identity, dataclasses.replace(run.identity, precision="auto")):
            found.setdefault(identity, run)
    return found


def lacking(wanted: Sequence[Identity], results_root: Path) -> list[Identity]:
    """Those of these runs that have no sound record; one whose precision is "auto" may have one in any."""
    done = by_identity(results_root)
    return [identity for identity in wanted if identity not in done]
