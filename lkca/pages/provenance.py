"""The page of all records, the book's ``notebooks/provenance``, to which every number of a table leads."""

import html
from collections.abc import Sequence
from pathlib import Path

from IPython.display import HTML

from lkca.ledger.provenance import anchor, command, result
from lkca.ledger.runs import Run

COLUMNS = ("row", "data set", "protocol", "seed", "result, %", "device", "precision", "minutes", "finished", "commit")


def line(run: Run) -> dict[str, str]:
    """A record as the page's table shows it, a text a column."""
    texts = (
        run.row,
        run.dataset,
        run.protocol,
        str(run.seed),
        result(run),
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


def page(ledger: Sequence[Run], broken: Sequence[str] = (), diverged: Sequence[dict] = ()) -> HTML:
    """All records in one table that a reader can search and sort; each opens to what repeats it.

    It needs no network, and without JavaScript shows the same in the order of the ledger. A link to several records
    (see `link`) shows these alone. Below it stand the records that are broken, those that cannot be compared, and the
    runs that diverged and so have none.
    """
    lines = []
    for run in ledger:
        first, *others = (html.escape(text) for text in line(run).values())
        cells = f"<td><details><summary>{first}</summary>{_details(run)}</details></td>"
        cells += "".join(f"<td>{text}</td>" for text in others)
        lines.append(f'<tr id="{html.escape(anchor(run))}">{cells}</tr>')
    template = (Path(__file__).parent / "provenance.html").read_text(encoding="utf-8")
    notes = [f"Left out, because broken: {b}" for b in broken]
    notes += [f"Stands apart, in no table: {anchor(run)}, because {run.apart}" for run in ledger if run.apart]
    notes += [
        f"Diverged, without a record: {note.get('row')} on {note.get('dataset')}: {note['what']}" for note in diverged
    ]
    below = "".join(f'<p class="lkca-note">{html.escape(note)}</p>' for note in notes)
    parts = {
        "<!--HEAD-->": "".join(f'<th scope="col">{html.escape(name)}</th>' for name in COLUMNS),
        "<!--BODY-->": "\n".join(lines),
    }
    for mark, text in parts.items():
        template = template.replace(mark, text)
    return HTML(template + below)
