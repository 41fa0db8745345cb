"""The claims page: quotes are short, links exist, and a claim about a table follows the ledger."""

from pathlib import Path

import pytest

from lkca import figures, records, tables

ROOT = Path(__file__).parents[1]
PAPER = ROOT.parent / "shared" / "paper" / "lkca-paper.txt"


def test_every_claim_has_a_verdict_and_evidence_that_exists():
    frame = tables.claims(records.read()[0])
    assert len(frame) >= 15 and (frame.verdict != "").all() and (frame.evidence != "").all()
    for link in frame.link:
        assert (ROOT / f"{link}.md").exists() or (ROOT / f"{link}.ipynb").exists(), link
    assert (frame.quote.str.split().str.len() <= 25).all()
    assert set(frame["where"]) >= {"abstract", "3.2.1", "4.1", "4.2", "5"}


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
