"""The trained weights that are kept of some runs, beside their records: in half precision, with a digest.

``results/weights/`` holds them as safetensors under the record's name. What a file says of itself (run, digest) is
checked when it is read; files from before 0.6.0 say nothing of themselves.
"""

import hashlib
import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lkca.ledger import records
from lkca.ledger.checks import RecordError
from lkca.ledger.records import RESULTS
from lkca.ledger.runs import Run

SAYS = "lkca"  # the entry of a file's metadata that says whose it is, as JSON


def path(run: Run, results_root: Path = RESULTS) -> Path:
    """Where the trained weights of a run belong, if they are kept."""
    return Path(results_root).expanduser() / "weights" / f"{records.stem_of(run)}.safetensors"


def digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    h = hashlib.sha256()
    for name, w in sorted(weights.items()):
        h.update(f"{name} {w.dtype} {tuple(w.shape)} ".encode())
        h.update(w.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def write(run: Run, weights: dict[str, Tensor], results_root: Path = RESULTS) -> Path:
    """Keep the weights of a run, rounded to half precision; returns their path.

    Counters stay whole, and what half precision cannot hold stays as it is: a running variance can pass 65,504. Raises
    FileExistsError if that run's weights are kept already, OSError naming the file if it cannot be written.
    """
    largest = torch.finfo(torch.half).max
    halved = {name: w.is_floating_point() and bool(w.abs().max() <= largest) for name, w in weights.items()}
    kept = {name: (w.half() if halved[name] else w).cpu().contiguous() for name, w in weights.items()}
    said = {"run": records.stem_of(run), "digest": digest(kept), "lkca": run.versions["lkca"]}
    target = path(run, results_root)
    try:  # one entry, because safetensors writes several in another order each time
        return records.write_once(target, safetensors.torch.save(kept, {SAYS: json.dumps(said)}))
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"{target} cannot be written ({error}): free some space and run the same again") from error


def read(run: Run, results_root: Path = RESULTS) -> dict[str, Tensor]:
    """The weights of a run by name, float32, counters whole.

    Raises RecordError if they were not kept, are damaged, or are another run's.
    """
    file = path(run, results_root)
    try:
        with safetensors.safe_open(file, "pt") as opened:
            said = json.loads((opened.metadata() or {}).get(SAYS, "{}"))
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    except FileNotFoundError:
        raise RecordError(f"{file} does not exist: the weights of this run were not kept") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RecordError(f"{file} is damaged ({error})") from None
    if said.get("run", records.stem_of(run)) != records.stem_of(run):
        raise RecordError(f"{file}: holds the weights of {said['run']}")
    if "digest" in said and said["digest"] != digest(held):
        raise RecordError(f"{file} is damaged: its content has not the digest that was written with it")
    if bad := [name for name, w in held.items() if not bool(w.isfinite().all())]:
        raise RecordError(f"{file}: {bad[0]} holds values that are not finite")
    return {name: w.float() if w.is_floating_point() else w for name, w in held.items()}
