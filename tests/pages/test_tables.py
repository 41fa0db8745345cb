"""Tables and verdicts: the paper's columns are the paper's, a sketch never speaks for a claim, the rule's borders."""

import dataclasses
import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from lkca.data import images as data
from lkca.ledger import records
from lkca.ledger.cells import LISTED, SHORT, SHOWN, select
from lkca.ledger.protocols import PROTOCOLS
from lkca.models import zoo
from lkca.models.rows import row_hash
from lkca.pages import claims, figures, listing, rendering, rivals, tables, variability

START = ("cifar100", "ViT/0.5M", "sketch", 0)
TEMPLATE = next(r for r in records.read()[0] if (r.dataset, r.row, r.protocol, r.seed) == START)


def comparable(run, **changes):
    """A record with these changes, of the present row on the known data: in a cell, and not apart."""
    run = dataclasses.replace(run, **changes)
    known = data.DATASETS[run.dataset]
    shown = run.protocol_fields.get("train_images") or known.train
    return dataclasses.replace(
        run, row_hash=row_hash(run.row), num_train=min(shown, known.train), num_test=known.test,
        data_fingerprint=known.fingerprint or run.data_fingerprint,
    )  # fmt: skip


def made(row, seed, top1, protocol="released", dataset="cifar100"):
    curve = [dataclasses.replace(TEMPLATE.curve[0], top1=top1 + 1.0), dataclasses.replace(TEMPLATE.curve[1], top1=top1)]
    p = PROTOCOLS[protocol]
    return comparable(
        TEMPLATE, row=row, seed=seed, dataset=dataset, protocol=protocol, protocol_hash=p.hash,
        protocol_fields=p.fields, curve=curve, top1=top1, top1_best=top1 + 1.0, best_epoch=1,
        test_loss=curve[1].test_loss, correct="",
    )  # fmt: skip


def pair(vit, lkca, protocol="released"):
    return [made(row, s, t, protocol) for row, ts in (("ViT", vit), ("ViT-LKCA", lkca)) for s, t in enumerate(ts)]


@pytest.mark.parametrize(
    "vit, lkca, says",
    [
        ((60.0, 60.5), (65.0, 65.5), "holds"),
        ((65.0, 65.5), (60.0, 60.5), "does not hold"),
        ((60.0, 60.5), (60.5, 61.0), "undecided"),  # inside the binomial error of two accuracies on 10,000 images
        ((60.0,), (65.0,), "holds"),
        ((60.0, 60.0), (70.0, 58.0), "undecided"),  # the seeds disagree
        ((60.0,), (), "not run"),
    ],
)
def test_verdict(vit, lkca, says):
    assert tables.verdict(2, pair(vit, lkca), "ViT", "ViT-LKCA") == says


def test_the_interval_of_one_seed_is_binomial_where_nothing_is_known_of_seeds():
    d = tables.difference(2, pair((60.0,), (65.0,)), "released", "ViT", "ViT-LKCA")
    half = 1.96 * (60 * 40 / 1e4 + 65 * 35 / 1e4) ** 0.5
    assert (d.mean, d.low, d.high, d.n) == pytest.approx((5, 5 - half, 5 + half, 1), rel=0.02)


def test_pairs_share_a_seed():
    ledger = [made("ViT", 0, 60.0), made("ViT-LKCA", 1, 70.0)]
    assert tables.difference(2, ledger, "released", "ViT", "ViT-LKCA") is None


@pytest.mark.parametrize("protocol", SHORT)
def test_a_short_run_speaks_for_no_claim_and_stands_in_no_other_column(protocol):
    ledger = pair((60.0, 60.5), (65.0, 65.5), protocol)
    assert tables.verdict(2, ledger, "ViT", "ViT-LKCA") == "not run"
    frame = tables.compare(2, ledger)
    assert (frame["ours, released", "last epoch"] == "not run").all()
    assert (frame["ours, paper", "last epoch"] == "not run").all()
    assert frame.loc["ViT", (f"ours, {protocol}", "last epoch")] == "60.25 ± 0.35 (2 seeds)"
    assert frame.loc["ViT", (f"ours, {protocol}", "best epoch")] == "61.25"
    line = tables.differences(2, ledger).loc["ViT-LKCA − ViT"]
    assert line[f"ahead in {protocol}"] == "LKCA ahead" and line["claim"] == "not run"
    assert f"{protocol}: {tables.length(protocol)}" in figures.accuracy_figure(2, ledger).data


