"""Seeds trained together: each as if alone, and as a plainly written loop trains it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lkca.data import images as data
from lkca.ledger.protocols import Protocol
from lkca.models import zoo
from lkca.training import classification, draws
from lkca.training.stack import PRECISIONS, Stack, multiplying

RATE = 2**-10  # exact in float32, as the engine has it
P = Protocol("tiny", "a test's", batch_size=8, crop_padding=1)
SIZES = {"image_size": 8, "num_classes": 10}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def models(row, seeds):
    made = []
    for seed in seeds:
        torch.manual_seed(seed)
        made.append(zoo.build(row, **SIZES))
    return made


def stack_of(digits, made, precision="fp64"):
    loss = classification.loss(digits, P, "cpu", PRECISIONS[precision])
    kw = {"device": "cpu", "precision": precision, "execution": "eager"}
    return Stack(made, loss, betas=P.betas, weight_decay=P.weight_decay, **kw)


def blocks(digits, seeds, steps, stack, batch=P.batch_size):
    orders = {seed: draws.order(seed, 0, digits.num_train, steps * batch) for seed in seeds}
    for first in range(0, steps, classification.BLOCK):
        rows = slice(first * batch, min(first + classification.BLOCK, steps) * batch)
        rngs, kw = [draws.stream(s, "block", first) for s in seeds], {"num_draws": stack.num_draws}
        p = dataclasses.replace(P, batch_size=batch)
        yield classification.block(digits, p, rngs, [orders[s][rows] for s in seeds], dtype=stack.dtype, **kw)


def take(stack, block):
    steps = block[0].shape[1]
    stack.train(block, [RATE] * steps, range(steps))


def trained(digits, row, seeds, steps, precision="fp64", batch=P.batch_size):
    stack = stack_of(digits, models(row, seeds), precision)
    for block in blocks(digits, seeds, steps, stack, batch):
        take(stack, block)
    return stack


def difference(a, b):
    """Greatest relative difference of two seeds' weights, by tensor."""
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_a_seed_in_a_stack_ends_where_it_ends_alone(digits, row):
    """12 steps, more than a block, with everything on: augmentation, erasing, mixing, drop path; to 1e-9 in float64."""
    together, alone = trained(digits, row, (5, 6), 12, batch=4), trained(digits, row, (6,), 12, batch=4)
    assert difference([w[1] for w in together.params.values()], [w[0] for w in alone.params.values()]) < 1e-9
    other = [w[0] for w in together.params.values()]
    assert difference(other, [w[0] for w in alone.params.values()]) > 1e-2
    (_, stacked), (single,) = (classification.evaluate(s, digits.tested_on(60)) for s in (together, alone))
    assert stacked[0]["test_loss"] == pytest.approx(single[0]["test_loss"], rel=1e-9)
    assert stacked[1] == single[1] and stacked[0]["top1"] == single[0]["top1"]


