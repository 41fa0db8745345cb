"""Tables 6 and 7 beside the ledger: what they show, what they find in the printed numbers, and the pictures."""

import re

import numpy as np
import pytest
import torch

from lkca.data import scenes
from lkca.ledger import records, trained
from lkca.ledger.protocols import ORIGIN, SEGMENTATION
from lkca.ledger.runs import SegmentationRecord, Stage, measures
from lkca.models import segmenters
from lkca.models.rows import row_hash
from lkca.pages import listing, segmentation_figures, segmentation_tables
from lkca.pages.segmentation_tables import NOT_RUN
from lkca.training import jobs, segmentation


def run(row, dataset="ade20k", protocol="table6", seed=0, shift=0, classes=12):
    """A record whose pixels say what its curve says."""
    truth = [100] * classes
    inside = [40 + shift + k for k in range(classes)]
    union = [150] * classes
    p, spec, found = SEGMENTATION[protocol], scenes.DATASETS[dataset], measures(inside, union, truth)
    curve = [Stage(iteration=i, lr=0.0, train_loss=1.0, seconds=1.0, **found) for i in p.iterations]
    return SegmentationRecord(
        row=row, dataset=dataset, protocol=protocol, protocol_hash=p.hash, protocol_fields=p.fields, seed=seed,
        params=1_234_567, params_paper=1, macs=2_345_678_901, macs_paper=1, image_size=p.crop, num_classes=classes,
        num_train=spec.train, num_test=spec.test, data_fingerprint=spec.fingerprint or "f",
        precision="fp32", device="a CPU", images_per_second=1.0,
        wall_seconds=60.0, versions={"lkca": "0.6.0"}, git_commit="0123456789", git_clean=True,
        finished="2024-01-01T00:00:00+00:00",
        curve=curve, intersection=inside, union=union, truth=truth, row_hash=row_hash(row), draws=2, **found,
    )  # fmt: skip


def test_a_table_shows_the_paper_and_not_run():
    frame = segmentation_tables.compare(7, [])
    assert len(frame) == 16 and (frame["ours"] == NOT_RUN).all(axis=None)
    assert frame["paper"].iloc[-1].tolist() == ["67.21", "41.81"]


def test_a_table_shows_its_own_protocol_on_ade20k_alone():
    row = "LKCA-B/UPerNet"
    ledger = [run(row, seed=s, shift=s) for s in (0, 2)] + [run(row, dataset="camvid"), run(row, protocol="reduced")]
    frame = segmentation_tables.compare(6, ledger)
    filled = frame[frame["ours", "aAcc"] != NOT_RUN]
    assert set(filled["", "row"]) == {row} and len(filled) == 4
    first = filled.iloc[0]["ours"]
    assert first["aAcc"] == f"{45.5 + 1:.2f} ± {np.std([45.5, 47.5], ddof=1):.2f} (2 seeds)"
    assert first["mIoU, 10 best"].startswith("31.67") and first["mIoU"].startswith("31.00")


def test_what_the_printed_tables_say_against_themselves_is_found():
    six, seven = (segmentation_tables.inconsistencies(t) for t in (6, 7))
    assert len(six) == len(seven) == 2
    assert "At 8,000 iterations LKCA-B/UPerNet has aAcc 50.79 and ViT-B/UPerNet 53.43" in six[0]
    assert six[1].endswith("equal with the two columns swapped.")
    assert seven[0].startswith("ViT-S/UPerNet at 20,000 iterations and Twins_PCPVT-S/FPN at 20,000 iterations have")
    assert [s for s in seven if "not found" in s] == ["Twins_PCPVT-S/FPN is printed with 33.43M and 49.74G: not found."]


def test_sizes_name_what_they_tell():
    frame = segmentation_tables.sizes(7)
    assert (frame["", "printed and counted"] == "equal").sum() == 5
    first, *others = segmentation_tables.findings(7)
    assert first.startswith("ViT-S/UPerNet, LKCA-S/UPerNet: The printed FLOPs hold only at patch size 32")
    assert [text.split(":")[0] for text in others] == [
        "ResNet-50/UPerNet", "Swin-S/UPerNet", "ViT-S/FPN, LKCA-S/FPN", "Twins_PCPVT-S/FPN",
    ]  # fmt: skip
    patches = segmentation_tables.patch_sizes().set_index("row")
    assert patches.loc["ViT-S/UPerNet", "largest map decoded"] == "64 x 64"
    assert patches.loc["ViT-S-p16/UPerNet (ours)", "largest map decoded"] == "128 x 128"
    ratio = patches["over LKCA-S/UPerNet's"].astype(float)
    assert ratio["ResNet-50/UPerNet"] == 3.6 and ratio["LKCA-S-p16/UPerNet (ours)"] > ratio["ResNet-50/UPerNet"]
    readings = segmentation_tables.readings()
    assert readings.params.nunique() == readings.MACs.nunique() == 2


def test_guessing_one_class_is_scored():
    r = run("ViT-XS/UPerNet", dataset="camvid", protocol="reduced")
    object.__setattr__(r, "truth", [500, 300, 200] + [0] * 9)
    assert segmentation_tables.constant(r) == pytest.approx({"aacc": 50, "miou": 50 / 3, "miou10": 50 / 3})


