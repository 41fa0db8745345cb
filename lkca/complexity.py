"""Parameters and multiply-accumulates (MACs) of the rows: in the paper's convention and in full.

The columns "# Params" and "Flops" of Tables 1-5 are ptflops 0.7.1.2's counts at 32 px and 10 classes, whatever the
table's data set. Its rules, found by running it on the released models: a bias counts once a layer, not once a token;
GELU counts twice, LayerNorm and softmax once an element. It leaves out q kᵀ, the product of scores and values, and the
LKCA convolution itself, because they are called as functions rather than as modules.
"""

from dataclasses import dataclass

from lkca import zoo

PRINTED_SETTING = {"image_size": 32, "num_classes": 10}  # what the columns of Tables 1-4 were counted at


@dataclass(frozen=True)
class Complexity:
    """Counts of one model: parameters, and MACs for one image forward."""

    params: int  # as built
    params_paper: int  # with the [class] token that the released LKCA models hold but never use
    macs_paper: int  # ptflops 0.7.1.2
    macs: int  # plus what ptflops leaves out; of LKCA's taps, those inside the map
    macs_all_taps: int  # the same with all taps, as the released convolution executes them


def count(name: str, *, image_size: int, num_classes: int) -> Complexity:
    """Count row ``name`` in closed form; raises ValueError on an unknown row (see `zoo.row`)."""
    r = zoo.row(name)
    n, d, k = zoo.GRID, r.dim, num_classes
    c = 3 * (image_size // n) ** 2  # numbers in a patch
    patches, hidden = n * n, r.mlp_ratio * d
    class_token = r.pooling == "class"
    attention, lkca = r.mixer != "lkca", r.mixer != "attention"
    tokens = patches + class_token
    side = r.kernel_size or 2 * n - 1
    taps = side * side
    inside = sum(max(0, n - abs(d)) for d in range(-(side // 2), side // 2 + 1)) ** 2  # of all taps, those in the map

    mlp_params = 2 * d + (d * hidden + hidden) + (hidden * d + d)
    attention_params = 2 * d + 3 * d * d + (d * d + d)
    lkca_params = 2 * d + d * d + r.kernels * taps + (d * d + d)
    block_params = mlp_params + attention * attention_params + lkca * lkca_params
    params = (c * d + d) + (tokens + class_token) * d + r.depth * block_params + 2 * d + (d * k + k)

    mlp_macs = tokens * d + 2 * tokens * d * hidden + hidden + d + 2 * tokens * hidden
    attention_macs = tokens * d + 4 * tokens * d * d + d + r.heads * tokens**2
    lkca_macs = tokens * d + 2 * tokens * d * d + d
    block_macs = mlp_macs + attention * attention_macs + lkca * lkca_macs
    macs_paper = (patches * c * d + d) + r.depth * block_macs + d + (d * k + k)

    scores_and_values = attention * 2 * tokens**2 * d
    return Complexity(
        params=params,
        params_paper=params + (d if lkca and not attention else 0),
        macs_paper=macs_paper,
        macs=macs_paper + r.depth * (scores_and_values + lkca * inside * d),
        macs_all_taps=macs_paper + r.depth * (scores_and_values + lkca * taps * patches * d),
    )
