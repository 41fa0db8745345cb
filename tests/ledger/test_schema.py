"""What no record may say: the reader refuses it by name, and all that the published JSON Schema refuses."""

import copy
import json
import os
import random

import jsonschema
import pytest

from lkca import published
from lkca.ledger import records
from lkca.ledger.runs import Run, pack
from lkca.ledger.schema import record_schema

SCHEMA = json.loads((published.FOLDER / "record.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FILES = {
    kind: next(file for file in sorted((records.RESULTS / "runs").glob(f"{start}*.json")))
    for kind, start in (("classification", "cifar100--ViT_1M-LKCA--brief"), ("segmentation", "camvid--LKCA-XS"))
}


def fields(kind="classification", **changes):
    """A sound record of today, with changes."""
    held = json.loads(FILES[kind].read_text())
    run = records.read_one(FILES[kind])
    held |= {"schema": 2, "row_hash": run.row_hash, "draws": run.draws}
    return copy.deepcopy(held) | changes


def outcome(folder, held):
    """What the reader says of a record that lies where its fields say; None if it is sound."""
    name = "{dataset}--{row}--{protocol}-{protocol_hash}--seed{seed}--{precision}-{row_hash}-draws{draws}.json"
    file = folder / "runs" / name.format(**held).replace("/", "_")[:200]
    file.parent.mkdir(exist_ok=True)
    text = held if isinstance(held, str) else json.dumps(held)
    file.write_text(text, encoding="utf-8")
    _, broken = records.read(folder, Run)
    file.unlink()
    return broken[0] if broken else None


def test_the_published_schema_is_the_code_s_and_all_records_keep_to_it():
    assert record_schema() == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for file in sorted((records.RESULTS / "runs").glob("*.json"))[::7]:
        VALIDATOR.validate(json.loads(file.read_text()))
    for kind in FILES:
        VALIDATOR.validate(fields(kind))


@pytest.mark.parametrize("kind", FILES)
def test_what_the_schema_refuses_the_reader_refuses(tmp_path, kind):
    """Two hundred changes at random places: left out, of another type, negative, NaN, a stray field."""
    rng, refused = random.Random(0), 0
    values = [None, True, -1, -0.5, 10**30, float("nan"), float("inf"), "x", "", [], {}, [None], {"a": 1}, "\ud800"]
    for _ in range(200):
        held = fields(kind)
        name = rng.choice([*held, "remark"])
        inner = isinstance(held.get(name), list) and held[name] and rng.random() < 0.6
        if rng.random() < 0.1 and name in held:
            del held[name]
        elif inner and name == "curve":
            held[name][0][rng.choice(list(held[name][0]))] = rng.choice(values)
        elif inner:
            held[name][rng.randrange(len(held[name]))] = rng.choice(values)
        else:
            held[name] = rng.choice(values)
        if not VALIDATOR.is_valid(held):
            refused += 1
            names = {"dataset", "row", "protocol", "protocol_hash", "seed", "precision", "row_hash", "draws"}
            placed = {**fields(kind), **{key: value for key, value in held.items() if key in names}}
            file = tmp_path / "runs" / FILES[kind].name
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(held), encoding="utf-8")
            found, broken = records.read(tmp_path, Run)
            assert not found and len(broken) == 1 and FILES[kind].stem in broken[0], (name, held.get(name), placed)
    assert refused > 100


