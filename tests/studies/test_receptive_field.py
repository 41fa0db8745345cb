"""Receptive fields on models whose field is known; kernels and attentions whose answer is known."""

import numpy as np
import pytest
import torch

from lkca import ViT
from lkca.data import images as data
from lkca.ledger import records, trained
from lkca.ledger.runs import Run, SegmentationRecord
from lkca.operator import attention_matrix
from lkca.pages import receptive_field_figures as rff
from lkca.studies import receptive_field as rf
from lkca.studies import weights
from lkca.training import segmentation


def model(**kw):
    torch.manual_seed(0)
    settings = {"image_size": 32, "patch_size": 4, "num_classes": 3, "dim": 12, "depth": 3, "heads": 2}
    lkca = {"mixer": "lkca", "pooling": "mean", "kernel_init": "random"} if "heads" not in kw else {}
    return ViT(**settings | lkca | kw).double().eval()


@pytest.fixture(scope="module")
def images():
    return data.photographs(3, 32).double() / 255


def by_token(shares):
    return shares.reshape(-1, 8, 4, 8, 4).sum((0, 2, 4)) / len(shares)


def test_before_any_block_a_token_sees_its_patch(images):
    for network in (model(), model(heads=2)):
        seen = by_token(rf.shares(network, images, (2, 5), depth=0))
        assert seen[2, 5] == pytest.approx(1) and np.count_nonzero(seen) == 1


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("token", [(4, 4), (0, 0), (7, 3)])
def test_3x3_kernels_see_one_token_further_a_block_and_no_more(images, depth, token):
    seen = by_token(rf.shares(model(kernel_size=3), images, token, depth))
    distance = np.abs(np.indices((8, 8)) - np.array(token)[:, None, None]).max(0)
    assert (seen[distance <= depth] > 0).all() and (seen[distance > depth] == 0).all()


@pytest.mark.parametrize("kw", [{}, {"heads": 2}], ids=["lkca", "attention"])
def test_a_full_kernel_and_attention_see_everything_in_one_block(images, kw):
    assert (by_token(rf.shares(model(**kw), images, (0, 7), 1)) > 0).all()


def test_kernels_at_zero_see_nothing_but_the_token(images):
    seen = by_token(rf.shares(model(kernel_init="zeros"), images, (3, 3)))
    assert seen[3, 3] == pytest.approx(1)


def test_shares_do_not_know_the_gradient_s_scale(images):
    before = rf.shares(model(), images, (4, 4))
    doubled = model()
    hook = doubled.blocks[-1].register_forward_hook(lambda module, inputs, output: 1000 * output)
    with hook:
        np.testing.assert_allclose(rf.shares(doubled, images, (4, 4)), before, rtol=1e-9)
    np.testing.assert_allclose(before.sum((1, 2)), 1)


def test_area_ratio_is_golden():
    patch = np.zeros((32, 32))
    patch[16:20, 16:20] = 1 / 16  # the patch of token (4, 4), centred between pixels
    at = rf.centre(model(), (4, 4))
    assert at == (18.0, 18.0)
    assert rf.area_ratio(patch, at, 1.0) == 16 / 1024
    assert rf.area_ratio(patch, at, 0.25) == 4 / 1024
    flat = np.full((32, 32), 1 / 1024)
    assert rf.area_ratio(flat, (16, 16), 0.25) == 256 / 1024
    assert rf.area_ratio(flat, (2.0, 2.0), 1.0) == 1  # from a corner all of it is reached, the border cuts the square
    assert rf.area_ratio(flat, (2.0, 2.0), 4 / 1024) == 4 / 1024
    assert rf.area_ratio(flat * 0.999999, (16, 16), 1.0) == 1  # rounding does not lose the last pixel


def test_area_ratio_grows_with_the_share(images):
    r = rf.curve(rf.shares(model(), images, (0, 4)), (2.0, 18.0), np.linspace(0.05, 1, 20))
    assert r.shape == (3, 20) and (np.diff(r) >= 0).all() and (r > 0).all() and (r <= 1).all()


def test_the_chapter_s_figures_show_what_was_measured(images):
    """Two models, one of which is known to see its own patch alone: table, curve and both scales say so."""
    states = {"untrained": {"blind": model(kernel_init="zeros"), "3x3": model(kernel_size=3)}}
    found = rff.fields(states, images)
    assert list(found) == [(w, "untrained", n) for w in ("centre", "edge", "corner") for n in ("blind", "3x3")]
    table = rff.reach_table(found).astype(float)
    assert table.loc[("blind", "corner", "untrained"), "99 %"] == pytest.approx(100 * 16 / 1024, abs=0.05)
    expected = 100 * rf.curve(rf.shares(states["untrained"]["3x3"], images, (0, 4)), (2.0, 18.0), [0.5]).mean()
    assert table.loc[("3x3", "edge", "untrained"), "50 %"] == pytest.approx(expected, abs=0.05)
    curve = rff.curve_figure(found).data
    assert f"<td>{table.loc[('3x3', 'centre', 'untrained'), '99 %']:.1f}</td>" in curve
    assert "20 %, 30 %, 50 %, 99 %" in curve and "3 images" in curve
    for log in (False, True):
        page = rff.fields_figure(found, log=log).data
        assert "corner, untrained" in page and ("logarithmic" in page) == log
        largest = found["edge", "untrained", "blind"].shares_BXY.mean(0).max()
        assert f"<td>{largest:.4f}</td>" in page


