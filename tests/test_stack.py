"""Seeds trained together: each as if alone, and as a plainly written loop trains it."""

import pytest
import torch
import torch.nn.functional as F

from lkca import data, train, zoo
from lkca.protocols import Protocol
from lkca.stack import Stack

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


def stack_of(row, seeds, precision="fp64"):
    return Stack(models(row, seeds), P, *data.stats("digits"), device="cpu", precision=precision, execution="eager")


def blocks(digits, seeds, steps, stack, batch=P.batch_size):
    p, n = P, len(digits.train_labels)
    orders = {seed: train._order(seed, 0, n, 1 + steps * batch // n) for seed in seeds}
    for first in range(0, steps, train.BLOCK):
        rows = slice(first * batch, min(first + train.BLOCK, steps) * batch)
        kw = {"num_draws": stack.num_draws, "dtype": stack.dtype}
        yield train.block(digits, p, seeds, first, [orders[s][rows] for s in seeds], **kw)


def trained(digits, row, seeds, steps, precision="fp64"):
    stack = stack_of(row, seeds, precision)
    for block in blocks(digits, seeds, steps, stack):
        stack.train(block, [1e-3] * block[0].shape[1])
    return stack


def difference(a, b):
    """Greatest relative difference of two seeds' weights, by tensor."""
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_a_seed_in_a_stack_ends_where_it_ends_alone(digits, row):
    """56 steps with everything on: augmentation, erasing, mixing, drop path; to 1e-9 in float64."""
    together, alone = trained(digits, row, (5, 6, 7), 56), trained(digits, row, (6,), 56)
    assert difference([w[1] for w in together.params.values()], [w[0] for w in alone.params.values()]) < 1e-9
    other = [w[2] for w in together.params.values()]
    assert difference(other, [w[0] for w in alone.params.values()]) > 1e-2
    images, labels = digits.test_images, digits.test_labels
    (loss, right), (loss_alone, right_alone) = (s.evaluate(images, labels) for s in (together, alone))
    torch.testing.assert_close(loss[1], loss_alone[0], rtol=1e-9, atol=0)
    assert torch.equal(right[1], right_alone[0])


@pytest.mark.parametrize("row", zoo.ROWS)
def test_every_row_stacks(digits, row):
    together, alone = (trained(digits, row, seeds, 1) for seeds in ((1, 2), (2,)))
    assert difference([w[1] for w in together.params.values()], [w[0] for w in alone.params.values()]) < 1e-9


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_in_bf16_a_stacked_seed_stays_near_the_one_alone(digits, row):
    """Products are rounded to 8 bits, in another order: losses of the first 8 steps agree to 2 %."""
    together, alone = (trained(digits, row, seeds, 8, "bf16") for seeds in ((0, 1), (1,)))
    assert all(w.dtype == torch.float32 for w in together.params.values())
    torch.testing.assert_close(together.loss_sum[1], alone.loss_sum[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA"])
def test_the_step_is_the_recipe_written_plainly(digits, row):
    """Against an unstacked module in a loop that erases, mixes and smooths image by image; float64, 16 steps."""
    seed, steps = 3, 16
    stack = trained(digits, row, (seed,), steps)
    (model,) = models(row, [seed])
    model = model.double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=P.betas, weight_decay=P.weight_decay)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in data.stats("digits"))
    for block in blocks(digits, [seed], steps, stack):
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
