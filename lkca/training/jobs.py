"""What a table's notebook asks for: choose the protocol, check everything, train what is missing.

`plan` answers within seconds and trains nothing; `run` does the work and can be killed and called again.
"""

import contextlib
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from filelock import FileLock, Timeout

from lkca.data import images as data
from lkca.data import scenes
from lkca.ledger import records
from lkca.ledger.protocols import PROTOCOLS, SEGMENTATION, Recipe
from lkca.ledger.records import RESULTS, Run
from lkca.models import segmenters, zoo
from lkca.training import engine, machine


@dataclass(frozen=True)
class Job:
    """Checked work: these rows and seeds on data sets under a protocol, on a device; ``why`` says it in one line."""

    datasets: tuple[str, ...]
    protocol: Recipe
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    device: str
    precision: str
    data_root: Path
    results_root: Path
    why: str

    @property
    def runs(self) -> list[tuple[str, str, int, Path]]:
        """Data set, row, seed and record path of every run, data set by data set and seed by seed."""
        p = self.protocol
        return [
            (dataset, row, seed, records.path(self.results_root, row, dataset, p.name, p.hash, seed))
            for dataset in self.datasets
            for seed in self.seeds
            for row in self.rows
        ]


class Source(Protocol):
    """What the modules of data sets have in common."""

    def spec(self, name: str) -> data.Spec | scenes.Spec:
        """What data set ``name`` must look like."""

    def available(self, name: str, root: Path | str) -> bool:
        """Whether it is on disk."""

    def downloadable(self, name: str) -> bool:
        """Whether the host that publishes it answers."""

    def load(self, name: str, root: Path | str) -> data.Dataset | scenes.Scenes:
        """The data set, downloaded if it is not there."""


def source(dataset: str) -> Source:
    """Where a data set comes from: `lkca.data.scenes` for one of segmentation, else `lkca.data.images`."""
    return scenes if dataset in scenes.DATASETS else data


def plan(
    table: int | str,
    *,
    dataset: str | None = None,
    protocol: str = "auto",
    rows: str | Sequence[str] = "all",
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    precision: str = "auto",
    data_root: str | Path | None = None,
    results_root: str | Path | None = None,
) -> Job:
    """Choose and check a table's training, within seconds and before any of it.

    Args:
        table: number of the table in the paper, or "controls".
        dataset: None for all of the table's own.
        protocol: a name of `lkca.ledger.protocols`, or "auto": `released` (of Tables 6 and 7 `table6`, `table7`) where
            there is a CUDA device and the data is present or can be downloaded, else `smoke`. `smoke` trains on
            scikit-learn's digits, or scenes of them, and its records go to ``results_root/scratch``, which all tables
            share; some tables then have fewer rows, see `zoo.Table`.
        rows: "all" of the paper's, or names of the table's rows, ours among them. A row with two names is one row.
        seeds: one run of each row a seed.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        precision: see `lkca.training.engine.Asked`.
        data_root: folder of the data sets; None for `lkca.data.images.ROOT`.
        results_root: folder of the ledger; None for `lkca.ledger.records.RESULTS`.

    Raises:
        ValueError: naming the valid choices, on a table, protocol, row, seed, device or precision that does not exist.
        DataError: if the data set is neither present nor downloadable.
        OSError: if records cannot be written to ``results_root``.
    """
    spec, protocols, full = _table(table)
    datasets = _datasets(spec, dataset)
    if protocol != "auto" and protocol not in protocols:
        raise ValueError(f"protocol={protocol!r} is not one of 'auto', {', '.join(map(repr, protocols))}")
    names, seeds = _rows(table, spec, rows), _seeds(rows, seeds)
    device = _device(device)
    machine.checked_precision(precision)
    root = Path(data_root).expanduser() if data_root else data.ROOT
    results = Path(results_root).expanduser() if results_root else RESULTS
    protocol, reason = _protocol(protocol, full, datasets, device, root)
    if protocol == "smoke":
        datasets, results = (spec.smoke,), results / "scratch"
        names = tuple(map(zoo.canonical, spec.smoke_rows)) if spec.smoke_rows and rows == "all" else names
    job = Job(datasets, protocols[protocol], names, seeds, device, precision, root, results, reason)
    missing = sum(not path.exists() for *_, path in job.runs)
    if missing:
        records.check_writable(results)
    why = f"`{protocol}` on {', '.join(datasets)}, {job.device}: {reason}. {missing} of {len(job.runs)} runs to train."
    return replace(job, why=why)


