"""What kills, damage, divergence and a stop leave behind: nothing finished is lost, nothing wrong goes on unnoticed."""

import dataclasses
import json
import os
import shutil
import signal
import threading

import pytest
import torch

from lkca.data import images as data
from lkca.ledger import diverged, records, trained
from lkca.ledger.checks import RecordError
from lkca.ledger.protocols import PROTOCOLS, Protocol
from lkca.ledger.runs import Identity
from lkca.training import asked, checkpoints, engine, machine

TINY = Protocol("tiny", "a test's", epochs=2, train_images=32, batch_size=16, warmup_epochs=1, crop_padding=1)
ROW = "ViT/0.5M-LKCA"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").tested_on(20)


@pytest.fixture
def together(monkeypatch):
    monkeypatch.setattr(asked, "share_a_step", lambda *_: True)


def fit(ds, root, protocol=TINY, seeds=(0,), row=ROW, **kw):
    return engine.fit(row, ds, protocol, seeds, results_root=root, progress=None, **{"precision": "fp32"} | kw)


def begun(ds, root, **kw):
    """A run that stopped at its first checkpoint; returns the checkpoint's file."""
    assert fit(ds, root, time_budget=0, **kw) is None
    (file,) = (root / "checkpoints").glob("*.pt")
    return file


def never(*_):
    pytest.fail("it trained again")


@pytest.mark.parametrize("wanted", [(1,), (1, 0), (0, 1, 2)])
def test_seeds_that_were_begun_together_go_on_together_whatever_seeds_are_asked_for(digits, tmp_path, together, wanted):
    begun(digits, tmp_path, seeds=(0, 1))
    found = fit(digits, tmp_path, seeds=wanted)
    assert [r.seed for r in found] == list(wanted)
    assert {r.seed: r.stacked for r in records.read(tmp_path)[0]} == {0: 2, 1: 2} | ({2: 1} if 2 in wanted else {})
    assert not list(tmp_path.glob("checkpoints/*.pt"))


def test_auto_goes_on_in_the_precision_that_a_run_was_begun_in(digits, tmp_path, monkeypatch):
    begun(digits, tmp_path, precision="fp32")
    monkeypatch.setattr(machine, "fastest_precision", lambda device: "bf16")
    (run,) = fit(digits, tmp_path, precision="auto")
    assert run.precision == "fp32"


def test_one_seed_in_two_precisions_is_two_runs(digits, tmp_path):
    begun(digits, tmp_path, precision="fp32")
    (other,) = fit(digits, tmp_path, precision="fp64")
    (one,) = fit(digits, tmp_path, precision="fp32")
    assert [one.precision, other.precision] == ["fp32", "fp64"] and len(records.read(tmp_path)[0]) == 2


