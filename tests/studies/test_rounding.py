"""What bf16 rounds away: known answers, the way from weights to the kept file, and what the page says of it."""

import dataclasses

import pytest
import torch

from lkca.data import images as data
from lkca.ledger import records
from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.provenance import anchor
from lkca.ledger.trained import read as weights_of
from lkca.studies import rounding, weights
from lkca.training import engine, machine

SHORT = dataclasses.replace(PROTOCOLS["smoke"], train_images=64, batch_size=16, test_images=180)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pair of rows after four steps on digits, with their weights, and the folder they are in."""
    root, digits = tmp_path_factory.mktemp("results"), data.load("digits").tested_on(SHORT.test_images)
    how = {"results_root": root, "keep_weights": True, "progress": None}
    pair = [engine.fit(row, digits, SHORT, **how)[0] for row in ("ViT/0.5M", "ViT/0.5M-LKCA")]
    return pair, digits, root


def test_compare_knows_what_it_was_given():
    g = torch.Generator().manual_seed(0)
    exact = {"a.kernel": torch.randn(400, 50, generator=g).double(), "b": 3 + torch.zeros(400, 2).double()}
    exact["b"][::2] += 1
    one_way = rounding.compare(exact, {name: 1.01 * e for name, e in exact.items()})
    assert one_way["all"]["step"] == pytest.approx(0.01) == one_way["all"]["mean"]
    assert one_way["kernels"]["step"] == pytest.approx(0.01) and one_way["kernels"]["batch"] == pytest.approx(
        1, abs=0.02
    )
    assert one_way["all"]["worst"] == pytest.approx(0.01 * (12.5 / 0.25 * 399 / 400) ** 0.5)  # b's: it hardly varies
    signs = torch.where(torch.arange(400) % 2 == 0, 1.0, -1.0)[:, None]
    cancels = rounding.compare({"b": exact["b"] - 3.5 + 10}, {"b": exact["b"] - 3.5 + 10 + 0.1 * signs})
    assert cancels["all"]["step"] == pytest.approx(0.01, rel=0.01) and cancels["all"]["mean"] < 1e-12
    assert cancels["kernels"] is None


def test_bf16_rounds_more_than_fp32_and_less_than_a_batch_changes(trained, monkeypatch):
    pair, digits, root = trained
    monkeypatch.setattr(rounding, "BATCHES", 4)
    for run in pair:
        exact, fp32, bf16 = (rounding.gradients(run, digits, p, root) for p in ("fp64", "fp32", "bf16"))
        assert all(len(slopes) == 4 for slopes in exact.values())
        fine, rough = (rounding.compare(exact, rounded)["all"] for rounded in (fp32, bf16))
        assert 0 < fine["step"] < 1e-5 < 1e-3 < rough["step"] < 0.1 < rough["batch"]


def test_gradients_are_of_the_trained_weights_in_training(trained):
    pair, digits, root = trained
    for run in pair:
        stack, of_file = rounding._stack(run, digits, "fp64", root), weights_of(run, root)
        assert stack._model.training and all(torch.equal(p[0], of_file[n].double()) for n, p in stack.params.items())


def test_the_command_keeps_what_it_measured(trained, monkeypatch, capsys):
    pair, digits, root = trained
    monkeypatch.setattr(data, "load", lambda *_: digits)
    monkeypatch.setattr(rounding, "BATCHES", 2)
    monkeypatch.setattr(weights, "pairs", lambda root: [pair])
    assert rounding.table(root).empty and rounding.sentence(root) == "Not measured."
    assert rounding.write(results_root=root) == root / rounding.FILE
    kept = rounding.read(root)
    assert [r["run"] for r in kept["runs"]] == [anchor(r) for r in pair] and kept["git_commit"] == machine.COMMIT
    first, second = rounding.table(root).to_dict("records")
    assert (first["of the kernels"], second["row"]) == ("no kernel", "ViT/0.5M-LKCA")
    assert second["of the kernels"].runs == (pair[1],)
    assert float(first["top-1 in fp32"]) == pytest.approx(pair[0].top1, abs=0.6)  # weights are kept in half precision
    assert "Over 2 batches of each of these runs, bf16 rounds away at most " in rounding.sentence(root)
    later = dataclasses.replace(pair[1], seed=7)
    monkeypatch.setattr(weights, "pairs", lambda root: [pair, (pair[0], later)])
    assert rounding.sentence(root).endswith(" Runs whose weights were kept since then, not measured: 1.")
    monkeypatch.setattr(weights, "pairs", lambda root: [pair])
    records.path_of(pair[0], root).write_text("{")  # a broken record hides no other
    assert list(rounding.table(root)["row"]) == ["ViT/0.5M-LKCA"]


@pytest.mark.parametrize(
    "without, says",
    [
        ("data_root", "name the folder of the data sets with --data-root"),
        ("results_root", "no weights of a pair are kept in"),
    ],
)
def test_what_is_missing_is_said(tmp_path, without, says):
    with pytest.raises(ValueError, match=says):
        rounding.write(**{without: tmp_path})


def test_the_kept_measurement_is_of_all_kept_pairs_and_says_what_the_page_says():
    kept = rounding.read()
    assert kept["git_clean"]
    assert {r["run"] for r in kept["runs"]} == {anchor(run) for pair in weights.pairs() for run in pair}
    for run in kept["runs"]:
        assert run["all"]["step"] < run["all"]["batch"] / 20 and run["all"]["mean"] < 0.1
        assert abs(run["top1"]["fp32"] - run["top1"]["bf16"]) < 0.2
