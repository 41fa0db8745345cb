"""The claims page: quotes are short, links exist, and a claim about a table follows the ledger."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from lkca import complexity, figures, records, tables, zoo
from lkca import receptive_field as rf
from lkca import receptive_field_figures as rff

ROOT = Path(__file__).parents[1]
PAPER = ROOT.parent / "shared" / "paper" / "lkca-paper.txt"


def test_every_claim_has_a_verdict_and_evidence_that_exists():
    frame = tables.claims(records.read()[0])
    assert len(frame) >= 40 and (frame.verdict != "").all() and (frame.evidence != "").all()
    for link in frame.link:
        assert (ROOT / f"{link}.md").exists() or (ROOT / f"{link}.ipynb").exists(), link
    assert (frame.quote.str.split().str.len() <= 25).all()
    assert set(frame["where"]) >= {"abstract", "3.1.2", "3.2.1", "3.2.2", "3.2.3", "4.1", "4.2", "5"}
    assert not frame.quote.duplicated().any()


def test_what_is_said_of_the_printed_tables_is_printed():
    """The verdicts that rest on the paper's own numbers, from the transcribed tables."""
    gains = {a: tables.published(2).top1[b] - tables.published(2).top1[a] for a, b in tables.pairs(2)}
    assert max(gains, key=gains.get) == "ViT/8M" and round(gains["ViT/8M"], 2) == 5.18
    four = pd.read_csv(records.RESULTS / "paper" / "table4.csv", index_col="model")
    behind = [four.svhn[vit] - four.svhn[lkca] for vit, lkca in (("ViT-Lite", "LKCA-T"), ("ViT-Small", "LKCA-B"))]
    assert behind == pytest.approx([0.38, 0.22])
    above = {c: [four[c]["LKCA-B"] > four[c][other] for other in ("CaiT-S", "Swin-S")] for c in four.columns[1:4]}
    assert above == {"cifar10": [True, True], "cifar100": [True, True], "svhn": [False, True]}
    six = pd.read_csv(records.RESULTS / "paper" / "table6.csv").pivot(index="iterations", columns="backbone")
    assert six.aacc["LKCA-B"][[4000, 8000]].tolist() == [52.67, 50.79] and six.aacc["ViT-B"][8000] == 53.43
    seven = pd.read_csv(records.RESULTS / "paper" / "table7.csv").query("algorithm == 'UPerNet'")
    best = seven.loc[seven.groupby("iterations")["miou"].idxmax()]
    assert best.backbone.tolist() == ["LKCA-S"] * 2
    assert (seven.groupby("iterations").aacc.max().to_numpy() == best.aacc.to_numpy()).all()


def test_what_is_said_of_sizes_is_counted():
    largest = 0.0
    for vit, lkca in tables.pairs(1):
        a, b = (complexity.count(row, **complexity.PRINTED_SETTING).params for row in (vit, lkca))
        assert abs(b / a - 1) < 0.05 and zoo.row(lkca).depth > zoo.row(vit).depth
        largest = max(largest, b)
    assert largest < 8e6


def test_what_is_said_of_receptive_fields_is_measured():
    """Half of a token's gradient: as far away as in a ViT, farther than with small kernels; no kernel is local."""
    kept = {r.row: r for r in rff.with_weights("cifar100", "sketch")}
    images, reach = rff.images_for(kept["ViT/0.5M"], 16), {}
    for row, record in kept.items():
        model = rff.model_of(record, trained=True)
        reach[row] = rf.curve(rf.shares(model, images, (4, 4)), rf.centre(model, (4, 4)), [0.5]).mean()
        if row == "ViT/0.5M-LKCA":
            flat, kernels = rf.kernel_statistics(torch.ones(15, 15))["radius"], rff.kernels_of(model)
            radii = [rf.kernel_statistics(k)["radius"] / flat for k in kernels]
    assert 0.9 < reach["ViT/0.5M-LKCA"] / reach["ViT/0.5M"] < 1.1
    assert reach["ViT/0.5M-LKCA"] > 3 * reach["ViT/0.5M-LKCA-3x3"]
    assert len(radii) == 8 and min(radii) > 0.95


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_quotes_are_the_paper_s():
    text = PAPER.read_text()
    for quote in tables.claims([]).quote:
        assert quote in text, quote


def test_a_table_s_claim_follows_the_ledger(monkeypatch):
    def verdict_of_table_2():
        frame = tables.claims([])
        return frame.verdict[frame.basis == "table 2"].item()

    assert verdict_of_table_2() == "not run"
    monkeypatch.setattr(tables, "verdict", lambda table, ledger, vit, lkca: "holds")
    assert verdict_of_table_2() == "holds"
    monkeypatch.setattr(
        tables, "verdict", lambda table, ledger, vit, lkca: "holds" if vit == "ViT" else "does not hold"
    )
    assert verdict_of_table_2() == "holds for 1 of 6, does not hold for 5 of 6"
    frame = tables.claims([])
    assert set(frame.verdict[frame.basis.str.contains("table [45]")]) == {"not run"}


def test_the_claim_about_table_4_leaves_svhn_out(monkeypatch):
    monkeypatch.setattr(
        tables, "group_verdict", lambda table, ledger, group, dataset: "holds" if dataset != "svhn" else ""
    )
    frame = tables.claims([])
    assert set(frame.verdict[frame.basis.str.startswith("table 4")]) == {"holds"}


def test_the_page_shows_each_quote_once():
    frame = tables.claims([])
    page = figures.claims(frame).data
    assert page.count("<li>") == len(frame) and page.count("evidence</a>") == len(frame)


def test_the_contrasts_figure_names_what_is_not_run():
    text = figures.contrasts_figure([], "cifar100", "0.5M", "released").data
    assert "none." in text and "Not run: everything, pooling, mixer" in text
