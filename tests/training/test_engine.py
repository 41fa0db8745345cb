"""The engine: streams, schedule, resuming after SIGKILL bit for bit, and what stops a run."""

import contextlib
import dataclasses
import json
import multiprocessing
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from lkca.data import images as data
from lkca.ledger import records, trained
from lkca.ledger.checks import RecordError
from lkca.ledger.protocols import PROTOCOLS, Protocol
from lkca.ledger.runs import Identity
from lkca.models import zoo
from lkca.pages import cost
from lkca.training import asked, checkpoints, classification, draws, engine, machine

TINY = Protocol("tiny", "a test's", epochs=2, train_images=96, batch_size=16, warmup_epochs=1, crop_padding=1)
HASHES = {"released": "79c2cf4b95", "paper": "d948943560", "brief": "9015859904", "sketch": "3fe249f7d1",
          "smoke": "9c2d3fc95d", "released-drop-path": "9df83008f2", "sketch-drop-path": "de2cb860ed"}  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return data.load("digits")


@pytest.fixture(scope="module")
def digits(whole):
    """With a sixth of the test images: what most of these tests look at is not how well a model answers."""
    return whole.tested_on(60)


def fit(digits, root, protocol=TINY, seeds=(0,), row="ViT/0.5M-LKCA", **kw):
    return engine.fit(row, digits, protocol, seeds, results_root=root, progress=None, **kw)


def never(*args, **kw):
    pytest.fail("trained")


def test_protocol_hashes_are_golden():
    """A record names its settings by this hash: it may never change for the same settings."""
    assert {name: p.hash for name, p in PROTOCOLS.items()} == HASHES


def test_every_setting_changes_the_hash_and_names_do_not():
    p = PROTOCOLS["released"]
    assert dataclasses.replace(p, name="x", cost="y").hash == p.hash
    for field in p.fields:
        assert dataclasses.replace(p, **{field: "something else"}).hash != p.hash, field


def test_the_recipe_is_the_released_one():
    p = PROTOCOLS["released"]
    assert (p.epochs, p.passes_per_epoch, p.batch_size, p.lr, p.lr_floor, p.warmup_epochs) == (
        100,
        3,
        128,
        1e-3,
        1e-6,
        10,
    )
    assert (p.weight_decay, p.betas, p.label_smoothing) == (0.05, (0.9, 0.999), 0.1)
    assert (p.erase_probability, p.erase_area, p.mix_probability, p.cutmix_share, p.mix_beta) == (
        0.25,
        (0.02, 0.4),
        0.5,
        0.5,
        1,
    )
    assert {**p.fields, "passes_per_epoch": 1} == PROTOCOLS["paper"].fields
    assert p.stages(50_000)[::99] == [1171, 117_100]


def test_learning_rate_is_golden():
    p = PROTOCOLS["released"]
    rates = [p.learning_rate(step, 50_000) for step in (0, 5855, 11710, 11710 + 52695, 117_099)]
    assert rates == pytest.approx([1e-6, 5.005e-4, 1e-3, 5.005e-4, 1e-6], rel=1e-4)


def test_learning_rate_without_warm_up_starts_at_the_top():
    p = dataclasses.replace(TINY, warmup_epochs=0)
    assert p.learning_rate(0, 160) == p.lr


def test_streams_are_separate_and_repeatable():
    found = {
        (s, n, i): tuple(draws.stream(s, n, i).random(3))
        for s in (0, 1)
        for n in ("init", "order", "step")
        for i in (0, 1)
    }
    assert len(set(found.values())) == len(found)
    assert found[0, "order", 1] == tuple(draws.stream(0, "order", 1).random(3))


def test_a_stage_shows_every_image_once_a_pass():
    order = draws.order(3, 0, 50, 150)
    assert all(sorted(part) == list(range(50)) for part in order.reshape(3, 50))
    assert list(order[:50]) != list(order[50:100])
    assert list(draws.order(3, 0, 50, 130)) == list(order[:130])


