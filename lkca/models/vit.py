"""ViT and ViT-LKCA for small images, read top to bottom.

Both are the models of Tables 1-3 as the authors released them: a grid of patches, a learned position embedding,
pre-norm blocks, LayerNorm and a linear head. They differ in the token mixer and in what the head reads:

- ViT: multi-head self-attention, and a [class] token that the head reads.
- ViT-LKCA: LKCA instead of self-attention, no [class] token, the head reads the mean of the tokens.

Two switches give the rest: ``mixer="both"`` keeps self-attention and puts LKCA between it and the MLP, which is what
section 3.2.3 of the paper says (its parameter counts say otherwise), and ``pooling="mean"`` gives the ViT the other
model's reading, which the published comparison changes together with the mixer.

Shape suffixes: B images, N patches, T tokens (N, or N + 1 with a [class] token), D channels, H heads, E = D / H, R
residual branches.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from lkca.operator import LKCA

MIXERS = ("attention", "lkca", "both")
POOLINGS = ("class", "mean")


class Attention(nn.Module):
    """Multi-head self-attention: one projection to queries, keys and values, an output projection with bias.

    The released models have no ``bias`` in the first one, MMSegmentation's have. (B, T, D) -> (B, T, D).

    Its ``form`` is "fused", PyTorch's kernel, which keeps no scores; "products", two and a softmax, which can be
    vectorised over seeds, and on a CPU is the faster for small grids, in bf16 by far; or "auto", fused on CUDA and
    products elsewhere. Raises ValueError on another form and on heads that do not divide ``dim``.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = False, form: str = "auto"):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} does not divide into {heads} heads")
        if form not in ("auto", "fused", "products"):
            raise ValueError(f"form={form!r} is not one of 'auto', 'fused', 'products'")
        self.heads, self.form = heads, form
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Mix the tokens of x, (B, T, D)."""
        q, k, v = rearrange(self.qkv(x_BTD), "b t (three h e) -> three b h t e", three=3, h=self.heads)
        if self.form == "fused" or (self.form == "auto" and x_BTD.is_cuda):
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q / q.shape[-1] ** 0.5 @ k.mT).softmax(-1) @ v
        return self.proj(rearrange(mixed, "b h t e -> b t (h e)"))


class Block(nn.Module):
    """Pre-norm residual branches, one after the other, each dropped for a whole sample at rate ``drop_path``."""

    def __init__(self, *branches: nn.Module, dim: int, drop_path: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in branches)
        self.branches = nn.ModuleList(branches)
        self.drop_path = drop_path

    def forward(self, x_BTD: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """x + drop_path(branch(norm(x))) for each of R branches in turn; (B, T, D) -> (B, T, D).

        Where ``uniform`` is below the rate the branch is dropped, the others are scaled up; None drops nothing.
        """
        for i, (norm, branch) in enumerate(zip(self.norms, self.branches, strict=True)):
            out_BTD = branch(norm(x_BTD))
            if uniform_BR is not None:
                keep_B = (uniform_BR[:, i] >= self.drop_path).to(out_BTD.dtype) / (1 - self.drop_path)
                out_BTD = out_BTD * keep_B[:, None, None]
            x_BTD = x_BTD + out_BTD
        return x_BTD


def check_images(image_BCHW: Tensor, height: int, width: int) -> None:
    """Raise ValueError unless these are colour images, (B, 3, height, width)."""
    if image_BCHW.ndim != 4 or tuple(image_BCHW.shape[1:]) != (3, height, width):
        raise ValueError(f"images should be (B, 3, {height}, {width}), are {tuple(image_BCHW.shape)}")


class ViT(nn.Module):
    """A vision transformer with a choice of token mixer.

    All arguments are keywords; `lkca.models.zoo` names the paper's settings.

    Args:
        image_size: pixels a side.
        patch_size: pixels a side; must divide ``image_size``.
        num_classes: outputs.
        dim: channels D.
        depth: blocks.
        heads: of self-attention; LKCA has none.
        mlp_ratio: hidden width of the MLP over D.
        mixer: "attention", "lkca" or "both".
        pooling: "class" or "mean"; LKCA needs a full grid of tokens and so "mean".
        drop_path: stochastic depth rate of every branch.
        kernels: of an LKCA layer, see `lkca.operator.LKCA`.
        kernel_size, kernel_init: of LKCA, see there.
        form: of LKCA, see `lkca.operator.lkca`.

    Shapes: (B, 3, image_size, image_size) -> (B, num_classes) logits. ``num_draws`` is how many uniform
    numbers a sample needs for stochastic depth: one a branch, or 0 at rate 0.

    Raises:
        ValueError: on a choice that does not exist or sizes that do not divide.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int = 2,
        mixer: str = "attention",
        pooling: str = "class",
        drop_path: float = 0.0,
        kernels: int = 1,
        kernel_size: int | None = None,
        kernel_init: str = "zeros",
        form: str = "auto",
    ):
        super().__init__()
        if mixer not in MIXERS:
            raise ValueError(f"mixer={mixer!r} is not one of {MIXERS}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} is not one of {POOLINGS}")
        if pooling == "class" and mixer != "attention":
            raise ValueError(
                f"mixer={mixer!r} mixes a full grid of tokens and has no [class] token: use pooling='mean'"
            )
        if image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}")
        grid = image_size // patch_size
        self.image_size, self.patch_size = image_size, patch_size
        self.patch_embed = nn.Linear(3 * patch_size**2, dim)
        self.class_token = nn.Parameter(torch.empty(dim)) if pooling == "class" else None
        self.pos_embed = nn.Parameter(torch.empty(grid**2 + (pooling == "class"), dim))

        def block() -> Block:
            mixers: list[nn.Module] = [Attention(dim, heads)] if mixer != "lkca" else []
            if mixer != "attention":
                mixers.append(
                    LKCA(dim, grid, kernels=kernels, kernel_size=kernel_size, kernel_init=kernel_init, form=form)
                )
            mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
            return Block(*mixers, mlp, dim=dim, drop_path=drop_path)

        blocks = [block() for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.num_draws = sum(len(block.branches) for block in blocks) if drop_path else 0
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: Xavier normal, biases 0, embeddings N(0, 1), LKCA kernels 0 unless said."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, LKCA):
                module.reset_kernel()
        nn.init.normal_(self.pos_embed)
        if self.class_token is not None:
            nn.init.normal_(self.class_token)

    def forward(self, image_BCHW: Tensor, uniform_BR: Tensor | None = None) -> Tensor:
        """Logits, (B, num_classes), of normalised images.

        ``uniform_BR`` (B, num_draws), from [0, 1), decides what stochastic depth drops; None draws it from torch's
        generator in training mode. In evaluation mode nothing is dropped.
        """
        if not self.training or not self.num_draws:
            uniform_BR = None
        elif uniform_BR is None:
            uniform_BR = torch.rand(image_BCHW.shape[0], self.num_draws, device=image_BCHW.device)
        p = self.patch_size
        check_images(image_BCHW, self.image_size, self.image_size)
        patches = rearrange(image_BCHW, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        x = self.patch_embed(patches)  # (B, N, D)
        if self.class_token is not None:
            x = torch.cat([repeat(self.class_token, "d -> b 1 d", b=x.shape[0]), x], dim=1)  # (B, N + 1, D)
        x = x + self.pos_embed
        r = self.num_draws // max(len(self.blocks), 1)  # branches of a block
        for i, block in enumerate(self.blocks):
            x = block(x, None if uniform_BR is None else uniform_BR[:, r * i : r * (i + 1)])
        return self.head(x.mean(dim=1) if self.class_token is None else x[:, 0])
