"""What it costs a reader to run each table: time on the devices measured, energy, processor hours, disk and download.

A cell's time comes, in this order, from its records on that device; from the rate measured for its row, whatever the
data set (`lkca.studies.benchmark`: most at 32 pixels, on a processor's core those of Tables 4 and 5 at 64); or, for a
row that was not measured, from its multiply-accumulates: a straight line through the rows that were. The table says how
many cells each way. Evaluating an image takes the share of training one that was measured on that device.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from lkca.data import images as data
from lkca.data import scenes
from lkca.ledger.protocols import PROTOCOLS, SEGMENTATION, Protocol
from lkca.ledger.provenance import Number
from lkca.ledger.records import RESULTS
from lkca.ledger.runs import Run
from lkca.models import complexity, segmenters, zoo
from lkca.pages.speed import WANTED
from lkca.studies.benchmark import SIZES

NOT_MEASURED = "not measured"
WATTS = {"NVIDIA H200": 700, "NVIDIA H100 80GB HBM3": 700}  # the most a board draws, by NVIDIA's data sheets (SXM)
HOST = "the length that its host states"
HERE = "its files in training and test, counted"
DOWNLOADS = {  # bytes to download, bytes of its files when unpacked (None: the pixels, uncompressed), and their source
    "cifar10": (170_498_071, None, HOST),
    "cifar100": (169_001_437, None, HOST),
    "svhn": (182_040_794 + 64_275_384, 182_040_794 + 64_275_384, HOST),
    "tiny-imagenet": (248_100_043, 225_213_940, f"{HOST}; {HERE}"),
    "camvid": (None, 94_238_358 + 59_830_712 + 2_180_799 + 1_535_994, HERE),
    "ade20k": (1_179_202_534, None, "the data card of Hugging Face's scene_parse_150, its unused test images included"),
}
CAMVID = 600 * 360 * 480 * 4  # bytes: its pictures are of one size, three channels and a label


@dataclass
class Sum:
    """Seconds of all cells added, and how many came from where."""

    seconds: float = 0.0
    ways: dict[str, int] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def add(self, way: str, seconds: float, runs: Sequence[Run] = ()) -> None:
        """Count one cell."""
        self.seconds += seconds
        self.ways[way] = self.ways.get(way, 0) + 1
        self.runs += runs

    @property
    def origin(self) -> str:
        """Where the seconds come from, in words."""
        return ", ".join(f"{n} from {way}" for way, n in self.ways.items())


def threads(device: str) -> int | None:
    """How many threads of a processor a device in words is; None for a GPU."""
    found = re.search(r", (\d+) threads$", device)
    return int(found[1]) if found else None


def core_rates(results_root: Path = RESULTS) -> dict[str, float]:
    """Training images a second of one core, by row, of the last machine by name that measured them."""
    found: dict[str, float] = {}
    for file in sorted((Path(results_root) / "speed" / "rows").glob("*.json")):
        found |= json.loads(file.read_text(encoding="utf-8"))["rates"]
    return found


def images(p: Protocol, dataset: str) -> tuple[int, int]:
    """How many images a run trains on and how many it evaluates, repetitions counted."""
    s = data.spec(dataset)
    stages = p.stages(p.train_images or s.train)
    return stages[-1] * p.batch_size, len(stages) * s.test


def seconds_an_image(machine: Mapping) -> tuple[dict[str, float], Callable[[str], float], float]:
    """Of a measured machine: seconds of training by row, the line for any row, and evaluation's share of training."""
    rates = {r["setting"]["row"]: r["images_per_second"] for r in machine["rates"] if r["group"] == "rows"}
    measured = {row: 1 / rate for row, rate in rates.items() if rate}
    work = [complexity.products(row, **SIZES) for row in measured]
    slope, start = np.polyfit(work, list(measured.values()), 1)
    least = min(measured.values())

    def line(row: str) -> float:
        at = SIZES if SIZES["image_size"] % zoo.step(row) == 0 else SIZES | {"image_size": zoo.step(row)}
        return max(least, start + slope * complexity.products(row, **at))

    parts = dict(machine["parts"])
    return measured, line, parts.pop("evaluation") / sum(parts.values())


def classification(
    table: int,
    protocol: str,
    ledger: Sequence[Run],
    machine: Mapping,
    alike: Callable[[str], bool],
    core: Mapping[str, float] = MappingProxyType({}),
) -> Sum:
    """Device seconds of one seed of every cell of a table, on a measured machine and those ``alike``.

    A processor's seconds are times its threads. ``core``: images a second of one core, by row.
    """
    p, total = PROTOCOLS[protocol], Sum()
    measured, line, share = seconds_an_image(machine)
    cores = threads(machine["device"]) or 1
    known = {row: 1 / rate for row, rate in core.items()} | {row: cores * s for row, s in measured.items()}
    for dataset in zoo.TABLES[table].datasets:
        trained, evaluated = images(p, dataset)
        for row in map(zoo.canonical, zoo.TABLES[table].rows):
            key = (dataset, row, p.name, p.hash)
            runs = [r for r in ledger if (r.dataset, r.row, r.protocol, r.protocol_hash) == key and alike(r.device)]
            if runs:
                total.add("records", float(np.mean([_seconds(r) for r in runs])), runs)
                continue
            way = "measured rates" if row in known else "multiply-accumulates"
            total.add(way, (known.get(row) or cores * line(row)) * (trained + share * evaluated))
    return total


