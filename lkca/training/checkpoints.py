"""Checkpoints: all that a run needs to go on, written aside and renamed, read with care."""

import os
from pathlib import Path

import torch

from lkca.training.stack import Stack


def save(file: Path, stack: Stack, state: dict, fingerprint: str) -> None:
    """Write aside and rename, so that a kill or a full disk leaves the last whole checkpoint.

    Args:
        file: where to.
        stack: the models and their optimiser.
        state: what else the engine needs, of plain numbers and texts.
        fingerprint: of the data set.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{os.getpid()}.aside")
    try:
        torch.save({"stack": stack.state_dict(), "state": state, "fingerprint": fingerprint}, aside)
        os.replace(aside, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        aside.unlink(missing_ok=True)
        raise OSError(
            f"the checkpoint {file} cannot be written ({error}): free some space and run the same again"
        ) from error


def load(file: Path, stack: Stack, fingerprint: str, precision: str) -> dict:
    """Set the stack as it was and return the state that was saved with it.

    Raises:
        ValueError: naming the file, if it is damaged, or was made on other data or in another precision.
    """
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        data, state = saved["fingerprint"], saved["state"]
        if (data, state["precision"]) == (fingerprint, precision):
            stack.load_state_dict(saved["stack"])
            return state
    except (OSError, torch.OutOfMemoryError):  # nothing is wrong with the file
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"the checkpoint {file} is damaged ({error}): delete it to begin this run again") from error
    other = "on other data" if data != fingerprint else f"in {state['precision']}, not {precision}"
    raise ValueError(f"the checkpoint {file} was made {other}: delete it to begin this run again")
