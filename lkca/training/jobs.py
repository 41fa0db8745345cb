"""What a table's notebook asks for: choose the protocol, check everything, train what is missing.

`plan` answers within seconds and trains nothing; `run` does the work and can be killed and called again.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from filelock import Timeout

from lkca.data import images as data
from lkca.data import places, scenes
from lkca.data.own import Own
from lkca.ledger import records
from lkca.ledger.protocols import PROTOCOLS, SEGMENTATION, Recipe
from lkca.ledger.records import RESULTS
from lkca.ledger.runs import Identity, Run
from lkca.models import segmenters, zoo
from lkca.training import engine, machine
from lkca.training.asked import whole_seeds
from lkca.training.locks import lock


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
    own: Own | None = None  # one's own images, instead of a known data set

    @property
    def runs(self) -> list[Identity]:
        """Every run, data set by data set and seed by seed; its precision may be "auto", which is any."""
        p = self.protocol
        return [
            Identity.of(dataset, row, p, seed, self.precision)
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
    dataset: str | Own | None = None,
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
        dataset: None for all of the table's own; one's own images, as `lkca.data.own.look` finds them, are also
            what `smoke` trains on.
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
    mine = dataset if isinstance(dataset, Own) else None
    datasets = _datasets(spec, dataset)
    if protocol not in ("auto", *protocols):
        raise ValueError(f"protocol={protocol!r} is not one of 'auto', {', '.join(map(repr, protocols))}")
    names, seeds = _rows(table, spec, rows), _seeds(rows, seeds)
    device = _device(device)
    machine.checked_precision(precision)
    root = places.folder("data_root", data_root, data.ROOT)
    results = places.folder("results_root", results_root, RESULTS)
    protocol, reason = _protocol(protocol, full, datasets, device, root)
    if protocol == "smoke":
        datasets, results = datasets if mine else (spec.smoke,), results / "scratch"
        names = tuple(map(zoo.canonical, spec.smoke_rows)) if spec.smoke_rows and rows == "all" else names
    job = Job(datasets, protocols[protocol], names, seeds, device, precision, root, results, reason, mine)
    _check_own(job)
    missing = len(records.lacking(job.runs, results))
    if missing:
        records.check_writable(results)
    return replace(job, why=_in_a_line(job, reason, missing))


def _in_a_line(job: Job, reason: str, missing: int) -> str:
    """What a job is, why, and how much of it is left."""
    rows, seeds = ", ".join(job.rows), ", ".join(map(str, job.seeds))
    where = job.own.folder.parent if job.own else job.data_root
    precision = machine.fastest_precision(job.device) if job.precision == "auto" else job.precision
    return (
        f"`{job.protocol.name}` on {', '.join(job.datasets)}, {job.device}, {precision}: {reason}. {missing} of "
        f"{len(job.runs)} runs to train ({rows}; seed {seeds}). Data sets in {places.shown(where)}, ledger in "
        f"{places.shown(job.results_root)}."
    )


def _table(table: int | str) -> tuple[zoo.Table, Mapping[str, Recipe], str]:
    """A table's rows and data sets, the protocols of its task, and the name of the one that repeats the paper."""
    tables = (*zoo.TABLES, *segmenters.TABLES, "controls")
    if table not in tables or isinstance(table, bool):
        raise ValueError(f"table {table!r} does not exist; the tables are {', '.join(map(repr, tables))}")
    if table in segmenters.TABLES:
        return segmenters.table(table), SEGMENTATION, f"table{table}"
    return zoo.table(table), PROTOCOLS, "released"


def _check_own(job: Job) -> None:
    """Raise ValueError if one's own images are too few for the protocol, or of a size that a row cannot take."""
    if job.own:
        job.protocol.stages(min(job.protocol.train_images or job.own.num_train, job.own.num_train))
        for row in job.rows:
            zoo.check_size(row, job.own.image_size, len(job.own.classes))


