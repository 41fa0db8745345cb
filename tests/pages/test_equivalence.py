"""What the method page proves, tested in float64; and that the chapter's tables say what is measured."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lkca import operator
from lkca.models import complexity
from lkca.operator import attention_matrix, lkca
from lkca.pages import equivalence, speed
from lkca.studies import clock

GRID = (3, 5)


def drawn(grid=GRID):
    return equivalence._drawn(grid, images=2, dim=3)


def test_each_offset_occurs_as_often_as_equation_4_says():
    h, w = GRID
    place = attention_matrix(torch.arange((2 * h - 1) * (2 * w - 1)).view(2 * h - 1, 2 * w - 1), GRID)
    times = torch.bincount(place.flatten()).view(2 * h - 1, 2 * w - 1).numpy()
    down, right = np.abs(np.arange(1 - h, h)), np.abs(np.arange(1 - w, w))
    assert (times == np.outer(h - down, w - right)).all() and times.sum() == (h * w) ** 2


def test_taps_beyond_the_window_are_inert():
    """A kernel with a rim of two more taps: the same output whatever stands there, and no gradient."""
    (h, w), (v, kernel) = GRID, drawn()
    images = v.transpose(1, 2).reshape(-1, 1, h, w)
    large = F.pad(kernel, (2, 2, 2, 2), value=7.0).requires_grad_()
    out = F.conv2d(images, large[None, None], padding=(h + 1, w + 1)).reshape(2, 3, h * w).transpose(1, 2)
    torch.testing.assert_close(out, lkca(v, kernel, GRID), rtol=0, atol=1e-12)
    out.square().sum().backward()
    rim = large.grad.clone()
    rim[2:-2, 2:-2] = 0
    assert rim.count_nonzero() == 0 and large.grad.count_nonzero() == kernel.numel()


def test_a_translation_equivariant_map_cut_to_the_grid_is_a_score_matrix():
    """T on a torus too large for anything to wrap: extended by zero and restricted, it is LKCA's A."""
    (h, w), side = GRID, 32
    k = torch.fft.fft2(torch.randn(side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64))

    def cut(signal):  # R T E
        plane = torch.zeros(side, side, dtype=torch.float64)
        plane[:h, :w] = signal.view(h, w)
        return torch.fft.ifft2(torch.fft.fft2(plane) * k).real[:h, :w].flatten()

    a = torch.stack([cut(e) for e in torch.eye(h * w, dtype=torch.float64)], dim=1)
    offsets = torch.fft.ifft2(k).real
    kernel = torch.stack([offsets[[-down % side] * (2 * w - 1), [-r % side for r in range(1 - w, w)]]
                          for down in range(1 - h, h)])  # fmt: skip
    torch.testing.assert_close(a, attention_matrix(kernel, GRID), rtol=0, atol=1e-12)


def test_only_one_of_the_eight_walks_is_the_convolution():
    frame = equivalence.walks_table((4, 4))
    assert len(frame) == 8 and len(set(frame["its output is"])) == 8
    (name,) = frame.index[frame["its output is"] == "the convolution"]
    assert name == "bottom right to top left, by rows"
    assert not [name for name in frame.index if name.startswith("bottom right to top right")]
    assert frame["its output is"]["bottom left to top right, by rows"] == "flipped left to right"


def test_counts_are_golden():
    frame = equivalence.counts_table([8, 16])
    assert frame.loc["8 × 8"].tolist() == ["4,096", "225", "64", "3.52"]
    assert frame.loc["16 × 16"].tolist() == ["65,536", "961", "256", "3.75"]


def test_the_macs_ratios_are_golden():
    assert equivalence.macs_table()["ratio"].tolist() == ["0.980", "1.065", "0.950"]


def test_agreement_is_within_each_precision():
    frame = equivalence.agreement_table([(8, 8), (5, 9)])
    assert (frame["float64"] == "the reference").sum() == 2
    frame = frame.replace("the reference", "0").astype(float)
    assert (frame["float64"] < 1e-14).all() and (frame["float32"] < 1e-5).all() and (frame["bfloat16"] < 2e-2).all()
    assert (frame["bfloat16"] > 1e-4).all()


