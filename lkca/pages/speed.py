"""The figure and tables of the book's page on speed: what `lkca.studies.benchmark` measured and keeps."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from scipy.stats import ttest_ind

from lkca.ledger import records
from lkca.ledger.records import RESULTS
from lkca.ledger.runs import Record
from lkca.models import complexity
from lkca.pages import rendering
from lkca.studies.benchmark import SIZES, Setting

WANTED = ("NVIDIA H200",)  # devices whose figures the page promises
RUN = 117_100 * 128  # images that a `released` run on CIFAR trains on; it is evaluated 100 times on 10,000


def read(results_root: Path = RESULTS) -> list[dict]:
    """All measured machines, by name of device."""
    return [json.loads(f.read_text(encoding="utf-8")) for f in sorted((Path(results_root) / "speed").glob("*.json"))]


def table(machine: dict, group: str) -> pd.DataFrame:
    """A group of a machine's rates as text: with ratios, the share of its own matmul rate, and a whole run's time."""
    lines, first, before = [], None, None
    evaluate = machine["parts"]["evaluation"] / 128 * 100 * 10_000  # seconds of a run's 100 evaluations
    for r in machine["rates"]:
        if r["group"] != group:
            continue
        s, speed = Setting(**r["setting"]), r["images_per_second"]
        if speed is None:
            lines.append({"": s.label, "images/s": r["failed"]})
            continue
        first, before = first or speed, before or speed
        macs = complexity.count(s.row, **SIZES).macs
        lines.append(
            {
                "": s.label,
                "images/s": f"{speed:,.0f}",
                "× the row above": f"{speed / before:.2f}",
                "× the first": f"{speed / first:.1f}",
                f"of {machine['matmul_precision']} matmul": f"{100 * 6 * macs * speed / machine['matmul_flops']:.1f} %",
                "hours a released run": f"{(RUN / speed + evaluate) / 3600:,.2f}",
                "peak MiB": "–" if r["peak_mib"] is None else f"{r['peak_mib']:,.0f}",
            }
        )
        before = speed
    return pd.DataFrame(lines, dtype=object).fillna("")


def ladder_figure(machine: dict) -> HTML:
    """Images a second from a conventional training loop on, a bar a setting; the table alone if none was measured."""
    rates = {Setting(**r["setting"]).label: r["images_per_second"] for r in machine["rates"] if r["group"] == "ladder"}
    measured = {label: speed for label, speed in rates.items() if speed}
    if not measured:
        return rendering.table_html(table(machine, "ladder"))
    with rendering.style():
        figure = Figure(figsize=(6.2, 0.45 * len(measured) + 0.8), layout="constrained")
        ax = figure.subplots()
        bars = ax.barh(range(len(measured)), list(measured.values()), color=rendering.LKCA)
        ax.bar_label(bars, [f"{speed:,.0f}" for speed in measured.values()], padding=3)
        ax.set_yticks(range(len(measured)), list(measured))
        ax.invert_yaxis()
        ax.set_xlabel("images a second")
        (first, slow), (last, fast) = list(rates.items())[0], list(measured.items())[-1]
        caption = f"The training loop of ViT-LKCA on {machine['device']}, one change after the other."
        if slow:
            caption += f" {fast / slow:.1f} times from “{first}” to “{last}”."
        return rendering.show(figure, caption, table(machine, "ladder"))


def spread_sentence(machine: dict) -> str:
    """How far the rates of one setting lie apart that was measured more than once."""
    rates: dict[tuple, list[float]] = {}
    for r in machine["rates"]:
        setting = {k: v for k, v in r["setting"].items() if k != "label"}
        if r["images_per_second"]:
            rates.setdefault(tuple(setting.values()), []).append(r["images_per_second"])
    apart = [max(found) / min(found) - 1 for found in rates.values() if len(found) > 1]
    if not apart:
        return f"{machine['device']}: no setting was measured twice."
    return (
        f"{machine['device']}: settings measured more than once ({len(apart)}) have rates up to "
        f"{100 * max(apart):.0f} % apart. Smaller differences on this page say nothing."
    )


def provenance(machines: Sequence[dict]) -> pd.DataFrame:
    """Which machines were measured, when, with what and at which commit; those of WANTED that were not say so."""
    lines = [
        {
            "device": m["device"],
            "measured": m["finished"][:10],
            "engine": m["versions"]["lkca"],
            "PyTorch": m["versions"]["torch"],
            "matrix product": f"{m['matmul_flops'] / 1e12:.2f} TFLOP/s, {m['matmul_precision']}",
            "commit": "; ".join([_commit(m), *(f"{_commit(at)} ({part})" for part, at in m.get("later", {}).items())]),
        }
        for m in machines
    ]
    lines += [
        {"device": name, "measured": "not measured"}
        for name in WANTED
        if not any(name in m["device"] for m in machines)
    ]
    return pd.DataFrame(lines, dtype=object).fillna("")


def _commit(stamp: dict) -> str:
    return stamp["git_commit"][:7] + ("" if stamp["git_clean"] else ", changed")


def parts_table(machine: dict) -> pd.DataFrame:
    """Where a step's time goes, as text."""
    step = sum(seconds for part, seconds in machine["parts"].items() if part != "evaluation")
    return pd.DataFrame(
        {
            "part": part,
            "ms": f"{1000 * seconds:.1f}",
            "of a step": "" if part == "evaluation" else f"{100 * seconds / step:.1f} %",
        }
        for part, seconds in machine["parts"].items()
    )


def augmentation_table(machine: dict) -> pd.DataFrame:
    """Augmentation's rates as text, with the ratio to the first."""
    first = next(iter(machine["augmentation"].values()))
    return pd.DataFrame(
        {"": name, "images/s": f"{speed:,.0f}", "× the first": f"{speed / first:.1f}"}
        for name, speed in machine["augmentation"].items()
    )


