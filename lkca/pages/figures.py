"""The figures and tables of classification as the book shows them: claims, gaps, controls, and Tables 1-5."""

import html
import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lkca.data import images as data
from lkca.ledger import cells
from lkca.ledger.cells import FULL, SHOWN, select
from lkca.ledger.intervals import Difference
from lkca.ledger.runs import Record
from lkca.models import complexity, zoo
from lkca.pages import claims, rivals, tables
from lkca.pages.rendering import INK, LKCA, VIT, folded, show, style, table_html

SHORT = dict(zip(cells.SHORT, (("^", "-."), ("o", "--")), strict=True))  # their marks and lines
ALONG = {"released": {"color": "#009E73", "lw": 1.5}, "paper": {"color": "#CC79A7", "lw": 1.5}} | {  # the training
    p: {"marker": mark, "ls": line, "ms": 3, "color": colour}
    for (p, (mark, line)), colour in zip(SHORT.items(), ("#56B4E9", "#777777"), strict=True)
}


def claims_list(frame: pd.DataFrame) -> HTML:
    """`claims.claims` for the page, each verdict beside its evidence and a link to it; one verdict can be picked."""
    plain = claims.counts(frame)
    cards = (
        f"<li data-verdict='{html.escape(c.verdict if c.verdict in plain else 'mixed')}'>"
        f"<p class='lkca-quote'>“{html.escape(c.quote)}” "
        f"<span>{'section ' * c.where[0].isdigit()}{c.where}</span></p>"
        + f"<p><strong class='lkca-verdict'>{html.escape(c.verdict)}</strong> {html.escape(c.evidence)} "
        + (_evidence(c.link) if c.link else "")
        + "</p></li>"
        for c in frame.itertuples()
    )
    choices = {"all": len(frame)} | plain
    picks = "".join(
        f"<label><input type='radio' name='verdict' value='{word}'{' checked' * (word == 'all')}> {word} {n}</label>"
        for word, n in choices.items()
    )
    hide = ", ".join(
        f".lkca-claims:has(input[value='{word}']:checked) li:not([data-verdict='{word}'])" for word in plain
    )
    return HTML(
        f"<div class='lkca-claims'><style>{hide} {{ display: none; }}</style>"
        f"<fieldset class='lkca-controls'><legend>Verdict</legend>{picks}</fieldset><ul>{''.join(cards)}</ul></div>"
    )


def _evidence(link: str) -> str:
    """A link to a page, or a heading of it, by its name."""
    page, _, heading = link.partition("#")
    name = page.partition("/")[2]
    text = re.sub(r"^table(\d)$", r"Table \1", name).replace("_", " ")
    text += f", {heading.replace('-', ' ')}" if heading else ""
    return f"<a href='../{page}.html{'#' * bool(heading)}{heading}'>see: {text}</a>"


def gaps_figure(ledger: Sequence[Record]) -> HTML:
    """LKCA - ViT of every pair of Tables 1-3: the paper's difference hollow, ours with its interval where run."""
    frame = claims.gaps(ledger)
    marks = {"full": ("s", "ours, in full"), **{p: (mark, f"ours, {p}") for p, (mark, _) in SHORT.items()}}
    heights = np.linspace(-0.28, 0.28, len(marks))  # below a pair's line; the last also the paper's
    with style():
        figure = Figure(figsize=(6.2, 6.8), layout="constrained")
        ax = figure.subplots()
        ax.plot(frame.printed, frame.index + heights[-1], "D", mfc="none", color=INK, label="the paper's, in full")
        for (key, (mark, label)), off in zip(marks.items(), heights, strict=True):
            for i, (y, d) in enumerate(frame[key].dropna().items()):
                _point(ax, d, y + off, mark, None if i else label)
        ax.axvline(0, color=INK, lw=1)
        for y in range(6, len(frame), 6):
            ax.axhline(y - 0.5, color=INK, lw=0.5, alpha=0.3)
        ax.set_yticks(frame.index, frame.dataset + " " + frame["size"])
        ax.invert_yaxis()
        ax.set_xlabel("LKCA − ViT, points of top-1; left of zero ViT is ahead")
        ax.grid(axis="x", alpha=0.15, color=INK)
        figure.legend(fontsize=9, loc="outside lower center", ncols=2)
        shown = pd.DataFrame(
            {
                "pair": frame.dataset + " " + frame["size"],
                "the paper's": frame.printed.map("{:+.2f}".format),
            }
            | {label: [*map(tables.interval, frame[key])] for key, (_, label) in marks.items()},
            dtype=object,  # with pyarrow at hand pandas makes plain texts of numbers that know their runs
        )
        caption = (
            "ViT-LKCA against the ViT of its size. Hollow: the paper's difference. Filled: ours, with its 95 % "
            "interval, orange where the ViT is ahead, blue where ViT-LKCA is, grey where the interval contains zero."
        )
        return show(figure, caption, shown)


