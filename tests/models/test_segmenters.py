"""The rows of Tables 6 and 7: their printed sizes, their parts, and models resized to other images."""

import csv
import dataclasses

import pytest
import torch

from lkca import published
from lkca.models import segmenters
from lkca.models.decoders import FPN, MultiLevelNeck
from lkca.operator import LKCA

PRINTED = {}
for table in (6, 7):
    with open(published.FOLDER / f"table{table}.csv") as file:
        for line in csv.DictReader(file):
            PRINTED[f"{line['backbone']}/{line['algorithm']}"] = (line["params"], line["flops"])


def count(name, crop=512, num_classes=150):
    return segmenters.count(name, crop=crop, num_classes=num_classes)


@pytest.mark.parametrize("name", segmenters.ROWS)
def test_recorded_sizes_are_those_of_the_counter(name):
    """What `count` looks up, and with it what the tests below are about."""
    assert segmenters._counted()[name] == segmenters.run(name, crop=512, num_classes=150)


def test_every_row_of_the_tables_is_there():
    assert set(PRINTED) == {row for rows in segmenters.TABLES.values() for row in rows}


@pytest.mark.parametrize("name", [n for n in PRINTED if n.endswith("UPerNet") and n != "LKCA-B/UPerNet"])
def test_upernet_rows_have_the_printed_sizes(name):
    assert count(name).printed == PRINTED[name]


def test_lkca_b_is_printed_with_its_two_columns_swapped():
    params, flops = count("LKCA-B/UPerNet").printed
    assert (params, flops) == ("0.115G", "0.102T")
    assert PRINTED["LKCA-B/UPerNet"] == (flops.replace("T", "G"), params.replace("G", "T"))


@pytest.mark.parametrize("name", ["ViT-S/FPN", "LKCA-S/FPN"])
def test_fpn_rows_have_the_printed_sizes_cut_off(name):
    c = count(name)
    params = f"{int(c.params_paper / 1e4) / 100:.2f}M"
    assert (params, c.printed[1]) == PRINTED[name] and c.printed[0] != params


def test_the_one_row_without_a_match_says_so():
    unmatched = "Twins_PCPVT-S/FPN"
    assert [name for name, r in segmenters.ROWS.items() if not r.matched] == [unmatched]
    c = count(unmatched)
    assert c.printed == ("27.86M", "44.63G") and not set(c.printed) & set(PRINTED[unmatched])
    assert all(number in segmenters.ROWS[unmatched].findings[0] for number in (c.printed[0], *PRINTED[unmatched]))


@pytest.mark.parametrize(
    "name, params",
    [("ViT-S/UPerNet", 57_660_822), ("ResNet-50/UPerNet", 64_117_750), ("Twins_PCPVT-S/UPerNet", 53_303_702),
     ("Swin-S/UPerNet", 51_899_100), ("LKCA-S/UPerNet", 50_575_266)],
)  # fmt: skip
def test_golden_sizes(name, params):
    assert count(name).params_paper == params


def test_macs_are_those_of_the_arithmetic():
    d, c, k, tokens = 384, 512, 150, 16 * 16
    backbone = tokens * 3 * 32**2 * d + 12 * (12 * d * d * (tokens + 1) + 2 * d * (tokens + 1) ** 2)
    sides = (64, 32, 16, 8)
    neck = sum(tokens * d * d + 9 * d * d * side**2 for side in sides)
    pooling = d * c * (1 + 4 + 9 + 36) + 9 * (d + 4 * c) * c * 8**2
    pyramid = sum((d * c + 9 * c * c) * side**2 for side in sides[:3])
    fusion = (9 * 4 * c * c + c * k) * 64**2
    assert count("ViT-S/UPerNet").macs == backbone + neck + pooling + pyramid + fusion
    n = 16  # LKCA: no class token, two dense layers less, and one product with the score matrix instead of two
    lkca = tokens * 3 * 32**2 * d + 12 * (8 * d * d * tokens + d * n**4)
    assert count("LKCA-S/UPerNet").macs == lkca + neck + pooling + pyramid + fusion


def test_the_printed_flops_count_taps_on_the_padding():
    c, n, d = count("LKCA-S/FPN"), 32, 384
    on_padding = 12 * d * n * n * ((2 * n - 1) ** 2 - n * n)
    elementwise = c.macs_paper - c.macs - on_padding
    assert 0 < elementwise < 0.005 * c.macs


def test_both_readings_of_the_block_have_one_size():
    for decoder in ("UPerNet", "FPN"):
        first, second = count(f"LKCA-S/{decoder}"), count(f"LKCA-S-bare/{decoder}")
        assert first.params_paper == second.params_paper and first.macs_paper == second.macs_paper
    model = segmenters.build("LKCA-S-bare/FPN", crop=64, num_classes=3)
    layer = next(m for m in model.modules() if isinstance(m, LKCA))
    assert [name for name, _ in layer.named_parameters()] == ["kernel"]


