"""Fill the ledger unattended, which ``lkca work --data-root DATA --budget 1500`` does.

Works off the cells of Tables 1-5, the controls, and Tables 6 and 7 in order of what they decide, skipping what the
ledger holds: one log line a stage, a record at once when a run is done, a checkpoint after every stage. Stopped or
killed at any time, it loses at most what came after the last checkpoint, and the same command goes on. Called twice at
once, say on two cores, the two share the work, row by row. It needs no Jupyter and no plotting library.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from lkca.data import images, scenes
from lkca.ledger import records
from lkca.ledger.protocols import PROTOCOLS, SEGMENTATION, Recipe
from lkca.ledger.runs import Identity
from lkca.models import segmenters, zoo
from lkca.training import engine
from lkca.training.jobs import source
from lkca.training.locks import lock

Cell = tuple[str, Recipe, str]  # data set, protocol, row


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


def missing(todo: Sequence[Cell], seeds: Sequence[int], results_root: Path, precision: str = "auto") -> list[Identity]:
    """The runs of these cells that have no record yet, in any precision if it is "auto"."""
    wanted = [Identity.of(dataset, row, p, seed, precision) for dataset, p, row in todo for seed in seeds]
    return records.lacking(wanted, results_root)


@dataclass
class Work:
    """What a worker has to do, and what it does it with.

    Args:
        seeds: of every cell.
        device: "cpu" or "cuda".
        data_root: folder of the data sets.
        results_root: folder of the ledger.
        budget: seconds.
        precision: see `lkca.training.asked.Asked`.
        keep_weights: also keep the trained weights of the main rows' first seed, see `engine.fit`.
    """

    seeds: Sequence[int]
    device: str
    data_root: Path
    results_root: Path
    budget: float = math.inf
    precision: str = "auto"
    keep_weights: bool = False

    def __post_init__(self) -> None:
        """The time runs from here."""
        self._until = time.monotonic() + self.budget
        self._loaded: dict[str, images.Dataset | scenes.Scenes] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._until - time.monotonic()

    def missing(self, *todo: Cell) -> list[Identity]:
        """The runs of these cells that have no record yet."""
        return missing(todo, self.seeds, self.results_root, self.precision)

    def off(self, todo: Sequence[Cell]) -> int:
        """Train the missing runs of each cell, most valuable first, until all are done or the budget is spent.

        A cell that another process trains is left to it, and come back to at the end: that process may have been
        killed. One whose data set is not on disk, or that fails by itself (a divergence, damage, its size, a missing
        library), is named and passed over.

        Returns:
            How many runs were finished.
        """
        before = len(self.missing(*todo))
        taken = [cell for cell in todo if not self._worked_off(cell, wait=0)]
        for cell in taken:
            self._worked_off(cell, wait=max(0.0, min(self.left, threading.TIMEOUT_MAX)))
        return before - len(self.missing(*todo))

    def _worked_off(self, cell: Cell, wait: float) -> bool:
        """Train a cell; False if another process had it for as long as it was waited for."""
        name, p, row = cell
        if self.left <= 0 or not self.missing(cell):
            return True
        try:
            if name not in self._loaded and not source(name).available(name, self.data_root):
                print(f"{row} on {name} is passed over: {name} is not in {self.data_root}", flush=True)
                return True
            self._loaded[name] = self._loaded.get(name) or source(name).load(name, self.data_root)
            with lock(Identity.of(name, row, p, 0), self.results_root).acquire(timeout=wait):
                if seeds := [run.seed for run in self.missing(cell)]:  # another process may have just finished it
                    keep = self.keep_weights and row in zoo.MAIN_ROWS and seeds[0] == self.seeds[0]
                    engine.fit(
                        row, self._loaded[name], p, seeds, device=self.device, precision=self.precision,
                        results_root=self.results_root, keep_weights=keep, time_budget=self.left, progress="lines",
                    )  # fmt: skip
        except Timeout:
            print(f"{row} on {name}: another process trains it", flush=True)
            return False
        except Exception as error:  # whatever one cell has, the next may not have
            print(f"{row} on {name} is passed over: {error}", flush=True)
        return True