def lead_figure(ledger: Sequence[Record]) -> HTML:
    """LKCA - ViT along the training of every pair with full runs, and along its short runs; nothing without any.

    A panel a pair, all over the same ranges: a column a data set, a row a size.
    """
    frame = claims.lead(ledger)
    if frame.empty:
        return HTML("")
    datasets, sizes = (sorted(set(frame[key]), key=[*claims.gaps([])[key]].index) for key in ("dataset", "size"))
    with style():
        figure = Figure(figsize=(6.2, 1.5 * len(sizes) + 1.7), layout="constrained")
        axes = figure.subplots(len(sizes), len(datasets), sharex=True, sharey=True, squeeze=False)
        for ax, (size, dataset) in zip(axes.flat, product(sizes, datasets), strict=True):
            runs = frame[(frame["size"] == size) & (frame.dataset == dataset)]
            for protocol, run in runs.groupby("protocol", sort=False):
                ax.plot(run["images"], run.points, label=protocol, **ALONG[protocol])
            if runs.empty:
                ax.text(0.5, 0.7, tables.NOT_RUN, transform=ax.transAxes, ha="center", fontsize=9, color="#777777")
            ax.axhline(0, color=INK, lw=1)
            ax.set_xscale("log")
            ax.set_title(f"{dataset} {size}", loc="left", fontsize=9)
            ax.grid(axis="y", alpha=0.15, color=INK)
        for ax in axes[-1]:
            ax.set_xlabel("training images seen", fontsize=9)
        figure.supylabel("LKCA − ViT, points of top-1", fontsize=9)
        known = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        names = [p for p in ALONG if p in known]
        figure.legend([known[p] for p in names], names, fontsize=9, loc="outside lower center", ncols=len(names))
        caption = (
            "LKCA − ViT on the test set along the training, mean over the seeds that both have: full runs as lines, "
            "the short runs of the same pairs with points. Below zero the ViT is ahead. The learning rate of a short "
            "run has fallen to zero where a full one's still rises or is high, and a sketch sees a part of the data."
        )
        shown = frame.assign(images=frame["images"].map("{:,}".format), points=frame.points.map("{:+.2f}".format))
        return show(figure, caption, shown.drop(columns="runs").astype(str))


def contrasts_figure(ledger: Sequence[Record], dataset: str, size: str) -> HTML:
    """The contrasts of one size with their intervals, each under its fullest protocol; those not run are named."""
    found = claims.contrasts(ledger, dataset, size)
    with style():
        figure = Figure(figsize=(6.2, 0.42 * max(len(found), 1) + 1.1), layout="constrained")
        ax = figure.subplots()
        for y, (protocol, d) in enumerate(found.values()):
            _point(ax, d, y, SHORT[protocol][0] if protocol in SHORT else "s")
        ax.axvline(0, color=INK, lw=1)
        ax.set_yticks(range(len(found)), [f"{change}, {protocol}" for change, (protocol, _) in found.items()])
        ax.invert_yaxis()
        ax.set_xlabel("points of top-1, with 95 % interval")
        ax.grid(axis="x", alpha=0.15, color=INK)
        missing = [c.change for c in zoo.contrasts(size) if c.change not in found]
        caption = (
            f"What each change does to accuracy on {data.NAMES.get(dataset, dataset)}, rows of {size}: orange costs, "
            "blue gains, grey cannot be told from none; squares are full runs, triangles brief ones, circles sketches."
        )
        return show(figure, caption + (f" Not run: {'; '.join(missing)}." if missing else ""))


