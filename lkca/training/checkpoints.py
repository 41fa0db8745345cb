"""Checkpoints: all that the runs of some seeds need to go on, written aside and renamed, read with care.

A checkpoint says whose it is (`Whose`) and carries a digest of its content. One from before 0.6.0 says neither: its
name says whose it is, and its content is taken as it is.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lkca.ledger.runs import DRAWS, Identity

FOLDER = "checkpoints"


@dataclass(frozen=True)
class Whose:
    """The runs that share a checkpoint: those of some seeds, trained in one step."""

    identity: Identity  # of the first seed
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the checkpoint's file, without an ending."""
        seeds = "+".join(map(str, self.seeds))
        return self.identity.name.replace(f"--seed{self.identity.seed}--", f"--seed{seeds}--")

    def of(self, seed: int) -> Identity:
        """One run's identity."""
        return dataclasses.replace(self.identity, seed=seed)

    def file(self, results_root: Path) -> Path:
        """Where the checkpoint belongs."""
        return results_root / FOLDER / f"{self.name}.pt"


def found(results_root: Path, wanted: Identity) -> Iterator[tuple[Path, Whose]]:
    """The checkpoints of a cell's runs, with any seeds, and in any precision if the one wanted is "auto"."""
    pattern = re.compile(re.escape(f"{wanted.cell}--seed") + r"(\d+(?:\+\d+)*)(?:--(\w+)-([0-9a-f]+)-draws(\d+))?\.pt")
    for file in sorted((results_root / FOLDER).glob("*.pt")):
        if not (match := pattern.fullmatch(file.name)):
            continue
        seeds = tuple(map(int, match[1].split("+")))
        precision = match[2] or _peek(file)
        row_hash, draws = match[3] or wanted.row_hash, int(match[4] or DRAWS)
        if (row_hash, draws) == (wanted.row_hash, wanted.draws) and wanted.precision in ("auto", precision):
            yield file, Whose(dataclasses.replace(wanted, seed=seeds[0], precision=precision), seeds)


def _peek(file: Path) -> str:
    """The precision that a checkpoint from before 0.6.0 was made in, which its name does not say."""
    return _load(file)["state"]["precision"]


def save(file: Path, whose: Whose, stack: dict, state: dict, fingerprint: str) -> None:
    """Write aside and rename, so that a kill, a full disk or a power cut leaves the last whole checkpoint.

    Args:
        file: where to.
        whose: the runs.
        stack: `Stack.state_dict`.
        state: what else the engine needs, of plain numbers and texts.
        fingerprint: of the data set.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    held = {"whose": dataclasses.asdict(whose), "stack": stack, "state": state, "fingerprint": fingerprint}
    aside = file.with_name(f"{file.name}.aside")  # the row's lock is held: no other process writes it
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as opened:
            torch.save({**held, "digest": digest(held)}, opened)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(aside, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        aside.unlink(missing_ok=True)
        raise OSError(
            f"the checkpoint {file} cannot be written ({error}): free some space and run the same again"
        ) from error


def load(file: Path, whose: Whose, fingerprint: str) -> tuple[dict, dict]:
    """The stack's state and the rest, as saved.

    Raises:
        ValueError: naming the file, if it is damaged, another's, or was made on other data.
        OSError: naming the file, if it cannot be read.
    """
    held = _load(file)
    own, said = held.pop("digest", None), held.get("whose")
    if own is None:
        print(f"the checkpoint {file} is from before 0.6.0, without a digest: it is taken as it is", flush=True)
    elif own != digest(held):
        raise ValueError(f"the checkpoint {file} is damaged (its digest is not its content's): delete it to begin anew")
    if said and said != dataclasses.asdict(whose):
        raise ValueError(f"the checkpoint {file} is of other runs than its name says: {_described(said)}")
    if held["fingerprint"] != fingerprint:
        raise ValueError(
            f"the checkpoint {file} was made on other data (fingerprint {held['fingerprint'][:12]}…, here "
            f"{fingerprint[:12]}…): train on that data, or move it away to begin this run anew"
        )
    return held["stack"], held["state"]


def _described(said: dict) -> str:
    identity = said["identity"]
    return f"{identity['row']} on {identity['dataset']}, {identity['protocol']}, seeds {said['seeds']}"


def _load(file: Path) -> dict:
    unread, todo = f"the checkpoint {file} cannot be understood", "move it away to begin this run anew"
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except IsADirectoryError as error:
        raise OSError(f"{file} is a folder, where a checkpoint belongs") from error
    except PermissionError as error:
        raise OSError(f"the checkpoint {file} cannot be read ({error})") from error
    except Exception as error:  # torch raises many kinds for a damaged file, OSError among them
        raise ValueError(f"{unread} ({error}): {todo}") from error
    parts = {"stack": dict, "state": dict, "fingerprint": str}
    if not isinstance(held, dict) or not all(isinstance(held.get(name), kind) for name, kind in parts.items()):
        raise ValueError(f"{unread} (it has not the parts of one): {todo}")
    return held


def digest(held: Any) -> str:
    """SHA-256 over all that is in nested dicts, lists, tensors, numbers and texts."""
    h = hashlib.sha256()
    _feed(h.update, held)
    return h.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if isinstance(value, Tensor):
        update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            _feed(update, key)
            _feed(update, item)
    elif isinstance(value, list | tuple):
        update(f"list {len(value)} ".encode())
        for item in value:
            _feed(update, item)
    else:
        update(f"{type(value).__name__} {value!r} ".encode())


def clear(results_root: Path, names: Iterable[str]) -> None:
    """Remove what kills in the midst of writing left of these runs and checkpoints; the row's lock must be held."""
    for name in names:
        (results_root / FOLDER / f"{name}.pt.aside").unlink(missing_ok=True)
        for folder, ending in (("runs", "json"), ("weights", "safetensors")):
            for aside in (results_root / folder).glob(f".{name}.{ending}-*.aside"):
                aside.unlink(missing_ok=True)