def test_a_run_leaves_a_whole_record(whole, digits, tmp_path):
    (record,) = fit(whole, tmp_path, row="LKCA-T")
    (file,) = (tmp_path / "runs").iterdir()
    assert record.row == "ViT/1M-LKCA"  # the paper has two names for it
    assert records.read_one(file) == record and records.read(tmp_path) == ([record], [])
    assert record.num_train == 96 and record.num_test == 360 and len(record.curve) == 2
    assert record.top1 == pytest.approx(sum(p * 36 for p in record.per_class_top1) / 360)
    assert record.protocol_fields == TINY.fields and record.protocol_hash == TINY.hash
    assert record.data_fingerprint == data.DATASETS["digits"].fingerprint
    assert not list((tmp_path / "checkpoints").glob("*.pt"))
    with pytest.raises(FileExistsError, match="never overwritten"):
        fit(digits, tmp_path, row="ViT/1M-LKCA")


def test_a_smoke_run_is_of_few_images_and_says_so(whole, tmp_path):
    (record,) = fit(whole, tmp_path, PROTOCOLS["smoke"], row="ViT/0.5M")
    assert (record.num_train, record.num_test, len(record.right)) == (10, 40, 40)
    assert record.protocol_fields["test_images"] == 40 and records.read(tmp_path) == ([record], [])
    assert all("test_images" not in p.fields for name, p in PROTOCOLS.items() if name != "smoke")


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_training_learns(digits, tmp_path, row):
    """Two plain passes over the digits in small batches: from chance (10 %) to most of them."""
    plain = Protocol("plain", "a test's", epochs=2, batch_size=16, warmup_epochs=1, flip=0.0, crop_padding=0,
                     auto_augment=False, erase_probability=0.0, mix_probability=0.0)  # fmt: skip
    (record,) = fit(digits, tmp_path, plain, row=row)
    assert record.top1 > 70
    assert record.curve[-1].train_loss < 1.7 < 2 < record.curve[0].train_loss


@pytest.mark.parametrize("together", [True, False])
def test_weights_are_kept_of_the_first_seed(digits, tmp_path, monkeypatch, together):
    monkeypatch.setattr(asked, "share_a_step", lambda *_: together)
    found = fit(digits, tmp_path, seeds=(4, 2), keep_weights=True)
    assert [trained.path(r, tmp_path).exists() for r in found] == [True, False]


def test_kept_weights_and_recorded_answers_tell_the_same_story(whole, tmp_path):
    (record,) = fit(whole, tmp_path, keep_weights=True)
    model = zoo.build(record.row, image_size=8, num_classes=10)
    model.load_state_dict(trained.read(record, tmp_path))
    mean, std = (torch.tensor(v)[:, None, None] for v in data.stats("digits"))
    with torch.no_grad():
        answers = model.eval()((whole.test_images / 255 - mean) / std).argmax(-1)
    right = (answers == whole.test_labels).numpy()
    assert (right == record.right).mean() > 0.98  # weights are kept in half precision
    assert record.right.mean() == pytest.approx(record.top1 / 100)
    trained.path(record, tmp_path).write_bytes(b"x")
    with pytest.raises(RecordError, match="is damaged"):
        trained.read(record, tmp_path)
    trained.path(record, tmp_path).unlink()
    with pytest.raises(RecordError, match="weights of this run were not kept"):
        trained.read(record, tmp_path)


PROCESSES = multiprocessing.get_context("forkserver")  # its server imports torch once, and each process begins there
PROCESSES.set_forkserver_preload(["pytest", "sklearn.datasets", "lkca.pages.cost", "lkca.training.engine"])


