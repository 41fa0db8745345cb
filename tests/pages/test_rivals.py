"""Tables 4 and 5: the verdict of a group, the front, the counts and what other repositories report."""

import re

import pytest
from test_tables import made

from lkca.models import zoo
from lkca.pages import figures, rivals, tables

RIVALS = {"T": ["ViT/1M", "Swin-T", "CaiT-T", "MobileViTv2-T"], "S": ["ViT", "Swin-S", "CaiT-S", "MobileViTv2-S"]}


def ledger(lkca, *others, protocol="released", dataset="cifar100", group="T"):
    rows = [*RIVALS[group][: len(others)], {"T": "ViT/1M-LKCA", "S": "ViT-LKCA"}[group]]
    return [made(row, 0, top1, protocol, dataset) for row, top1 in zip(rows, (*others, lkca), strict=True)]


@pytest.mark.parametrize(
    "others, says",
    [
        ((60.0, 60.0, 61.0, 50.0), "holds"),
        ((60.0, 60.0, 64.9, 50.0), "undecided"),  # CaiT-T is inside the binomial error
        ((60.0, 60.0, 70.0, 50.0), "does not hold"),
        ((60.0, 70.0), "does not hold"),  # one rival ahead is enough
        ((60.0, 60.0), "not run"),  # the others might be ahead
        ((), "not run"),
    ],
)
def test_group_verdict(others, says):
    found = ledger(65.0, *others)
    assert tables.group_verdict(4, found, "T", "cifar100") == says
    assert tables.group_verdict(4, found, "S", "cifar100") == "not run"
    assert tables.group_verdict(4, found, "T", "cifar10") == "not run"
    assert tables.verdicts(4, found, "cifar100") == [says, "not run"]


def test_a_sketch_decides_no_group_and_released_speaks_before_paper():
    sketch = ledger(65.0, 60.0, 60.0, 60.0, 60.0, protocol="sketch")
    assert tables.group_verdict(4, sketch, "T", "cifar100") == "not run"
    both = ledger(65.0, 60.0, 60.0, 60.0, 60.0) + ledger(50.0, 60.0, 60.0, 60.0, 60.0, protocol="paper")
    assert tables.group_verdict(4, both, "T", "cifar100") == "holds"


def test_the_best_rival_is_the_paper_s_and_ours():
    frame = rivals.groups(4, ledger(65.0, 60.0, 61.0))
    assert frame.loc["CIFAR-100, about 1M", "the paper's"] == "+2.54 against ViT-Lite"
    assert "against Swin-T, the best of the 2 run of 4" in frame.loc["CIFAR-100, about 1M", "ours, released"]
    alone = rivals.groups(4, ledger(65.0, 60.0))
    assert "against ViT-Lite, the only one run of 4" in alone.loc["CIFAR-100, about 1M", "ours, released"]
    full = rivals.groups(4, ledger(65.0, 60.0, 61.0, 59.0, 58.0))
    assert full.loc["CIFAR-100, about 1M", "ours, released"].endswith("against Swin-T, the best of all 4")
    assert set(frame.index) == {f"{d}, about {g}" for d in ("CIFAR-10", "CIFAR-100", "SVHN") for g in ("1M", "2.7M")}
    assert len(rivals.groups(5, [])) == 3


def test_every_group_ends_in_an_lkca_and_the_groups_are_the_table():
    for t in (4, 5):
        spec = zoo.TABLES[t]
        assert sum(spec.groups.values(), ()) == spec.rows and len(set(spec.rows)) == len(spec.rows)
        assert all(rows[-1].startswith("LKCA") for rows in spec.groups.values())


def test_a_run_is_shared_by_all_names_of_its_row():
    found = [made("ViT", 0, 60.0, dataset="tiny-imagenet")]
    for table, row in ((3, "ViT"), (5, "ViT-Small")):
        assert tables.compare(table, found).loc[row, ("ours, released", "last epoch")].startswith("60.00")
        assert tables.table_runs(table, found) == found


def test_the_front_is_what_no_row_beats():
    cost, top1 = {"a": 1, "b": 2, "c": 3, "d": 2}, {"a": 50, "b": 40, "c": 60, "d": 55}
    assert rivals.front(cost, top1) == ["a", "d", "c"]
    assert rivals.front(cost, {"b": 40.0}) == ["b"]


