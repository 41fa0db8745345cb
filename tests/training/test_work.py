"""The unattended command: its order, its budget, and that it needs nothing but torch's family."""

import threading

import pytest

from lkca.data import images
from lkca.ledger import records
from lkca.ledger.protocols import Protocol
from lkca.ledger.runs import Identity
from lkca.models import zoo
from lkca.training import engine, locks, work

TINY = Protocol("tiny", "a test's", epochs=2, train_images=32, batch_size=16, warmup_epochs=1, crop_padding=1)
TODO = [("digits", TINY, "ViT/0.5M-LKCA"), ("cifar10", TINY, "ViT/0.5M"), ("digits", TINY, "ViT/0.5M")]


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    """How well the rows answer is not looked at here, and testing them on all would take longer than the rest."""
    load = images.load
    monkeypatch.setattr(images, "load", lambda *args: load(*args).tested_on(20))


def worker_in(folder, seeds=(0,), **kw):
    return work.Work(list(seeds), "cpu", folder, folder, **kw)


def test_the_order_is_by_what_a_cell_decides():
    everything = [(name, p.name, row) for name, p, row in work.cells()]
    assert len(set(everything)) == len(everything)
    order, drop_path, last = everything[:-20], everything[-20:-12], everything[-12:]
    assert [(name, protocol) for name, protocol, _ in last] == [("ade20k", "table6")] * 2 + [("ade20k", "table7")] * 10
    assert {(name, protocol) for name, protocol, _ in drop_path} == {("tiny-imagenet", "released-drop-path")}
    assert {row for *_, row in drop_path} == set(zoo.TABLES[5].groups["T"]) - {"ViT-Lite", "LKCA-T"}
    # Tables 1-3, the main rows under `paper`, what 5 and 4 add, controls
    assert len(order) == 36 + 8 + 23 + 22 + 42
    assert not {row for _, _, row in order[:-42]} & set(zoo.CONTROLS.rows)
    assert {row for _, _, row in order[-42:]} <= set(zoo.CONTROLS.rows)
    assert order[:4] == [("tiny-imagenet", "released", row) for row in zoo.MAIN_ROWS]
    assert {p for _, p, _ in order[:16]} == {"released", "paper"} and {n for n, *_ in order[:16]} == {
        "tiny-imagenet",
        "cifar100",
    }
    assert {p.name for _, p, _ in work.cells("sketch")} == {"sketch"}
    assert [row for *_, row in work.cells("sketch-drop-path")] == [row for *_, row in drop_path]
    assert [(name, row) for name, _, row in work.cells("reduced")] == [
        (name, f"{kind}-XS/UPerNet") for name in ("camvid", "digit-scenes") for kind in ("ViT", "LKCA")
    ]


def test_it_works_off_what_is_missing_and_passes_over_absent_data(tmp_path, capsys):
    worker = worker_in(tmp_path, seeds=[0, 1])
    assert worker.off(TODO) == 4 and [run.row for run in worker.missing(*TODO)] == ["ViT/0.5M", "ViT/0.5M"]
    out = capsys.readouterr().out
    assert f"cifar10 is not in {tmp_path}" in out and "epoch 2/2 · top1" in out
    assert sorted((r.row, r.seed, r.stacked) for r in records.read(tmp_path)[0]) == [
        ("ViT/0.5M", 0, 1), ("ViT/0.5M", 1, 1), ("ViT/0.5M-LKCA", 0, 1), ("ViT/0.5M-LKCA", 1, 1),
    ]  # fmt: skip
    assert worker.off(TODO) == 0


def test_out_of_time_it_stops_and_goes_on_later(tmp_path):
    assert worker_in(tmp_path, budget=1e-9).off(TODO[:1]) == 0
    assert not list(tmp_path.glob("runs/*"))
    calls = 1
    while not worker_in(tmp_path, budget=0.2).off(TODO[:1]):
        calls += 1
        assert calls < 20
    assert len(list(tmp_path.glob("runs/*"))) == 1


def test_a_cell_that_fails_by_itself_is_passed_over(tmp_path, capsys, monkeypatch):
    fit = engine.fit

    def bad(row, *args, **kw):
        if row == TODO[0][2]:
            raise FloatingPointError("the loss of seed 0 is not finite at step 2; there is no record")
        return fit(row, *args, **kw)

    monkeypatch.setattr(engine, "fit", bad)
    assert worker_in(tmp_path).off(TODO) == 1
    assert "ViT/0.5M-LKCA on digits is passed over: the loss of seed 0 is not finite" in capsys.readouterr().out


def test_two_at_once_share_the_work_and_what_was_passed_over_is_come_back_to(tmp_path, capsys):
    """What another process trains is left to it, and the next row begun; if that process dies, its row is trained."""
    name, p, row = TODO[0]
    held = locks.lock(Identity.of(name, row, p, 0), tmp_path)
    began, release = threading.Event(), threading.Event()

    def other():
        with held:
            began.set()
            release.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    began.wait(60)
    assert worker_in(tmp_path, budget=5).off(TODO) == 1  # its budget ends while the other holds the row
    assert "ViT/0.5M-LKCA on digits: another process trains it" in capsys.readouterr().out
    assert [r.row for r in records.read(tmp_path)[0]] == ["ViT/0.5M"]
    threading.Timer(1, release.set).start()
    assert worker_in(tmp_path).off(TODO) == 1  # it waits, and trains what the other left
    thread.join()


def test_one_seed_in_another_precision_is_another_run(tmp_path):
    assert worker_in(tmp_path, precision="fp32").off(TODO[:1]) == 1
    assert worker_in(tmp_path).off(TODO[:1]) == 0  # any precision will do
    assert worker_in(tmp_path, precision="fp64").off(TODO[:1]) == 1
    assert sorted(r.precision for r in records.read(tmp_path)[0]) == ["fp32", "fp64"]