def two_seeds(root, told):
    """What is killed: two seeds in one step, a checkpoint every two steps, and after each its weights and a word."""
    torch.set_num_threads(1)
    save = checkpoints.save

    def spy(file, whose, stack, *rest):
        save(file, whose, stack, *rest)
        torch.save(stack["params"], root / "weights.aside")
        (root / "weights.aside").replace(root / "weights.pt")
        told.send("saved")

    checkpoints.save, classification.BLOCK, asked.share_a_step = spy, 2, lambda *_: True
    fit(data.load("digits").tested_on(60), root, seeds=(0, 1), checkpoint_every=0)


def child(root):
    """A process at work in ``root``, and what it tells."""
    root.mkdir(exist_ok=True)
    heard, told = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=two_seeds, args=(root, told))
    process.start()
    told.close()  # so that its end is heard
    return process, heard


def ended(process, heard):
    """Its exit code, once it has ended; it may have more to tell than a pipe holds."""
    with contextlib.suppress(EOFError):
        while True:
            heard.recv()
    process.join()
    return process.exitcode


def ending(root):
    found = [json.loads(file.read_text()) for file in sorted((root / "runs").glob("*.json"))]
    assert [record["seed"] for record in found] == [0, 1]
    for record in found:
        for name in ("images_per_second", "wall_seconds", "finished"):
            del record[name]
        for point in record["curve"]:
            del point["seconds"]
    return torch.load(root / "weights.pt"), found


def test_killed_at_random_points_it_ends_with_the_same_weights_bit_for_bit(tmp_path):
    assert ended(*child(tmp_path / "whole")) == 0
    weights, record = ending(tmp_path / "whole")

    rng, root, kills = random.Random(0), tmp_path / "killed", 0
    for _ in range(3):
        process, heard = child(root)
        with contextlib.suppress(EOFError):
            for _ in range(rng.randint(1, 2)):  # SIGKILL somewhere between two checkpoints, or within one
                heard.recv()
        time.sleep(rng.random() * 0.1)
        process.kill()
        kills += ended(process, heard) == -signal.SIGKILL
    ended(*child(root))
    assert kills >= 2
    again, record_again = ending(root)
    assert weights.keys() == again.keys() and all(torch.equal(weights[k], again[k]) for k in weights)
    assert record == record_again


def test_what_dies_loses_no_more_than_its_last_interval(digits, tmp_path, monkeypatch):
    """Dead after 5 steps of 12 with a checkpoint after each block, here a step, it goes on from step 5."""
    taken, take = [], engine.Stack.train

    def step(stack, block, rates, noise):
        taken.append(len(rates))
        if len(taken) == 6:
            raise KeyboardInterrupt
        take(stack, block, rates, noise)

    monkeypatch.setattr(classification, "BLOCK", 1)
    monkeypatch.setattr(engine.Stack, "train", step)
    with pytest.raises(KeyboardInterrupt):
        fit(digits, tmp_path, checkpoint_every=0)
    taken = [0] * 6
    fit(digits, tmp_path, checkpoint_every=0)
    assert len(taken) - 6 == 12 - 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_names_seed_and_step(digits, tmp_path, monkeypatch, bad):
    rate = Protocol.learning_rate
    monkeypatch.setattr(Protocol, "learning_rate", lambda p, step, n: bad if step == 1 else rate(p, step, n))
    with pytest.raises(FloatingPointError, match="seed 3 is not finite at step 2; there is no record"):
        fit(digits, tmp_path, seeds=(3, 4))
    assert not list(tmp_path.glob("runs/*"))


def test_a_damaged_checkpoint_is_named_before_training(digits, tmp_path, monkeypatch):
    first = Identity.of("digits", "ViT/0.5M-LKCA", TINY, 0, "fp32")
    file = tmp_path / "checkpoints" / f"{first.name}.pt"
    file.parent.mkdir()
    file.write_bytes(b"half")
    monkeypatch.setattr(engine.Stack, "train", never)
    with pytest.raises(ValueError, match=file.name.replace("+", r"\+")):
        fit(digits, tmp_path)