def test_only_short_protocols_that_ran_have_a_column():
    def shown(frame):
        return {name for name in frame.columns.get_level_values(0) if name.startswith("ours")}

    full = {"ours, released", "ours, paper"}
    for short in ((), ("sketch",), ("brief", "sketch")):
        ledger = [run for protocol in short for run in pair((60.0,), (65.0,), protocol)]
        expected = full | {f"ours, {protocol}" for protocol in short}
        assert shown(tables.compare(2, ledger)) == shown(tables.differences(2, ledger)) == expected
        assert shown(rivals.groups(4, ledger)) == shown(tables.controls(ledger, "cifar100", "2.69M")) == expected


def test_smoke_is_in_no_table():
    assert "smoke" not in SHOWN


def test_other_settings_of_the_same_name_are_not_shown():
    old = dataclasses.replace(made("ViT", 0, 60.0), protocol_hash="0123456789")
    assert select(2, [old], "released") == []


def test_the_paper_s_column_is_the_paper_s():
    frame = tables.compare(2, pair((1.0,), (2.0,)))
    for row, top1 in tables.published(2).top1.items():
        assert frame.loc[row, ("the paper's", "top-1")] == f"{top1:.2f}"


@pytest.mark.parametrize("table", zoo.TABLES)
def test_rows_are_the_published_ones(table):
    assert set(zoo.TABLES[table].rows) == set(tables.published(table).index)
    assert len(tables.pairs(table)) == (6 if table <= 3 else 0)
    for dataset in zoo.TABLES[table].datasets:
        assert tables.published(table, dataset).top1.between(30, 99).all()


def test_released_speaks_before_paper():
    ledger = pair((60.0,), (70.0,), "paper") + pair((70.0,), (60.0,), "released")
    assert tables.verdict(2, ledger, "ViT", "ViT-LKCA") == "does not hold"


def test_every_number_walks_back_to_its_record():
    ledger, _ = records.read()
    settings = [(name, size) for name in data.DATASETS for size in ("0.5M", "2M", "2.69M")]
    found = [r for t in zoo.TABLES for r in tables.table_runs(t, ledger)]
    found += [r for setting in settings for r in tables.control_runs(ledger, *setting)]
    names = set(listing.runs(found).record)
    controls = {(d, row) for d in data.DATASETS for s in ("0.5M", "2M", "2.69M") for row in zoo.control_rows(s)}
    cells = {(d, zoo.canonical(row)) for t in zoo.TABLES.values() for d in t.datasets for row in (*t.rows, *t.extra)}
    shown = [r for r in ledger if r.protocol in LISTED and (r.dataset, r.row) in cells | controls and not r.apart]
    assert [r.row for r in ledger if r.apart] == ["Swin-T"]  # of the former model: on the page of provenance alone
    assert names == {records.path_of(r, "").name for r in shown}


def test_what_is_wrong_stands_under_the_table():
    page = figures.comparison(2, [], ["x.json: seed should be int"]).data
    assert "Left out, because broken: x.json: seed should be int" in page
    assert zoo.ROWS["ViT/8M-LKCA"].deviation.split(".")[0] in page and 'class="not-run"' in page


def test_columns_of_words_are_aligned_left_and_long_ones_wrap():
    words = {
        "device": ["Xeon, 2 threads", tables.NOT_RUN],
        "why": ["so " * rendering.LONG, ""],
        "name": ["a" * 2 * rendering.LONG] * 2,
    }
    page = ElementTree.fromstring(rendering.table_html(pd.DataFrame({"size": ["1.5 MB", tables.NOT_RUN]} | words)).data)
    assert [cell.get("class") for cell in page.iter("th")] == [None, "text", "text long", "text"]
    lines = [[cell.get("class") for cell in line.iter("td")] for line in page.iter("tr")]
    assert lines[1:] == [[None, "text", "text long", "text"], ["not-run", "text not-run", "text long", "text"]]


def test_the_figure_says_what_it_shows_and_asks_no_network():
    page = figures.accuracy_figure(2, pair((60.0,), (65.0,), "sketch")).data
    assert "Table 2, CIFAR-100" in page and "cifar100" not in page
    assert "Under sketch LKCA − ViT is +5.00 points at 2.69M (n = 1)" in page and "src=" not in page
    assert "Under paper LKCA − ViT is -2.00 points" in figures.describe(2, pair((60.0,), (58.0,), "paper"))
    assert rendering.INK not in page and "currentColor" in page


