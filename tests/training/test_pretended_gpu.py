"""What a GPU would refuse, shown without one.

Fake tensors have a device and a shape, and no data. So on a machine without a GPU they show what CUDA would say of the
devices: an operation that meets tensors of two fails, and so does one that asks the device for a value, for which a
step would wait and which no CUDA graph can hold.
"""

import contextlib
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from lkca.data import augment, scenes
from lkca.data import images as data
from lkca.ledger.protocols import SEGMENTATION, Protocol
from lkca.models import comparators, segmenters, zoo
from lkca.training import classification, draws, segmentation
from lkca.training.stack import PRECISIONS, Stack

P = Protocol("tiny", "a test's", batch_size=16, crop_padding=1)


def moved(module, device, dtype=None):
    """`nn.Module.to`, which cannot make fake parameters of true ones; like it, it leaves plain attributes behind."""
    for part in module.modules():
        for held, kind in ((part._parameters, nn.Parameter), (part._buffers, Tensor.detach)):
            there = {name: t for name, t in held.items() if t is not None}
            held |= {name: kind(torch.empty(t.shape, dtype=t.dtype, device=device)) for name, t in there.items()}
    return module


@pytest.fixture
def pretended(monkeypatch):
    """Within it, tensors are fake, and may be on "cuda"."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr("lkca.training.stack.copy", SimpleNamespace(deepcopy=lambda model: model))
    adamw = torch.optim.AdamW

    def made(params, lr, **settings):  # which looks at the learning rate once
        optimizer = adamw(params, **settings)
        optimizer.param_groups[0]["lr"] = lr
        return optimizer

    monkeypatch.setattr(torch.optim, "AdamW", made)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    return FakeTensorMode(allow_non_fake_inputs=True)


def steps(task, ds, p, models, precision="bf16"):
    """The losses of a block's first batch, on the pretended GPU; the stack, and the data set there."""
    loss, home = task.loss(ds, p, "cuda", PRECISIONS[precision]), ds.to("cuda")
    kw = {"device": "cuda", "precision": precision, "execution": "eager"}
    stack = Stack(models, loss, betas=p.betas, weight_decay=p.weight_decay, **kw)
    rngs = [draws.stream(seed, "block") for seed in range(len(models))]
    orders = [np.arange(task.BLOCK * p.batch_size) % ds.num_train for _ in models]
    block = task.block(home, p, rngs, orders, num_draws=stack.num_draws, dtype=stack.dtype)
    losses = stack.losses([t[:, 0] for t in block])
    assert {t.device.type for t in (*block, losses)} == {"cuda"} and losses.shape == (len(models),)
    return stack, home


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("row", ["ViT/0.5M", "ViT/0.5M-LKCA", "ViT/0.5M-both"])
def test_a_step_of_seeds_stays_on_the_device(pretended, row, precision):
    ds = data.load("digits")
    models = [classification.build(row, ds, P) for _ in range(2)]
    with pretended:
        stack, home = steps(classification, ds, P, models, precision)
        mean, std = (torch.tensor(v, device="cuda") for v in data.stats("digits"))
        assert stack.predict(augment.normalise(home.test_images[:4], mean, std)).device.type == "cuda"


@pytest.mark.parametrize("row", {r.family: name for name, r in reversed(comparators.ROWS.items())}.values())
def test_so_does_a_comparator_s(pretended, row):
    pytest.importorskip("vit_pytorch")
    ds, family = data.load(f"digits-{zoo.step(row)}"), comparators.FAMILIES[zoo.row(row).family]
    models = [classification.build(row, ds, P) for _ in range(1 + family.stackable)]
    with pretended:
        steps(classification, ds, P, models)


@pytest.mark.parametrize("row", segmenters.TINY)
def test_so_does_one_of_segmentation(pretended, row):
    p = SEGMENTATION["smoke"]
    ds = segmentation.subset(scenes.load("digit-scenes"), p)
    models = [segmentation.build(row, ds, p)]
    with pretended:
        steps(segmentation, ds, p, models)


@pytest.mark.parametrize("what", ["two devices", "a value"])
def test_the_pretence_refuses_what_cuda_would(pretended, what):
    with pretended, pytest.raises(Exception, match="two.* devices|_local_scalar_dense"):
        there = torch.ones(2, device="cuda")
        torch.ones(2) + there if what == "two devices" else there.sum().item()


class Graph:
    """A stand-in for a CUDA graph: what it holds is taken back when it is captured, and done when it is replayed."""

    def replay(self):
        self.stack.step(self.stack._captured._batch)


@contextlib.contextmanager
def capture(graph):
    stack = graph.stack
    assert all(group["capturable"] for group in stack.optimizer.param_groups)  # or torch refuses
    before = torch.utils._pytree.tree_map(lambda t: t.clone(), stack.state_dict())
    yield
    stack.load_state_dict(before)


@pytest.mark.parametrize("resumed", [False, True])
def test_what_capturing_needs_leaves_no_trace(monkeypatch, resumed):
    """The weights after captured steps are, bit for bit, those after eager ones, also of a run that goes on."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    ds, p, steps, stacks, halfway = data.load("digits"), dataclasses.replace(P, batch_size=4), 2, {}, None
    for execution in ("eager", "captured"):
        torch.manual_seed(0)
        models = [zoo.build("ViT/0.5M-LKCA", image_size=8, num_classes=10) for _ in range(2)]
        loss = classification.loss(ds, p, "cpu", torch.float64)
        kw = {"device": "cpu", "precision": "fp64", "execution": execution}
        stack = Graph.stack = Stack(models, loss, betas=p.betas, weight_decay=p.weight_decay, **kw)
        if resumed and stacks:
            stack.load_state_dict(halfway)
        for part in range(resumed and len(stacks), 2):
            rngs, orders = [draws.stream(s, "block", part) for s in (0, 1)], [np.arange(steps * p.batch_size)] * 2
            block = classification.block(ds, p, rngs, orders, num_draws=stack.num_draws, dtype=stack.dtype)
            stack.train(block, [2**-10] * steps, range(steps))
            if not part:
                halfway = torch.utils._pytree.tree_map(lambda t: t.clone(), stack.state_dict())
        stacks[execution] = stack
    assert stacks["captured"]._captured and not stacks["eager"]._captured
    eager, captured = (torch.utils._pytree.tree_leaves(s.state_dict()) for s in stacks.values())
    assert all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))
