"""The benchmark: that it measures, keeps a failure from hiding the rest, and is shown as it was measured. No times."""

import dataclasses
import functools
import json

import pytest
import torch
from scipy.stats import ttest_ind

from lkca import operator
from lkca.data import images as data
from lkca.ledger import records
from lkca.models import zoo
from lkca.pages import speed
from lkca.studies import benchmark


@pytest.fixture(scope="module")
def ds():
    return benchmark.noise(1280)


@pytest.mark.parametrize("kw", [{"seeds": 2}, {"engine": False, "form": "conv"}], ids=["engine", "conventional"])
def test_a_rate_is_measured(ds, kw):
    setting = benchmark.Setting("x", row="ViT/0.5M-LKCA", batch_size=8, **kw)
    rate = benchmark.measure("ladder", setting, ds, "cpu", 0.0, workers=0)
    assert rate.failed is None and rate.images_per_second > 0


def test_a_failure_is_told_and_hides_nothing(ds):
    rate = benchmark.measure("ladder", benchmark.Setting("x", row="ViT/9M"), ds, "cpu", 0.0, workers=0)
    assert rate.images_per_second is None and "ViT/9M" in rate.failed


def test_a_gpu_gets_every_step_of_the_ladder():
    labels = [s.label for group, s in benchmark.settings("cuda") if group == "ladder"]
    assert len(labels) == len(set(labels)) == 8 and labels[-1] == "CUDA graph, 8 seeds in a step"


def test_the_rows_of_tables_4_and_5_are_timed_on_a_core(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "core_rates", lambda names, real=benchmark.core_rates: real(names[:2]))
    found = json.loads(benchmark.run_rows(tmp_path).read_text())
    assert list(found["rates"]) == ["ViT/1M", "Swin-T"] and min(found["rates"].values()) > 0


def test_stored_core_rates_have_every_row():
    rows = {zoo.canonical(row) for t in (4, 5) for row in (*zoo.TABLES[t].rows, *zoo.TABLES[t].extra)}
    files = list((records.RESULTS / "speed" / "rows").glob("*.json"))
    assert files and all(set(json.loads(file.read_text())["rates"]) == rows for file in files)


def test_stored_machines_are_whole_and_tables_say_what_they_hold():
    for machine in speed.read():
        frame = speed.table(machine, "ladder")
        rates = [r["images_per_second"] for r in machine["rates"] if r["group"] == "ladder"]
        assert [row.replace(",", "") for row in frame["images/s"]] == [f"{rate:.0f}" for rate in rates]
        assert machine["git_commit"] and machine["device"]
        assert sum(s for s in machine["parts"].values()) > 0


@pytest.mark.parametrize("part", ["parts", "augmentation", "matmul_flops"])
def test_every_part_is_measured(tmp_path, ds, monkeypatch, part):
    """The gathers below; the forms and the ladder, whose settings are measured above one by one, take too long."""
    small = functools.partial(benchmark.Setting, row="ViT/0.5M-LKCA", batch_size=16)
    monkeypatch.setattr(benchmark, "Setting", small)
    monkeypatch.setattr(benchmark, "noise", lambda: ds)
    monkeypatch.setattr(benchmark.machine, "device_in_words", lambda device: "this machine")
    file = tmp_path / "speed" / "this-machine.json"
    file.parent.mkdir()
    file.write_text('{"device": "this machine"}')
    found = json.loads(benchmark.run("cpu", 0.0, 0, tmp_path, part).read_text())[part]
    numbers = found if isinstance(found, dict) else {part: found}
    assert all(value > 0 for name, value in numbers.items() if name != "backward")  # the difference of two times
    assert part != "parts" or list(numbers) == ["augmentation", "forward", "backward", "optimise", "evaluation"]


