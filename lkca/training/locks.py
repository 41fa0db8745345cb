"""Who trains a row: one process at a time holds its lock."""

from pathlib import Path

from filelock import FileLock

from lkca.ledger.runs import Identity
from lkca.training.checkpoints import FOLDER


def lock(identity: Identity, results_root: Path) -> FileLock:
    """To be held by the one process that trains a row's runs; the system frees it when that process dies.

    Within a thread of a process it is one lock, which may be acquired again while it is held.
    """
    folder = Path(results_root) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{identity.cell}.lock", is_singleton=True)
