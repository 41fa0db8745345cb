"""What only a GPU can show: captured steps equal eager ones, draws are the CPU's, nothing waits inside an epoch."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lkca.data import augment, scenes
from lkca.data import images as data
from lkca.ledger.protocols import SEGMENTATION, Protocol
from lkca.models import comparators, segmenters, zoo
from lkca.training import classification, draws, engine
from lkca.training.stack import PRECISIONS, Stack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
RATE = 2**-10  # exact in float32, as the engine has it
P = Protocol("tiny", "a test's", batch_size=16, crop_padding=1)
STEPS = classification.BLOCK
ROWS = ["ViT/0.5M", "ViT/0.5M-LKCA"]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def trained(digits, row, device, execution="eager", precision="fp32", seeds=(0, 1), blocks=3):
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(zoo.build(row, image_size=8, num_classes=10))
    loss = classification.loss(digits, P, device, PRECISIONS[precision])
    kw = {"device": device, "precision": precision, "execution": execution}
    stack = Stack(models, loss, betas=P.betas, weight_decay=P.weight_decay, **kw)
    rows = STEPS * P.batch_size
    home, orders = digits.to(device), [draws.order(seed, 0, digits.num_train, blocks * rows) for seed in seeds]
    for i in range(blocks):
        kw = {"num_draws": stack.num_draws, "dtype": stack.dtype}
        parts = [order[i * rows : (i + 1) * rows] for order in orders]
        rngs = [draws.stream(seed, "block", i * STEPS) for seed in seeds]
        stack.train(classification.block(home, P, rngs, parts, **kw), [RATE] * STEPS, range(STEPS))
    return stack


def apart(a, b):
    return max(((x.cpu() - y.cpu()).norm() / y.cpu().norm()).item() for x, y in zip(a, b, strict=True))


def test_augmentation_gives_the_cpu_s_pixels():
    images = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8)
    kw = {"flip": 0.5, "crop_padding": 4}
    for policy in set(augment.POLICIES.values()):
        draws = augment.draw(np.random.default_rng(0), len(images), **kw, policy=policy)
        here, there = (augment.augment(x, draws, crop_padding=4).cpu() for x in (images, images.cuda()))
        assert (here != there).float().mean() < 1e-4  # a double rounded otherwise, at most


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("precision, near", [("fp64", 1e-9), ("fp32", 1e-3)])
def test_the_gpu_ends_where_the_cpu_ends(digits, row, precision, near):
    here, there = (trained(digits, row, device, precision=precision, blocks=1) for device in ("cpu", "cuda"))
    assert apart(there.params.values(), here.params.values()) < near


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("precision, near", [("fp32", 1e-3), ("tf32", 1e-2), ("bf16", 5e-2)])
def test_the_captured_step_is_the_eager_one(digits, row, precision, near):
    eager, captured = (trained(digits, row, "cuda", execution, precision) for execution in ("eager", "captured"))
    assert apart(captured.params.values(), eager.params.values()) < near
    torch.testing.assert_close(captured.loss_sum, eager.loss_sum, rtol=near, atol=0)


@pytest.mark.parametrize("row", ROWS)
def test_a_seed_in_a_captured_stack_ends_where_it_ends_alone(digits, row):
    together, alone = (trained(digits, row, "cuda", "captured", "fp64", seeds) for seeds in ((0, 1), (1,)))
    assert apart([w[1] for w in together.params.values()], [w[0] for w in alone.params.values()]) < 1e-9


def test_nothing_waits_for_the_device_between_two_looks(digits):
    trained(digits, ROWS[1], "cuda", "captured", blocks=1)  # what is built on first use may wait
    home = digits.to("cuda")
    order = draws.order(0, 0, digits.num_train, STEPS * P.batch_size)
    torch.cuda.set_sync_debug_mode("error")
    try:
        classification.block(home, P, [np.random.default_rng(0)], [order], num_draws=16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_resumes_in_time_boxes(digits, tmp_path):
    p = Protocol("tiny", "a test's", epochs=3, batch_size=32, warmup_epochs=1, crop_padding=1)
    kw = {"device": "cuda", "results_root": tmp_path, "progress": None}
    for _ in range(20):
        found = engine.fit(ROWS[1], digits, p, (0, 1), time_budget=0, **kw)
        if found:
            break
    assert [r.seed for r in found] == [0, 1] and {r.precision for r in found} == {"bf16"}
    assert all(math.isfinite(e.train_loss) for r in found for e in r.curve)


@pytest.mark.parametrize("row", {r.family: name for name, r in reversed(comparators.ROWS.items())}.values())
def test_a_comparator_trains_as_the_engine_chooses(row, tmp_path):
    """Two seeds: stacked and captured, unless its family says that it cannot be."""
    pytest.importorskip("vit_pytorch")
    p = dataclasses.replace(P, epochs=2, train_images=64, warmup_epochs=1)
    ds = data.load(f"digits-{zoo.step(row)}")
    found = engine.fit(row, ds, p, (0, 1), device="cuda", results_root=tmp_path, progress=None)
    family = comparators.FAMILIES[zoo.row(row).family]
    assert {r.stacked for r in found} == ({2} if family.stackable else {1})


@pytest.mark.parametrize("row", segmenters.TINY)
def test_segmentation_trains_as_the_engine_chooses(row, tmp_path):
    ds, p = scenes.load("digit-scenes"), SEGMENTATION["smoke"]
    (found,) = engine.fit(row, ds, p, device="cuda", results_root=tmp_path, progress=None)
    assert found.precision == "bf16" and all(math.isfinite(stage.train_loss) for stage in found.curve)