def _point(ax: Axes, d: Difference, y: float, mark: str, label: str | None = None) -> None:
    """A difference with its interval, blue above zero, orange below, grey where it contains zero."""
    error = [[d.mean - d.low], [d.high - d.mean]]
    colour = {1: LKCA, -1: VIT, 0: "#777777"}[d.sign]
    ax.errorbar(d.mean, y, xerr=error, fmt=mark, color=colour, capsize=3, lw=1.8, label=label)


def comparison(table: int, ledger: Sequence[Record], broken: Sequence[str] = (), dataset: str | None = None) -> HTML:
    """`tables.compare` for the page; below it why a count differs, and every broken record that was left out."""
    frame, spec = tables.compare(table, ledger, dataset), zoo.TABLES[table]
    for group in [name for name in frame.columns.unique(0) if name.startswith("ours")]:
        if (frame[group, "last epoch"] == tables.NOT_RUN).all():  # one muted column says it
            frame = frame.drop(columns=[(group, "best epoch")])
    rows = (*spec.rows, *spec.extra)
    notes = [f"* {row}: {zoo.row(row).deviation}" for row in rows if zoo.row(row).deviation]
    notes += [f"Left out, because broken: {sentence}" for sentence in broken]
    setting = "at the settings of the print, see below" if table == 5 else "at 32 px and 10 classes"
    if dataset not in (None, spec.datasets[-1]):
        return table_html(frame, notes)  # the last one explains the columns
    short = "".join(f"; {p} is a short run, {tables.length(p)}" for p in cells.SHORT)
    notes.append(
        f"Ours: released is the authors' code, {tables.length('released')}; paper is the paper's text, "
        f"{tables.length('paper')}{short}."
    )
    notes.append(
        "top-1 in percent. One seed: ± is the binomial standard error on the test set; several: ± is the standard "
        "deviation over seeds. “Best epoch” picks the epoch on the test set, as the released code does, and is too "
        f"high by that selection. Parameters and FLOPs (multiply-accumulates): the paper's convention, {setting}."
    )
    return table_html(frame, notes)


def _curve(ax: Axes, rows: Sequence[str], points: dict, colour: str, **look: Any) -> None:
    size = [complexity.count(r, **complexity.PRINTED_SETTING).params_paper / 1e6 for r in rows if r in points]
    top1 = [points[r][0] for r in rows if r in points]
    either = [points[r][1] for r in rows if r in points]
    order = np.argsort(size)
    x, y, error = (np.array(v, float)[order] for v in (size, top1, either))
    ax.errorbar(x, y, yerr=error if error.any() else None, color=colour, capsize=2, lw=1.8, ms=6, **look)