RIGHT = records.read_one(FILES["classification"]).right
CLASSES = fields()["per_class_top1"]


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"per_class_top1": [CLASSES[0] + 1, *CLASSES[1:]]}, "per_class_top1 averages to"),
        ({"per_class_top1": [*CLASSES[1:], CLASSES[0]]}, "but correct says"),
        ({"correct": pack(RIGHT[::-1])}, "per_class_top1 of class 0 is"),
        ({"correct": "", "top1": fields()["top1"] + 1}, "but the curve says"),
        ({"curve": fields()["curve"][:-1]}, "but the curve says|the settings ask for"),
        ({"protocol_fields": {}}, "protocol_fields give"),
        ({"protocol_fields": fields()["protocol_fields"] | {"batch_size": 0}}, "protocol_fields give"),
        ({"protocol_hash": "0123456789"}, "protocol_hash is 0123456789"),
        ({"params": 5}, "params is 5"),
        ({"macs_paper": 5}, "macs_paper is 5"),
        ({"image_size": 64}, "is .*, ViT/1M-LKCA has .* at this size"),
        ({"num_classes": 10}, "per_class_top1 has 100 entries for 10 classes"),
        ({"num_test": 0}, "num_test is 0, which cannot be"),
        ({"num_test": -8}, "num_test is -8, which cannot be"),
        ({"num_train": 60_000}, "num_train is 60000, cifar100 has 50000"),
        ({"stacked": 0}, "stacked is 0, which cannot be"),
        ({"seed": -5}, "seed is -5, which cannot be"),
        ({"wall_seconds": -1.0}, "wall_seconds is -1.0, which cannot be"),
        ({"images_per_second": 0.0}, "images_per_second is 0.0, which cannot be"),
        ({"finished": "yesterday"}, "finished is 'yesterday', not a date"),
        ({"finished": "2999-01-01T00:00:00+00:00"}, "in the future"),
        ({"finished": "2026-11-01T00:00:00"}, "without a time zone"),
        ({"precision": "fp999"}, "precision is 'fp999'"),
        ({"git_commit": "x; touch y"}, "git_commit is 'x; touch y'"),
        ({"versions": {}}, "versions say '' of lkca"),
        ({"versions": {"lkca": 5}}, "versions should hold texts only"),
        ({"device": "half \ud800"}, "device holds half a character"),
        ({"row": "LKCA-T"}, "row is 'LKCA-T', another name of 'ViT/1M-LKCA'"),
        ({"top1_best": 10**400}, "a number of 401 digits"),
        ({"seed": 10**30}, "seed is a number of"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_by_name(tmp_path, changes, says):
    import re

    told = outcome(tmp_path, fields(**changes))
    assert told and re.search(says, told), told


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"intersection": lambda v: [v[0] + 10**9, *v[1:]]}, "which cannot be"),
        ({"truth": lambda v: [-v[0], *v[1:]]}, "which cannot be"),
        ({"truth": lambda v: [0] * len(v), "union": lambda v: [0] * len(v), "intersection": lambda v: [0] * len(v)},
         "truth has no pixel"),
    ],
)  # fmt: skip
def test_pixels_that_cannot_be_are_refused(tmp_path, changes, says):
    held = fields("segmentation")
    told = outcome(tmp_path, held | {name: change(held[name]) for name, change in changes.items()})
    assert told and says in told


@pytest.mark.parametrize("changes", [{"row": "Perceiver"}, {"row_hash": "0123456789"}, {"data_fingerprint": "0" * 64}])
def test_what_is_merely_unknown_stands_apart(tmp_path, changes):
    """It is read and listed, and no cell has it."""
    from lkca.ledger.cells import of_cell

    held = fields(**changes)
    assert outcome(tmp_path, held) is None
    (tmp_path / "runs" / "x").parent.mkdir(exist_ok=True)
    run = records._from_fields(held)
    assert run.apart and not of_cell([run], run.dataset, run.protocol, run.row if run.row != "Perceiver" else "ViT")


@pytest.mark.parametrize("what", ["brackets", "fifo", "folder", "link", "large", "empty"])
def test_one_odd_file_never_hides_the_ledger(tmp_path, what):
    sound = FILES["classification"]
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / sound.name).write_bytes(sound.read_bytes())
    odd = runs / "odd.json"
    if what == "brackets":
        odd.write_text("[" * 100_000)
    elif what == "fifo":
        os.mkfifo(odd)
    elif what == "folder":
        odd.mkdir()
    elif what == "link":
        odd.symlink_to(odd)
    elif what == "large":
        with odd.open("wb") as file:
            file.truncate(records.LARGEST + 1)
    else:
        odd.write_text("")
    for _ in range(2):  # as found, and as remembered
        found, broken = records.read(tmp_path)
        assert len(found) == 1 and len(broken) == 1 and "odd.json" in broken[0]


def test_companions_of_other_systems_are_no_records(tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("._x.json", ".DS_Store", "~x.json"):
        (runs / name).write_text("{")
    assert records.read(tmp_path) == ([], [])


def test_the_remembered_outcome_is_that_of_a_first_look(tmp_path):
    """Whatever becomes of what is remembered: the same runs, the same sentences; a changed file is read anew."""
    runs, remembered = tmp_path / "runs", tmp_path / ".cache" / "records.jsonl"
    runs.mkdir()
    for file in FILES.values():
        (runs / file.name).write_bytes(file.read_bytes())
    (runs / "broken.json").write_text('{"top1": 1}')
    first = records.read(tmp_path, Run)
    assert remembered.exists() and records.read(tmp_path, Run) == first
    for spoil in (lambda: remembered.write_text("half a li"), lambda: remembered.write_bytes(b"\xff\x00"),
                  remembered.unlink):  # fmt: skip
        spoil()
        assert records.read(tmp_path, Run) == first
    held = json.loads(FILES["classification"].read_text())
    (runs / FILES["classification"].name).write_text(json.dumps(held | {"wall_seconds": -1.0}))
    assert len(records.read(tmp_path, Run)[1]) == 2