@pytest.mark.parametrize("n", [4, 8])
def test_measured_macs_of_the_mixers_are_the_closed_forms(n):
    d, tokens = 16, n * n
    macs = {k: complexity.measured(m, d, (n, n))["macs"] for k, m in complexity.mixers(d, 2, (n, n)).items()}
    assert macs["self-attention, fused"] == 4 * tokens * d * d + 2 * tokens**2 * d == macs["self-attention, products"]
    assert macs["LKCA, matrix"] == 2 * tokens * d * d + tokens**2 * d
    assert macs["LKCA, convolution"] == 2 * tokens * d * d + (2 * n - 1) ** 2 * tokens * d
    assert macs["depthwise large kernel (RepLKNet)"] == macs["LKCA, convolution"]
    assert macs["LKA (VAN)"] == 3 * tokens * d * d + (25 + 49) * tokens * d


def test_only_attention_in_products_keeps_scores():
    kept = {k: complexity.measured(m, 16, (16, 16))["bytes"] for k, m in complexity.mixers(16, 2, (16, 16)).items()}
    scores = 2 * 4 * 16**4  # heads, bytes, pairs of tokens
    assert kept["self-attention, products"] > scores > kept["self-attention, fused"]


def test_mixers_keep_the_shape():
    for layer in complexity.mixers(16, 2, GRID).values():
        assert layer(torch.randn(2, 15, 16)).shape == (2, 15, 16)


def test_the_sliding_figure_holds_the_kernel_and_its_matrix():
    import json
    import re

    kernel = drawn((4, 4))[1]
    page = equivalence.sliding_figure(kernel, (4, 4)).data
    numbers = json.loads(re.search(r'\{"grid".*?\}', page)[0])
    top = kernel.abs().max()
    np.testing.assert_allclose(numbers["matrix"], attention_matrix(kernel, (4, 4)) / top, atol=5e-4)
    np.testing.assert_allclose(numbers["kernel"], kernel / top, atol=5e-4)
    assert "http" not in page


def test_forms_figure_names_the_fastest():
    times = {8: {"matrix": 1, "conv": 9, "fft": 3}, 32: {"matrix": 5, "conv": 90, "fft": 4}}
    times[64] = {"matrix": 9, "conv": None, "fft": 4}
    found = [{"n": n, "images": 1, "form": form, "ms": ms} for n, forms in times.items() for form, ms in forms.items()]
    text = equivalence.forms_figure({"device": "a chip", "forms": found}).data
    assert "matrix 8; conv none; fft 32, 64" in text and "9 to 22 times as long" in text
    frame = speed.forms_table({"forms": found})
    assert frame["conv / fastest"].tolist() == ["9", "22", ""] and frame["conv, ms"][2] == "refused"
    never = [f if f["form"] != "conv" else f | {"ms": None} for f in found]
    assert (
        "The convolution is refused at all sides."
        in equivalence.forms_figure({"device": "a chip", "forms": never}).data
    )


def test_a_machine_s_forms_are_measured(monkeypatch):
    monkeypatch.setattr(clock, "SIDES", (4,))
    found = clock.forms("cpu", 0.0)
    assert {f["form"] for f in found} == {"matrix", "conv", "fft"} and all(f["ms"] > 0 for f in found)


def test_a_form_that_a_device_refuses_hides_no_other(monkeypatch):
    def refused(*args):
        raise RuntimeError("no engine for this kernel")

    monkeypatch.setattr(clock, "SIDES", (4,))
    monkeypatch.setitem(operator._FORMS, "conv", refused)
    assert [f["form"] for f in clock.forms("cpu", 0.0) if f["ms"] is None] == ["conv"]


def test_the_windows_figure_shows_the_matrix_of_the_kernel():
    page = equivalence.windows_figure((3, 4)).data
    numbers = [int(n) for n in re.findall(r"<text[^>]*>(\d+)</text>", page)]
    kernel = torch.arange(1, 36, dtype=torch.float64).reshape(5, 7)
    assert numbers == [*kernel.flatten().int().tolist(), *attention_matrix(kernel, (3, 4)).flatten().int().tolist()]
