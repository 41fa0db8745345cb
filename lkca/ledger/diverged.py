"""Notes of runs that diverged: no records, but known, so that nobody trains them for ever.

A note is the one JSON file ``results/diverged/NAME.json``, named as the record that the run would have left.
"""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

from lkca.ledger import records
from lkca.ledger.runs import Identity


def path(identity: Identity, results_root: Path) -> Path:
    """Where the note of a run belongs."""
    return Path(results_root).expanduser() / "diverged" / f"{identity.name}.json"


def note(identity: Identity, results_root: Path, *, what: str, made: dict, commit: str) -> Path:
    """Write down what diverged, where and with which code; a note that is there stays."""
    said = {"what": what, "made": made, "git_commit": commit, "noted": datetime.now(UTC).isoformat(timespec="seconds")}
    target = path(identity, results_root)
    text = json.dumps(dataclasses.asdict(identity) | said, indent=1, ensure_ascii=False) + "\n"
    if not target.exists():
        records.write_once(target, text.encode())
    return target


def read(results_root: Path = records.RESULTS) -> list[dict]:
    """All notes, by file name; one that cannot be read says so under "what"."""
    found = []
    for file in sorted((Path(results_root).expanduser() / "diverged").glob("[!.]*.json")):
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            found.append({**held, "what": str(held["what"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            found.append({"what": f"{file} cannot be read ({error})"})
    return found
