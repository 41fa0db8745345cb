"""The claims page: quotes are short, links exist, and a claim about a table follows the ledger."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from test_tables import comparable, made, pair

from lkca import published
from lkca.ledger import records
from lkca.ledger.cells import FULL, SHOWN
from lkca.ledger.runs import SegmentationRecord
from lkca.models import complexity, zoo
from lkca.pages import claims, equivalence, figures, tables
from lkca.pages import receptive_field_figures as rff
from lkca.studies import receptive_field as rf
from lkca.studies import weights

ROOT = Path(__file__).parents[2]
PAPER = ROOT.parent / "shared" / "paper" / "lkca-paper.txt"


def test_every_claim_has_a_verdict_and_evidence_that_exists():
    frame = claims.claims(records.read()[0])
    assert len(frame) >= 40 and (frame.verdict != "").all() and (frame.evidence != "").all()
    assert not frame.link[frame.verdict != "not examined"].eq("").any()
    for link in frame.link[frame.link != ""]:
        page, _, heading = link.partition("#")
        file = next(f for f in (ROOT / f"{page}.md", ROOT / f"{page}.ipynb") if f.exists())
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        slugs = {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in found}
        assert not heading or heading in slugs, link
    assert (frame.quote.str.split().str.len() <= 25).all()
    assert set(frame["where"]) >= {"abstract", "3.1.2", "3.2.1", "3.2.2", "3.2.3", "4.1", "4.2", "5"}
    assert not frame.quote.duplicated().any()


def test_what_is_said_of_the_printed_tables_is_printed():
    """The verdicts that rest on the paper's own numbers, from the transcribed tables."""
    gains = {a: tables.published(2).top1[b] - tables.published(2).top1[a] for a, b in tables.pairs(2)}
    assert max(gains, key=gains.get) == "ViT/8M" and round(gains["ViT/8M"], 2) == 5.18
    four = pd.read_csv(published.FOLDER / "table4.csv", index_col="model")
    behind = [four.svhn[vit] - four.svhn[lkca] for vit, lkca in (("ViT-Lite", "LKCA-T"), ("ViT-Small", "LKCA-B"))]
    assert behind == pytest.approx([0.38, 0.22])
    above = {c: [four[c]["LKCA-B"] > four[c][other] for other in ("CaiT-S", "Swin-S")] for c in four.columns[1:4]}
    assert above == {"cifar10": [True, True], "cifar100": [True, True], "svhn": [False, True]}
    six = pd.read_csv(published.FOLDER / "table6.csv").pivot(index="iterations", columns="backbone")
    assert six.aacc["LKCA-B"][[4000, 8000]].tolist() == [52.67, 50.79] and six.aacc["ViT-B"][8000] == 53.43
    seven = pd.read_csv(published.FOLDER / "table7.csv").query("algorithm == 'UPerNet'")
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
    ratio = equivalence.macs_table()["ratio"].astype(float)
    assert [round(r - 1e-9, 2) for r in ratio] == [0.98, 1.06, 0.95]


@pytest.mark.parametrize("vit, lkca", weights.pairs(), ids=lambda r: f"{r.row}-{r.dataset}-{r.protocol}")
def test_what_is_said_of_receptive_fields_is_measured(vit, lkca):
    """Half of a token's gradient: half to five quarters of a ViT's area; how local kernels are; how much it is one."""
    found = rff.summary(vit, lkca, rff.images_for(vit, 32))
    assert 0.5 < found["lkca"] / found["vit"] < 1.3
    radius, explained = ((0.75, 0.85), (0.05, 0.2)) if vit.protocol in FULL else ((0.93, 1.0), (0.005, 0.025))
    assert radius[0] < found["radius"] < radius[1]
    assert explained[0] < found["explained"] < explained[1]


def test_a_full_kernel_reaches_farther_than_a_small_one():
    kept = weights.kept("ViT/0.5M", "cifar100", "sketch")
    images, reach = rff.images_for(kept["ViT/0.5M"], 16), {}
    for row, record in kept.items():
        model = weights.model_of(record, trained=True)
        reach[row] = rf.curve(rf.shares(model, images, (4, 4)), rf.centre(model, (4, 4)), [0.5]).mean()
    assert reach["ViT/0.5M-LKCA"] > 3 * reach["ViT/0.5M-LKCA-3x3"]


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_quotes_are_the_paper_s():
    text = PAPER.read_text()
    for quote in claims.claims([]).quote:
        assert quote in text, quote