@pytest.mark.parametrize(
    "kw, says",
    [
        ({"precision": "fp8"}, "precision='fp8' is not one of 'auto', 'fp64', 'fp32', 'tf32', 'bf16'"),
        ({"execution": "captured"}, "execution='captured' is not one of"),
        ({"protocol": dataclasses.replace(TINY, train_images=8)}, "fewer than a batch of 16"),
        ({"device": "tpu"}, "device='tpu' is not one of"),
    ],
)
def test_wrong_settings_fail_before_training(digits, tmp_path, monkeypatch, kw, says):
    monkeypatch.setattr(engine.Stack, "train", never)
    with pytest.raises(ValueError, match=says):
        fit(digits, tmp_path, **kw)


def test_a_data_set_without_a_policy_says_so(digits, tmp_path):
    with pytest.raises(ValueError, match="other has no AutoAugment policy: name one in POLICIES"):
        fit(dataclasses.replace(digits, name="other"), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where no GPU is")
def test_cuda_without_a_gpu_says_so():
    with pytest.raises(ValueError, match="use device='cpu'"):
        machine.checked_device("cuda")


@pytest.mark.parametrize("has, precision", [({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")])
def test_the_cpu_trains_in_bf16_where_it_multiplies_it(digits, tmp_path, monkeypatch, has, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    (record,) = fit(digits, tmp_path, dataclasses.replace(TINY, epochs=1, warmup_epochs=0, train_images=16))
    assert record.precision == precision


def test_a_time_budget_stops_at_a_checkpoint_and_the_next_call_goes_on(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(asked, "share_a_step", lambda *_: True)
    whole = fit(digits, tmp_path / "whole", seeds=(0, 1))
    calls = 0
    while (found := fit(digits, tmp_path / "parts", seeds=(0, 1), time_budget=0)) is None:
        calls += 1
        assert len(list(tmp_path.glob("parts/checkpoints/*.pt"))) == 1 and not list(tmp_path.glob("parts/runs/*"))
    assert calls >= 1
    for a, b in zip(whole, found, strict=True):
        assert a.per_class_top1 == b.per_class_top1 and a.test_loss == b.test_loss and a.top1 == b.top1
        assert [e.train_loss for e in a.curve] == [e.train_loss for e in b.curve]


def test_a_run_that_goes_on_elsewhere_names_both(digits, tmp_path, monkeypatch):
    kw = {"precision": "fp32", "time_budget": 0}
    monkeypatch.setattr(machine, "device_in_words", lambda device: "one machine")
    assert fit(digits, tmp_path, **kw) is None
    monkeypatch.setattr(machine, "device_in_words", lambda device: "another")
    monkeypatch.setitem(machine.VERSIONS, "torch", "99.0")
    while (found := fit(digits, tmp_path, **kw)) is None:
        pass
    assert found[0].device == "one machine, then another" and found[0].versions["torch"].endswith(", then 99.0")
    assert found[0].versions["numpy"] == machine.VERSIONS["numpy"]


def test_processors_of_one_name_are_told_apart_by_their_instructions(monkeypatch):
    names = []
    for instructions in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda instructions=instructions: instructions)
        names.append(machine.device_in_words("cpu"))
    assert names[1] == names[0].replace("AVX2", "AVX512") != names[0]
    assert [cost.threads(name) for name in names] == [torch.get_num_threads()] * 2


@pytest.mark.parametrize("seeds", [(0, 0), (-1,), (1.5,)])
def test_seeds_are_different_whole_numbers(digits, tmp_path, seeds):
    with pytest.raises(ValueError, match="are not different whole numbers from 0 up"):
        fit(digits, tmp_path, seeds=seeds)


def test_seeds_trained_together_lose_nothing_between_their_records(digits, tmp_path, monkeypatch):
    """The disk is full after the first of two: the next call writes the other from the checkpoint they share."""
    write = records.write

    def full(record, root):
        if record.seed == 1:
            raise OSError(28, "No space left on device")
        return write(record, root)

    monkeypatch.setattr(asked, "share_a_step", lambda *_: True)
    with monkeypatch.context() as m:
        m.setattr(records, "write", full)
        with pytest.raises(OSError, match="No space left"):
            fit(digits, tmp_path, seeds=(0, 1), keep_weights=True)
    assert [r.seed for r in records.read(tmp_path)[0]] == [0] and len(list(tmp_path.glob("weights/*"))) == 1
    monkeypatch.setattr(engine.Stack, "train", lambda *_: pytest.fail("it trained again"))
    (second,) = fit(digits, tmp_path, seeds=(1,))
    assert (second.seed, second.stacked) == (1, 2) and not list(tmp_path.glob("checkpoints/*.pt"))


def test_a_full_disk_loses_nothing(digits, tmp_path, monkeypatch):
    """The record cannot be written: the run says so and its checkpoint stays, so that the next call writes it."""

    def full(*args, **kw):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(records, "write", full)
        with pytest.raises(OSError, match="No space left"):
            fit(digits, tmp_path)
    monkeypatch.setattr(engine.Stack, "train", never)
    assert fit(digits, tmp_path)[0].row == "ViT/0.5M-LKCA"
    assert len(list(Path(tmp_path, "runs").iterdir())) == 1


def test_seeds_share_a_step_on_cuda_where_their_row_allows_it():
    vit, crossvit = (zoo.build(row, image_size=32, num_classes=10) for row in ("ViT/0.5M", "CrossViT-T"))
    assert asked.share_a_step(vit, "cuda")
    assert not asked.share_a_step(vit, "cpu") and not asked.share_a_step(crossvit, "cuda")


def test_on_a_cpu_seeds_train_one_after_the_other_and_each_has_its_record_when_it_is_done(
    digits, tmp_path, monkeypatch
):
    seen, take = [], engine.Stack.train

    def step(stack, *args):
        seen.append(records.read(tmp_path)[0])
        if len(seen) == 4:  # a block an epoch: in the second epoch of the second seed
            raise KeyboardInterrupt
        take(stack, *args)

    with monkeypatch.context() as m:
        m.setattr(engine.Stack, "train", step)
        with pytest.raises(KeyboardInterrupt):
            fit(digits, tmp_path, seeds=(3, 1))
    assert [[r.seed for r in done] for done in seen] == [[], [], [3], [3]]
    found = [*records.read(tmp_path)[0], *fit(digits, tmp_path, seeds=(1,))]
    assert [(r.seed, r.stacked) for r in found] == [(3, 1), (1, 1)]


def test_seeds_that_cannot_share_a_step_train_one_after_the_other(tmp_path):
    """CrossViT draws its own dropout: each seed ends as it does alone."""
    p = dataclasses.replace(TINY, epochs=1, train_images=16, batch_size=8, warmup_epochs=0)
    images, row = data.load("digits-32").tested_on(10), "CrossViT-T"
    found = fit(images, tmp_path / "two", p, seeds=(0, 1), row=row)
    (alone,) = fit(images, tmp_path / "alone", p, seeds=(1,), row=row)
    assert [(r.seed, r.stacked) for r in found] == [(0, 1), (1, 1)]
    assert found[-1].curve[-1].train_loss == alone.curve[-1].train_loss and found[-1].correct == alone.correct


def test_a_package_that_its_checkout_does_not_track_has_no_commit(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    (tmp_path / "lkca" / "training").mkdir(parents=True)
    (tmp_path / "lkca" / "__init__.py").touch()
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "lkca" / "training" / "machine.py"))
    git("init")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "another project")
    assert machine.git_state() == ("unknown", False)
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "this one")
    commit, clean = machine.git_state()
    assert len(commit) == 40 and clean
