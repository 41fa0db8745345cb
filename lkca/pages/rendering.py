"""How the book shows a table, a list and a figure: HTML that follows the page's light or dark mode."""

import contextlib
import html
import io
import re
from collections.abc import Callable, Iterable, Sequence

import matplotlib
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from lkca.ledger.provenance import Number, link
from lkca.pages.tables import NOT_RUN

INK = "#010203"  # replaced by the page's own text colour
TOGETHER = re.compile(r"(?<=[±=]) | (?=[±=])|(?<=\d,) |(?<=\d) (?=seed)")  # spaces of a number at which no line may end
LONG = 60  # characters of a table's cell from which on it may wrap
VIT, LKCA = "#D55E00", "#0072B2"  # Okabe and Ito's vermillion and blue


def style() -> contextlib.AbstractContextManager:
    """Matplotlib's settings for a figure that `show` puts into the page."""
    return matplotlib.rc_context(
        {
            "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
            "legend.labelcolor": INK, "svg.fonttype": "none", "svg.hashsalt": "lkca", "font.size": 10,
            "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        }
    )  # fmt: skip


def show(figure: Figure, caption: str, data: pd.DataFrame | None = None) -> HTML:
    """A figure in the page's own text colour, as wide as the page, with the caption as its alternative text.

    ``data``, as text, is what the figure draws: it stands below, folded.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg[svg.index("<svg") :], count=1)
    svg, text = svg.replace(INK, "currentColor"), html.escape(typeset(caption))
    # on a phone wider figures scroll, so that type stays legible
    least = f"--least: {52 * figure.get_figwidth():.0f}px"
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{text}" style="{least}"', 1)
    below = folded(data) if data is not None else ""
    return HTML(f'<figure class="lkca-figure">{svg}<figcaption>{text}</figcaption>{below}</figure>')


def folded(data: pd.DataFrame) -> str:
    """What a figure draws, as a table that the reader opens."""
    return f"<details class='lkca-data'><summary>The data</summary>{table_html(data).data}</details>"


def typeset(text: str) -> str:
    """Text with minus signs: a hyphen is narrower than the plus in the line above, and a screen reader skips it."""
    return re.sub(r"(?<![^\s(\[±])-(?=\d)", "−", text)


def table_html(frame: pd.DataFrame, notes: Sequence[str] = ()) -> HTML:
    """A frame of strings as an HTML table in the page's colours; "not run" is muted, ``notes`` stand below.

    A `provenance.Number` links to its records, and may wrap before its interval or count. Columns of words are aligned
    left, under their heads, and long ones may wrap; columns of numbers are aligned right.
    """
    cells = frame.rename(index=_escaped, columns=_escaped).apply(_marked)
    if cells.columns.nlevels == 1:
        cells.columns = [_mark(_kind(frame.iloc[:, i]), label) for i, label in enumerate(cells.columns)]
    body = cells.to_html(classes="lkca-table", border=0, index=not isinstance(frame.index, pd.RangeIndex), escape=False)
    body = re.sub(r"<(t[dh])>\0(.+?)\0", r'<\1 class="\2">', body)
    below = "".join(f'<p class="lkca-note">{html.escape(note)}</p>' for note in notes)
    return HTML(f'<div class="lkca-scroll" tabindex="0">{body}</div>{below}')


def _marked(column: pd.Series) -> pd.Series:
    """A column's cells as HTML, after what `_mark` says."""
    kind = _kind(column)
    return column.map(lambda value: _mark(f"{kind} not-run".strip() if value == NOT_RUN else kind, _cell(value)))


def _mark(classes: str, text: object) -> object:
    """The text after the classes of the element it will stand in, which `DataFrame.to_html` cannot be told."""
    return f"\0{classes}\0{text}" if classes else text


def _kind(column: pd.Series) -> str:
    """The classes of a column's cells: "text" if most have more letters than digits, and "long" if one may wrap."""
    said = [str(value) for value in column if value and value != NOT_RUN]
    wordy = [sum(map(str.isalpha, value)) > sum(map(str.isdigit, value)) for value in said]
    if 2 * sum(wordy) <= len(said):
        return ""
    return "text long" if any(len(value) > LONG and " " in value for value in said) else "text"


def _escaped(label: object) -> object:
    return html.escape(typeset(label)) if isinstance(label, str) else label


def _cell(value: object) -> object:
    if isinstance(value, Number) and value.runs:
        text = TOGETHER.sub("\N{NO-BREAK SPACE}", typeset(value))
        return f'<a href="{html.escape(link(value.runs))}">{html.escape(text)}</a>'
    return _escaped(value)


def listed(sentences: Iterable[str]) -> HTML:
    """Sentences as a list."""
    return HTML(f"<ul>{''.join(f'<li>{html.escape(typeset(sentence))}</li>' for sentence in sentences)}</ul>")


def stacked_tables(machines: Sequence[dict], table: Callable[[dict], pd.DataFrame]) -> HTML:
    """The same table for each measured machine, under its name."""
    return HTML("".join(f"<h4>{html.escape(m['device'])}</h4>{table_html(table(m)).data}" for m in machines))