def test_a_table_s_claim_follows_the_ledger(monkeypatch):
    assert claims.verdict("table 2", []) == "not run"
    monkeypatch.setattr(tables, "verdict", lambda table, ledger, vit, lkca: "holds")
    assert claims.verdict("table 2", []) == "holds"
    monkeypatch.setattr(
        tables, "verdict", lambda table, ledger, vit, lkca: "holds" if vit == "ViT" else "does not hold"
    )
    assert claims.verdict("table 1, 2", []) == "holds for 2 of 12, does not hold for 10 of 12"
    assert claims.verdict("table 2 at ViT", []) == "holds"
    assert claims.verdict("table 2 at ViT/1M and ViT/2M", []) == "does not hold"
    frame = claims.claims([])
    assert set(frame.verdict[frame.basis.str.contains("table [45]")]) == {"not run"}
    assert claims.counts(frame)["mixed"] >= 1 and sum(claims.counts(frame).values()) == len(frame)


def test_a_claim_about_a_group_asks_for_it_alone(monkeypatch):
    asked = []

    def seen(table, ledger, group, dataset, against):
        asked.append((table, group, dataset, tuple(against)))
        return "undecided"

    monkeypatch.setattr(tables, "group_verdict", seen)
    assert claims.verdict("table 4 at S against CaiT-S and Swin-S on cifar10 and svhn", []) == "undecided"
    assert asked == [(4, "S", dataset, ("CaiT-S", "Swin-S")) for dataset in ("cifar10", "svhn")]
    asked.clear()
    claims.verdict("table 4 on cifar10 and cifar100", [])
    assert {dataset for _, _, dataset, _ in asked} == {"cifar10", "cifar100"}  # not SVHN


def test_rivals_that_a_claim_leaves_out_cannot_decide_it():
    ledger = [made("LKCA-B", 0, 70.0), made("CaiT-S", 0, 60.0), made("Swin-S", 0, 60.0), made("ViT-Small", 0, 80.0)]
    ledger = [comparable(r, row=zoo.canonical(r.row)) for r in ledger]
    assert claims.verdict("table 4 at S on cifar100", ledger) == "does not hold"
    assert claims.verdict("table 4 at S against CaiT-S and Swin-S on cifar100", ledger) == "holds"
    assert claims.verdict("table 4 against CaiT-S on cifar100", ledger) == "holds"  # the other group does not hold it


@pytest.mark.parametrize(
    "basis", ["tables 4", "table 2 at ViT and ViT/3M", "table 4 at X", "table 4 against Swin-X", "table 1 on svhn"]
)
def test_a_basis_that_names_no_comparison_is_refused(basis):
    with pytest.raises(ValueError, match="names no comparisons"):
        claims.verdict(basis, [])


def test_the_gap_in_words():
    assert claims.gap_sentence([]) == "None of the 18 pairs of Tables 1–3 has had a full run here."
    short = pair((60.0, 60.5), (55.0, 55.5), "sketch")
    assert claims.gap_sentence(short) == claims.gap_sentence([])
    full = claims.gap_sentence(short + pair((60.0, 60.5), (65.0, 65.5), "paper"))
    assert full.startswith(
        "1 of the 18 pairs of Tables 1–3 has had a full run here: ViT-LKCA is ahead of its ViT in 1,"
    )
    assert full.endswith(" behind in none, undecided in none.")
    other = claims.gap_sentence(pair((60.0, 60.5), (55.0, 55.5), "paper"))
    assert "ahead of its ViT in none, behind in 1," in other


def test_who_is_ahead_is_counted_by_protocol():
    standing = claims.standing([])
    assert [*standing] == [*SHOWN] and set(standing.loc["pairs run, of 18"]) == {"0"}
    assert set(standing.loc["LKCA − ViT"]) == {"not run"}
    short = pair((60.0, 60.5), (55.0, 55.5), "sketch")
    sketch = claims.standing(short).sketch
    assert sketch.tolist() == ["1", "0", "1", "0", "-5.00", "+3.85", "0", "2", ""]
    assert {r.seed for r in sketch["LKCA − ViT"].runs} == {0, 1} and len(sketch["LKCA − ViT"].runs) == 4
    ten = [comparable(r, dataset="cifar10") for r in pair((60.0,), (52.0,), "sketch")]
    sketch = claims.standing(short + ten).sketch
    assert sketch.tolist() == ["2", "0", "2", "0", "-8.00 to -5.00", "+0.75 to +3.85", "0", "1 to 2", ""]
    one = pair((60.0,), (55.0,), "sketch")  # of errors of 10,000 images alone, which are 2.7 wide
    assert claims.standing(one + ten).loc["interval narrower than that"].tolist() == ["0", "0", "0", "1"]
    full = pair((60.0, 60.5), (65.0, 65.5), "released")
    known = claims.standing(short + ten + full + pair((60.0, 60.5), (64.0, 64.5), "brief"))
    assert known.released.tolist() == ["1", "1", "0", "0", "+5.00", "+3.85", "0", "2", ""]
    assert known.loc["beside the full run"].tolist() == ["", "", "1 the same", "1 the other way"]
    undecided = claims.standing(short + full + pair((60.0, 60.5), (60.1, 60.3), "brief")).brief
    assert undecided[["undecided", "beside the full run"]].tolist() == ["1", "1 undecided"]