def test_the_figure_in_words_goes_by_size():
    ledger = pair((60.0,), (65.0,)) + [made("ViT/0.5M", 0, 50.0), made("ViT/0.5M-LKCA", 0, 49.0)]
    assert "LKCA − ViT is -1.00 points at 0.5M (n = 1), +5.00 points at 2.69M (n = 1)." in figures.describe(2, ledger)


@pytest.mark.parametrize("size", ["0.5M", "2M", "2.69M"])
def test_contrasts_change_what_they_say_and_their_steps_add_up(size):
    whole, *steps = zoo.contrasts(size)[:4]
    assert steps[0].before == whole.before and steps[-1].after == whole.after
    assert all(a.after == b.before for a, b in zip(steps, steps[1:], strict=False))
    for c in zoo.contrasts(size)[1:]:
        before, after = (vars(zoo.ROWS[row]) for row in (c.before, c.after))
        changed = {field for field in before if before[field] != after[field]}
        allowed = {"mixer": {"mixer", "heads"}, "size": {"dim", "depth"}, "as the text": {"mixer", "pooling"}}.get(
            c.change
        )
        assert len(changed) == 1 if allowed is None else changed == allowed, c
    assert set(zoo.control_rows(size)) <= set(zoo.table("controls").rows)
    with pytest.raises(ValueError, match="size='3M' is not one of '0.5M', '2M', '2.69M'"):
        zoo.contrasts("3M")


def test_controls_follow_the_ledger():
    ledger = [made(row, s, top1) for row, top1 in (("ViT/0.5M", 40.0), ("ViT/0.5M-mean", 50.0)) for s in (0, 1)]
    frame = tables.controls(ledger, "cifar100", "0.5M").set_index("what changes")["ours, released"]
    assert frame["pooling"].startswith("+10.00 [") and frame["pooling"].endswith("n = 2")
    assert (frame.drop("pooling") == tables.NOT_RUN).all()
    assert (tables.controls(ledger, "cifar10", "0.5M")["ours, released"] == tables.NOT_RUN).all()


def test_selection_is_best_minus_last():
    frame = variability.selection([r for r in records.read()[0] if r.protocol == "sketch"])
    assert set(frame["protocol"]) == {"sketch"} and (frame["best − last, mean"].astype(float) >= 0).all()
    ledger = [made("ViT", 0, 60.0), made("ViT-LKCA", 0, 65.0)]  # their best epoch lies one point above their last
    ledger[1] = dataclasses.replace(
        ledger[1], curve=[dataclasses.replace(ledger[1].curve[0], top1=68.0), ledger[1].curve[1]], top1_best=68.0
    )
    (line,) = variability.selection(ledger).to_dict("records")
    assert (line["runs"], line["epochs to choose from"]) == ("2", "2")
    assert (line["best − last, mean"], line["largest"]) == ("+2.00", "+3.00")
    assert line["what it does to LKCA − ViT"] == "+2.00"


def test_the_spread_of_seeds_stands_beside_what_the_rule_takes():
    ledger = [made("ViT", 0, 60.0), made("ViT", 1, 62.0), made("ViT-LKCA", 0, 60.0), made("ViT-LKCA", 1, 60.0)]
    (line,) = variability.spread([*ledger, made("ViT/1M", 0, 90.0)]).to_dict("records")
    assert (line["ViT"], line["LKCA"]) == ("1.41 (1)", "0.00 (1)") and {r.row for r in line["ViT"].runs} == {"ViT"}
    assert line["of the test set"] == f"{tables.binomial_error(60.5, 10_000):.2f}"
    assert (line["by the rule"], line["LKCA − ViT"]) == ("1.41", "1.41 (1)")  # 0 and -2
    other = [dataclasses.replace(r, precision="bf16") for r in ledger[1::2]]  # more differs than the seed
    assert variability.spread([*ledger[::2], *other]).empty and variability.spread(ledger[:1]).empty
    (line,) = variability.spread(ledger[:2]).to_dict("records")
    assert line["LKCA"] == line["LKCA − ViT"] == line["by the rule"] == tables.NOT_RUN


