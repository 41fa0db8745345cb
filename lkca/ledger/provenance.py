"""Where a number comes from: the records behind it, and the command that repeats each of them.

A `Number` is what a table shows, with its records; `lkca.pages.rendering.table_html` links it to them on the page that
`lkca.pages.provenance` makes.
"""

import re
from collections.abc import Iterable, Sequence

from lkca.data import images
from lkca.ledger import records
from lkca.ledger.runs import Run, SegmentationRecord

_FIRST = "a5f35eb5853d72ac912320b74945233cb26a2ac2"  # at this commit the protocols still stood in train.py


class Number(str):
    """A text made from ``runs``: a number as a table shows it."""

    runs: tuple[Run, ...]

    def __new__(cls, text: str, runs: Iterable[Run]) -> "Number":
        """``text`` with the records it was made from."""
        self = super().__new__(cls, text)
        self.runs = tuple(runs)
        return self


def anchor(run: Run) -> str:
    """The name of a record on the page: its file's, without the ending."""
    return records.path_of(run, "").stem


def result(run: Run) -> str:
    """What a run came to, in percent of the test set: the top-1 or the mIoU of its end."""
    told = run.story()
    return f"{told['miou']:.2f} mIoU" if "miou" in told else f"{told['top1']:.2f} top-1"


def link(runs: Sequence[Run]) -> str:
    """The address of records on the page, from any page of the book: ``CELL--seed0,1;OTHER_CELL--seed0,1``."""
    cells: dict[str, list[str]] = {}
    for run in runs:
        cell, _, seed = anchor(run).rpartition("--seed")
        cells.setdefault(cell, []).append(seed)
    return "../notebooks/provenance.html#" + ";".join(f"{cell}--seed{','.join(seeds)}" for cell, seeds in cells.items())


def command(run: Run) -> tuple[str, str]:
    """What repeats a run, to be called in a checkout: the commit it was made at, and its training.

    The repetition's record goes to ``again/runs/``, under the name of the first. The modules have the names that they
    had at that commit.
    """
    imports, engine, source, protocols = _modules(run)
    seeds, precision = f"[{run.seed}]", f" precision={run.precision!r},"
    if _version(run) < (0, 2):  # this engine knew one seed and fp32
        seeds, precision = str(run.seed), ""
    threads = re.search(r", (\d+) threads$", run.device)
    device = "cpu" if threads else "cuda"
    call = (
        f"{imports}; {engine}.fit({run.row!r}, {source}.load({run.dataset!r}), "
        f"{protocols}[{run.protocol!r}], {seeds}, device={device!r},{precision} results_root='again')"
    )
    environment = f"OMP_NUM_THREADS={threads[1]} " if threads else ""
    return f"git checkout {run.git_commit}", f'{environment}python -c "{call}"'


def _version(run: Run) -> tuple[int, ...]:
    return tuple(map(int, run.versions["lkca"].split(".")[:2]))


def _modules(run: Run) -> tuple[str, str, str, str]:
    """At a run's commit: what to import, and the names of the engine, of the data sets and of the protocols."""
    segmented = isinstance(run, SegmentationRecord)
    if _version(run) >= (0, 6):
        source, protocols = ("scenes", "SEGMENTATION") if segmented else ("images", "PROTOCOLS")
        source = source if segmented or run.dataset in images.DATASETS else "own"  # a folder of that name
        imports = f"from lkca.data import {source}; from lkca.ledger import protocols; from lkca.training import engine"
        return imports, "engine", source, f"protocols.{protocols}"
    source, keeper = ("scenes", "segment") if segmented else ("data", "protocols")
    keeper = "train" if run.git_commit == _FIRST else keeper
    return f"from lkca import {', '.join(sorted({source, keeper, 'train'}))}", "train", source, f"{keeper}.PROTOCOLS"