def test_counts_say_where_the_print_stands_and_what_it_leaves_out():
    frame = rivals.counts(5)
    assert (frame["counted again", "agrees"] == "yes").sum() == 24
    assert (frame["counted again", "at"] == "32 px, 10 classes").sum() == 10
    assert (frame["counted again", "at"] == "64 px, 10 classes").sum() == 2
    true = frame["at 64 px, 200 classes"]
    assert true.loc["CvT-B", "FLOPs"] == "102.56M" and frame.loc["CvT-B", ("printed", "FLOPs")] == "25.63M"
    assert all(zoo.row(row).deviation for row in frame.index[frame["counted again", "agrees"] == "no"])
    assert rivals.settings_sentence(frame) == (
        "The paper counts 15 at 64 px, 200 classes, 10 at 32 px, 10 classes and 2 at 64 px, 10 classes. Counted again "
        "with its counter, ptflops 0.7.1.2, at the setting of each row, 24 of 27 rows agree digit for digit."
    )
    said = rivals.settings_sentence(rivals.counts(4))
    assert "counts all 10 at 32 px, 10 classes." in said and "10 of 10 rows agree" in said


def test_related_repositories_stand_beside_the_paper_and_ours():
    frame = rivals.related([made("ViT", 0, 58.0, dataset="tiny-imagenet")]).set_index("reported by")["tiny-imagenet"]
    assert frame["this paper"] == "55.74" and frame["ours, released"] == "58.00"
    assert {"57.07", "59.89"} <= set(frame)
    said = rivals.repositories_sentence()  # 59.89 - 55.74 and 60.95 - 55.74
    assert "the 3 ViTs lie 4.15 points apart" in said and "LKCA-B and ViT-Small lie 5.21 apart" in said


def test_support_knows_every_row_once():
    frame, specs = rivals.support(), [zoo.TABLES[table] for table in (4, 5)]
    assert set(frame.index) == {row for spec in specs for row in (*spec.rows, *spec.extra)}
    assert frame.index.is_unique
    assert frame.loc["CrossViT-T"].tolist()[1:3] == ["none, but dropout 0.1", "no"]
    assert frame.loc["RegionViT-T", "CUDA graph"] == "no"


def test_the_figure_names_the_front_and_draws_ours():
    page = figures.fronts(4, ledger(65.0, 60.0), "cifar100").data
    lines = re.findall(r"<tr>\s*<td[^>]*>([\w-]+)</td>(.*?)</tr>", page, re.DOTALL)
    front = [row for row, cells in lines if re.findall(r"<td[^>]*>(.*?)</td>", cells)[4] == "yes"]
    assert front == ["CaiT-T", "LKCA-T", "LKCA-B"]  # the paper's, by parameters
    assert "on the front, ours, released, by MACs" in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) == 2 and all("the paper's" in svg and "ours, released" in svg for svg in svgs)


@pytest.mark.parametrize("label", ["parameters, M", "MACs, M"])
def test_ours_stands_over_the_paper_s_range(label):
    cost = {"ViT/1M": 1.06, "ViT/1M-LKCA": 1.03, "ViT": 2.69, "ViT-LKCA": 2.69}
    two = {"ViT/1M": 17.0, "ViT/1M-LKCA": 14.0}  # alone they would make ticks a hundredth apart
    figure, _ = figures._front(cost, label, {"the paper's": dict.fromkeys(cost, 70.0), "ours": two}, {"ViT-LKCA"})
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim() and below.get_xlim()[1] > 2.69


def test_names_keep_apart_in_every_panel():
    """Two panels of the same points have the same names, not all of them where many rows lie close together."""
    cost = {row: 1 + i / 1000 for i, row in enumerate(zoo.TABLES[4].rows)}
    top1 = {row: 90 + i / 1000 for i, row in enumerate(cost)} | {"LKCA-B": 70.0}
    figure, _ = figures._front(cost, "parameters, M", {"the paper's": top1, "ours": top1}, {"LKCA-B"})
    above, below = ([text.get_text() for text in ax.texts] for ax in figure.axes)
    assert above == below and 2 <= len(below) < 5
