"""Records: written once and whole, checked when read; jobs: what is wrong is said before any work."""

import dataclasses
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lkca.data import images as data
from lkca.data import scenes
from lkca.ledger import records
from lkca.ledger.checks import RecordError
from lkca.ledger.protocols import PROTOCOLS, SEGMENTATION
from lkca.ledger.runs import Record, Run, SegmentationRecord, pack
from lkca.models import zoo
from lkca.training import engine, jobs

ALL = sorted((records.RESULTS / "runs").glob("*.json"))
COMMITTED = [file for file in ALL if file.name.partition("--")[0] in data.DATASETS]
FIRST, SECOND = [file for file in COMMITTED if file.name.startswith("cifar100--ViT--")][:2]
SEGMENTED = [file for file in ALL if file.name.partition("--")[0] in scenes.DATASETS]


@pytest.fixture
def record():
    return records.read_one(FIRST)


def test_the_ledger_is_sound():
    for kind, files in ((Record, COMMITTED), (SegmentationRecord, SEGMENTED)):
        ledger, broken = records.read(kind=kind)
        assert not broken and len(ledger) == len(files) >= 8
    ledger, broken = records.read(kind=Run)
    assert not broken and len(ledger) == len(ALL)
    for r in ledger:
        p = (PROTOCOLS | SEGMENTATION)[r.protocol]
        assert r.protocol_hash == p.hash and r.protocol_fields == p.fields
        assert r.git_clean and len(r.git_commit) == 40
    for name in {r.dataset for r in ledger}:
        expected = (data.DATASETS | scenes.DATASETS)[name].fingerprint
        (found,) = {r.data_fingerprint for r in ledger if r.dataset == name}  # all runs saw the same data
        assert expected in (None, found), name


def test_written_read_and_never_overwritten(record, tmp_path):
    file = records.write(record, tmp_path)
    before = file.read_bytes()
    assert records.read_one(file) == record
    with pytest.raises(FileExistsError, match="never overwritten"):
        records.write(dataclasses.replace(record), tmp_path)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def damage_type(d):
    d["seed"] = "0"


def damage_story(d):
    d["top1"] = d["top1"] + 1


def damage_missing(d):
    del d["test_loss"]


def damage_extra(d):
    d["remark"] = "x"


def damage_classes(d):
    d["per_class_top1"].pop()


def damage_range(d):
    d["per_class_top1"][0] = 101.0


def damage_answers(d):
    d["correct"] = pack(np.ones(d["num_test"], bool))


def damage_answers_length(d):
    d["correct"] = pack(np.ones(8, bool))


def damage_answers_text(d):
    d["correct"] = "~"


def damage_schema(d):
    d["schema"] = 99


def damage_place(d):
    d["seed"] = 77


@pytest.mark.parametrize(
    "damage, says",
    [
        (damage_type, "seed should be int, is str"),
        (damage_story, "but the curve says"),
        (damage_missing, "test_loss"),
        (damage_extra, "remark"),
        (damage_classes, "per_class_top1 has 99 entries for 100 classes"),
        (damage_range, "101.0 is not a percentage"),
        (damage_answers, "but correct says 100.0"),
        (damage_answers_length, "correct holds 1 bytes for"),
        (damage_answers_text, "correct is not base64"),
        (damage_schema, "schema is 99"),
        (damage_place, "belongs in"),
        (None, ""),
    ],
)
def test_a_broken_record_is_named_and_hides_no_other(tmp_path, damage, says):
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(FIRST, runs)
    shutil.copy(SECOND, runs)
    file = runs / FIRST.name
    if damage:
        fields = json.loads(file.read_text())
        damage(fields)
        file.write_text(json.dumps(fields))
    else:
        file.write_text(file.read_text()[:500])
    ledger, broken = records.read(tmp_path)
    assert [records.path_of(r, "").name for r in ledger] == [SECOND.name]
    assert len(broken) == 1 and file.name in broken[0] and says in broken[0]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"miou": 50.0}, "miou is 50.0 but the curve says"),
        ({"truth": [1]}, "truth has 1 entries for 11 classes"),
        ({"intersection": [0] * 11}, "aacc is .* the pixels say 0.0"),
        ({"task": "detection"}, "task 'detection' is not one of classification, segmentation"),
    ],
)
def test_a_broken_segmentation_record_is_named(tmp_path, change, says):
    file = tmp_path / SEGMENTED[0].name
    file.write_text(json.dumps(json.loads(SEGMENTED[0].read_text()) | change))
    with pytest.raises(RecordError, match=f"{file.name}: {says}"):
        records.read_one(file)