def _datasets(spec: zoo.Table, dataset: str | Own | None) -> tuple[str, ...]:
    """The data sets to train on; raises ValueError on one that does not exist for the table's task."""
    if isinstance(dataset, Own):
        if spec.dataset in scenes.DATASETS:
            raise ValueError(f"{dataset.folder} has images with a class each, the rows of this table segment")
        return (dataset.name,)
    if not isinstance(dataset, str | None):
        raise ValueError(f"dataset={dataset!r} is no name of a data set, e.g. {spec.dataset!r}")
    names = (dataset,) if dataset else spec.datasets
    for name in names:
        source(spec.dataset).spec(name)
    return names


def _rows(table: int | str, spec: zoo.Table, rows: str | Sequence[str]) -> tuple[str, ...]:
    """The rows asked for, each once by its first name; raises ValueError on one that the table has not."""
    if not isinstance(rows, str | Iterable):
        raise ValueError(f"rows={rows!r} is neither 'all' nor a list of rows, e.g. rows=['ViT', 'ViT-LKCA']")
    names = spec.rows if rows == "all" else tuple([rows] if isinstance(rows, str) else rows)
    title = f"Table {table}" if isinstance(table, int) else f"the {table}"
    for name in names:
        if zoo.canonical(name) not in map(zoo.canonical, (*spec.rows, *spec.extra)):
            raise ValueError(f"row {name!r} is not in {title}; its rows are {', '.join((*spec.rows, *spec.extra))}")
    return tuple(dict.fromkeys(map(zoo.canonical, names)))


def _seeds(rows: str | Sequence[str], seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds asked for, each once; raises ValueError without any, or on what is no seed."""
    if not rows or isinstance(seeds, str) or not isinstance(seeds, Iterable) or not len(seeds := list(seeds)):
        raise ValueError("rows and seeds must be lists with at least one entry, e.g. rows=['ViT'], seeds=[0]")
    for seed in seeds:
        try:
            whole_seeds([seed])
        except ValueError:
            raise ValueError(f"seed {seed!r} is not a whole number from 0 up") from None
    return tuple(dict.fromkeys(map(int, seeds)))


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
    known = [name for name in datasets if name in data.DATASETS | scenes.DATASETS]  # one's own images are there
    absent = [name for name in known if not (source(name).available(name, root) or source(name).downloadable(name))]
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


def _load(job: Job, name: str) -> data.Dataset | scenes.Scenes:
    """A data set of a job; raises ValueError if one's own has the name of other images in the ledger."""
    if not job.own:
        return source(name).load(name, job.data_root)
    dataset = job.own.load()
    for run in records.read(job.results_root, Run)[0]:
        if run.dataset == name and run.data_fingerprint != dataset.fingerprint:
            raise ValueError(
                f"{job.results_root} has a run on other images that are called {name}, {records.stem_of(run)}: "
                f"give {job.own.folder}, or a link to it, another name, or name another folder with results_root"
            )
    return dataset


def run(job: Job, progress: str | None = "bar") -> list[Run]:
    """Train what the ledger lacks and return the job's records, in order.

    A row that another process trains is left to it, and waited for at the end. Killed at any time, it goes on from the
    last checkpoint when it is called again. Raises what `engine.fit`, `data.load` and `records.read_one` raise.
    """
    fit = functools.partial(
        engine.fit, device=job.device, precision=job.precision, results_root=job.results_root, progress=progress
    )
    for name in job.datasets:
        dataset = _load(job, name) if job.own else None  # whose records may be of other images
        for wait, row in itertools.product((False, True), job.rows):  # first what no other process is at
            wanted = [run for run in job.runs if (run.dataset, run.row) == (name, row)]
            if not records.lacking(wanted, job.results_root):
                continue
            with contextlib.suppress(Timeout), lock(wanted[0], job.results_root).acquire(blocking=wait):
                if missing := records.lacking(wanted, job.results_root):
                    dataset = dataset or _load(job, name)
                    fit(row, dataset, job.protocol, [run.seed for run in missing])
    done = records.by_identity(job.results_root)
    return [done[run] for run in job.runs]
