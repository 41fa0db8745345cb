"""Tables 4 and 5: LKCA against the best of its group, the counts in full, and what other repositories report.

Frames are of strings, ready for the page; how a verdict is reached stands in `lkca.pages.tables`.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lkca import published
from lkca.data import images as data
from lkca.ledger import records
from lkca.ledger.cells import SHORT, of_cell, select
from lkca.ledger.provenance import Number
from lkca.ledger.runs import Record
from lkca.models import comparators, complexity, zoo
from lkca.models.comparators import Comparator
from lkca.pages import tables

RELATED = published.FOLDER / "related.csv"
SIZES = {"T": "about 1M", "S": "about 2.7M", "B": "6 to 14M"}  # of the groups, in parameters


def counts(table: int) -> pd.DataFrame:
    """Parameters and MACs of every row: printed, as counted at the print's setting and at the table's, in full."""
    spec, paper = zoo.TABLES[table], tables.published(table)
    last = data.spec("cifar100" if table == 4 else spec.dataset)
    true = {"image_size": last.image_size, "num_classes": last.classes}
    here, lines = f"at {last.image_size} px, {last.classes} classes", {}
    for row in (*spec.rows, *spec.extra):
        at = complexity.printed_at(row)
        again, ours = complexity.count(row, **at), complexity.count(row, **true)
        pair = f"{again.params_paper / 1e6:.2f}M", f"{again.macs_paper / 1e6:.2f}M"
        printed = (paper.params[row], paper.flops[row]) if row in paper.index else None
        lines[row] = {
            ("printed", "params"): printed[0] if printed else "",
            ("printed", "FLOPs"): printed[1] if printed else "",
            ("counted again", "at"): f"{at['image_size']} px, {at['num_classes']} classes" if printed else "",
            ("counted again", "params"): pair[0] if printed else "",
            ("counted again", "FLOPs"): pair[1] if printed else "",
            ("counted again", "agrees"): ("yes" if pair == printed else "no") if printed else "",
            (here, "params"): f"{ours.params / 1e6:.2f}M",
            (here, "FLOPs"): f"{ours.macs_paper / 1e6:.2f}M",
            (here, "all products"): f"{complexity.products(row, **true) / 1e6:.2f}M",
        }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def settings_sentence(frame: pd.DataFrame) -> str:
    """At which settings the prints of `counts` were made, and how many of them the recount meets to the digit."""
    again = frame["counted again"][frame["counted again", "at"] != ""]
    settings = again["at"].value_counts()
    of_each = [f"{n} at {setting}" for setting, n in settings.items()]
    where = f"all {of_each[0]}" if len(of_each) == 1 else f"{', '.join(of_each[:-1])} and {of_each[-1]}"
    return (
        f"The paper counts {where}. Counted again with its counter, ptflops 0.7.1.2, at the setting of each row, "
        f"{(again.agrees == 'yes').sum()} of {len(again)} rows agree digit for digit."
    )


def groups(table: int, ledger: Sequence[Record]) -> pd.DataFrame:
    """LKCA against the best rival of each group: the paper's margin, ours under each protocol, and the verdict."""
    spec, lines = zoo.TABLES[table], {}
    runs = [r for d in spec.datasets for protocol in SHORT for r in select(table, ledger, protocol, dataset=d)]
    shown = tables.columns(runs)
    for dataset, group in ((dataset, group) for dataset in spec.datasets for group in spec.groups):
        *others, lkca = spec.groups[group]
        paper = tables.published(table, dataset).top1
        best = paper[others].idxmax()
        line = {"LKCA": lkca, "the paper's": f"{paper[lkca] - paper[best]:+.2f} against {best}"}
        for protocol in shown:
            found = {r: d for r, d in tables.rivals(table, ledger, protocol, group, dataset).items() if d}
            ahead = min(found, key=lambda r: found[r].mean, default=None)
            line[f"ours, {protocol}"] = tables.NOT_RUN
            if ahead:
                some = f"the best of the {len(found)}" if len(found) > 1 else "the only one"
                full = len(found) == len(others)
                among = f"the best of all {len(others)}" if full else f"{some} run of {len(others)}"
                text = f"{tables.interval(found[ahead])} against {ahead}, {among}"
                line[f"ours, {protocol}"] = Number(text, found[ahead].runs)
        lines[f"{data.NAMES[dataset]}, {SIZES[group]}"] = line | {
            "claim": tables.group_verdict(table, ledger, group, dataset)
        }
    return pd.DataFrame.from_dict(lines, orient="index", dtype=object)


