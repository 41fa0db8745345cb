"""Runs as lines of a table, whatever the task: what a job has trained, and the runs behind a page's numbers."""

from collections.abc import Sequence

import pandas as pd
from IPython.display import HTML

from lkca.ledger.provenance import Number
from lkca.ledger.records import path_of
from lkca.ledger.runs import MEASURES, Record, Run
from lkca.pages.rendering import table_html
from lkca.training.jobs import Job

COLUMNS = ["row", "data set", "protocol", "seed", "device", "minutes", "images/s", "commit", "record"]


def line(run: Run) -> dict[str, str]:
    """A record as texts, a column each, so that each number can be walked back to the run that made it."""
    if isinstance(run, Record):
        measured = {"top-1": f"{run.top1:.2f}", "best epoch": f"{run.top1_best:.2f} ({run.best_epoch})"}
    else:
        measured = {name: f"{run.story()[key]:.2f}" for key, name in MEASURES.items()}
    return {
        "row": run.row,
        "data set": run.dataset,
        "protocol": run.protocol,
        "seed": str(run.seed),
        **measured,
        "device": f"{run.device}, {run.precision}",
        "minutes": f"{run.wall_seconds / 60:.1f}",
        "images/s": f"{run.images_per_second:.{0 if run.images_per_second > 20 else 1}f}",
        "commit": run.git_commit[:7] + ("" if run.git_clean else " (changed)"),
        "record": Number(path_of(run, "").name, [run]),
    }


def runs(found: Sequence[Run]) -> pd.DataFrame:
    """Records of one task as `line`s."""
    return pd.DataFrame([line(r) for r in found], columns=None if found else COLUMNS, dtype=object)


def trained(job: Job, found: Sequence[Run]) -> HTML:
    """What a job has trained, for the reader who waits for it; `smoke` says what it is."""
    smoke = (
        "A smoke run shows that the way works, from row to record. It is far too short to learn from: its numbers say "
        "nothing about the paper."
    )
    lines = runs(found).drop(columns=["device", "commit", "record"])
    return table_html(lines, [smoke] if job.protocol.name == "smoke" else [])
