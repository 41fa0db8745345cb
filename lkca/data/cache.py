"""Decoded data sets on disk: written whole or not at all, read only if nothing of their source has changed."""

import contextlib
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

from lkca.data import files

FORMAT = 3  # raise it when reading changes what is cached
TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def signature(what: str, paths: list[Path]) -> str:
    """Changes when ``what`` does or a file of the source: names, sizes and times, through links; nothing is read."""
    lines = [f"{FORMAT} {what}"]
    for path in paths:
        inside = [path / name for name, odd in sorted(files.walk(path)) if not odd] if path.is_dir() else [path]
        for file in inside:
            stat = os.stat(file)
            lines.append(f"{os.path.relpath(file, path.parent)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read(file: Path, signature: str) -> dict[str, Any] | None:
    """What `write` was given under this signature; None if there is none, or it is damaged, which is said."""
    if not file.is_file():
        return None
    try:
        saved = torch.load(file, weights_only=True)
        if saved.pop("signature") != signature:
            return None
        if saved.pop("content") != _content(saved):
            raise ValueError("its content has changed")
        return saved
    except Exception as error:  # torch raises many kinds for a damaged file
        print(f"the cache {file} is damaged ({error}): reading the data set again", file=sys.stderr)
        return None


def write(file: Path, fields: dict[str, Any], signature: str) -> None:
    """Write aside and rename; a cache that cannot be written is only slower, so it is said and not raised."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.aside")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**fields, "signature": signature, "content": _content(fields)}, aside)
        os.replace(aside, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        print(f"the cache {file} cannot be written ({error}): every load will decode again", file=sys.stderr)
    finally:
        with contextlib.suppress(OSError):  # it is there after an error or an interrupt only
            aside.unlink()


def _content(fields: dict[str, Any]) -> str:
    h = hashlib.sha256(fields["fingerprint"].encode())
    for name in TENSORS:
        h.update(fields[name].numpy().data)
    return h.hexdigest()
