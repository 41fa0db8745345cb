"""The samples in the parquet files of Hugging Face's copies: uoft-cs/cifar10, uoft-cs/cifar100, zh-plus/tiny-imagenet.

A file has a column of images, structs of ``bytes`` and ``path``, and one of labels, numbers whose classes are named in
the file's own metadata or, where it has none, go in the order of the card (that of the known classes). Written after
the cards and tested on made files; the published files have not been at hand.
"""

import contextlib
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lkca.data import classes, files
from lkca.data.containers import TRAIN, Listing, Sample, splits
from lkca.data.files import UNREADABLE, DataError

if TYPE_CHECKING:
    import pyarrow

HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "tiny-imagenet": "zh-plus/tiny-imagenet"}
_IMAGES = ("img", "image")
_LABELS = {"cifar100": ("fine_label",)}  # its other column, coarse_label, has the 20 superclasses
_SHARD = re.compile(r"-(\d+)-of-(\d+)")


def found(folder: Path) -> list[Path]:
    """The parquet files of a folder, up to two folders deep, as a clone or a download of a repository has them."""
    deep = ["*.parquet", "*/*.parquet", "*/*/*.parquet"]
    inside = sorted(file for pattern in deep for file in folder.glob(pattern))
    return [file for file in inside if all(map(files.is_content, file.relative_to(folder).parts))]


def in_hub_cache(root: Path, name: str) -> Path | None:
    """The newest snapshot that huggingface_hub's cache has of a data set under ``root``, if it has any."""
    repository = root / f"datasets--{HUB.get(name, '').replace('/', '--')}"
    snapshots = files.entries(repository / "snapshots") if name in HUB else []
    with contextlib.suppress(OSError):
        main = (repository / "refs" / "main").read_text().strip()
        if main in snapshots:
            return repository / "snapshots" / main
    return max((repository / "snapshots" / s for s in snapshots), key=lambda s: s.stat().st_mtime, default=None)


def listing(name: str, paths: list[Path]) -> Listing:
    """The samples of a data set in parquet files.

    Raises:
        DataError: without pyarrow; on a file that cannot be read, a shard that is missing, columns that are not those
            of the copies, labels that name no class, or images whose bytes are not in the file.
    """
    by_split = _by_split(name, paths)
    samples: list[Sample] = []
    for split, of_split in by_split.items():
        for file in of_split:
            samples += _samples(name, split, file)
    return Listing(samples)


def _by_split(name: str, paths: list[Path]) -> dict[str, list[Path]]:
    """The files of train and test, named by file or by folder; raises DataError on a shard that is missing."""
    called: dict[str, list[Path]] = {}
    for path in paths:
        words = (*re.split(r"[^a-z]", path.stem.lower()), path.parent.name.lower())
        known = [word for word in words if word in (*TRAIN, *splits(name)["test"])]
        if known:  # others, such as an extra split, are not wanted
            called.setdefault(known[0], []).append(path)
    chosen = {split: next((called[c] for c in names if c in called), []) for split, names in splits(name).items()}
    for split, of_split in chosen.items():
        if not of_split:
            raise DataError(
                f"{paths[0].parent}: no parquet file of the {split} split among {files.some(p.name for p in paths)}; "
                f"wanted is a name such as {splits(name)[split][0]}-00000-of-00001.parquet"
            )
        shards = [_SHARD.search(path.stem) for path in of_split]
        there, of = {int(s[1]) for s in shards if s}, max((int(s[2]) for s in shards if s), default=0)
        if missing := sorted(set(range(of)) - there):
            raise DataError(f"{of_split[0].parent}: of the {of} {split} files that of number {missing[0]} is missing")
    return chosen


def _samples(name: str, split: str, file: Path) -> list[Sample]:
    table = _table(name, file)
    images, labels = table.columns
    meaning = _meaning(name, file, table.schema)
    samples: list[Sample] = []
    for i, label in enumerate(labels.to_pylist()):
        c = meaning.get(label)
        if c is None:
            raise DataError(f"{file}: label {label!r} of row {i} is no class of {name}; {classes.wanted(name)}")
        samples.append((split, c, f"{file} (row {i})", partial(_image, images, i, file)))
    return samples


def _table(name: str, file: Path) -> "pyarrow.Table":
    """The two columns that are wanted of a file, images first."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{file}: reading parquet needs pyarrow, which is not installed: pip install 'lkca[parquet]'"
        ) from error
    with open(files.checked(file), "rb") as opened:
        if opened.read(40).startswith(b"version https://git-lfs"):
            raise DataError(f"{file} is a pointer of Git LFS and not the data: git lfs pull in its folder gets it")
    try:
        schema = parquet.read_schema(file)
        wanted = [_IMAGES, _LABELS.get(name, ("label",))]
        columns = [next((c for c in either if c in schema.names), None) for either in wanted]
        if None in columns:
            words = " and ".join(" or ".join(either) for either in wanted)
            raise DataError(f"{file} has the columns {', '.join(schema.names)}; wanted are {words}")
        return parquet.read_table(file, columns=columns).select(columns)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{file} cannot be read as parquet ({error}): a sound copy is wanted there") from error


def _meaning(name: str, file: Path, schema: "pyarrow.Schema") -> dict[Any, str]:
    """The class of each label, a number or a name, by the names in the file's metadata or by the known order."""
    names: list[str] = []
    with contextlib.suppress(ValueError, AttributeError, TypeError):  # other metadata than the library's tells nothing
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = [*map(str, described.get("info", {}).get("features", {}).get(schema.names[1], {}).get("names", []))]
    names = names or list(classes.NAMES[name])
    by_name = classes.known(name, names, f"{file}, the names of its labels")
    return {i: by_name[n] for i, n in enumerate(names)} | by_name


def _image(images: "pyarrow.ChunkedArray", i: int, file: Path) -> bytes:
    value = images[i].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise DataError(f"{file}: the image of row {i} is not in the file; a column with the bytes of each is wanted")
    return content