@pytest.mark.parametrize("what", ["a bit", "zeros", "cut", "empty"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_trained(digits, tmp_path, monkeypatch, what):
    file = begun(digits, tmp_path)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    if what == "a bit":
        content[middle] ^= 1
    elif what == "zeros":
        content[middle : middle + 4096] = bytes(4096)
    file.write_bytes(content[: {"cut": 50_000, "empty": 0}.get(what)])
    monkeypatch.setattr(engine.Stack, "train", never)
    with pytest.raises(ValueError, match=f"{file.name} (is damaged .*digest|cannot be understood)") as raised:
        fit(digits, tmp_path)
    assert ("delete it" in str(raised.value)) == ("its digest is not" in str(raised.value))  # a wrong checksum alone


def test_a_checkpoint_from_before_0_6_is_taken_as_it_is_and_that_is_said(digits, tmp_path, capsys):
    whole = fit(digits, tmp_path / "whole")[0]
    file = begun(digits, tmp_path / "parts")
    held = torch.load(file, weights_only=True)
    first = Identity.of("digits", ROW, TINY, 0, "fp32")
    torch.save({name: held[name] for name in ("stack", "state", "fingerprint")}, file.with_name(
        f"{first.name_of_schema_1}.pt"))  # fmt: skip
    file.unlink()
    (run,) = fit(digits, tmp_path / "parts", precision="auto")
    assert "is from before 0.6.0, without a digest: it is taken as it is" in capsys.readouterr().out
    assert (run.top1, run.test_loss) == (whole.top1, whole.test_loss)
    assert not list(tmp_path.glob("parts/checkpoints/*.pt"))


@pytest.mark.parametrize("other", [{"seeds": (1,)}, {"row": "ViT/0.5M-LKCA-random"}, {"protocol": "wd"}])
def test_a_checkpoint_under_another_s_name_is_not_taken(digits, tmp_path, other):
    other = {**other, **({"protocol": dataclasses.replace(TINY, weight_decay=0.1)} if "protocol" in other else {})}
    theirs = begun(digits, tmp_path / "theirs", **other)
    ours = begun(digits, tmp_path / "ours")
    shutil.copy(theirs, ours)
    with pytest.raises(ValueError, match="is of other runs than its name says"):
        fit(digits, tmp_path / "ours")


@pytest.mark.parametrize("change", ["step", "moment", "shape", "data"])
def test_a_checkpoint_that_does_not_fit_is_refused(digits, tmp_path, change):
    """Its digest is right: somebody's code wrote it."""
    file = begun(digits, tmp_path)
    held = torch.load(file, weights_only=True)
    del held["digest"]
    if change == "step":
        held["state"]["step"] = 99
    elif change == "moment":
        held["stack"]["optimizer"].pop(3)
    elif change == "shape":
        name = next(iter(held["stack"]["params"]))
        held["stack"]["params"][name] = torch.zeros(1)
    else:
        held["fingerprint"] = "0" * 64
    torch.save({**held, "digest": checkpoints.digest(held)}, file)
    with pytest.raises(ValueError, match="does not fit|says step 99|made on other data") as raised:
        fit(digits, tmp_path)
    assert "delete" not in str(raised.value)


def test_what_kills_in_the_midst_of_writing_leave_is_cleared_and_nothing_else(digits, tmp_path):
    first = Identity.of("digits", ROW, TINY, 0, "fp32")
    other = Identity.of("digits", "ViT/0.5M", TINY, 0, "fp32")
    left = {
        who: [
            tmp_path / "checkpoints" / f"{who.name}.pt.aside",
            tmp_path / "runs" / f".{who.name}.json-abc123.aside",
            tmp_path / "weights" / f".{who.name}.safetensors-abc123.aside",
        ]
        for who in (first, other)
    }
    for file in (*left[first], *left[other]):
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    fit(digits, tmp_path)
    assert not any(file.exists() for file in left[first]) and all(file.exists() for file in left[other])


def test_a_file_system_without_hard_links_will_do(digits, tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    records.check_writable(tmp_path)
    (run,) = fit(digits, tmp_path, keep_weights=True)
    assert records.read(tmp_path) == ([run], []) and trained.read(run, tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        records.write(run, tmp_path)


@pytest.mark.parametrize("folder", ["runs", "checkpoints", "weights"])
def test_where_something_cannot_be_written_is_known_before_training(tmp_path, folder):
    (tmp_path / folder).write_text("a file where a folder belongs")
    with pytest.raises(OSError, match=f"{folder} cannot be written .*name another folder with results_root"):
        records.check_writable(tmp_path)


@pytest.mark.parametrize("what", ["loss", "weights", "end"])
def test_a_divergence_is_noted_and_not_tried_for_ever(digits, tmp_path, monkeypatch, what):
    """A loss in the midst, weights under a finite loss, or the last evaluation: one sentence names run, seed, step."""
    take = engine.Stack.train

    def blow_up(stack, *rest):
        take(stack, *rest)
        if what == "loss":
            stack.first_bad.fill_(1)
        else:
            next(iter(stack.params.values())).data.fill_(float("nan"))

    with monkeypatch.context() as m:
        m.setattr(engine.Stack, "train", blow_up)
        with pytest.raises(FloatingPointError, match=f"{ROW} · digits · tiny · seed 0: .*seed 0.*take another seed"):
            fit(digits, tmp_path, dataclasses.replace(TINY, epochs=1, warmup_epochs=0) if what == "end" else TINY)
    assert not list(tmp_path.glob("runs/*")) and not list(tmp_path.glob("checkpoints/*.pt"))
    (note,) = diverged.read(tmp_path)
    assert note["seed"] == 0 and note["row"] == ROW and "step" in note["what"]
    monkeypatch.setattr(engine.Stack, "train", never)
    with pytest.raises(FloatingPointError, match="seed 0 diverged before"):
        fit(digits, tmp_path, dataclasses.replace(TINY, epochs=1, warmup_epochs=0) if what == "end" else TINY)


@pytest.mark.parametrize("number, raised", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(digits, tmp_path, monkeypatch, number, raised):
    take, before = engine.Stack.train, signal.getsignal(number)

    def ask(stack, *rest):
        take(stack, *rest)
        os.kill(os.getpid(), number)

    whole = fit(digits, tmp_path / "whole")[0]
    with monkeypatch.context() as m:
        m.setattr(engine.Stack, "train", ask)
        with pytest.raises(raised, match="stopped at step 2 of 4; the same call goes on from there"):
            fit(digits, tmp_path / "parts")
    assert signal.getsignal(number) == before
    (run,) = fit(digits, tmp_path / "parts")
    assert (run.top1, run.test_loss) == (whole.top1, whole.test_loss)


def test_two_calls_at_once_make_one_run(digits, tmp_path):
    """`fit` locks its row: the second waits, finds the record, and says so; nothing of the first is touched."""
    results = []

    def call():
        try:
            results.append(fit(digits, tmp_path, keep_weights=True))
        except FileExistsError as error:
            results.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(r).__name__ for r in results) == ["FileExistsError", "list"]
    (run,) = records.read(tmp_path)[0]
    assert trained.read(run, tmp_path)


def test_kept_weights_say_whose_they_are_and_carry_a_digest(digits, tmp_path):
    (run,) = fit(digits, tmp_path, keep_weights=True)
    file = trained.path(run, tmp_path)
    content = bytearray(file.read_bytes())
    content[-2] ^= 64
    file.write_bytes(content)
    with pytest.raises(RecordError, match="is damaged: its content has not the digest"):
        trained.read(run, tmp_path)
    other = dataclasses.replace(run, seed=1)
    trained.write(other, {"a": torch.ones(3)}, tmp_path)
    shutil.copy(trained.path(other, tmp_path), file)
    with pytest.raises(RecordError, match="holds the weights of digits--"):
        trained.read(run, tmp_path)
    third = dataclasses.replace(run, seed=2)
    trained.write(third, {"a": torch.full((3,), float("nan"))}, tmp_path)
    with pytest.raises(RecordError, match="a holds values that are not finite"):
        trained.read(third, tmp_path)


def test_seeds_may_be_numpy_s(digits, tmp_path):
    import numpy as np

    (run,) = fit(digits, tmp_path, seeds=np.arange(1, 2))
    assert run.seed == 1 and json.loads(records.path_of(run, tmp_path).read_text())["seed"] == 1
    assert PROTOCOLS["released"].hash  # untouched by all of this
