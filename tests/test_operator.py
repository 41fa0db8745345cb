"""LKCA's forms against each other and against section 3.2.1, in float64; and what the operator can do without."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lkca as package
from lkca import LKCA, lkca
from lkca.operator import FORMS, attention_matrix, fastest_form

GRIDS = [(8, 8), (3, 5), (5, 2), (1, 4), (1, 1), (7, 7)]


def slide_flatten_stack(kernel, grid):
    """Section 3.2.1, written as loops: slide an h x w window over the kernel, flatten each, stack them as rows."""
    h, w = grid
    rows = []
    for top in range(h - 1, -1, -1):  # from the bottom-right window for the first token to the top-left for the last
        for left in range(w - 1, -1, -1):
            rows.append(kernel[top : top + h, left : left + w].flatten())
    return np.stack(rows)


def draw(grid, batch=3, dim=4):
    generator = torch.Generator().manual_seed(0)
    h, w = grid
    v = torch.randn(batch, h * w, dim, dtype=torch.float64, generator=generator)
    kernel = torch.randn(2 * h - 1, 2 * w - 1, dtype=torch.float64, generator=generator)
    return v, kernel, torch.randn(v.shape, dtype=torch.float64, generator=generator)


def outputs_and_gradients(grid, form):
    v, kernel, weights = draw(grid)
    v.requires_grad_()
    kernel.requires_grad_()
    out = lkca(v, kernel, grid, form)
    (out * weights).sum().backward()
    return out.detach(), v.grad, kernel.grad


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_attention_of_section_3_2_1(grid, form):
    v, kernel, weights = (t.numpy() for t in draw(grid))
    scores = slide_flatten_stack(kernel, grid)
    out, v_grad, kernel_grad = outputs_and_gradients(grid, form)
    np.testing.assert_allclose(out, np.einsum("pq,bqd->bpd", scores, v), rtol=0, atol=1e-12)
    np.testing.assert_allclose(v_grad, np.einsum("pq,bpd->bqd", scores, weights), rtol=0, atol=1e-12)
    positions = slide_flatten_stack(np.arange(kernel.size).reshape(kernel.shape), grid)
    expected = np.zeros(kernel.size)
    np.add.at(expected, positions, np.einsum("bpd,bqd->pq", weights, v))
    expected = expected.reshape(kernel.shape)  # sums of some hundred products: to 1e-12 of the largest
    np.testing.assert_allclose(kernel_grad, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("grid", GRIDS)
def test_forms_agree_forward_and_backward(grid):
    for other in FORMS[1:]:
        for a, b in zip(outputs_and_gradients(grid, FORMS[0]), outputs_and_gradients(grid, other), strict=True):
            assert (a - b).abs().max() <= 1e-12 * max(1, a.abs().max())


def test_the_text_s_top_right_is_not_the_convolution():
    v, kernel, _ = draw((3, 3))
    rows = [kernel[t : t + 3, left : left + 3].flatten() for t in range(2, -1, -1) for left in range(3)]
    assert (torch.stack(rows) @ v - lkca(v, kernel, (3, 3), "conv")).abs().max() > 0.1


def test_attention_matrix_is_the_closed_form():
    (h, w), (_, kernel, _) = (3, 5), draw((3, 5))
    a = attention_matrix(kernel, (h, w))
    for p in range(h * w):
        for q in range(h * w):
            assert a[p, q] == kernel[q // w - p // w + h - 1, q % w - p % w + w - 1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_group_of_channels_has_its_kernel(form, groups):
    v, _, weights = draw((3, 5))
    kernels = torch.randn(groups, 5, 9, dtype=torch.float64, requires_grad=True)
    out = lkca(v, kernels, (3, 5), form)
    alone = [lkca(part, k, (3, 5)) for part, k in zip(v.chunk(groups, -1), kernels, strict=True)]
    torch.testing.assert_close(out, torch.cat(alone, -1), rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad((out * weights).sum(), kernels)
    (expected,) = torch.autograd.grad((torch.cat(alone, -1) * weights).sum(), kernels)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-11)
    assert attention_matrix(kernels, (3, 5)).shape == (groups, 15, 15)


def test_a_3x3_kernel_is_the_usual_convolution_with_padding_1():
    x = torch.randn(2, 24, 8)
    layer = LKCA(8, (4, 6), kernel_size=3, kernel_init="random")
    v = layer.v(x).transpose(1, 2).reshape(16, 1, 4, 6)
    expected = torch.nn.functional.conv2d(v, layer.kernel[None, None], padding=1).reshape(2, 8, 24).transpose(1, 2)
    assert layer.kernel.shape == (3, 3)
    torch.testing.assert_close(layer(x), layer.proj(expected))


@pytest.mark.parametrize("size", [2, 9, 17])
def test_a_kernel_larger_than_its_window_or_even_is_refused(size):
    with pytest.raises(ValueError, match=f"kernel_size={size} is not odd and within the full 7 x 11 kernel"):
        LKCA(8, (4, 6), kernel_size=size)


@pytest.mark.parametrize("kernels", [1, 4])
def test_kernels_start_at_zero_or_as_a_convolution_s(kernels):
    size = (9, 9) if kernels == 1 else (4, 9, 9)
    layer = LKCA(8, 5, kernels=kernels)
    assert layer.kernel.shape == size and layer.kernel.count_nonzero() == 0
    kernel = LKCA(8, 5, kernels=kernels, kernel_init="random").kernel
    torch_s = torch.nn.Conv2d(1, 1, 9).weight  # fan-in 81
    assert 0.9 / 9 < kernel.abs().max() <= 1 / 9 and torch_s.abs().max() <= 1 / 9


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    v, kernel, _ = draw((2, 3), batch=2, dim=2)
    assert torch.autograd.gradcheck(
        lambda v, k: lkca(v, k, (2, 3), form), (v.requires_grad_(), kernel.requires_grad_())
    )


@pytest.mark.parametrize("form", (*FORMS, "auto"))
def test_the_layer_exports(form):
    layer = LKCA(6, (3, 4), form=form).eval()
    torch.nn.init.normal_(layer.kernel)
    x = torch.randn(2, 12, 6)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_parameters_do_not_depend_on_the_form():
    states = [{k: v.shape for k, v in LKCA(6, (3, 4), form=f).state_dict().items()} for f in (*FORMS, "auto")]
    assert all(s == states[0] for s in states)
    assert states[0] == {"v.weight": (6, 6), "kernel": (5, 7), "proj.weight": (6, 6), "proj.bias": (6,)}


def test_the_layer_starts_as_its_bias():
    layer = LKCA(6, 4)
    assert layer.kernel.count_nonzero() == 0
    torch.testing.assert_close(layer(torch.randn(2, 16, 6)), layer.proj.bias.expand(2, 16, 6))


def test_auto_takes_the_fastest_form():
    assert [fastest_form(g) for g in ((8, 8), (31, 33), (32, 32), (1, 2000))] == ["matrix", "matrix", "fft", "fft"]
    v, kernel, _ = draw((3, 5))
    assert torch.equal(lkca(v, kernel, (3, 5)), lkca(v, kernel, (3, 5), "matrix"))


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_values_keep_their_dtype(form):
    v, kernel, _ = draw((3, 3))
    out = lkca(v.bfloat16(), kernel.float(), (3, 3), form)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), lkca(v, kernel, (3, 3)), rtol=0.05, atol=0.15)


@pytest.mark.parametrize(
    "call, says",
    [
        (
            lambda: lkca(torch.zeros(1, 4, 1), torch.zeros(3, 3), (2, 2), "dense"),
            "'dense' is not one of 'auto', 'matrix'",
        ),
        (lambda: lkca(torch.zeros(1, 4, 1), torch.zeros(2, 3), (2, 2)), "needs a 3 x 3 kernel"),
        (lambda: lkca(torch.zeros(1, 5, 1), torch.zeros(3, 3), (2, 2)), r"needs values of shape \(B, 4, D\)"),
        (lambda: LKCA(4, 2, form="x"), "is not one of 'auto'"),
    ],
)
def test_errors_name_the_choices(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def comes_with(*requirements):
    """The distributions that these install, themselves among them."""
    todo, found = [Requirement(text) for text in requirements], set()
    while todo:
        wanted = todo.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in found:
            continue
        found.add((name, extras))
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # of another system
            continue
        todo += [r for r in needs if not r.marker or any(r.marker.evaluate({"extra": e}) for e in ("", *extras))]
    return {name for name, _ in found}


def test_the_layer_needs_only_torch_and_einops():
    with_them = comes_with("torch", "einops") | {"lkca"}
    installed = metadata.packages_distributions().items()
    refused = [module for module, owners in installed if with_them.isdisjoint(map(canonicalize_name, owners))]
    assert {"numpy", "torchvision", "timm", "sklearn", "pandas"} <= set(refused)
    code = (
        "import json, sys; sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))\n"
        "from lkca.operator import LKCA\nimport torch\n"
        "LKCA(8, 4)(torch.zeros(2, 16, 8)).sum().backward()"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(refused)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", ["operator.py", "models/vit.py", "__init__.py", "models/__init__.py"])
def test_operator_and_vit_name_no_other_library_anywhere(file):
    """Not within a function either, which the test above does not call."""
    modules = set()
    for node in ast.walk(ast.parse((Path(package.__file__).parent / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "an import is absolute"
            modules.add(node.module)
    ours = {name for name in modules if name.split(".")[0] == "lkca"}
    assert ours <= ({"lkca.models.vit", "lkca.operator"} if file != "operator.py" else set())
    assert {name.split(".")[0] for name in modules - ours} <= {"torch", "einops", *sys.stdlib_module_names}
