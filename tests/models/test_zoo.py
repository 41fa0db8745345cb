"""The rows: printed counts digit for digit, the counting rules against the models themselves, the switches."""

import pandas as pd
import pytest
import torch
from torch import nn

from lkca import ViT, published
from lkca.models import complexity, zoo
from lkca.models.vit import Attention

PAPER = published.FOLDER
CANNOT = {"ViT/8M-LKCA": ("7.94M", "505.99M")}  # printed 7.98M, 506.00M


@pytest.mark.parametrize("table", [1, 2, 3])
@pytest.mark.parametrize("row", zoo.TABLES[1].rows)
def test_printed_counts_digit_for_digit(table, row):
    printed = pd.read_csv(PAPER / f"table{table}.csv", dtype=str).set_index("model").loc[row]
    c = complexity.count(row, **complexity.PRINTED_SETTING)
    ours = (f"{c.params_paper / 1e6:.2f}M", f"{c.macs_paper / 1e6:.2f}M")
    if row in CANNOT:
        assert ours == CANNOT[row] and zoo.ROWS[row].deviation
        assert (printed.params, printed.flops) == ("7.98M", "506.00M")
    else:
        assert ours == (printed.params, printed.flops) and zoo.ROWS[row].deviation is None


@pytest.mark.parametrize("row", zoo.ROWS)
@pytest.mark.parametrize("size, classes", [(8, 10), (32, 100), (64, 200)])
def test_counted_parameters_are_the_model_s(row, size, classes):
    with torch.device("meta"):
        model = zoo.build(row, image_size=size, num_classes=classes)
    count = complexity.count(row, image_size=size, num_classes=classes)
    assert count.params == sum(p.numel() for p in model.parameters())
    assert count.params_paper - count.params == (zoo.ROWS[row].dim if zoo.ROWS[row].mixer == "lkca" else 0)
    assert count.macs_paper < count.macs <= count.macs_all_taps


def test_taps_inside_the_map_are_counted_one_by_one():
    """3 x 3 on an 8 x 8 map: 8 + 7 + 7 columns a row of the kernel; 15 x 15: all pairs of tokens."""
    small, full = (complexity.count(f"ViT/0.5M-LKCA{end}", image_size=32, num_classes=10) for end in ("-3x3", ""))
    assert small.macs - small.macs_paper == 8 * 22**2 * 100
    assert full.macs - full.macs_paper == 8 * 64**2 * 100


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_macs_are_those_of_the_multiplications(row):
    """Matrix products counted by torch; what remains of `macs` is the elementwise terms of the paper's convention."""
    from torch.utils.flop_counter import FlopCounterMode

    model = zoo.build(row, image_size=32, num_classes=10, form="matrix").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    count = complexity.count(row, **complexity.PRINTED_SETTING)
    products = counter.get_total_flops() / 2
    assert 0 < count.macs - products < 0.03 * count.macs


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA", "LKCA-L"])
@pytest.mark.parametrize("size", [8, 32, 64])
def test_rows_run_forward_and_backward(row, size):
    model = zoo.build(row, image_size=size, num_classes=7)
    out = model(torch.randn(2, 3, size, size))
    assert out.shape == (2, 7)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def small(**kw):
    return ViT(**{"image_size": 8, "patch_size": 2, "num_classes": 3, "dim": 8, "depth": 2, "heads": 2} | kw)


def test_both_mixers_have_three_residual_branches():
    block = small(mixer="both", pooling="mean").blocks[0]
    assert [type(b).__name__ for b in block.branches] == ["Attention", "LKCA", "Sequential"]
    x = torch.randn(1, 16, 8)
    expected = x
    for norm, branch in zip(block.norms, block.branches, strict=True):
        expected = expected + branch(norm(expected))
    torch.testing.assert_close(block.eval()(x), expected)


def test_pooling_decides_the_class_token():
    assert small().class_token is not None and small().pos_embed.shape == (17, 8)
    assert small(pooling="mean").class_token is None and small(pooling="mean").pos_embed.shape == (16, 8)


def test_initialisation_is_the_authors():
    model = zoo.build("ViT-LKCA", image_size=32, num_classes=10)
    for name, p in model.named_parameters():
        if name.endswith("kernel") or name.endswith("bias"):
            assert p.count_nonzero() == 0, name
    w = model.blocks[0].branches[1][0].weight
    assert w.std().item() == pytest.approx((2 / sum(w.shape)) ** 0.5, rel=0.05)
    assert model.pos_embed.std().item() == pytest.approx(1, rel=0.05)