@pytest.fixture(autouse=True)
def no_gpu_no_network(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(data, "downloadable", lambda name: False)


@pytest.mark.parametrize(
    "kw, says",
    [
        ({"protocol": "quick"}, "'quick' is not one of 'auto', 'released', 'paper', 'brief', 'sketch', 'smoke'"),
        ({"rows": ["ViT/3M"]}, "'ViT/3M' is not in Table 2; its rows are ViT, ViT-LKCA"),
        ({"rows": []}, "at least one entry"),
        ({"seeds": 0}, "must be lists"),
        ({"seeds": [-1]}, "seed -1 is not a whole number"),
        ({"seeds": [0.5]}, "seed 0.5 is not a whole number"),
        ({"device": "tpu"}, "device='tpu' is not one of 'auto', 'cpu', 'cuda'"),
        ({"device": "cuda"}, "use device='cpu'"),
        ({"protocol": "sketch"}, "cifar100 is not in .* choose protocol='smoke'"),
        ({"protocol": "released", "data_root": "/nowhere"}, "cifar100 is not in /nowhere"),
    ],
)
def test_a_wrong_parameter_is_said_before_any_work(tmp_path, kw, says):
    with pytest.raises(ValueError, match=says):
        jobs.plan(2, **{"data_root": tmp_path, "results_root": tmp_path} | kw)
    assert not list(tmp_path.iterdir())


def test_a_ledger_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="name another folder with results_root"):
        jobs.plan(1, protocol="smoke", results_root=tmp_path / "file")


def test_unknown_table():
    with pytest.raises(ValueError, match="table 9 does not exist; the tables are 1, 2, 3, 4, 5, 6, 7, 'controls'"):
        jobs.plan(9)


def test_auto_is_smoke_without_a_gpu_and_says_so(tmp_path):
    job = jobs.plan(2, data_root=tmp_path, results_root=tmp_path)
    assert (job.protocol.name, job.datasets, job.device) == ("smoke", ("digits",), "cpu")
    assert job.results_root == tmp_path / "scratch" and job.rows == zoo.TABLES[2].rows
    assert "no CUDA device" in job.why and "12 of 12 runs to train" in job.why and "\n" not in job.why