def _panel(ax: Axes, table: int, series: list[tuple[str, dict, dict]], title: str) -> None:
    vits, lkcas = zip(*tables.pairs(table), strict=True)
    for label, points, look in series:
        for rows, colour, name in ((vits, VIT, "ViT"), (lkcas, LKCA, "ViT-LKCA")):
            if any(r in points for r in rows):
                _curve(ax, rows, points, colour, label=f"{name}, {label}", **look)
    ax.set_xscale("log", base=2)
    ticks = [0.5, 1, 2, 4, 8]
    ax.set_xticks(ticks, [f"{t:g}M" for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("parameters")
    ax.set_title(title, loc="left", fontsize=11)
    ax.grid(axis="y", alpha=0.15, color=INK)


def _points(table: int, ledger: Sequence[Record], protocol: str) -> dict[str, tuple[float, float]]:
    points = {}
    for row in zoo.TABLES[table].rows:
        runs = select(table, ledger, protocol, row)
        if runs:
            top1 = [r.top1 for r in runs]
            error = np.std(top1, ddof=1) if len(top1) > 1 else tables.binomial_error(top1[0], runs[0].num_test)
            points[row] = (float(np.mean(top1)), float(error))
    return points


def accuracy_figure(table: int, ledger: Sequence[Record]) -> HTML:
    """Accuracy against parameters: the paper's two curves and ours where run; short runs in a panel of their own."""
    paper = {row: (top1, 0.0) for row, top1 in tables.published(table).top1.items()}
    full = {p: _points(table, ledger, p) for p in FULL}
    short = {p: points for p in cells.SHORT if (points := _points(table, ledger, p))}
    with style():
        figure = Figure(figsize=(6.2, 6.8 if short else 4.0), layout="constrained")
        axes = figure.subplots(2 if short else 1, 1, squeeze=False, height_ratios=[3, 2] if short else None)[:, 0]
        styles = {"released": {"marker": "o", "ls": "-"}, "paper": {"marker": "s", "ls": "-."}}
        series = [("the paper's", paper, {"marker": "o", "mfc": "none", "ls": "--"})]
        series += [(f"ours, {p}", points, styles[p]) for p, points in full.items() if points]
        _panel(axes[0], table, series, f"Table {table}, {data.NAMES[zoo.TABLES[table].dataset]}")
        axes[0].set_ylabel("top-1, %")
        vits, lkcas = zip(*tables.pairs(table), strict=True)
        low, high = ([paper[r][0] for r in rows] for rows in (vits, lkcas))
        order = np.argsort([complexity.count(r, **complexity.PRINTED_SETTING).params_paper for r in vits])
        x = [complexity.count(vits[i], **complexity.PRINTED_SETTING).params_paper / 1e6 for i in order]
        axes[0].fill_between(x, np.array(low)[order], np.array(high)[order], color=LKCA, alpha=0.08, lw=0)
        if short:
            series = [(p, points, dict(zip(("marker", "ls"), SHORT[p], strict=True))) for p, points in short.items()]
            _panel(axes[1], table, series, "\n".join(f"{p}: {tables.length(p)}" for p in short))
            axes[1].set_xlim(axes[0].get_xlim())
            axes[1].set_ylabel("top-1, %")
        known = [entry for ax in axes for entry in zip(*ax.get_legend_handles_labels(), strict=True)]
        known.sort(key=lambda entry: entry[1].startswith("ViT-LKCA"))  # a column of ViT, one of ViT-LKCA
        figure.legend(*zip(*known, strict=True), fontsize=9, loc="outside lower center", ncols=2)
        return show(figure, describe(table, ledger))


def describe(table: int, ledger: Sequence[Record]) -> str:
    """The figure in words, from the same data: its caption and alternative text."""
    name = data.NAMES[zoo.TABLES[table].dataset]
    pairs = claims.gaps(ledger).query("dataset == @name")
    full = sum(any(select(table, ledger, p, r) for p in FULL) for r in zoo.TABLES[table].rows)
    text = (
        f"Top-1 accuracy on {name} against parameters. In the paper ViT-LKCA (blue) is above ViT (orange) at every "
        f"size, by {min(pairs.printed):.2f} to {max(pairs.printed):.2f} points. "
        f"Of the {len(zoo.TABLES[table].rows)} rows, {full or 'none'} {'has' if full == 1 else 'have'} been run here "
        "in full."
    )
    drawn = [r for p in SHOWN for r in select(table, ledger, p)]
    text += " Bars: the standard deviation over seeds, of one seed the binomial standard error." * bool(drawn)
    for protocol in SHOWN:
        run = pairs.dropna(subset=[protocol])
        found = [
            f"{d.mean:+.2f} points at {size} (n = {d.n})" for size, d in zip(run["size"], run[protocol], strict=True)
        ]
        text += f" Under {protocol} LKCA − ViT is {', '.join(found)}." if found else ""
    return text


def _name(ax: Axes, points: dict[str, tuple[float, float]], first: Sequence[str]) -> None:
    """Name the points: those of ``first`` where no name is near, then others where no point is near either."""
    places = {row: ax.transAxes.inverted().transform(ax.transData.transform(p)) for row, p in points.items()}
    named: list[np.ndarray] = []
    for row in dict.fromkeys((*first, *points)):
        taken = named if row in first else [*named, *(p for other, p in places.items() if other != row)]
        if all((np.abs(places[row] - other) > (0.2, 0.045)).any() for other in taken):
            named.append(places[row])
            ax.annotate(row, points[row], (5, 4), textcoords="offset points", fontsize=7)


def _front(cost: dict[str, float], label: str, series: dict[str, dict], lkcas: set[str]) -> tuple[Figure, dict]:
    """One panel a series of accuracy against one cost, over one range of it, and the rows on each front."""
    fronts, figure = {}, Figure(figsize=(4.8, 3.7 * len(series)), layout="constrained")
    for ax, (name, top1) in zip(
        figure.subplots(len(series), sharex=True, squeeze=False)[:, 0], series.items(), strict=True
    ):
        best = fronts[name] = rivals.front(cost, top1)
        ax.plot([cost[r] for r in best], [top1[r] for r in best], color=INK, lw=1, ls="--", alpha=0.5)
        for row, y in top1.items():
            kind = {"color": LKCA, "marker": "D"} if row in lkcas else {"color": "#777777", "marker": "o"}
            kind = kind if not row.startswith("ViT") else {"color": VIT, "marker": "s"}
            ax.plot(cost[row], y, ls="", ms=6, **kind)
        ax.set_xscale("log")
        ax.margins(0.1)
        ax.set_ylabel(f"top-1, %, {name}")
        ax.grid(alpha=0.15, color=INK)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.set_xlabel(label)
    figure.draw_without_rendering()  # fixes every panel's range, by which names are near each other or not
    for ax, (name, top1) in zip(figure.axes, series.items(), strict=True):
        shown = [row for row in top1 if row in lkcas or row.startswith("ViT")]
        _name(ax, {row: (cost[row], top1[row]) for row in top1}, [*shown, *fronts[name][::-1]])
    return figure, fronts


def fronts(table: int, ledger: Sequence[Record], dataset: str) -> HTML:
    """Accuracy against parameters and against MACs, with the rows that no other beats: the paper's, and ours where run.

    Parameters and MACs are those of the models at the data set's own size and classes; MACs are all products.
    """
    spec, s = zoo.TABLES[table], data.spec(dataset)
    true = {"image_size": s.image_size, "num_classes": s.classes}
    costs = {
        "parameters, M": {row: complexity.count(row, **true).params / 1e6 for row in spec.rows},
        "MACs, M": {row: complexity.products(row, **true) / 1e6 for row in spec.rows},
    }
    series = {"the paper's": dict(tables.published(table, dataset).top1)}
    for protocol in SHOWN:
        found = {row: select(table, ledger, protocol, row, dataset) for row in spec.rows}
        points = {row: float(np.mean([r.top1 for r in runs])) for row, runs in found.items() if runs}
        if points:
            series[f"ours, {protocol}"] = points
    lkcas = {rows[-1] for rows in spec.groups.values()}
    columns = {label: [f"{cost[row]:.2f}" for row in spec.rows] for label, cost in costs.items()}
    columns |= {
        name: [f"{top1[r]:.2f}" if r in top1 else tables.NOT_RUN for r in spec.rows] for name, top1 in series.items()
    }
    beside = ""
    with style():
        for label, cost in costs.items():
            figure, best = _front(cost, label, series, lkcas)
            short = label.partition(",")[0]
            beside += show(figure, f"Accuracy on {data.NAMES[dataset]} against {short}.").data
            columns |= {
                f"on the front, {name}, by {short}": ["yes" if row in best[name] else "" for row in spec.rows]
                for name in series
            }
    note = (
        "LKCA blue diamonds, ViT orange squares. None of the rows drawn is cheaper and more accurate than one on the "
        "dashed front; the data say which rows lie on it."
    )
    below = folded(pd.DataFrame({"row": spec.rows} | columns))
    return HTML(f"<div class='lkca-panels'>{beside}</div><p class='lkca-note'>{note}</p>{below}")