def test_our_own_rows_have_a_table_and_differences_are_paired():
    vit, lkca = segmenters.TINY
    kind = {"dataset": "camvid", "protocol": "reduced"}
    ledger = [run(vit, seed=0, **kind), run(vit, seed=1, shift=5, **kind), run(lkca, seed=1, shift=8, **kind)]
    frame = segmentation_tables.own(ledger, "camvid").set_index("row")
    assert frame.loc[vit, "aAcc"].endswith("(2 seeds)") and frame.loc[lkca, "aAcc"] == "53.50 (1 seed)"
    assert frame.loc["the most frequent class everywhere", "aAcc"] == "8.33"
    assert segmentation_tables.difference(ledger, "camvid").aAcc[0] == "+3.00 (from +3.00 to +3.00, 1 seed)"
    assert segmentation_tables.difference([], "camvid").mIoU[0] == NOT_RUN
    assert segmentation_tables.per_class(ledger, "camvid", list("abcdefghijkl"))[lkca][0] == "32.0"
    assert list(listing.runs(ledger).seed) == ["0", "1", "1"]


def test_every_setting_of_a_protocol_is_shown_with_its_origin():
    frame = segmentation_tables.settings("table6", "table7")
    assert frame.set_index("setting").loc["iterations", "table7"] == "10,000, 20,000"
    assert set(frame[""]) == {"stated", "assumed"} and set(frame.setting) == set(ORIGIN)
    told = " ".join(segmentation_tables.origins())
    assert all(name in told for name in ORIGIN)


def test_figures_have_words(tmp_path):
    vit = next(iter(segmenters.TINY))
    ledger = [run(vit, dataset="camvid", protocol="reduced"), run("ViT-B/UPerNet")]
    curves = segmentation_figures.curves(6, ledger).data
    assert "Of its 2 rows, 1 has been run" in curves and "LKCA-B/UPerNet 65.49 and 40.60" in curves
    own = segmentation_figures.own_curves(ledger, "camvid").data
    assert "ends at 30.3" in own and "LKCA-XS/UPerNet has not been run" in own
    assert "figcaption" in segmentation_figures.own_curves([], "camvid").data


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A record of digit scenes whose weights are kept, and its folder."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    row = next(iter(segmenters.TINY))
    torch.manual_seed(0)
    model = segmenters.build(row, crop=96, num_classes=11)
    r = run(row, dataset="digit-scenes", protocol="reduced", classes=11)
    trained.write(r, model.state_dict(), tmp_path)
    monkeypatch.setattr(segmentation.load, "__defaults__", (tmp_path,))
    return r, tmp_path


def test_pictures_of_digits_show_scene_truth_and_prediction(kept):
    page = segmentation_figures.digit_pictures([kept[0]], numbers=(0, 2)).data
    names = re.findall(r'alt="([^"]*)"', page)
    assert names == [
        f"{name}, picture {i}" for i in (1, 2) for name in ("scene", "truth", "ViT-XS/UPerNet, mIoU 30.0")
    ]  # fmt: skip
    assert "aria-label=" in page and "<figcaption>" in page and page.count("data:image/png;base64,") == 6


def test_label_maps_are_kept_without_the_images(kept):
    r, folder = kept
    ds = scenes.load("digit-scenes")
    segmentation_figures.keep_predictions(r, ds, (1, 3), folder / "predictions")
    assert sorted(f.name for f in (folder / "predictions").iterdir()) == [
        f"digit-scenes--{n}--{part}.png" for n in (1, 3) for part in ("ViT-XS_UPerNet-seed0", "truth")
    ]
    page = segmentation_figures.kept_pictures("digit-scenes", ds.classes, folder / "predictions").data
    assert page.count("<img src") == 4 and "2 test images" in page and "predictions of ViT-XS/UPerNet, seed 0." in page
    assert re.findall(r'alt="([^"]*)"', page)[:2] == ["truth, picture 1", "ViT-XS/UPerNet, seed 0, picture 1"]
    assert "0 test images" in segmentation_figures.kept_pictures("camvid", scenes.CAMVID, folder / "none").data


def test_a_table_is_a_job(tmp_path):
    roots = {"data_root": tmp_path, "results_root": tmp_path, "device": "cpu"}
    job = jobs.plan(7, **roots)
    assert job.protocol.name == "smoke" and job.rows == tuple(segmenters.TINY) and job.datasets == ("digit-scenes",)
    named = jobs.plan(7, dataset="digit-scenes", protocol="reduced", rows="LKCA-S-p16/UPerNet", **roots)
    assert named.rows == ("LKCA-S-p16/UPerNet",) and named.results_root == tmp_path
    assert set(jobs.plan(6, protocol="smoke", rows="LKCA-B/UPerNet", **roots).rows) == {"LKCA-B/UPerNet"}
    with pytest.raises(ValueError, match="protocol='released' is not one of 'auto', 'table6', 'table7'"):
        jobs.plan(6, protocol="released", **roots)
    with pytest.raises(ValueError, match="row 'ViT' is not in Table 6"):
        jobs.plan(6, rows="ViT", **roots)
    with pytest.raises(scenes.DataError, match="CamVid|camvid"):
        jobs.plan(6, dataset="camvid", protocol="reduced", **roots)
    done = jobs.run(job, progress=None)
    assert [r.row for r in done] == list(segmenters.TINY) and jobs.run(job, progress=None) == done
    assert "4 of 4" not in jobs.plan(7, **roots).why and "0 of 2 runs to train" in jobs.plan(7, **roots).why
    assert "far too short" in listing.trained(job, done).data


def test_kept_weights_hold_a_variance_that_half_precision_cannot(kept):
    r, folder = kept
    model = segmenters.build(r.row, crop=96, num_classes=11)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_var.fill_(3e5)
    trained.path(r, folder).unlink()
    trained.write(r, model.state_dict(), folder)
    loaded = segmentation.load(r)
    assert next(m for m in loaded.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var.max() == 3e5
    torch.testing.assert_close(loaded.backbone.pos_embed, model.backbone.pos_embed, atol=1e-4, rtol=1e-3)
