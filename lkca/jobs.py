"""What a table's notebook asks for: choose the protocol, check everything, train what is missing.

`plan` answers within seconds and trains nothing; `run` does the work and can be killed and called again.
"""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from filelock import FileLock, Timeout

from lkca import data, records, scenes, segment, segmentation, train, zoo
from lkca.protocols import PROTOCOLS, Settings
from lkca.records import RESULTS, Run


@dataclass(frozen=True)
class Job:
    """Checked work: these rows and seeds on data sets under a protocol, on a device; ``why`` says it in one line."""

    datasets: tuple[str, ...]
    protocol: Settings
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    device: str
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


def source(dataset: str) -> ModuleType:
    """Where a data set comes from: `lkca.scenes` for one of segmentation, else `lkca.data`."""
    return scenes if dataset in scenes.DATASETS else data


def plan(
    table: int | str,
    *,
    dataset: str | None = None,
    protocol: str = "auto",
    rows: str | Sequence[str] = "all",
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    data_root: str | Path | None = None,
    results_root: str | Path | None = None,
) -> Job:
    """Choose and check a table's training, within seconds and before any of it.

    Args:
        table: number of the table in the paper, or "controls".
        dataset: None for all of the table's own.
        protocol: one of `lkca.protocols.PROTOCOLS`, or "auto": `released` where there is a CUDA device and the
            data is present or can be downloaded, else `smoke`. `smoke` trains the rows on scikit-learn's digits, and
            its records go to ``results_root/scratch``, which all tables share; some tables then have fewer rows, see
            `zoo.Table`. Tables 6 and 7: "table6" or "table7" in place of `released`, "reduced", "smoke" (on scenes of
            those digits).
        rows: "all" of the paper's, or names of the table's rows, ours among them. A row with two names is one row.
        seeds: one run of each row a seed.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        data_root: folder of the data sets; None for `lkca.data.ROOT`.
        results_root: folder of the ledger; None for the one of this checkout.

    Raises:
        ValueError: naming the valid choices, on a table, protocol, row, seed or device that does not exist.
        DataError: if the data set is neither present nor downloadable.
        OSError: if records cannot be written to ``results_root``.
    """
    tables = (*zoo.TABLES, *segmentation.TABLES, "controls")
    if table not in tables:
        raise ValueError(f"table {table!r} does not exist; the tables are {', '.join(map(repr, tables))}")
    if table in segmentation.TABLES:
        spec, origin, protocols, full = segmentation.table(table), scenes, segment.PROTOCOLS, f"table{table}"
    else:
        spec, origin, protocols, full = zoo.table(table), data, PROTOCOLS, "released"
    datasets = (dataset,) if dataset else spec.datasets
    for name in datasets:
        origin.spec(name)  # raises on one that does not exist
    if protocol != "auto" and protocol not in protocols:
        raise ValueError(f"protocol={protocol!r} is not one of 'auto', {', '.join(map(repr, protocols))}")
    names = spec.rows if rows == "all" else tuple([rows] if isinstance(rows, str) else rows)
    title = f"Table {table}" if isinstance(table, int) else f"the {table}"
    for name in names:
        if zoo.canonical(name) not in map(zoo.canonical, (*spec.rows, *spec.extra)):
            raise ValueError(f"row {name!r} is not in {title}; its rows are {', '.join((*spec.rows, *spec.extra))}")
    names = tuple(dict.fromkeys(map(zoo.canonical, names)))
    if not names or isinstance(seeds, str | int) or not seeds:
        raise ValueError("rows and seeds must be lists with at least one entry, e.g. rows=['ViT'], seeds=[0]")
    for seed in seeds:
        if type(seed) is not int or seed < 0:
            raise ValueError(f"seed {seed!r} is not a whole number from 0 up")
    if device != "auto":
        train.checked_device(device)
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    root = Path(data_root).expanduser() if data_root else data.ROOT
    results = Path(results_root).expanduser() if results_root else RESULTS

    reason = "as asked"
    if protocol == "auto" and not cuda:
        protocol, reason = "smoke", "there is no CUDA device, so this only shows that the way works"
    elif protocol != "smoke":
        absent = [name for name in datasets if not (origin.available(name, root) or origin.downloadable(name))]
        if absent and protocol != "auto":
            raise data.DataError(
                f"{absent[0]} is not in {root} and its publisher's host does not answer: put it there, name its "
                "folder with data_root, or choose protocol='smoke', which needs no download"
            )
        if absent:
            protocol, reason = "smoke", f"{absent[0]} is not in {root} and cannot be downloaded from here"
        elif protocol == "auto":
            protocol, reason = full, f"there is a CUDA device and {', '.join(datasets)}"
    if protocol == "smoke":
        datasets, results = (spec.smoke,), results / "scratch"
        names = tuple(map(zoo.canonical, spec.smoke_rows)) if spec.smoke_rows and rows == "all" else names
    seeds = tuple(dict.fromkeys(seeds))
    job = Job(datasets, protocols[protocol], names, seeds, "cuda" if cuda else "cpu", root, results, reason)
    missing = sum(not path.exists() for *_, path in job.runs)
    if missing:
        records.check_writable(results)
    why = f"`{protocol}` on {', '.join(datasets)}, {job.device}: {reason}. {missing} of {len(job.runs)} runs to train."
    return Job(**{**vars(job), "why": why})


def lock(results_root: Path, row: str, dataset: str, p: Settings) -> FileLock:
    """To be held by the one process that trains a row's runs; the system frees it when that process dies."""
    folder = Path(results_root) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{dataset}--{row.replace('/', '_')}--{p.name}-{p.hash}.lock")


def run(job: Job, progress: str | None = "bar") -> list[Run]:
    """Train what the ledger lacks and return the job's records, in order.

    A row that another process trains is left to it, and waited for at the end. Killed at any time, it goes on from the
    last checkpoint when it is called again. Raises what `train.fit`, `data.load` and `records.read_one` raise.
    """
    fit = {"device": job.device, "results_root": job.results_root, "progress": progress}
    for name in job.datasets:
        dataset = None
        for wait, row in itertools.product((False, True), job.rows):  # first what no other process is at
            paths = {seed: path for d, r, seed, path in job.runs if (d, r) == (name, row)}
            if all(path.exists() for path in paths.values()):
                continue
            with contextlib.suppress(Timeout), lock(job.results_root, row, name, job.protocol).acquire(blocking=wait):
                if missing := [seed for seed, path in paths.items() if not path.exists()]:
                    dataset = dataset or source(name).load(name, job.data_root)
                    train.fit(row, dataset, job.protocol, missing, **fit)
    return [records.read_one(path) for *_, path in job.runs]