def test_one_part_is_measured_again_and_says_when(tmp_path, monkeypatch):
    """The rest of the machine's file stays as it was, and the page names both commits."""
    before = speed.read()[0] | {"device": "this machine"}
    file = tmp_path / "speed" / "this-machine.json"
    file.parent.mkdir()
    file.write_text(json.dumps(before))
    monkeypatch.setattr(benchmark.machine, "device_in_words", lambda device: "this machine")
    monkeypatch.setattr(benchmark.machine, "COMMIT", "0123456789")
    monkeypatch.setattr(benchmark.machine, "CLEAN", False)
    monkeypatch.setattr(benchmark, "noise", lambda: data.load("digits"))
    assert benchmark.run("cpu", 0.0, 0, tmp_path, "gathers") == file
    (after,) = speed.read(tmp_path)
    assert after["gathers"] != before.get("gathers") and after["later"]["gathers"]["git_commit"] == "0123456789"
    kept = before.keys() - {"gathers", "later"}
    assert {k: after[k] for k in kept} == {k: before[k] for k in kept}
    assert speed.provenance([after])["commit"][0] == f"{before['git_commit'][:7]}; 0123456, changed (gathers)"
    assert speed.gathers_table(after)["grid"].tolist() == ["8 × 8", "16 × 16", "32 × 32"]


def test_a_part_alone_needs_the_rest(tmp_path):
    with pytest.raises(FileNotFoundError, match="has not been measured yet: measure everything once"):
        benchmark.run("cpu", 1, 0, tmp_path, "gathers")
    with pytest.raises(ValueError, match="only='all' is not one of 'parts'"):
        benchmark.run("cpu", 1, 0, tmp_path, "all")


def test_the_score_matrix_s_gradient_is_no_scatter():
    """Indexing would give the same matrix and gradient; it is measured beside it."""
    for n in (3, 8):
        kernel = torch.randn(2 * n - 1, 2 * n - 1, requires_grad=True)
        place = operator.attention_matrix(torch.arange((2 * n - 1) ** 2).view(2 * n - 1, 2 * n - 1), (n, n))
        weights = torch.randn(n * n, n * n)
        ours, indexed = operator.attention_matrix(kernel, (n, n)), kernel.flatten()[place]
        assert torch.equal(ours, indexed)
        (a,), (b,) = (torch.autograd.grad((m * weights).sum(), kernel) for m in (ours, indexed))
        torch.testing.assert_close(a, b)
        with torch.profiler.profile(acc_events=True) as profile:  # torch 2.11 warns without
            operator.attention_matrix(kernel, (n, n)).backward(weights)
        called = {event.key for event in profile.key_averages()}
        assert "aten::unfold_backward" in called and not [c for c in called if "scatter" in c or "index_put" in c]


def test_failed_and_ratio_columns(tmp_path):
    def rate(label, speed, failed=None):
        setting = vars(benchmark.Setting(label))
        return {"group": "ladder", "setting": setting, "images_per_second": speed, "peak_mib": None, "failed": failed}

    machine = {"rates": [rate("a", 10.0), rate("b", None, "OutOfMemoryError: x"), rate("c", 40.0)],
               "parts": {"evaluation": 1.28}, "matmul_flops": 1e12, "matmul_precision": "fp32"}  # fmt: skip
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "x.json").write_text(json.dumps(machine))
    frame = speed.table(speed.read(tmp_path)[0], "ladder")
    assert list(frame["× the first"]) == ["1.0", "", "4.0"] and frame["images/s"][1] == "OutOfMemoryError: x"
    hours = (speed.RUN / 10 + 100 * 10_000 / 100) / 3600
    assert frame["hours a released run"][0] == f"{hours:,.2f}"


def test_engines_are_told_apart_by_version_and_precision():
    frame = speed.by_version(records.read()[0], "cifar100", "sketch")
    assert frame[frame.engine == "0.1.0, fp32"].seeds.tolist() == ["0, 1, 2", "0, 1, 2"]


def test_a_wanted_device_is_named_until_it_is_measured():
    assert speed.provenance([]).to_dict("records") == [{"device": "NVIDIA H200", "measured": "not measured"}]
    (machine, *_) = speed.read()
    measured = speed.provenance([machine | {"device": "NVIDIA H200"}])
    assert list(measured["device"]) == ["NVIDIA H200"] and "not measured" not in set(measured["measured"])


