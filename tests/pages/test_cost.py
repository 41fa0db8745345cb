"""Costs: what is measured fills in, what is not says so, and where each figure comes from is counted."""

import dataclasses

import pytest

from lkca.ledger import records
from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.runs import Run
from lkca.models import zoo
from lkca.pages import cost, speed

MACHINES = speed.read()
CPU = next(m for m in MACHINES if "threads" in m["device"])
GPU = CPU | {"device": "NVIDIA H200"}
LEDGER = records.read(kind=Run)[0]


def released(row, seconds, stacked=1):
    p = PROTOCOLS["released"]
    return dataclasses.replace(
        records.read()[0][0], row=row, dataset="cifar100", protocol="released", protocol_hash=p.hash,
        device="NVIDIA H200", wall_seconds=seconds, stacked=stacked,
    )  # fmt: skip


def test_a_gpu_without_a_file_is_not_measured_and_with_one_is():
    absent = cost.on_gpus(LEDGER, [CPU])
    assert absent.device.unique().tolist() == ["NVIDIA H200"] and (absent.minutes == "not measured").all()
    found = cost.on_gpus([], [CPU, GPU]).set_index("table")
    assert (found.minutes["Table 6"], found.minutes["Table 1"] == "not measured") == ("not measured", False)
    minutes = float(found.minutes["Table 1"].replace(",", ""))
    assert found["energy, at most"]["Table 1"] == f"{minutes / 60 * 0.7:.1f} kWh"


def test_images_are_those_of_the_protocol():
    assert cost.images(PROTOCOLS["released"], "cifar10") == (speed.RUN, 100 * 10_000)
    assert cost.images(PROTOCOLS["sketch"], "svhn") == (8 * (20_000 // 128) * 128, 8 * 26_032)


def test_a_record_on_the_device_speaks_before_a_rate_and_a_rate_before_a_guess():
    def alike(device):
        return device == "NVIDIA H200"

    rated = cost.classification(2, "released", [], GPU, alike)
    assert rated.ways == {"measured rates": 6, "multiply-accumulates": 6}
    one, many = (cost.classification(2, "released", [released("ViT", 600.0, n)], GPU, alike) for n in (1, 4))
    assert one.ways == {"measured rates": 5, "multiply-accumulates": 6, "records": 1}
    assert one.seconds - many.seconds == pytest.approx(450)  # four seeds in a step share its time
    elsewhere = dataclasses.replace(released("ViT", 600.0), device="NVIDIA A100")
    assert cost.classification(2, "released", [elsewhere], GPU, alike).ways == rated.ways


def test_a_processor_has_short_runs_and_full_ones():
    found = cost.on_processors(LEDGER, MACHINES, cost.core_rates())
    hours = found.set_index(["table", "protocol"])["core hours"].str.replace(",", "").astype(float)
    assert {t for t, protocol in hours.index if protocol == "paper"} == {f"Table {t}" for t in zoo.TABLES}
    assert all(hours[f"Table {t}", "paper"] > 10 * hours[f"Table {t}", "sketch"] for t in zoo.TABLES)


def test_rates_are_those_of_the_processor_measured_last():
    rates = [r | {"images_per_second": 10 * (r["images_per_second"] or 0)} for r in CPU["rates"]]
    later = CPU | {"device": "Another, 2 threads", "rates": rates, "finished": "2099-01-01T00:00:00+00:00"}
    one, both, turned = (cost.on_processors([], m, {}) for m in ([later], [CPU, later], [later, CPU]))
    assert one.equals(both) and one.equals(turned) and not one.equals(cost.on_processors([], [CPU], {}))


def test_threads_count():
    assert [cost.threads(d) for d in ("AMD EPYC, 2 threads", "NVIDIA H200")] == [2, None]
    twice = CPU | {"device": "another, 4 threads"}
    seconds = [cost.classification(1, "sketch", [], m, lambda d: False).seconds for m in (CPU, twice)]
    assert seconds[1] == pytest.approx(2 * seconds[0])


def test_a_row_that_was_not_measured_costs_at_least_the_cheapest_that_was():
    measured, line, share = cost.seconds_an_image(CPU)
    assert all(line(row) >= min(measured.values()) for t in (1, 4, 5) for row in zoo.TABLES[t].rows)
    assert 0.1 < share < 1


def test_every_data_set_of_a_table_has_its_sizes():
    frame = cost.disk().set_index("data set")
    assert {d for t in zoo.TABLES.values() for d in t.datasets} | {"ade20k", "camvid"} == set(frame.index)
    assert frame.loc["cifar100", "pixels, decoded"] == f"{60_000 * 3072 / 1e6:,.0f} MB"
