"""How rows begin, and what they refuse: first weights as released, images and sizes that they were built for alone."""

import math

import pytest
import torch
from torch import nn

from lkca.models import comparators, complexity, rows, segmenters, zoo
from lkca.models.vit import ViT
from lkca.operator import LKCA

# MobileViT v2's real block, ours beside the released rows, begins as timm begins it.
AS_RELEASED = [row for row in comparators.ROWS if not row.endswith("-separable")]


def products(model):
    """The layers that multiply, with enough weights to tell a spread."""
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv1d) and m.weight.numel() > 2000
    ]


@pytest.mark.parametrize("row", [row for row in AS_RELEASED if row.endswith("-T") or row in ("Swin-S", "MobileViTv2")])
def test_a_comparator_s_layers_begin_as_pytorch_s_do(row):
    """Uniform within 1 / sqrt(fan in), which spreads by 1 / sqrt(3 fan in); biases likewise; norms at 1 and 0."""
    torch.manual_seed(0)
    model = zoo.build(row, image_size=64, num_classes=200)
    for name, layer in products(model):
        fan_in = layer.weight[0].numel()
        assert layer.weight.abs().max() <= fan_in**-0.5 + 1e-6, name
        assert layer.weight.std().item() * math.sqrt(3 * fan_in) == pytest.approx(1, rel=0.1), name
        if layer.bias is not None and layer.bias.numel() >= 64:
            assert layer.bias.std().item() * math.sqrt(3 * fan_in) == pytest.approx(1, rel=0.35), name
    for name, norm in model.named_modules():
        if isinstance(norm, nn.LayerNorm | nn.BatchNorm2d) and norm.weight is not None:
            assert (norm.weight == 1).all() and (norm.bias == 0).all(), name


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA", "ViT/0.5M-both", "ViT/0.5M-LKCA-random"])
def test_ours_begin_as_the_authors_do(row):
    """Xavier normal, biases 0, embeddings N(0, 1), kernels 0, or at random as a convolution's."""
    torch.manual_seed(0)
    model = zoo.build(row, image_size=32, num_classes=10)
    for name, layer in products(model):
        out, inside = layer.weight.shape
        assert layer.weight.std().item() * math.sqrt((inside + out) / 2) == pytest.approx(1, rel=0.1), name
        assert layer.bias is None or not layer.bias.any(), name
    assert model.pos_embed.std().item() == pytest.approx(1, rel=0.05)
    for layer in (m for m in model.modules() if isinstance(m, LKCA)):
        assert layer.kernel.abs().max() <= 1 / 15 and layer.kernel.any() == row.endswith("random")


@pytest.mark.parametrize("row", segmenters.TINY)
def test_segmentation_s_transformers_begin_as_mmsegmentation_s(row):
    torch.manual_seed(0)
    backbone = segmenters.build(row, crop=96, num_classes=11).backbone
    assert backbone.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    for name, layer in products(backbone):
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert layer.bias is None or not layer.bias.any(), name


def test_swin_s_former_beginning_is_another_version_of_the_row():
    for row in ("Swin-T", "Swin-S"):
        assert rows.row_hash(row) != rows.row_hash(row, first_weights=1)
    assert rows.row_hash("CaiT-T") == rows.row_hash("CaiT-T", first_weights=1)


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA", "Swin-T", "CrossViT-T"])
@pytest.mark.parametrize("shape", [(1, 3, 16, 64), (1, 3, 64, 64), (1, 3, 30, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_images_of_another_shape_are_refused(row, shape):
    """Among them 16 x 64, which has as many tokens as 32 x 32."""
    model = zoo.build(row, image_size=32, num_classes=10).eval()
    with pytest.raises(ValueError, match=r"images should be \(B, 3, 32, 32\), are"):
        model(torch.zeros(shape))


def test_scenes_of_another_shape_are_refused():
    model = segmenters.build("LKCA-XS/UPerNet", crop=64, num_classes=3).eval()
    with pytest.raises(ValueError, match=r"images should be \(B, 3, 64, 64\), are \(1, 3, 32, 128\)"):
        model(torch.zeros(1, 3, 32, 128))
    assert segmenters.resized(model, (32, 128))(torch.zeros(1, 3, 32, 128)).shape[:2] == (1, 3)


@pytest.mark.parametrize("row", ["ViT", "ViT/8M-LKCA", "Swin-T"])
@pytest.mark.parametrize("size", [30, 28, 0, -8, 33])
def test_what_cannot_be_built_is_not_counted(row, size):
    with pytest.raises(ValueError, match=f"image_size={size} does not suit {row}"):
        complexity.count(row, image_size=size, num_classes=10)
    with pytest.raises(ValueError, match="num_classes=0 is no number of classes"):
        complexity.count(row, image_size=64, num_classes=0)


def test_another_ptflops_is_refused(monkeypatch):
    monkeypatch.setattr(complexity, "version", lambda name: "0.7.5")
    with pytest.raises(ImportError, match="ptflops 0.7.5 counts otherwise than 0.7.1.2, the paper's"):
        complexity.paper_macs(nn.Linear(2, 2), 8)


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA", "ViT/0.5M-LKCA-channels", "ViT/0.5M-both"])
def test_a_model_exports_with_any_number_of_images(row):
    torch.manual_seed(0)
    model = zoo.build(row, image_size=32, num_classes=10).eval()
    for layer in (m for m in model.modules() if isinstance(m, LKCA)):
        nn.init.normal_(layer.kernel)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (torch.randn(3, 3, 32, 32),), dynamic_shapes=({0: batch},))
    images = torch.randn(7, 3, 32, 32)
    torch.testing.assert_close(exported.module()(images), model(images))


@pytest.mark.parametrize("form", ["matrix", "conv", "fft"])
@pytest.mark.parametrize("kernels", [1, 3])
def test_the_layer_exports_in_every_form(form, kernels):
    layer = LKCA(6, (4, 5), kernels=kernels, kernel_init="random", form=form).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(layer, (torch.randn(3, 20, 6),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 20, 6)
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_the_vision_transformer_knows_its_image_size():
    assert zoo.build("ViT", image_size=64, num_classes=2).image_size == 64 and ViT.forward.__doc__