def test_low_upernet_flops_come_from_the_patch_size():
    for name in ("ViT-S", "LKCA-S"):
        coarse, fair = count(f"{name}/UPerNet"), count(f"{name}-p16/UPerNet")
        assert fair.macs > 4 * coarse.macs and fair.macs_paper > count("ResNet-50/UPerNet").macs_paper


def test_the_small_rows_are_of_one_size():
    vit, lkca = (count(f"{name}-XS/UPerNet", 96, 11) for name in ("ViT", "LKCA"))
    assert abs(vit.params / lkca.params - 1) < 0.01 and abs(vit.macs / lkca.macs - 1) < 0.05


def test_as_printed():
    printed = [segmenters.as_printed(n) for n in (57_660_822, 143_543_958, 67_247_382_528, 107_840_894_976)]
    assert printed == ["57.66M", "0.144G", "67.25G", "0.108T"]


@pytest.mark.parametrize("name", ["ViT-XS/UPerNet", "LKCA-XS/UPerNet", "Swin-S/UPerNet", "Twins_PCPVT-S/FPN"])
def test_training_gives_the_auxiliary_logits_and_reaches_every_parameter(name):
    model = segmenters.build(name, crop=64, num_classes=3).train()
    out = model(torch.randn(2, 3, 64, 64))
    assert len(out) == 1 + name.endswith("UPerNet") and all(o.shape[:2] == (2, 3) for o in out)
    sum(o.square().sum() for o in out).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert not unused
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape[:2] == (1, 3)


def test_neck_and_fpn_sizes():
    maps = MultiLevelNeck(4)([torch.randn(1, 4, 6, 8) for _ in range(4)])
    assert [tuple(m.shape[2:]) for m in maps] == [(24, 32), (12, 16), (6, 8), (3, 4)]
    pyramid = [torch.randn(1, c, 32 // s, 32 // s) for c, s in ((2, 1), (3, 2), (4, 4), (5, 8))]
    assert FPN([2, 3, 4, 5], 6, 7)(pyramid).shape == (1, 7, 32, 32)


def test_wrong_names_and_sizes_are_named():
    with pytest.raises(ValueError, match="LKCA-S/UPerNet"):
        segmenters.build("LKCA-S", crop=512, num_classes=150)
    with pytest.raises(ValueError, match="patch_size=32 does not divide a crop of 100"):
        segmenters.build("LKCA-S/UPerNet", crop=100, num_classes=150)


@pytest.fixture(params=["vit", "lkca"])
def tiny(request, monkeypatch):
    torch.manual_seed(0)
    row = dataclasses.replace(
        segmenters.ROWS["ViT-XS/UPerNet"], backbone=request.param, dim=8, depth=4, heads=2, channels=4
    )
    monkeypatch.setitem(segmenters.ROWS, "tiny", row)
    model = segmenters.build("tiny", crop=32, num_classes=3).eval()
    for module in model.modules():
        if isinstance(module, LKCA):
            torch.nn.init.normal_(module.kernel)
    return model


def test_resized_to_the_same_size_is_the_same_model(tiny):
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(segmenters.resized(tiny, (32, 32))(x), tiny(x))


def test_resized_to_another_size_takes_such_images_and_leaves_the_model_alone(tiny):
    x = torch.randn(1, 3, 32, 32)
    before = tiny(x)
    other = segmenters.resized(tiny, (48, 80))
    assert other(torch.randn(1, 3, 48, 80)).shape == (1, 3, 24, 40)
    assert torch.equal(tiny(x), before)
    with pytest.raises(ValueError, match="33 x 32"):
        segmenters.resized(tiny, (33, 32))


def test_a_kernel_is_resized_by_distance_as_a_share_of_the_map():
    y, x = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-7.0, 8), indexing="ij")
    kernel = 1 + 0.1 * y - 0.2 * x.abs()  # a function of the offset on a grid of 4 x 8
    found = segmenters.resize_kernel(kernel, (4, 8), (8, 8)) * 2
    y = torch.arange(-7.0, 8)[:, None] / 2
    expected = 1 + 0.1 * y.clamp(-3, 3) - 0.2 * torch.arange(-7.0, 8).abs()
    torch.testing.assert_close(found, expected)
    assert segmenters.resize_kernel(kernel, (4, 8), (4, 8)) is kernel


def test_only_plain_transformers_can_be_resized():
    with torch.device("meta"):
        model = segmenters.build("ResNet-50/UPerNet", crop=64, num_classes=3)
    with pytest.raises(ValueError, match="cannot be resized"):
        segmenters.resized(model, (64, 96))