def test_goals_say_reached_missed_or_not_measured():
    rates = [("ladder", "a", 10.0), ("ladder", "b", 99.0), ("rows", "ViT", 50.0), ("rows", "ViT-LKCA", 60.0)]
    machine = {
        "device": "a CPU, 2 threads",
        "rates": [{"group": g, "setting": {"label": label}, "images_per_second": v} for g, label, v in rates],
        "augmentation": {"torchvision": 10.0, "batched": 65.0},
    }
    frame = speed.goals([machine])
    assert frame["measured"].tolist() == ["9.9", "9.9", "1.2", "6.5", *["not measured"] * 4]
    assert frame[""].tolist() == ["missed", "missed", "reached", "reached", "", "", "", ""]
    rates = [("ladder", "PIL", 1e4), ("ladder", "CUDA graph", 5e4), ("ladder", "last", 9e4), ("seeds", "16 seeds", 1e5)]
    machine["rates"] = [{"group": g, "setting": {"label": label}, "images_per_second": v} for g, label, v in rates]
    frame = speed.goals([machine | {"device": "NVIDIA H200", "augmentation": {"batched, GPU": 6e5}}])
    assert frame["measured"].tolist() == ["50,000", "100,000", "600,000", "9.0"]
    assert frame[""].tolist() == ["reached", "missed", "reached", "missed"]


def test_both_engines_have_runs_of_the_same_settings():
    runs = speed.engine_runs()
    assert len({r.protocol_hash for r in runs}) == 1
    for row in ("ViT/0.5M", "ViT/0.5M-LKCA"):
        seeds = [[r.seed for r in runs if r.row == row and r.versions["lkca"][:3] == v] for v in ("0.1", "0.2")]
        assert all(sorted(s) == list(range(9)) for s in seeds)


def test_engines_are_compared_by_welch_s_interval():
    template = next(r for r in records.read()[0] if r.draws == 1)
    last = template.curve[-1]

    def of(version, seed, top1):
        versions, curve = template.versions | {"lkca": version}, [dataclasses.replace(last, epoch=1, top1=top1)]
        drawn = 1 if version.startswith("0.1.") else 2
        return dataclasses.replace(template, seed=seed, versions=versions, curve=curve, top1=top1, top1_best=top1,
                                   draws=drawn, best_epoch=1, correct="")  # fmt: skip

    old, new = (10.0, 11.0, 12.0), (12.0, 13.0)
    ledger = [of("0.1.0", s, t) for s, t in enumerate(old)] + [of("0.3.1", s, t) for s, t in enumerate(new, 3)]
    frame = speed.engine_differences(ledger, template.dataset, template.protocol)
    interval = ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
    assert frame["this engine − the first"].tolist() == ["+1.50"] and frame["runs"].tolist() == ["2 and 3"]
    assert frame["95 % interval"].tolist() == [f"[{interval.low:+.2f}, {interval.high:+.2f}]"]
    assert speed.engine_differences(ledger[:3], template.dataset, template.protocol).empty


def test_the_ladder_is_drawn_from_what_was_measured():
    machine = speed.read()[0]
    page = speed.ladder_figure(machine).data
    rates = [r["images_per_second"] for r in machine["rates"] if r["group"] == "ladder" and r["images_per_second"]]
    assert f"{rates[-1] / rates[0]:.1f} times from" in page
    failed = [r | {"images_per_second": None, "failed": "no memory"} for r in machine["rates"]]
    assert "no memory" in speed.ladder_figure(machine | {"rates": failed}).data
    assert all(f">{rate:,.0f}</text>" in page for rate in rates)


def test_rates_measured_twice_say_how_far_to_trust_them():
    machine = speed.read()[0]
    assert "no setting was measured twice" in speed.spread_sentence(machine | {"rates": machine["rates"][:1]})
    again = machine["rates"][0] | {
        "group": "again",
        "images_per_second": 1.5 * machine["rates"][0]["images_per_second"],
    }
    assert "settings measured more than once (1) have rates up to 50 % apart" in speed.spread_sentence(
        machine | {"rates": [machine["rates"][0], again]}
    )
