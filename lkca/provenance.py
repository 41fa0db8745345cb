"""Where a number comes from: the records behind it, and the command that repeats each of them.

A `Number` is what a table shows, with its records; `lkca.rendering.table_html` links it to them on the page that `page`
makes, which is the book's ``notebooks/provenance``.
"""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from IPython.display import HTML

from lkca import records
from lkca.records import Run, SegmentationRecord

COLUMNS = ("row", "data set", "protocol", "seed", "result, %", "device", "precision", "minutes", "finished", "commit")
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


def link(runs: Sequence[Run]) -> str:
    """The address of records on the page, from any page of the book: ``CELL--seed0,1;OTHER_CELL--seed0,1``."""
    cells: dict[str, list[str]] = {}
    for run in runs:
        cell, _, seed = anchor(run).rpartition("--seed")
        cells.setdefault(cell, []).append(seed)
    return "../notebooks/provenance.html#" + ";".join(f"{cell}--seed{','.join(seeds)}" for cell, seeds in cells.items())


def command(run: Run) -> tuple[str, str]:
    """What repeats a run, to be called in a checkout: the commit it was made at, and its training.

    The repetition's record goes to ``again/runs/``, under the name of the first.
    """
    source, task = ("scenes", "segment") if isinstance(run, SegmentationRecord) else ("data", "protocols")
    task = "train" if run.git_commit == _FIRST else task
    seeds, precision = f"[{run.seed}]", f" precision={run.precision!r},"
    if run.versions["lkca"].startswith("0.1."):  # this engine knew one seed and fp32
        seeds, precision = str(run.seed), ""
    threads = re.search(r", (\d+) threads$", run.device)
    device = "cpu" if threads else "cuda"
    modules = ", ".join(sorted({source, task, "train"}))
    call = (
        f"from lkca import {modules}; train.fit({run.row!r}, {source}.load({run.dataset!r}), "
        f"{task}.PROTOCOLS[{run.protocol!r}], {seeds}, device={device!r},{precision} results_root='again')"
    )
    environment = f"OMP_NUM_THREADS={threads[1]} " if threads else ""
    return f"git checkout {run.git_commit}", f'{environment}python -c "{call}"'


def line(run: Run) -> dict[str, str]:
    """A record as the page's table shows it, a text a column."""
    segmented = isinstance(run, SegmentationRecord)
    texts = (
        run.row,
        run.dataset,
        run.protocol,
        str(run.seed),
        f"{run.miou:.2f} mIoU" if segmented else f"{run.top1:.2f} top-1",
        run.device,
        run.precision,
        f"{run.wall_seconds / 60:.1f}" + (f" for {run.stacked} seeds" if run.stacked > 1 else ""),
        run.finished[:16].replace("T", " "),
        run.git_commit[:7] + ("" if run.git_clean else ", changed"),
    )
    return dict(zip(COLUMNS, texts, strict=True))


def _details(run: Run) -> str:
    checkout, train = map(html.escape, command(run))
    words = [f"{name} {version}" for name, version in run.versions.items()]
    words = [f"settings {run.protocol_hash}", f"data {run.data_fingerprint[:12]}…", *words]
    if run.stacked > 1:
        words.append(f"trained in one step with {run.stacked - 1} other seeds")
    if not run.git_clean:
        words.append("the package was not exactly that commit's, so this repeats the run only about")
    return (
        f"<pre>{checkout}\n{train}</pre>"
        f"<p>{html.escape(', '.join(words))}. The record: <code>results/runs/{html.escape(anchor(run))}.json</code></p>"
    )


def page(ledger: Sequence[Run], broken: Sequence[str] = ()) -> HTML:
    """All records in one table that a reader can search and sort; each opens to what repeats it.

    It needs no network, and without JavaScript shows the same in the order of the ledger. A link to several records
    (see `link`) shows these alone.
    """
    lines = []
    for run in ledger:
        first, *others = (html.escape(text) for text in line(run).values())
        cells = f"<td><details><summary>{first}</summary>{_details(run)}</details></td>"
        cells += "".join(f"<td>{text}</td>" for text in others)
        lines.append(f'<tr id="{html.escape(anchor(run))}">{cells}</tr>')
    template = (Path(__file__).parent / "provenance.html").read_text(encoding="utf-8")
    below = "".join(f'<p class="lkca-note">Left out, because broken: {html.escape(b)}</p>' for b in broken)
    parts = {
        "<!--HEAD-->": "".join(f'<th scope="col">{html.escape(name)}</th>' for name in COLUMNS),
        "<!--BODY-->": "\n".join(lines),
    }
    for mark, text in parts.items():
        template = template.replace(mark, text)
    return HTML(template + below)