@pytest.mark.parametrize("row", zoo.ROWS)
def test_every_row_stacks(digits, row):
    together, alone = (trained(digits, row, seeds, 1, batch=2) for seeds in ((1, 2), (2,)))
    assert difference([w[1] for w in together.params.values()], [w[0] for w in alone.params.values()]) < 1e-9


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_in_bf16_a_stacked_seed_stays_near_the_one_alone(digits, row):
    """Products are rounded to 8 bits, in another order: losses of the first 4 steps agree to 2 %."""
    together, alone = (trained(digits, row, seeds, 4, "bf16", 4) for seeds in ((0, 1), (1,)))
    assert all(w.dtype == torch.float32 for w in together.params.values())
    torch.testing.assert_close(together.loss_sum[1], alone.loss_sum[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_in_bf16_a_seed_alone_ends_the_same_each_time(digits, row):
    """Bit for bit, as it must where a run that was killed goes on."""
    first, again = (list(trained(digits, row, (1,), 4, "bf16", 4).params.values()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_the_step_is_the_recipe_written_plainly(digits, row):
    """Against an unstacked module in a loop that erases, mixes and smooths image by image; float64, 16 steps."""
    seed, steps, batch = 3, 16, 4
    stack = trained(digits, row, (seed,), steps, batch=batch)
    (model,) = models(row, [seed])
    model = model.double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=P.betas, weight_decay=P.weight_decay)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in data.stats("digits"))
    for block in blocks(digits, [seed], steps, stack, batch):
        for images, labels, boxes, other, share, weight, box, uniform in zip(*(t[0] for t in block), strict=True):
            x = (images.double() / 255 - mean) / std
            for image, (top, bottom, left, right) in zip(x, boxes.tolist(), strict=True):
                image[:, top:bottom, left:right] = mean
            partner, (top, bottom, left, right) = x[other].clone(), box.tolist()
            if weight < 1:
                x = weight * x + (1 - weight) * partner
            else:
                x[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
            target = F.one_hot(labels, 10).double()
            target = share * target + (1 - share) * target[other]
            target = (1 - P.label_smoothing) * target + P.label_smoothing / 10
            loss = -(target * model(x, uniform).log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert difference([w[0] for w in stack.params.values()], list(dict(model.named_parameters()).values())) < 1e-9


class Batchnormed(torch.nn.Module):
    """What cannot be stacked: it keeps running statistics and draws its own dropout."""

    stackable = False

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(192, 16, bias=False), torch.nn.BatchNorm1d(16)
        )
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(16, 10))

    def forward(self, x):
        return self.head(self.body(x))


def test_a_row_that_cannot_be_stacked_trains_alone_as_a_plain_loop_does(digits):
    """Weights, running statistics and dropout; and each step draws the same wherever a run resumes."""
    torch.manual_seed(0)
    model = Batchnormed().double().train()
    stack = stack_of(digits, [Batchnormed().double()])
    stack.load_state_dict(
        stack.state_dict()
        | {"params": {k: v[None] for k, v in model.named_parameters()}}
        | {"buffers": {k: v[None] for k, v in model.named_buffers()}}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=P.betas, weight_decay=P.weight_decay)
    one = classification.loss(digits, P, "cpu", torch.float64)
    for block in blocks(digits, [0], 12, stack):
        take(stack, block)
        for i, batch in enumerate(zip(*(t[0] for t in block), strict=True)):
            torch.manual_seed(i)
            optimizer.zero_grad()
            one(model, *batch).backward()
            optimizer.step()
    weights = stack.weights(0)
    assert weights.keys() == model.state_dict().keys()
    for name, w in model.state_dict().items():
        torch.testing.assert_close(weights[name], w, rtol=1e-12, atol=1e-12)
    images = digits.test_images[:64] / 255.0
    torch.testing.assert_close(stack.predict(images.double())[0], model.eval()(images.double()))
    with pytest.raises(ValueError, match="2 seeds were asked for, but this row can only be trained one at a time"):
        stack_of(digits, [Batchnormed(), Batchnormed()])


class Switches(torch.autograd.Function):
    """The identity; it notes how float32 is multiplied when it is called and when its gradient is taken."""

    seen = []

    @staticmethod
    def forward(ctx, x):
        Switches.note("forward")
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Switches.note("backward")
        return gradient

    @staticmethod
    def note(where):
        Switches.seen.append((where, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))


@pytest.mark.parametrize("precision, product, convolution", [("tf32", "high", True), ("fp32", "highest", False)])
@pytest.mark.parametrize("outside", ["tf32", "fp32"])
def test_a_precision_holds_in_both_passes_and_for_convolutions(precision, product, convolution, outside):
    class Alone(nn.Linear):
        stackable = False

    def loss(call, x):
        return Switches.apply(call(x)).square().sum()

    stack = Stack([Alone(3, 2)], loss, betas=(0.9, 0.999), weight_decay=0.0, device="cpu", precision=precision,
                  execution="eager")  # fmt: skip
    Switches.seen.clear()
    with multiplying(outside):
        stack.train([torch.ones(1, 1, 4, 3)], [1e-3], [0])
        Switches.note("outside")
    assert Switches.seen[:2] == [(where, product, convolution) for where in ("forward", "backward")]
    assert Switches.seen[2][1:] == ("high" if outside == "tf32" else "highest", outside == "tf32")