def forms_table(machine: dict) -> pd.DataFrame:
    """The forms side by side, by the grid's side, as text: milliseconds, and how much slower the convolution is."""
    lines = []
    for n in sorted({f["n"] for f in machine["forms"]}):
        ms = {f["form"]: f["ms"] for f in machine["forms"] if f["n"] == n}
        images = next(f["images"] for f in machine["forms"] if f["n"] == n)
        best = min((form for form, t in ms.items() if t), key=ms.__getitem__)
        lines.append(
            {
                "grid": f"{n} × {n}",
                "images": str(images),
                **{f"{form}, ms": f"{t:,.1f}" if t else "refused" for form, t in ms.items()},
                "fastest": best,
                "conv / fastest": f"{ms['conv'] / ms[best]:.0f}" if ms["conv"] else "",
            }
        )
    return pd.DataFrame(lines, dtype=object)


def gathers_table(machine: dict) -> pd.DataFrame:
    """What building the score matrix takes of an LKCA layer, forward and backward, by the grid's side, as text."""
    return pd.DataFrame(
        {
            "grid": f"{g['n']} × {g['n']}",
            "layer, ms": f"{g['layer_ms']:.2f}",
            "score matrix, ms": f"{g['windows_ms']:.2f}",
            "of the layer": f"{100 * g['windows_ms'] / g['layer_ms']:.1f} %",
            "by indexing, ms": f"{g['index_ms']:.2f}",
        }
        for g in machine["gathers"]
    )


def goals(machines: Sequence[dict]) -> pd.DataFrame:
    """What the engine was meant to reach, on a CPU and on a GPU, and what was measured (strings)."""
    lines, wanted = [], [name for name in WANTED if not any(name in m["device"] for m in machines)]
    for name, m in [(m["device"], m) for m in machines] + [(name, None) for name in wanted]:
        rates = {(r["group"], r["setting"]["label"]): r["images_per_second"] or 0 for r in m["rates"]} if m else {}
        ladder = [speed for (group, _), speed in rates.items() if group == "ladder"] or [0, 0]
        conventional, augment_ = ladder[0] or 1, list(m["augmentation"].values()) if m else [1, 0]
        times = ladder[-1] / conventional
        if "threads" not in name:
            stacked = max((speed for (group, _), speed in rates.items() if group == "seeds"), default=0)
            found = [
                ("one seed, images/s", 40_000, rates.get(("ladder", "CUDA graph"), 0)),
                ("stacked seeds, images/s", 120_000, stacked),
                ("augmentation alone, images/s", 500_000, augment_[-1]),
                ("× the conventional pipeline (30 is the aim)", 10, times),
            ]
        else:
            found = [
                ("ViT-LKCA, × the conventional loop with its convolution form", 10, times),
                ("… by the matrix form alone", 10, ladder[1] / conventional),
                ("ViT-LKCA, × ViT", 1, rates["rows", "ViT-LKCA"] / (rates["rows", "ViT"] or np.inf)),
                ("augmentation on one core, × torchvision's", 3, augment_[1] / augment_[0]),
            ]
        for goal, least, speed in found:
            lines.append(
                {
                    "device": name,
                    "goal": goal,
                    "at least": f"{least:,}",
                    "measured": f"{speed:,.{0 if least > 100 else 1}f}" if m else "not measured",
                    "": ("reached" if speed >= least else "missed") if m else "",
                }
            )
    return pd.DataFrame(lines, dtype=object)


def engine_runs(results_root: Path = RESULTS) -> list[Record]:
    """Runs made to compare engines, one ledger a version in ``results/engines/``: no table shows them."""
    return [r for folder in sorted((Path(results_root) / "engines").iterdir()) for r in records.read(folder)[0]]


def by_version(ledger: Sequence[Record], dataset: str, protocol: str) -> pd.DataFrame:
    """Accuracy by the package version and precision that trained it, of rows that several have trained (strings)."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in ledger:
        if (r.dataset, r.protocol) == (dataset, protocol):
            groups.setdefault((r.row, f"{r.versions['lkca']}, {r.precision}"), []).append(r)
    return pd.DataFrame(
        {
            "row": row,
            "engine": engine,
            "top-1, %": f"{np.mean([r.top1 for r in runs]):.2f}",
            "s.d.": f"{np.std([r.top1 for r in runs], ddof=1):.2f}" if len(runs) > 1 else "",
            "seeds": ", ".join(str(r.seed) for r in runs),
        }
        for (row, engine), runs in sorted(groups.items())
        if sum(other == row for other, _ in groups) > 1
    )


def engine_differences(ledger: Sequence[Record], dataset: str, protocol: str) -> pd.DataFrame:
    """This engine's top-1 minus the first one's (0.1), for rows that both trained, with Welch's 95 % interval."""
    lines = []
    runs = [r for r in ledger if (r.dataset, r.protocol) == (dataset, protocol)]
    for row in sorted({r.row for r in runs}):
        first, now = ([r.top1 for r in runs if r.row == row and (r.draws == 1) == old]
                      for old in (True, False))  # fmt: skip
        if min(len(first), len(now)) > 1:
            interval = ttest_ind(now, first, equal_var=False).confidence_interval(0.95)
            lines.append(
                {
                    "row": row,
                    "this engine − the first": f"{np.mean(now) - np.mean(first):+.2f}",
                    "95 % interval": f"[{interval.low:+.2f}, {interval.high:+.2f}]",
                    "runs": f"{len(now)} and {len(first)}",
                }
            )
    return pd.DataFrame(lines, dtype=object)
