"""What tells two runs apart is in their names; old names stay; the same seed in another precision has a place."""

import dataclasses

import pytest

from lkca.ledger import cells, intervals, records
from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.runs import Identity
from lkca.models import rows

LEDGER = records.read()[0]
OLD = next(r for r in LEDGER if (r.dataset, r.row, r.protocol, r.seed) == ("cifar100", "ViT/1M", "brief", 0))

HASHES = {
    "CaiT-T": "17070aa11e",
    "LKCA-XS/UPerNet": "a23a02a256",
    "ViT": "12bd462a63",
    "ViT-LKCA": "d4d8673bc5",
    "ViT-XS/UPerNet": "704bc31109",
    "ViT/0.5M": "a41c4bff12",
    "ViT/0.5M-LKCA": "efce8825c5",
    "ViT/0.5M-LKCA-3x3": "2d2212a051",
    "ViT/0.5M-LKCA-channels": "e19c0a9d8e",
    "ViT/0.5M-LKCA-heads": "b501de7d38",
    "ViT/0.5M-LKCA-random": "4f56836a2a",
    "ViT/0.5M-LKCA-same": "486a0ece1c",
    "ViT/0.5M-both": "f1e7cc9efa",
    "ViT/0.5M-mean": "54b4a5d076",
    "ViT/1M": "9f9dceb631",
    "ViT/1M-LKCA": "8058f941b7",
    "ViT/2M": "4f32dce210",
    "ViT/2M-LKCA": "6932267a8a",
    "ViT/4M": "b642e71017",
    "ViT/4M-LKCA": "ce5afd146f",
    "ViT/8M": "f2b4b37bce",
    "ViT/8M-LKCA": "bd86614cf2",
}


def now(run, **changes):
    """The same run as the present engine would record it."""
    return dataclasses.replace(run, **{"schema": 2, "versions": run.versions | {"lkca": "0.6.0"}} | changes)


def test_old_records_keep_their_names_and_get_what_they_lack():
    assert records.path_of(OLD, "").name == f"cifar100--ViT_1M--brief-{OLD.protocol_hash}--seed0.json"
    assert OLD.schema == 1 and OLD.row_hash == rows.row_hash("ViT/1M", first_weights=1) and OLD.draws == 2
    assert {r.draws for r in LEDGER if r.versions["lkca"].startswith("0.1.")} == {1}
    assert {r.draws for r in LEDGER if not r.versions["lkca"].startswith("0.1.")} == {2}


def test_runs_that_differ_in_anything_have_places_of_their_own(tmp_path):
    one = now(OLD)
    others = [now(OLD, precision="bf16"), now(OLD, row_hash="0123456789"), now(OLD, draws=3), now(OLD, seed=7)]
    files = [records.write(run, tmp_path) for run in (OLD, one, *others)]
    assert len(set(files)) == 6
    found, broken = records.read(tmp_path)
    assert not broken and {r.identity for r in found} == {r.identity for r in (one, *others)} and len(found) == 6
    for run in (OLD, one, *others):
        with pytest.raises(FileExistsError, match="never overwritten"):
            records.write(run, tmp_path)


def test_whether_a_run_was_made_is_decided_by_its_identity(tmp_path):
    """A seed that 0.1's engine drew, or another row's version, is not the present engine's; precision can be asked."""
    p = PROTOCOLS["brief"]
    asked = [Identity.of("cifar100", "ViT/1M", p, 0, precision) for precision in ("auto", "fp32", "bf16")]
    assert records.lacking(asked, tmp_path) == asked
    records.write(OLD, tmp_path)
    assert OLD.precision == "fp32" and records.lacking(asked, tmp_path) == asked[2:]
    records.write(now(OLD, precision="bf16"), tmp_path)
    assert not records.lacking(asked, tmp_path)
    other = tmp_path / "other"
    records.write(now(OLD, draws=1), other)
    records.write(now(OLD, row_hash="0123456789"), other)
    assert records.lacking(asked, other) == asked


def test_a_seed_in_two_precisions_counts_once_and_another_row_s_version_never():
    twice = [OLD, now(OLD, precision="bf16", finished="2026-12-01T00:00:00+00:00"), now(OLD, row_hash="0123456789")]
    assert cells.of_cell(twice, "cifar100", "brief", "ViT/1M") == [OLD]
    assert twice[2].apart and "another version of ViT/1M" in twice[2].apart
    assert intervals.pooled([*twice, dataclasses.replace(OLD, seed=5)]).freedom == 1


def test_a_row_s_hash_changes_with_its_settings_and_first_weights_alone():
    assert rows.row_hash("ViT") == rows.row_hash("ViT") != rows.row_hash("ViT-LKCA")
    assert rows.row_hash("ViT", first_weights=2) != rows.row_hash("ViT")
    with pytest.raises(ValueError, match="row 'none' does not exist"):
        rows.row_hash("none")


def test_the_hashes_of_the_rows_that_have_records_are_these():
    """Pinned: a change to one of these makes every record of the row one of a former model."""
    assert {name: rows.row_hash(name) for name in HASHES} == HASHES
    assert {r.row for r in LEDGER} - {"Swin-T"} <= set(HASHES)
    assert {r.apart for r in LEDGER if r.row in HASHES} == {None}