def test_who_is_ahead_along_the_training():
    """Behind at the first of two epochs, ahead at the second; short runs have no say without full ones."""
    vit, lkca = pair((60.0,), (65.0,), "paper")
    lkca = dataclasses.replace(lkca, curve=[dataclasses.replace(lkca.curve[0], top1=58.0), lkca.curve[1]],
                               top1_best=65.0, best_epoch=2)  # fmt: skip
    short = pair((20.0, 20.5), (15.0, 14.5), "sketch")
    assert claims.lead(short).empty and set(claims.leads(short).loc[""]) == {"not run"}
    assert figures.lead_figure(short).data == ""
    frame = claims.lead([vit, lkca, *short]).set_index(["protocol", "epoch"])
    assert frame.points.tolist() == [58.0 - 61.0, 5.0, -5.5, -5.5]
    assert frame["images"]["paper", 2] == 2 * 390 * 128  # of 50,000
    found = claims.leads([vit, lkca, *short])
    assert [*found.index] == ["CIFAR-100 2.69M, paper"]
    assert found.iloc[0].tolist() == ["ViT-LKCA", "2 of 2", "99,840"]
    assert {r.row for r in found["from epoch"].iloc[0].runs} == {"ViT", "ViT-LKCA"}
    behind = claims.leads(pair((60.0,), (50.0,), "released"))
    assert behind.loc["CIFAR-100 2.69M, released"].tolist() == ["ViT", "1 of 2", "149,888"]


def test_who_is_ahead_along_the_training_has_a_panel_a_pair():
    """Also where one data set's pair has not been run in full; each protocol has one look and one entry."""
    vit, lkca = pair((60.0,), (65.0,), "paper")
    ten = [comparable(r, dataset="cifar10", row=f"ViT/8M{r.row[3:]}") for r in (vit, lkca)]
    released = pair((60.0,), (65.0,), "released") + pair((20.0,), (15.0,), "sketch")
    (page,) = re.findall(r"<svg.*?</svg>", figures.lead_figure([vit, lkca, *ten, *released]).data, re.DOTALL)
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    panels = [text for text in drawn if text.startswith("CIFAR")]
    assert panels == ["CIFAR-10 2.69M", "CIFAR-100 2.69M", "CIFAR-10 8M", "CIFAR-100 8M"]
    assert drawn.count("not run") == 2
    assert [text for text in drawn if text in SHOWN] == ["released", "paper", "sketch"]


def test_the_steps_add_up_over_the_seeds_that_all_rows_have():
    top1 = {"ViT/0.5M": 16.0, "ViT/0.5M-mean": 13.0, "ViT/0.5M-LKCA-same": 13.5, "ViT/0.5M-LKCA": 14.25}
    ledger = [made(row, seed, value + seed, "sketch") for row, value in top1.items() for seed in (0, 1)]
    ledger += [made("ViT/0.5M", 2, 90.0, "sketch"), made("ViT/0.5M-LKCA", 2, 10.0, "sketch")]
    names = ["LKCA − ViT, 0.5M", "reading the mean", "the mixer", "width and depth"]
    frame = claims.steps(ledger, "0.5M")
    assert [*frame] == [*names, "seeds"] and [*frame.index] == ["CIFAR-100, sketch"]
    assert [text.split(" [")[0] for text in frame.iloc[0, :4]] == ["-1.75", "-3.00", "+0.50", "+0.75"]
    assert frame.seeds.tolist() == ["2"]
    assert {r.row for r in frame["the mixer"].iloc[0].runs} == {"ViT/0.5M-mean", "ViT/0.5M-LKCA-same"}
    old = [dataclasses.replace(r, draws=2) for r in ledger if r.row == "ViT/0.5M-mean"]
    assert {r.draws for r in ledger} == {1}
    mixed = [r for r in ledger if r.row != "ViT/0.5M-mean"] + old  # another engine drew its images: no seed is shared
    for none, size in ((mixed, "0.5M"), (ledger, "2.69M")):
        assert [*claims.steps(none, size).index] == [""] and set(claims.steps(none, size).loc[""]) == {"not run"}