def test_what_a_precision_adds_is_told_by_protocol_and_kind_of_row():
    def runs(row, *top1s, start=0, precision="fp32"):
        found = (made(row, seed, top1) for seed, top1 in enumerate(top1s, start))
        return [dataclasses.replace(r, precision=precision) for r in found]

    vit, lkca = runs("ViT", 60.0, 62.0, 63.0), runs("ViT-LKCA", 60.0, 62.0, 64.0)
    bf16 = runs("ViT", 59.0, 61.0, 62.0, start=3, precision="bf16")
    lower = runs("ViT-LKCA", 50.0, start=3, precision="bf16")
    alone = made("ViT/1M", 0, 90.0)  # a cell of one precision tells nothing
    first, second = variability.precisions([*vit, *lkca, *bf16, *lower, alone]).to_dict("records")
    assert (first["rows"], first["cells"], first["runs in fp32"], first["in bf16"]) == ("ViT", "1", "3", "3")
    assert first["fp32 − bf16"].startswith("+1.00 [-") and alone not in first["fp32 − bf16"].runs
    assert (second["rows"], second["runs in fp32"], second["in bf16"]) == ("LKCA", "3", "1")
    assert second["fp32 − bf16"].startswith("+12.00 [+")
    assert second["farthest apart"] == "+12.00, ViT-LKCA on CIFAR-100"
    assert variability.precisions([vit[0], bf16[1]]).empty  # without several seeds nothing says how far they lie apart


def test_which_protocol_gives_the_print():
    assert tables.from_print([]).empty and "open: no main row" in claims.protocol_sentence([])
    assert (tables.reproduction([]).iloc[:, 3:] == tables.NOT_RUN).all(axis=None)
    ledger = [made("ViT", 0, 72.0), made("ViT", 0, 70.0, "paper"), made("ViT-LKCA", 0, 75.6)]  # printed 72.65 and 76.50
    found = tables.from_print(ledger).set_index(["row", "protocol", "epoch"])
    one = 1.96 * tables.binomial_error(72.65, 10_000) * 2**0.5
    assert found.points["ViT", "released", "last"] == pytest.approx(-0.65)
    assert found.points["ViT", "released", "best"] == pytest.approx(0.35)
    assert found.half["ViT", "released", "last"] == pytest.approx(one)
    several = tables.from_print([*ledger, made("ViT", 1, 76.0)]).set_index(["row", "protocol", "epoch"]).half
    assert several["ViT", "released", "last"] == pytest.approx(1.96 * 8**0.5 * 1.5**0.5)  # the seeds spread farther
    said = claims.protocol_sentence(ledger)
    assert "have 12 printed numbers" in said
    assert "under released -0.90 to -0.65 at the last epoch (2 of 2 within the error of one run) and " in said
    assert "under paper -2.65 at the last epoch (0 of 1 within the error of one run) and -1.65 at the best" in said
    assert "one run); under paper" in said and said.endswith("one run).")
    assert tables.reproduction(ledger).iloc[4, 3] == f"-0.65 ± {one:.2f}"


def test_protocols_are_compared_row_by_row():
    ledger = [made("ViT", 0, 60.0), made("ViT", 0, 55.0, protocol="paper")]
    found = tables.by_protocol(ledger, "cifar100", ["ViT", "ViT-LKCA"], "paper", "released")["released − paper"]
    assert found[0].startswith("+5.00 [") and found[0].endswith("n = 1") and found[1] == tables.NOT_RUN


def test_a_number_wraps_before_its_interval_or_count_and_nowhere_else():
    ledger = pair((65.0, 66.0), (60.0, 62.0))
    difference = tables.differences(2, ledger)["ours, released"].iloc[0]
    frame = pd.DataFrame({"": [difference, tables.compare(2, ledger).loc["ViT", ("ours, released", "last epoch")]]},
                         dtype=object)  # fmt: skip
    found = re.findall(r"<a [^>]+>([^<]+)</a>", rendering.table_html(frame).data)
    assert [text.count(" ") for text in found] == [2, 1] and found[1].split(" ")[1] == "(2\N{NO-BREAK SPACE}seeds)"


def test_negative_numbers_are_set_with_a_minus_sign():
    assert rendering.typeset("-1.50 [-2.00, -1.00], (-3 ± 1)") == "−1.50 [−2.00, −1.00], (−3 ± 1)"
    plain = "Tables 1-3, 2026-11-25, 1e-05, seed-0, ViT-8M, -p size 0.5M"
    assert rendering.typeset(plain) == plain
    ledger = pair((65.0,), (60.0,))
    assert "<a " in rendering.table_html(tables.differences(2, ledger)).data
    for page in (rendering.table_html(tables.differences(2, ledger)), figures.accuracy_figure(2, ledger)):
        assert "−5.00" in page.data and "-5.00" not in page.data
    assert rendering.listed(["-5.00 points"]).data == "<ul><li>−5.00 points</li></ul>"
