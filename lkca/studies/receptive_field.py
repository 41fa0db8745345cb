"""What a trained model looks at: effective receptive fields, learned kernels, and how much of an attention is a kernel.

The effective receptive field of a token (Luo et al. 2016) is the gradient of that token with respect to the image. Here
it is the gradient along a random direction of the token's channels, one for each image, so that no channel cancels
another; its absolute values are divided by their sum. So a map holds *shares*, whatever the scale of the gradient, and
two models can stand on one colour scale.

Shape suffixes: B images, C colours, X x Y pixels, h x w the grid of N tokens, D channels, L layers, H heads.
"""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lkca.models.vit import Attention, ViT
from lkca.operator import attention_matrix


def shares(model: ViT, images_BCXY: Tensor, token: tuple[int, int], depth: int | None = None) -> np.ndarray:
    """The share of each pixel in a token's gradient, for each image.

    Args:
        model: in evaluation mode.
        images_BCXY: normalised.
        token: row and column on the grid.
        depth: blocks before the token is read; None for all, 0 for none of them (the embedded patch itself).

    Returns:
        (B, X, Y), each image summing to 1.

    Raises:
        ValueError: if the token or the depth does not exist.
    """
    h, w = (side // model.patch_size for side in images_BCXY.shape[-2:])
    (row, column), depth = token, len(model.blocks) if depth is None else depth
    if not (0 <= row < h and 0 <= column < w):
        raise ValueError(f"token {token} is not on the {h} x {w} grid")
    if not 0 <= depth <= len(model.blocks):
        raise ValueError(f"depth={depth}: the model has {len(model.blocks)} blocks")
    seen: list[Tensor] = []
    if depth:
        hook = model.blocks[depth - 1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    else:
        hook = model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images_BCXY = images_BCXY.detach().requires_grad_()
    with hook:
        model(images_BCXY)
    (tokens_BTD,) = seen
    token_BD = tokens_BTD[:, -h * w :][:, row * w + column]  # a [class] token comes first
    direction = torch.randn(token_BD.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((token_BD * direction.to(token_BD)).sum(), images_BCXY)
    total = gradient.abs().sum(1).double()
    return (total / total.sum((1, 2), keepdim=True)).cpu().numpy()


def centre(model: ViT, token: tuple[int, int]) -> tuple[float, float]:
    """Where a token's patch is centred, in pixels from the top left corner: for an even side, between two pixels."""
    row, column = token
    return (row + 0.5) * model.patch_size, (column + 0.5) * model.patch_size


def area_ratio(shares_XY: np.ndarray, at: tuple[float, float], threshold: float) -> float:
    """r(t): the part of the image in the smallest square, centred at ``at``, that holds the share ``threshold``.

    As in Ding et al. (2022), with the square cut at the image's border, so that a corner's field can reach all of it.

    Args:
        shares_XY: summing to 1.
        at: pixels from the top left corner.
        threshold: in (0, 1].

    Returns:
        The share of the image's pixels, in (0, 1].
    """
    return float(curve(shares_XY[None], at, [threshold])[0, 0])


def curve(shares_BXY: np.ndarray, at: tuple[float, float], thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """r(t) of each image at each threshold, (B, thresholds): see `area_ratio`."""
    y, x = (np.arange(side) + 0.5 for side in shares_BXY.shape[1:])
    distance = np.maximum(np.abs(y - at[0])[:, None], np.abs(x - at[1])[None])  # of a pixel's middle
    squares = [distance <= side for side in np.unique(distance)]
    areas = np.array([square.mean() for square in squares])
    held = np.array([[image[square].sum() for square in squares] for image in shares_BXY])
    first = [(held >= np.minimum(t, held[:, -1:])).argmax(1) for t in thresholds]
    return areas[np.stack(first, axis=1)]


def kernel_statistics(kernel: Tensor) -> dict[str, float]:
    """A learned kernel (2h-1, 2w-1) in five numbers; lengths in tokens, weights by absolute value.

    ``down`` and ``right``: centre of mass relative to the middle. ``radius``: root mean square distance from the
    middle. ``symmetry``: share of the energy in the part that equals its rotation by 180 degrees (0.5 for noise).
    ``norm``: Euclidean.
    """
    k = kernel.detach().double().cpu()
    mass, (rows, columns) = k.abs() / k.abs().sum(), k.shape
    down = torch.arange(rows, dtype=torch.float64)[:, None] - (rows - 1) / 2
    right = torch.arange(columns, dtype=torch.float64)[None] - (columns - 1) / 2
    even = (k + k.flip(0, 1)) / 2
    return {
        "down": (mass * down).sum().item(),
        "right": (mass * right).sum().item(),
        "radius": (mass * (down**2 + right**2)).sum().sqrt().item(),
        "symmetry": (even.square().sum() / k.square().sum()).item(),
        "norm": k.norm().item(),
    }


@torch.no_grad()
def attention_maps(model: ViT, images_BCXY: Tensor) -> Tensor:
    """Every attention between patches, (L, H, B, N, N): softmax over all tokens, the [class] token then left out."""
    found: list[Tensor] = []

    def look(layer: Attention, inputs: tuple[Tensor]) -> None:
        q, k, _ = rearrange(layer.qkv(inputs[0]), "b t (three h e) -> three h b t e", three=3, h=layer.heads)
        found.append((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1))

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, Attention)]
    try:
        model(images_BCXY)
    finally:
        for hook in hooks:
            hook.remove()
    first = int(model.class_token is not None)
    return torch.stack(found)[..., first:, first:]


def toeplitz_fit(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """The kernel whose `attention_matrix` is nearest to ``scores`` in least squares: the mean over equal offsets.

    ``scores`` is (…, hw, hw); the result is (…, 2h-1, 2w-1). For an attention matrix it is its mean as a function of
    the offset from query to key.
    """
    h, w = grid
    size = (2 * h - 1, 2 * w - 1)
    place = attention_matrix(torch.arange(size[0] * size[1]).view(size), grid).flatten().to(scores.device)
    flat = scores.flatten(-2)
    kernel = torch.zeros(*flat.shape[:-1], size[0] * size[1], dtype=scores.dtype, device=scores.device)
    kernel.index_add_(-1, place, flat)
    return (kernel / torch.bincount(place).to(scores.dtype)).unflatten(-1, size)


def explained(scores: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How much of attentions (…, B, N, N) is the same for all images, and how much of it one kernel: two shares (…).

    Shares of the variance about the attention's overall mean (which for a softmax is the uniform attention). The first
    is what the best fixed matrix explains, the second the best doubly block Toeplitz one: what LKCA could express.
    """
    scores = scores.double()
    fixed = scores.mean(-3, keepdim=True)
    kernel = attention_matrix(toeplitz_fit(fixed, grid), grid)
    total = (scores - scores.mean((-3, -2, -1), keepdim=True)).square().sum((-3, -2, -1))
    by_fixed, by_kernel = (1 - (scores - fit).square().sum((-3, -2, -1)) / total for fit in (fixed, kernel))
    return by_fixed, by_kernel