def test_the_steps_stand_from_short_to_long_and_without_their_rows_the_whole_alone():
    top1 = {"ViT/0.5M": 16.0, "ViT/0.5M-mean": 13.0, "ViT/0.5M-LKCA-same": 13.5, "ViT/0.5M-LKCA": 14.25}
    brief = [made(row, 0, value, "brief") for row, value in top1.items()]
    pairs = [made(row, seed, top1[row] + 40, p) for row in ("ViT/0.5M", "ViT/0.5M-LKCA") for seed in (0, 1)
             for p in ("released", "sketch")]  # fmt: skip
    ten = [comparable(r, dataset="cifar10") for r in pairs]  # never apart: not of this table
    frame = claims.steps([*pairs, *brief, *ten], "0.5M")
    assert [*frame.index] == ["CIFAR-100, sketch", "CIFAR-100, brief", "CIFAR-100, released"]
    assert frame.seeds.tolist() == ["2", "1", "2"]
    assert frame.iloc[0, 1:4].tolist() == frame.iloc[2, 1:4].tolist() == ["not run"] * 3
    assert frame["LKCA − ViT, 0.5M"].iloc[2].startswith("-1.75 [")


def test_camvid_in_words():
    ledger = records.read(kind=SegmentationRecord)[0]
    one = vars(next(r for r in ledger if (r.dataset, r.row) == ("camvid", "ViT-XS/UPerNet")))
    known, union = (
        [0, 0, 40, *one["intersection"][3:]],
        [0, *one["union"][1:]],
    )  # of class 0, which never occurs, nothing
    vit = SimpleNamespace(**one | {"seed": 0, "miou": 30.0, "intersection": known, "union": union, "apart": None})
    lkca = SimpleNamespace(**vars(vit) | {"row": "LKCA-XS/UPerNet", "miou": 29.0})
    found = claims.camvid_sentence([vit, lkca])
    unknown = sum(u > 0 and 100 * i / u < 0.05 for i, u in zip(known, union, strict=True))
    assert "is -1.00 points of mIoU (from -1.00 to -1.00, 1 seed)" in found
    assert f"{unknown} of 11 classes stand at 0.0 in both" in found
    assert claims.camvid_sentence([]) == "On CamVid: not run."


@pytest.mark.parametrize(
    "mean, says",
    [
        (10.0, "cost accuracy, -5.00"),
        (20.0, "gained accuracy, +5.00"),
        (15.1, "no difference that these runs can tell from none, +0.10"),
    ],
)
def test_a_contrast_in_words(mean, says):
    ledger = [made("ViT/0.5M", 0, 15.0, "sketch"), made("ViT/0.5M-mean", 0, mean, "sketch")]
    sentences = claims.contrast_sentences(ledger, "cifar100", "0.5M")
    assert sentences["pooling"].startswith(f"Reading the mean of the tokens instead of a [class] token: {says}")
    assert sentences["mixer"].endswith(": not run.")


def test_full_runs_speak_before_short_ones():
    ledger = [made(row, 0, top1, p) for p, d in (("sketch", -5), ("paper", 5))
              for row, top1 in (("ViT/0.5M", 40.0), ("ViT/0.5M-mean", 40.0 + d))]  # fmt: skip
    assert "gained accuracy, +5.00" in claims.contrast_sentences(ledger, "cifar100", "0.5M")["pooling"]
    assert claims.contrasts(ledger, "cifar100", "0.5M")["pooling"][0] == "paper"
    assert ">pooling, paper</text>" in figures.contrasts_figure(ledger, "cifar100", "0.5M").data


def test_the_board_counts():
    frame = claims.board(pair((60.0,), (65.0,)) + [made("ViT/1M", 0, 50.0, "sketch")])
    total = frame.sum()
    assert (total["rows"], total["comparisons"], total["holds"], total["not run"]) == (93, 27, 1, 26)
    assert total["run in full"] == 4  # both rows stand in Table 2 and in Table 4
    assert frame.loc["Table 2, CIFAR-100", "run short"] == 1


def test_a_row_with_two_short_protocols_counts_once():
    ledger = [made("ViT/1M", 0, 50.0, "sketch"), made("ViT/1M", 0, 60.0, "brief")]
    assert claims.board(ledger).loc["Table 2, CIFAR-100", "run short"] == 1


def test_the_figure_of_gaps_shows_every_pair_and_ours_where_run():
    page = figures.gaps_figure(pair((60.0, 60.5), (55.0, 55.5), "sketch")).data
    assert 'href="provenance' not in page and 'href="../notebooks/provenance.html#' in page  # it stands on two levels
    assert page.count("CIFAR-10 2.69M") == 2 and "ours, sketch" in page  # on the axis, and in the data
    assert "<td>+3.85</td>" in page and "−5.00 [" in page


def test_the_page_shows_each_quote_once():
    frame = claims.claims([])
    page = figures.claims_list(frame).data
    assert page.count("<li ") == len(frame) and page.count(">see: ") == (frame.link != "").sum()
    for verdict, n in claims.counts(frame).items():
        assert page.count(f"data-verdict='{verdict}'>") == n and f"> {verdict} {n}</label>" in page


def test_the_contrasts_figure_names_what_is_not_run():
    text = figures.contrasts_figure([], "cifar100", "0.5M").data
    assert "Not run: everything; pooling; mixer" in text