def front(cost: Mapping[str, float], top1: Mapping[str, float]) -> list[str]:
    """The rows that no other row beats in cost and top-1 at once, by cost."""
    best, rows = -np.inf, []
    for row in sorted(top1, key=lambda r: (cost[r], -top1[r])):
        if top1[row] > best:
            best = top1[row]
            rows.append(row)
    return rows


def repositories_sentence() -> str:
    """How far ViT-Small lies apart between the paper and `related`'s repositories, and LKCA-B from it in the paper."""
    other, paper = pd.read_csv(RELATED), tables.published(5).top1
    same = [paper["ViT-Small"], *other["tiny-imagenet"][other.same_size == "ViT-Small"]]
    return (
        f"On Tiny-ImageNet the {len(same)} ViTs lie {max(same) - min(same):.2f} points apart; in this paper LKCA-B and "
        f"ViT-Small lie {paper['LKCA-B'] - paper['ViT-Small']:.2f} apart."
    )


def related(ledger: Sequence[Record]) -> pd.DataFrame:
    """What repositories that share this recipe report for models of the same name, beside the paper and ours."""
    other = pd.read_csv(RELATED, dtype=str, keep_default_na=False)
    names = ["cifar10", "cifar100", "svhn", "tiny-imagenet"]
    lines = []
    for row in dict.fromkeys(other.same_size[other.same_size != ""]):
        t = {d: tables.published(5 if d == "tiny-imagenet" else 4, d).top1[row] for d in names}
        size = complexity.count(row, **complexity.PRINTED_SETTING)
        line = {"model": row, "reported by": "this paper", "parameters": f"{size.params / 1e6:.2f}M"}
        lines.append(line | {d: f"{t[d]:.2f}" for d in names})
        ours = {d: of_cell(ledger, d, "released", row) for d in names}
        found = {d: Number(f"{np.mean([r.top1 for r in v]):.2f}", v) if v else tables.NOT_RUN for d, v in ours.items()}
        lines.append(line | {"reported by": "ours, released"} | found)
    for o in other.to_dict("records"):
        line = {"model": o["model"], "reported by": o["source"], "parameters": o["params"] or "not said"}
        lines.append(line | {d: o[d] for d in names})
    return pd.DataFrame(lines, dtype=object)


def support() -> pd.DataFrame:
    """The rows of Tables 4 and 5: what each is built from, its stochastic depth, how the engine can train it, how fast.

    Rates are images a second of one core's processor time, at 64 px and 200 classes
    (`lkca.studies.benchmark.core_rates`).
    """
    files = sorted((records.RESULTS / "speed" / "rows").glob("*.json"))
    machines, lines = [json.loads(file.read_text(encoding="utf-8")) for file in files], {}
    for row in dict.fromkeys(row for t in (5, 4) for row in (*zoo.TABLES[t].rows, *zoo.TABLES[t].extra)):
        r = zoo.row(row)
        if isinstance(r, Comparator):
            family, (first, last) = comparators.FAMILIES[r.family], r.drop_path
            built = f"{r.family}, {family.library}"
            depth = f"{first:g} to {last:g}" if first != last else f"{first:g}" if first else "none"
            if "dropout" in r.settings:
                depth = f"none, but dropout {r.settings['dropout']:g}"
            stacked, captured = family.stackable, "not measured" if family.capturable else "no"
        else:
            built, depth, stacked, captured = "lkca.models.vit", f"{r.drop_path:g}", True, "yes"
        lines[row] = {
            "built from": built,
            "stochastic depth as released": depth,
            "seeds in one step": "yes" if stacked else "no",
            "CUDA graph": captured,
        }
        for m in machines:
            rate = m["rates"].get(zoo.canonical(row))
            lines[row][f"images/s, {m['device']}"] = f"{rate:.0f}" if rate else "not measured"
    return pd.DataFrame.from_dict(lines, orient="index")
