"""LKCA, the operator, in three equivalent forms, and the layer that picks one.

LKCA (section 3.2 of the paper) mixes the h x w tokens of an image with one (2h-1) x (2w-1) kernel K, the same for all
channels. With p and q two positions on the grid, its attention matrix A and its output are

    A[p, q] = K[q - p + (h-1, w-1)],        out = A v.

Numbers in brackets are equations of the book's page "Why one convolution is an attention" (book/method.md).

- ``matrix``: the attention view (2), (3). Row p of A is the h x w window of K with corner (h-1, w-1) - p, flattened:
  one matrix product, (hw)^2 products a channel, every one of them inside the map.
- ``conv``: the convolution view (5). Correlate every channel with K under zero padding (h-1, w-1): (2h-1)(2w-1)hw
  products a channel, about four times as many, because most taps fall on the padding.
- ``fft``: the same convolution as a product of spectra of period (2h, 2w): O(hw log hw) a channel.

The paper's kernel is one for all channels. As controls there may be G of them, each for D / G neighbouring channels:
one a head, or one a channel (a depthwise convolution).

Shape suffixes: B images, N = hw tokens, D channels, G kernels, H x W the grid.
"""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

FORMS = ("matrix", "conv", "fft")


def attention_matrix(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """The hw x hw score matrix that slides ``kernel`` over an h x w grid: equation (2), section 3.2.1 of the paper.

    ``kernel`` is (2h-1, 2w-1); the result is doubly block Toeplitz with ``A[p, q] = kernel[q - p + (h-1, w-1)]``.
    Of a stack of kernels, (…, 2h-1, 2w-1), it is the stack of their matrices, (…, hw, hw).
    """
    h, w = grid
    windows = kernel.unfold(-2, h, 1).unfold(-2, w, 1)  # [a, b] is the h x w window with corner (a, b): a view, no copy
    return windows.flip(-4, -3).reshape(*kernel.shape[:-2], h * w, h * w)  # the first token's is the bottom right


def _matrix(v_BND: Tensor, kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    scores = attention_matrix(kernel, grid).to(v_BND.dtype)
    if kernel.ndim == 2:
        return scores @ v_BND
    v = rearrange(v_BND, "b n (g d) -> b n g d", g=len(kernel))
    return rearrange(einsum(scores, v, "g p q, b q g d -> b p g d"), "b n g d -> b n (g d)")


def _conv(v_BND: Tensor, kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    kernel_G1HW = kernel.reshape(-1, 1, *kernel.shape[-2:]).to(v_BND.dtype)
    groups, channels = kernel_G1HW.shape[0], v_BND.shape[2]
    v = rearrange(v_BND, "b (h w) (g d) -> (b d) g h w", h=h, g=groups)
    out = F.conv2d(v, kernel_G1HW, padding=(h - 1, w - 1), groups=groups)
    return rearrange(out, "(b d) g h w -> b (h w) (g d)", d=channels // groups)  # its size of a batch stays open


def _fft(v_BND: Tensor, kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    period = (2 * h, 2 * w)  # 2h-1 would do, but is prime too often
    dtype = torch.promote_types(v_BND.dtype, torch.float32)  # no half-precision transforms
    kernel_GHW = kernel.reshape(-1, *kernel.shape[-2:]).to(dtype)
    v = rearrange(v_BND, "b (h w) (g d) -> b d g h w", h=h, g=len(kernel_GHW)).to(dtype)
    spectrum = torch.fft.rfft2(v, s=period) * torch.fft.rfft2(kernel_GHW.flip(-2, -1), s=period)
    out = torch.fft.irfft2(spectrum, s=period)[..., h - 1 : 2 * h - 1, w - 1 : 2 * w - 1]
    return rearrange(out, "b d g h w -> b (h w) (g d)").to(v_BND.dtype)


_FORMS = dict(zip(FORMS, (_matrix, _conv, _fft), strict=True))


def fastest_form(grid: tuple[int, int]) -> str:
    """The form ``auto`` takes: ``matrix`` below 1024 tokens, ``fft`` from there on.

    Measured forward plus backward at 192 channels, fp32, about 8192 tokens, two CPU threads, torch 2.15 (ms; matrix /
    fft / conv): 8 x 8 9 / 60 / 392; 16 x 16 20 / 58 / 728; 32 x 32 62 / 66 / 10,734; 48 x 48 120 / 55 / 27,516. At
    32 x 32 the two are a tie, which another machine decided for fft. Not measured on CUDA: the same rule is used there.
    """
    return "matrix" if grid[0] * grid[1] < 1024 else "fft"


def lkca(v_BND: Tensor, kernel: Tensor, grid: tuple[int, int], form: str = "auto") -> Tensor:
    """Apply the LKCA operator to the values of h x w tokens, row by row.

    Args:
        v_BND: values, (B, h*w, D).
        kernel: (2h-1, 2w-1), one for all images and channels; or (G, 2h-1, 2w-1), one for each D / G channels.
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
    if kernel.ndim not in (2, 3) or tuple(kernel.shape[-2:]) != (2 * h - 1, 2 * w - 1):
        raise ValueError(f"a {h} x {w} grid needs a {2 * h - 1} x {2 * w - 1} kernel, got {tuple(kernel.shape)}")
    if v_BND.ndim != 3 or v_BND.shape[1] != h * w:
        raise ValueError(f"a {h} x {w} grid needs values of shape (B, {h * w}, D), got {tuple(v_BND.shape)}")
    if kernel.ndim == 3:
        _check_kernels(v_BND.shape[2], len(kernel))
    return _FORMS[fastest_form(grid) if form == "auto" else form](v_BND, kernel, grid)


def _check_kernels(dim: int, kernels: int) -> None:
    if kernels < 1 or dim % kernels:
        raise ValueError(f"{dim} channels do not divide among {kernels} kernels")


class LKCA(nn.Module):
    """Large Kernel Convolutional Attention as a layer: V projection, operator, output projection (section 3.2).

    There are no queries, keys, heads or softmax. Parameters: ``v.weight`` (D, D) without bias, ``kernel``
    (2h-1, 2w-1), and ``proj`` (D, D) with bias. They are the same, by name and shape, whatever the form.

    Args:
        dim: channels D.
        grid: (h, w), or one number for a square grid.
        kernels: how many; with more than the paper's one, ``kernel`` is (kernels, 2h-1, 2w-1).
        kernel_size: side of a smaller kernel, odd; None for one that reaches every token from every token.
        kernel_init: "zeros" as in the authors' code, so that the layer starts out as its output bias; or "random", as
            PyTorch starts a convolution: uniform within 1 / sqrt(taps).
        form: see `lkca`; it may be changed at any time by assigning to ``layer.form``.

    Shapes: (B, h*w, D) -> (B, h*w, D). Raises ValueError on an unknown form or initialisation, a number of kernels that
    does not divide the channels, a size no kernel can have, and on tokens that do not fill the grid.
    """

    def __init__(
        self,
        dim: int,
        grid: int | tuple[int, int],
        *,
        kernels: int = 1,
        kernel_size: int | None = None,
        kernel_init: str = "zeros",
        form: str = "auto",
    ):
        super().__init__()
        if form not in (*FORMS, "auto"):
            raise ValueError(f"form={form!r} is not one of 'auto', {', '.join(map(repr, FORMS))}")
        if kernel_init not in ("zeros", "random"):
            raise ValueError(f"kernel_init={kernel_init!r} is not one of 'zeros', 'random'")
        _check_kernels(dim, kernels)
        h, w = (grid, grid) if isinstance(grid, int) else grid
        self.grid = (h, w)
        self.form = form
        self.kernel_init = kernel_init
        self.v: nn.Module = nn.Linear(dim, dim, bias=False)
        full = (2 * h - 1, 2 * w - 1)
        size = (kernel_size, kernel_size) if kernel_size else full
        if any(side % 2 == 0 or side > limit for side, limit in zip(size, full, strict=True)):
            raise ValueError(f"kernel_size={kernel_size} is not odd and within the full {full[0]} x {full[1]} kernel")
        self.margin = ((full[0] - size[0]) // 2, (full[1] - size[1]) // 2)  # of inert zeros around a smaller kernel
        self.kernel = nn.Parameter(torch.empty(size if kernels == 1 else (kernels, *size)))
        self.proj: nn.Module = nn.Linear(dim, dim)
        self.reset_kernel()

    def reset_kernel(self) -> None:
        """Initialise the kernels as ``kernel_init`` says."""
        if self.kernel_init == "zeros":
            nn.init.zeros_(self.kernel)
        else:
            bound = math.prod(self.kernel.shape[-2:]) ** -0.5
            nn.init.uniform_(self.kernel, -bound, bound)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Mix the tokens of x, (B, h*w, D)."""
        top, left = self.margin
        kernel: Tensor = self.kernel
        if top or left:
            kernel = F.pad(kernel, (left, left, top, top))
        return self.proj(lkca(self.v(x_BND), kernel, self.grid, self.form))

    def extra_repr(self) -> str:
        """Grid and form, for printing."""
        return f"grid={self.grid}, form={self.form!r}"
