"""Fill the ledger unattended, which ``lkca work --data-root DATA --budget 1500`` does.

Works off the cells of Tables 1-5, the controls, and Tables 6 and 7 in order of what they decide, skipping what the
ledger holds: one log line a stage, a record at once when a run is done, a checkpoint after every stage. Stopped or
killed at any time, it loses at most what came after the last checkpoint, and the same command goes on. Called twice at
once, say on two cores, the two share the work, row by row. It needs no Jupyter and no plotting library.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from filelock import Timeout

from lkca.data import images, scenes
from lkca.ledger import records
from lkca.ledger.protocols import PROTOCOLS, SEGMENTATION, Recipe
from lkca.models import segmenters, zoo
from lkca.training import engine
from lkca.training.jobs import lock, source

Cell = tuple[str, Recipe, str]  # data set, protocol, row
PASSED_OVER = (  # what one cell can have that the next has not: a missing library, a divergence, damage, its size
    ModuleNotFoundError, FloatingPointError, ValueError, FileExistsError, torch.OutOfMemoryError,
)  # fmt: skip


def cells(protocol: str | None = None) -> Iterator[Cell]:
    """All cells by priority.

    First the main rows of Tables 3 and 2 under `released` and `paper`: which protocol gives the paper's numbers? Then
    all rows of Tables 3, 2, 1, 5 and 4 under `released`, then the controls, then Table 5's small comparators with drop
    path as LKCA has it, then Tables 6 and 7 with their fair rows.
    With ``protocol``, the same under that one; with drop path for all, Table 5's small comparators; under `reduced`
    segmentation's small rows.
    """
    if protocol in SEGMENTATION and protocol not in PROTOCOLS:
        yield from segmentation_cells(protocol)
        return
    if protocol and PROTOCOLS[protocol].drop_path is not None:
        yield from (("tiny-imagenet", PROTOCOLS[protocol], row) for row in zoo.comparators_of("T"))
        return
    full = [PROTOCOLS[protocol]] if protocol else [PROTOCOLS["released"], PROTOCOLS["paper"]]
    controls = tuple(row for size in ("0.5M", "2M", "2.69M") for row in zoo.control_rows(size))
    stages: list[tuple[str, Recipe, tuple[str, ...]]]
    stages = [(zoo.TABLES[t].dataset, p, zoo.MAIN_ROWS) for t in (3, 2) for p in full]
    tables = [zoo.TABLES[t] for t in (3, 2, 1, 5, 4)]
    stages += [(d, full[0], tuple(map(zoo.canonical, t.rows))) for t in tables for d in t.datasets]
    stages += [(dataset, full[0], controls) for dataset in ("tiny-imagenet", "cifar100")]
    if protocol is None:
        stages += [("tiny-imagenet", PROTOCOLS["released-drop-path"], zoo.comparators_of("T"))]
    cells = ((dataset, p, row) for dataset, p, rows in stages for row in rows)
    yield from {(dataset, p.name, row): (dataset, p, row) for dataset, p, row in cells}.values()
    if protocol is None:
        yield from (*segmentation_cells("table6"), *segmentation_cells("table7"))


def segmentation_cells(protocol: str) -> Iterator[Cell]:
    """The cells of a protocol of segmentation: of Table 6 or 7 on ADE20K, else the small rows on what a CPU can do."""
    p, tables = SEGMENTATION[protocol], {"table6": segmenters.TABLES[6]}
    tables["table7"] = (*segmenters.TABLES[7], *segmenters.FAIR)
    datasets = ("ade20k",) if protocol in tables else ("camvid", "digit-scenes")
    yield from ((dataset, p, row) for dataset in datasets for row in tables.get(protocol, segmenters.TINY))


def missing(cell: Cell, seeds: Sequence[int], results_root: Path) -> list[int]:
    """The seeds of a cell that have no record yet."""
    dataset, p, row = cell
    return [s for s in seeds if not records.path(results_root, row, dataset, p.name, p.hash, s).exists()]


def work_off(
    todo: Sequence[Cell],
    seeds: Sequence[int],
    *,
    device: str,
    data_root: Path,
    results_root: Path,
    budget: float,
    keep_weights: bool = False,
) -> int:
    """Train the missing runs of each cell until all are done or the budget is spent.

    Args:
        todo: cells, most valuable first; those whose data set is not on disk, and those that fail by themselves (a loss
            that is not finite, damaged data or checkpoint, too little memory), are named and passed over.
        seeds: of every cell.
        device: "cpu" or "cuda".
        data_root: folder of the data sets.
        results_root: folder of the ledger.
        budget: seconds.
        keep_weights: also keep the trained weights of the main rows' first seed, see `engine.fit`.

    Returns:
        How many runs were finished.
    """
    began, finished = time.monotonic(), 0
    loaded: dict[str, images.Dataset | scenes.Scenes] = {}
    absent: set[str] = set()
    for cell in todo:
        name, p, row = cell
        wanted = missing(cell, seeds, results_root)
        if time.monotonic() - began >= budget:
            break
        if not wanted or name in absent:
            continue
        if name not in loaded and not source(name).available(name, data_root):
            absent.add(name)
            print(f"{name} is not in {data_root}: its cells are passed over", flush=True)
            continue
        try:
            loaded[name] = loaded.get(name) or source(name).load(name, data_root)
            with lock(results_root, row, name, p).acquire(blocking=False):
                if not (wanted := missing(cell, seeds, results_root)):  # another process has just finished it
                    continue
                keep = keep_weights and row in zoo.MAIN_ROWS and wanted[0] == seeds[0]
                left = budget - (time.monotonic() - began)
                engine.fit(
                    row, loaded[name], p, wanted, device=device, results_root=results_root, keep_weights=keep,
                    time_budget=left, progress="lines",
                )  # fmt: skip
        except Timeout:
            print(f"{row} on {name} is passed over: another process trains it", flush=True)
        except PASSED_OVER as error:
            print(f"{row} on {name} is passed over: {error}", flush=True)
        finished += len(wanted) - len(missing(cell, wanted, results_root))
    return finished