@pytest.mark.parametrize("present, answers", [(True, False), (False, True)])
def test_auto_is_released_with_a_gpu_and_data(tmp_path, monkeypatch, present, answers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(data, "available", lambda name, root: present)
    monkeypatch.setattr(data, "downloadable", lambda name: answers)
    job = jobs.plan(2, data_root=tmp_path, results_root=tmp_path)
    assert (job.protocol.name, job.datasets, job.device) == ("released", ("cifar100",), "cuda")


def test_auto_is_smoke_with_a_gpu_but_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    job = jobs.plan(2, data_root=tmp_path, results_root=tmp_path)
    assert job.protocol.name == "smoke" and "cannot be downloaded" in job.why


def test_smoke_is_shared_by_all_tables(tmp_path):
    kw = {"protocol": "smoke", "data_root": tmp_path, "results_root": tmp_path}
    assert jobs.plan(1, **kw).runs == jobs.plan(2, **kw).runs == jobs.plan(3, **kw).runs


def test_table_4_is_three_data_sets_and_a_row_of_two_names_is_one(tmp_path):
    kw = {"rows": ["ViT-Lite", "ViT/1M", "MobileViTv2-T-separable"], "results_root": tmp_path}
    job = jobs.plan(4, protocol="smoke", **kw)
    assert (job.datasets, job.rows) == (("digits-32",), ("ViT/1M", "MobileViTv2-T-separable"))
    job = jobs.plan(4, data_root=tmp_path, dataset="cifar10", protocol="auto", device="cpu", **kw)
    assert job.protocol.name == "smoke"
    with pytest.raises(ValueError, match="'XCiT-T' is not in Table 4; its rows are ViT-Lite, Swin-T"):
        jobs.plan(4, rows=["XCiT-T"])


def test_a_smoke_of_table_5_has_every_kind_of_model_but_the_dearest(tmp_path):
    job = jobs.plan(5, protocol="smoke", results_root=tmp_path)
    kinds = {getattr(zoo.row(row), "family", "ViT") for row in zoo.TABLES[5].rows} - {"Twins-SVT"}
    assert {getattr(zoo.row(row), "family", "ViT") for row in job.rows} == kinds and len(job.rows) == 12
    assert all(zoo.canonical(row) == row for row in job.rows)
    assert len(jobs.plan(5, protocol="smoke", rows=["LKCA-L"], results_root=tmp_path).rows) == 1


def test_table_4_is_released_on_all_its_data_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(data, "available", lambda name, root: name != "svhn")
    kw = {"data_root": tmp_path, "results_root": tmp_path, "rows": ["LKCA-T"]}
    assert jobs.plan(4, **kw).protocol.name == "smoke"
    monkeypatch.setattr(data, "available", lambda name, root: True)
    job = jobs.plan(4, **kw)
    assert [(run.dataset, run.row, run.seed) for run in job.runs] == [
        (d, "ViT/1M-LKCA", 0) for d in ("cifar10", "cifar100", "svhn")
    ]


def test_a_job_skips_what_the_ledger_holds(record, tmp_path, monkeypatch):
    records.write(record, tmp_path)
    monkeypatch.setattr(data, "available", lambda name, root: True)
    monkeypatch.setattr(data, "load", lambda *a: pytest.fail("loaded"))
    job = jobs.plan(2, protocol=record.protocol, rows=[record.row], seeds=[record.seed], results_root=tmp_path)
    assert "0 of 1 runs to train" in job.why
    assert jobs.run(job) == [record]


def test_a_job_trains_what_is_missing(tmp_path):
    job = jobs.plan(1, protocol="smoke", rows=["ViT/0.5M"], results_root=tmp_path)
    (trained,) = jobs.run(job, progress=False)
    assert (
        trained.row == "ViT/0.5M"
        and records.path_of(trained, job.results_root).exists()
        and not (tmp_path / "runs").exists()
    )


def test_a_job_leaves_a_row_to_another_that_trains_it_and_waits_for_it_at_the_end(tmp_path, monkeypatch):
    job = jobs.plan(1, protocol="smoke", rows=["ViT/0.5M", "ViT/0.5M-LKCA"], results_root=tmp_path)
    first, second = job.runs
    name, row, other = first.dataset, first.row, second.row
    fit, done, rows = engine.fit, threading.Event(), []

    def spy(row, *args, **kw):
        rows.append(row)
        fit(row, *args, **kw)
        done.set()

    monkeypatch.setattr(engine, "fit", spy)
    with ThreadPoolExecutor() as pool:
        with jobs.lock(first, job.results_root):
            waiting = pool.submit(jobs.run, job, None)
            assert done.wait(60) and rows == [other] and records.lacking([first], job.results_root)
            (trained,) = fit(row, data.load(name), job.protocol, results_root=job.results_root, progress=None)
        assert waiting.result(60)[0] == trained and rows == [other]


WRONG = {
    "table": [None, "2", 9, [2], {}, True, -1],
    "seeds": [1.5, None, 5, "0", [1.5], [-1], ["0"], [None], [True], [[0]], {}, []],
    "rows": [None, 5, True, [["ViT"]], [None], [], "ResNet", {"a": 1}, 1.5],
    "protocol": ["fast", None, 5, ["smoke"], "Smoke", {}, "", True],
    "dataset": ["cifar", 5, ["cifar10"], {}, "CIFAR10", True],
    "device": ["tpu", None, 5, ["cpu"], "CPU"],
    "precision": ["int8", None, 32, ["fp32"]],
    "data_root": [5, ["x"], {}, "\0", "x" * 5000, True],
    "results_root": [5, ["x"], {}, "\0", "x" * 5000, True],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_parameter_is_named_in_a_sentence(tmp_path, name, value):
    """Whatever its type: never in Python's own words, and before anything is written."""
    given = {"protocol": "smoke", "results_root": tmp_path} | {name: value}
    with pytest.raises(ValueError) as raised:
        jobs.plan(given.pop("table", 2), **given)
    said = str(raised.value)
    assert not any(words in said for words in ("embedded null", "unhashable", "not iterable", "File name too long"))
    assert {"table", "row", "rows", "seed", "seeds", "data set", name} & set(re.findall(r"data set|\w+", said))
    assert not list(tmp_path.iterdir())