def test_a_control_row_differs_in_what_its_name_says():
    def changed(name, base):
        a, b = vars(zoo.ROWS[name]), vars(zoo.ROWS[base])
        return {field: a[field] for field in a if a[field] != b[field]}

    for size in ("ViT/0.5M", "ViT/2M", "ViT"):
        vit, lkca = zoo.ROWS[size], zoo.ROWS[f"{size}-LKCA"]
        assert changed(f"{size}-mean", size) == {"pooling": "mean"}
        assert changed(f"{size}-both", size) == {"pooling": "mean", "mixer": "both"}
        assert changed(f"{size}-LKCA-channels", f"{size}-LKCA") == {"kernels": lkca.dim}
        assert changed(f"{size}-LKCA-3x3", f"{size}-LKCA") == {"kernel_size": 3}
        assert changed(f"{size}-LKCA-random", f"{size}-LKCA") == {"kernel_init": "random"}
        assert changed(f"{size}-LKCA-heads", f"{size}-LKCA").keys() == {"kernels"}
        same = zoo.ROWS[f"{size}-LKCA-same"]
        assert (same.dim, same.depth, same.mixer, same.pooling) == (vit.dim, vit.depth, "lkca", "mean")


def test_random_kernels_survive_the_model_s_initialisation():
    model = zoo.build("ViT/0.5M-LKCA-random", image_size=8, num_classes=10)
    assert all(block.branches[0].kernel.count_nonzero() > 0 for block in model.blocks)


def test_drop_path_is_the_row_s_unless_said():
    def rate(**kw):
        return zoo.build("ViT/0.5M", image_size=8, num_classes=10, **kw).blocks[0].drop_path

    assert (rate(), rate(drop_path=0.0)) == (0.1, 0.0)


def test_both_forms_of_attention_are_the_same():
    """In float64 to rounding, output and gradient; in bf16 the products are at most twice as inexact."""
    torch.manual_seed(0)
    fused = Attention(120, 4, form="fused").double()
    products, x = Attention(120, 4).double(), 2 * torch.randn(8, 65, 120, dtype=torch.float64)
    products.load_state_dict(fused.state_dict())

    def run(layer, low):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = layer(x.float() if low else x).double()
        out.square().mean().backward()
        return torch.cat([out.flatten().detach(), *(p.grad.flatten() for p in layer.parameters())])

    exact = run(fused, False)
    torch.testing.assert_close(run(products, False), exact, rtol=1e-10, atol=1e-12)
    ours, theirs = ((run(layer.float(), True) - exact).norm() / exact.norm() for layer in (products, fused))
    assert ours < 2 * theirs < 0.02
    with pytest.raises(ValueError, match="form='flash' is not one of 'auto', 'fused', 'products'"):
        Attention(120, 4, form="flash")


def test_layers_have_the_stated_biases():
    model = small()
    attention = model.blocks[0].branches[0]
    assert attention.qkv.bias is None and isinstance(attention.proj.bias, nn.Parameter)


@pytest.mark.parametrize(
    "call, says",
    [
        (
            lambda: zoo.build("ViT/3M", image_size=32, num_classes=10),
            "'ViT/3M' does not exist; the rows are ViT, ViT-LKCA",
        ),
        (lambda: zoo.build("ViT", image_size=30, num_classes=10), "use a multiple of 8"),
        (lambda: small(mixer="conv"), "mixer='conv' is not one of"),
        (lambda: small(pooling="max"), "pooling='max' is not one of"),
        (lambda: small(mixer="lkca"), "use pooling='mean'"),
        (lambda: small(heads=3), "does not divide into 3 heads"),
        (lambda: small(mixer="lkca", pooling="mean", kernels=3), "8 channels do not divide among 3 kernels"),
        (lambda: small(mixer="lkca", pooling="mean", kernel_init="ones"), "kernel_init='ones' is not one of"),
        (lambda: small(patch_size=3), "patch_size=3 does not divide"),
    ],
)
def test_errors_name_the_choices(call, says):
    with pytest.raises(ValueError, match=says):
        call()