def test_kernel_statistics_are_golden():
    k = torch.zeros(5, 7)
    k[0, 6] = -2.0  # two up, three right of the middle
    found = rf.kernel_statistics(k)
    assert found == pytest.approx({"down": -2, "right": 3, "radius": 13**0.5, "symmetry": 0.5, "norm": 2})
    k[4, 0] = -2.0
    assert rf.kernel_statistics(k)["symmetry"] == pytest.approx(1)
    k[4, 0] = 2.0
    assert rf.kernel_statistics(k)["symmetry"] == pytest.approx(0)


def test_toeplitz_fit_inverts_and_projects():
    g = torch.Generator().manual_seed(0)
    kernel = torch.randn(2, 5, 9, generator=g, dtype=torch.float64)
    torch.testing.assert_close(rf.toeplitz_fit(attention_matrix(kernel, (3, 5)), (3, 5)), kernel, rtol=0, atol=1e-12)
    scores = torch.randn(15, 15, generator=g, dtype=torch.float64)
    rest = scores - attention_matrix(rf.toeplitz_fit(scores, (3, 5)), (3, 5))
    other = attention_matrix(kernel[0], (3, 5))
    assert abs((rest * other).sum()) < 1e-10  # what is left is at right angles to every kernel's matrix


def test_explained_tells_fixed_from_toeplitz_from_neither():
    g = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 9, generator=g).expand(6, 5, 9)
    noise = torch.randn(6, 15, 15, generator=g)
    scores = torch.stack([attention_matrix(kernel, (3, 5)), noise[:1].expand(6, 15, 15), noise])
    fixed, toeplitz = rf.explained(scores, (3, 5))
    assert fixed.tolist()[:2] == pytest.approx([1, 1]) and toeplitz[0].item() == pytest.approx(1)
    assert toeplitz[1] < 0.5 and fixed[2] < 0.3 and toeplitz[2] < fixed[2]


def test_attention_maps_are_those_the_layers_use(images):
    network, seen = model(heads=2, pooling="mean"), []
    for block in network.blocks:
        layer = block.branches[0]
        layer.register_forward_hook(lambda layer, inputs, output: seen.append((layer, inputs[0], output)))
    for maps, (layer, x, output) in zip(rf.attention_maps(network, images), seen, strict=True):
        v = layer.qkv(x)[..., 24:].unflatten(-1, (2, 6))
        torch.testing.assert_close(layer.proj(torch.einsum("hbqk,bkhe->bqhe", maps, v).flatten(2)), output)
    maps = rf.attention_maps(model(heads=2), images)
    assert maps.shape == (3, 2, 3, 64, 64) and (maps.sum(-1) < 1).all()  # the rest goes to the [class] token


@pytest.mark.parametrize(
    "kw, says", [({"token": (8, 0)}, r"\(8, 0\) is not on the 8 x 8 grid"), ({"depth": 4}, "the model has 3 blocks")]
)
def test_what_does_not_exist_is_said(images, kw, says):
    with pytest.raises(ValueError, match=says):
        rf.shares(model(), images, **{"token": (0, 0)} | kw)


def test_kept_weights_belong_to_their_records():
    """Every file of weights has its record, fits its model, and stays small."""
    ledger, _ = records.read(kind=Run)
    names = {records.path_of(r, "").stem for r in ledger}
    files = list((records.RESULTS / "weights").iterdir())
    assert files and {f.stem for f in files} <= names and all(f.suffix == ".safetensors" for f in files)
    assert sum(f.stat().st_size for f in files) < 50e6
    for record in weights.runs("cifar100", "sketch"):
        assert weights.model_of(record, trained=True).blocks
    for record in ledger:
        if isinstance(record, SegmentationRecord) and trained.path(record).exists():
            assert all(w.isfinite().all() for w in segmentation.load(record).state_dict().values())


def test_photographs_are_real_and_repeatable():
    a, b = data.photographs(4, 32), data.photographs(4, 32)
    assert torch.equal(a, b) and a.shape == (4, 3, 32, 32) and a.dtype == torch.uint8
    assert a.float().std((1, 2, 3)).min() > 5 and not torch.equal(a, data.photographs(4, 32, seed=1))


def test_unknown_images_are_named():
    (record, *_) = weights.runs("cifar100", "sketch")
    with pytest.raises(ValueError, match="'photographs', 'dataset'"):
        rff.images_for(record, 4, "noise")


def test_the_chapter_takes_any_pair_whose_weights_are_kept():
    assert list(weights.kept("ViT/0.5M", "cifar100", "sketch")) == ["ViT/0.5M", "ViT/0.5M-LKCA", "ViT/0.5M-LKCA-3x3"]
    assert list(weights.kept("ViT", "cifar100", "sketch")) == ["ViT", "ViT-LKCA"]
    with pytest.raises(ValueError, match="no weights of 'ViT/3M' and its LKCA, .* take one of 'ViT', 'ViT/0.5M'"):
        weights.kept("ViT/3M", "cifar100", "sketch")
