"""LKCA, the operator, in three equivalent forms, and the layer that picks one.

LKCA (section 3.2 of the paper) mixes the h x w tokens of an image with one (2h-1) x (2w-1) kernel K, the same for all
channels. With p and q two positions on the grid, its attention matrix A and its output are

    A[p, q] = K[q - p + (h-1, w-1)],        out = A v,

so row p of A is the h x w window of K whose corner is (h-1, w-1) - p, flattened: bottom right for the first token,
sliding to the top left for the last. (Section 3.2.1 says "top-right"; only top-left equals the convolution.)

- ``matrix``: the attention view. Stack the windows to the hw x hw matrix A, then one matrix product: (hw)^2 products a
  channel, every one of them inside the map.
- ``conv``: the convolution view. Correlate every channel with K under zero padding (h-1, w-1): (2h-1)(2w-1)hw products
  a channel, about four times as many, because most taps fall on the padding.
- ``fft``: the same convolution as a product of spectra of period (2h, 2w): O(hw log hw) a channel.

Shape suffixes: B images, N = hw tokens, D channels, H x W the grid.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

FORMS = ("matrix", "conv", "fft")


def attention_matrix(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """The hw x hw score matrix that slides ``kernel`` over an h x w grid (section 3.2.1).

    ``kernel`` is (2h-1, 2w-1); the result is doubly block Toeplitz with ``A[p, q] = kernel[q - p + (h-1, w-1)]``.
    """
    h, w = grid
    windows = kernel.unfold(0, h, 1).unfold(1, w, 1)  # [a, b] is the h x w window with corner (a, b): a view, no copy
    return windows.flip(0, 1).reshape(h * w, h * w)  # the first token takes the bottom-right window


def _matrix(v_BND: Tensor, kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    return attention_matrix(kernel, grid).to(v_BND.dtype) @ v_BND


def _conv(v_BND: Tensor, kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    v = rearrange(v_BND, "b (h w) d -> (b d) 1 h w", h=h)
    out = F.conv2d(v, kernel[None, None].to(v.dtype), padding=(h - 1, w - 1))
    return rearrange(out, "(b d) 1 h w -> b (h w) d", b=len(v_BND))


def _fft(v_BND: Tensor, kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    period = (2 * h, 2 * w)  # 2h-1 would do, but is prime too often
    dtype = torch.promote_types(v_BND.dtype, torch.float32)  # no half-precision transforms
    v = rearrange(v_BND, "b (h w) d -> b d h w", h=h).to(dtype)
    spectrum = torch.fft.rfft2(v, s=period) * torch.fft.rfft2(kernel.flip(0, 1).to(dtype), s=period)
    out = torch.fft.irfft2(spectrum, s=period)[..., h - 1 : 2 * h - 1, w - 1 : 2 * w - 1]
    return rearrange(out, "b d h w -> b (h w) d").to(v_BND.dtype)


_FORMS = dict(zip(FORMS, (_matrix, _conv, _fft), strict=True))


def fastest_form(grid: tuple[int, int]) -> str:
    """The form ``auto`` takes: ``matrix`` below 1024 tokens, ``fft`` from there on.

    Measured forward plus backward at 192 channels, fp32, two CPU threads, torch 2.15 (ms; matrix / fft / conv):
    8 x 8 with 128 images 17 / 96 / 496; 16 x 16 with 8 images 4.5 / 13 / 201; 24 x 24 with 4 images 9.7 / 18;
    28 x 28 with 4 images 17 / 23; 32 x 32 with 2 images 18 / 14. Not measured on CUDA: the same rule is used there.
    """
    return "matrix" if grid[0] * grid[1] < 1024 else "fft"


def lkca(v_BND: Tensor, kernel: Tensor, grid: tuple[int, int], form: str = "auto") -> Tensor:
    """Apply the LKCA operator to the values of h x w tokens, row by row.

    Args:
        v_BND: values, (B, h*w, D).
        kernel: (2h-1, 2w-1), one for all images and channels.
        grid: (h, w).
        form: "matrix", "conv", "fft", or "auto" for the fastest (see `fastest_form`). All agree to rounding.

    Returns:
        (B, h*w, D) in the dtype of ``v_BND``.

    Raises:
        ValueError: on an unknown form, or shapes that do not belong together.
    """
    h, w = grid
    if form not in (*FORMS, "auto"):
        raise ValueError(f"form={form!r} is not one of 'auto', {', '.join(map(repr, FORMS))}")
    if tuple(kernel.shape) != (2 * h - 1, 2 * w - 1):
        raise ValueError(f"a {h} x {w} grid needs a {2 * h - 1} x {2 * w - 1} kernel, got {tuple(kernel.shape)}")
    if v_BND.ndim != 3 or v_BND.shape[1] != h * w:
        raise ValueError(f"a {h} x {w} grid needs values of shape (B, {h * w}, D), got {tuple(v_BND.shape)}")
    return _FORMS[fastest_form(grid) if form == "auto" else form](v_BND, kernel, grid)


class LKCA(nn.Module):
    """Large Kernel Convolutional Attention as a layer: V projection, operator, output projection (section 3.2).

    There are no queries, keys, heads or softmax. Parameters: ``v.weight`` (D, D) without bias, ``kernel``
    (2h-1, 2w-1), zero at first as in the authors' code, so that the layer starts out as its output bias, and ``proj``
    (D, D) with bias. They are the same, by name and shape, whatever the form.

    Args:
        dim: channels D.
        grid: (h, w), or one number for a square grid.
        form: see `lkca`; it may be changed at any time by assigning to ``layer.form``.

    Shapes: (B, h*w, D) -> (B, h*w, D). Raises ValueError on an unknown form, and on tokens that do not fill the grid.
    """

    def __init__(self, dim: int, grid: int | tuple[int, int], *, form: str = "auto"):
        super().__init__()
        if form not in (*FORMS, "auto"):
            raise ValueError(f"form={form!r} is not one of 'auto', {', '.join(map(repr, FORMS))}")
        self.grid = (grid, grid) if isinstance(grid, int) else tuple(grid)
        self.form = form
        self.v = nn.Linear(dim, dim, bias=False)
        self.kernel = nn.Parameter(torch.zeros(2 * self.grid[0] - 1, 2 * self.grid[1] - 1))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Mix the tokens of x, (B, h*w, D)."""
        return self.proj(lkca(self.v(x_BND), self.kernel, self.grid, self.form))

    def extra_repr(self) -> str:
        """Grid and form, for printing."""
        return f"grid={self.grid}, form={self.form!r}"