def _table(table: int | str) -> tuple[zoo.Table, Mapping[str, Recipe], str]:
    """A table's rows and data sets, the protocols of its task, and the name of the one that repeats the paper."""
    tables = (*zoo.TABLES, *segmenters.TABLES, "controls")
    if table not in tables:
        raise ValueError(f"table {table!r} does not exist; the tables are {', '.join(map(repr, tables))}")
    if table in segmenters.TABLES:
        return segmenters.table(table), SEGMENTATION, f"table{table}"
    return zoo.table(table), PROTOCOLS, "released"


def _datasets(spec: zoo.Table, dataset: str | None) -> tuple[str, ...]:
    """The data sets to train on; raises ValueError on one that does not exist for the table's task."""
    names = (dataset,) if dataset else spec.datasets
    for name in names:
        source(spec.dataset).spec(name)
    return names


def _rows(table: int | str, spec: zoo.Table, rows: str | Sequence[str]) -> tuple[str, ...]:
    """The rows asked for, each once by its first name; raises ValueError on one that the table has not."""
    names = spec.rows if rows == "all" else tuple([rows] if isinstance(rows, str) else rows)
    title = f"Table {table}" if isinstance(table, int) else f"the {table}"
    for name in names:
        if zoo.canonical(name) not in map(zoo.canonical, (*spec.rows, *spec.extra)):
            raise ValueError(f"row {name!r} is not in {title}; its rows are {', '.join((*spec.rows, *spec.extra))}")
    return tuple(dict.fromkeys(map(zoo.canonical, names)))


def _seeds(rows: str | Sequence[str], seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds asked for, each once; raises ValueError without any, or on what is no seed."""
    if not rows or isinstance(seeds, str | int) or not seeds:
        raise ValueError("rows and seeds must be lists with at least one entry, e.g. rows=['ViT'], seeds=[0]")
    for seed in seeds:
        if type(seed) is not int or seed < 0:
            raise ValueError(f"seed {seed!r} is not a whole number from 0 up")
    return tuple(dict.fromkeys(seeds))


def _device(device: str) -> str:
    """The device that "auto" is here, or the one asked for if it can be used."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return machine.checked_device(device)


def _protocol(protocol: str, full: str, datasets: Sequence[str], device: str, root: Path) -> tuple[str, str]:
    """The protocol that "auto" is here, or the one asked for, and why; raises DataError on data that cannot be had."""
    if protocol == "auto" and device != "cuda":
        return "smoke", "there is no CUDA device, so this only shows that the way works"
    if protocol == "smoke":
        return protocol, "as asked"
    absent = [name for name in datasets if not (source(name).available(name, root) or source(name).downloadable(name))]
    if absent and protocol != "auto":
        raise data.DataError(
            f"{absent[0]} is not in {root} and its publisher's host does not answer: put it there, name its "
            "folder with data_root, or choose protocol='smoke', which needs no download"
        )
    if absent:
        return "smoke", f"{absent[0]} is not in {root} and cannot be downloaded from here"
    if protocol == "auto":
        return full, f"there is a CUDA device and {', '.join(datasets)}"
    return protocol, "as asked"


def lock(results_root: Path, row: str, dataset: str, p: Recipe) -> FileLock:
    """To be held by the one process that trains a row's runs; the system frees it when that process dies."""
    folder = Path(results_root) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{dataset}--{row.replace('/', '_')}--{p.name}-{p.hash}.lock")


def run(job: Job, progress: str | None = "bar") -> list[Run]:
    """Train what the ledger lacks and return the job's records, in order.

    A row that another process trains is left to it, and waited for at the end. Killed at any time, it goes on from the
    last checkpoint when it is called again. Raises what `engine.fit`, `data.load` and `records.read_one` raise.
    """
    fit = functools.partial(
        engine.fit, device=job.device, precision=job.precision, results_root=job.results_root, progress=progress
    )
    for name in job.datasets:
        dataset = None
        for wait, row in itertools.product((False, True), job.rows):  # first what no other process is at
            paths = {seed: path for d, r, seed, path in job.runs if (d, r) == (name, row)}
            if all(path.exists() for path in paths.values()):
                continue
            with contextlib.suppress(Timeout), lock(job.results_root, row, name, job.protocol).acquire(blocking=wait):
                if missing := [seed for seed, path in paths.items() if not path.exists()]:
                    dataset = dataset or source(name).load(name, job.data_root)
                    fit(row, dataset, job.protocol, missing)
    return [records.read_one(path) for *_, path in job.runs]