def _seconds(run: Run) -> float:
    return run.wall_seconds / run.stacked * (threads(run.device) or 1)


def scenes_(table: int, protocol: str, ledger: Sequence[Run], alike: Callable[[str], bool]) -> Sum:
    """Device seconds of one seed of every row of Table 6 or 7 that has records; nothing else was measured for them."""
    rows, datasets = (
        (segmenters.TINY, ("camvid",)) if protocol == "reduced" else (segmenters.TABLES[table], ("ade20k",))
    )
    p, total = SEGMENTATION[protocol], Sum()
    for dataset in datasets:
        for row in rows:
            key = (dataset, row, p.name, p.hash)
            runs = [r for r in ledger if (r.dataset, r.row, r.protocol, r.protocol_hash) == key and alike(r.device)]
            if runs:
                total.add("records", float(np.mean([_seconds(r) for r in runs])), runs)
    return total


def _cells(table: int) -> int:
    if table in segmenters.TABLES:
        return len(segmenters.TABLES[table])
    return len(zoo.TABLES[table].rows) * len(zoo.TABLES[table].datasets)


def on_gpus(ledger: Sequence[Run], machines: Sequence[Mapping]) -> pd.DataFrame:
    """One seed of each table in full (`released`, "table6", "table7") on each GPU measured or wanted (strings)."""
    lines = []
    gpus = {m["device"]: m for m in machines if threads(m["device"]) is None}
    for device in (*gpus, *(name for name in WANTED if not any(name in device for device in gpus))):
        for table in (*zoo.TABLES, *segmenters.TABLES):
            line = {"device": device, "table": f"Table {table}", "runs": str(_cells(table))}

            def alike(name: str, device: str = device) -> bool:
                return name == device

            if table in segmenters.TABLES:
                total = scenes_(table, f"table{table}", ledger, alike)
            else:
                total = classification(table, "released", ledger, gpus[device], alike) if device in gpus else Sum()
            watts = WATTS.get(device)
            energy = f"{total.seconds / 3.6e6 * watts:.1f} kWh" if watts else "no figure for its power"
            done = sum(total.ways.values()) == _cells(table)
            line["minutes"] = Number(f"{total.seconds / 60:,.0f}", total.runs) if done else NOT_MEASURED
            line["energy, at most"] = energy if done else NOT_MEASURED
            lines.append(line)
    return pd.DataFrame(lines, dtype=object)


def on_processors(ledger: Sequence[Run], machines: Sequence[Mapping], core: Mapping[str, float]) -> pd.DataFrame:
    """One seed of each table on a processor: `sketch` and `paper`, for segmentation "reduced", in core hours.

    Hours of one core: seconds times threads. Rates are those of the processor measured last, and of one ``core``.
    """
    machine = max((m for m in machines if threads(m["device"])), key=itemgetter("finished"), default=None)
    lines = []

    def alike(device: str) -> bool:
        return threads(device) is not None

    for table, protocol in (
        *product(zoo.TABLES, ("sketch",)), *product(segmenters.TABLES, ("reduced",)), *product(zoo.TABLES, ("paper",))
    ):  # fmt: skip
        if table in segmenters.TABLES:
            wanted, total = len(segmenters.TINY), scenes_(table, protocol, ledger, alike)
        else:
            wanted = _cells(table)
            total = classification(table, protocol, ledger, machine, alike, core) if machine else Sum()
        done = sum(total.ways.values()) == wanted
        lines.append(
            {
                "table": f"Table {table}",
                "protocol": protocol,
                "runs": str(wanted),
                "core hours": Number(f"{total.seconds / 3600:,.1f}", total.runs) if done else NOT_MEASURED,
                "cells": total.origin,
            }
        )
    return pd.DataFrame(lines, dtype=object)


def disk() -> pd.DataFrame:
    """What each data set takes: to download, on disk as files, and once more as decoded pixels (strings)."""

    def size(n: int | None) -> str:
        return f"{n / 1e6:,.0f} MB" if n else "not known to us"

    lines = []
    for name, (download, files, source) in DOWNLOADS.items():
        used = [f"Table {t}" for t, spec in zoo.TABLES.items() if name in spec.datasets]
        decoded = CAMVID if name == "camvid" else None
        s = data.spec(name) if name in data.DATASETS else scenes.spec(name)
        if isinstance(s, data.Spec):
            decoded = (s.train + s.test) * 3 * s.image_size**2
            files = files or decoded
        lines.append(
            {
                "data set": name,
                "for": ", ".join(used)
                or ("Tables 6 and 7" if name == "ade20k" else "the small rows of Tables 6 and 7"),
                "images": f"{s.train + s.test:,}",
                "download": size(download),
                "files, unpacked": size(files),
                "pixels, decoded": size(decoded),
                "source of the sizes": source,
            }
        )
    return pd.DataFrame(lines, dtype=object)
