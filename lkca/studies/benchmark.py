"""How fast the engine is, one change a row: ``lkca bench`` measures this machine, in under ten minutes.

The measurements of a machine are kept as one file in ``results/speed/``, with versions, device and commit; the book
shows the newest of each device (`lkca.pages.speed`). Images are noise of CIFAR-100's size: speed does not depend on
what they show. Every figure is an end-to-end rate that includes augmentation.
"""

import dataclasses
import functools
import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import lkca
from lkca.data import augment
from lkca.data import images as data
from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.records import RESULTS
from lkca.models import zoo
from lkca.studies.clock import forms, gathers, one_core, rate
from lkca.training import classification, draws, machine
from lkca.training.stack import PRECISIONS, Stack, multiplying

ROW, SIZES = "ViT-LKCA", {"image_size": 32, "num_classes": 100}
RECIPE = PROTOCOLS["released"]
PARTS = ("parts", "augmentation", "gathers", "matmul_flops", "forms", "rates")  # of a machine's file, the longest last


@dataclass(frozen=True)
class Setting:
    """What is measured: how a row is trained."""

    label: str
    row: str = ROW
    engine: bool = True  # False: the conventional pipeline
    form: str = "auto"
    precision: str = "fp32"
    execution: str = "eager"
    seeds: int = 1
    batch_size: int = 128


@dataclass(frozen=True)
class Rate:
    """A setting's measured rate. ``failed`` says why there is none."""

    group: str
    setting: Setting
    images_per_second: float | None = None
    peak_mib: float | None = None  # of device memory, on CUDA
    failed: str | None = None


def noise(n: int = 20_000) -> data.Dataset:
    """Noise in the shape of CIFAR-100, uint8 (n, 3, 32, 32) for training and n / 10 for testing."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n + n // 10, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(0, 100, (len(images),), generator=g)
    return data.Dataset("cifar100", images[:n], labels[:n], images[n:], labels[n:], list(map(str, range(100))), "noise")


def _engine(s: Setting, ds: data.Dataset, device: str) -> tuple[Stack, Callable[[int], list[Tensor]]]:
    """A stack, and its blocks by number."""
    models = [zoo.build(s.row, **SIZES, form=s.form) for _ in range(s.seeds)]
    kw = {"device": device, "precision": s.precision, "execution": s.execution}
    loss = classification.loss(ds, RECIPE, device, PRECISIONS[s.precision])
    stack = Stack(models, loss, betas=RECIPE.betas, weight_decay=RECIPE.weight_decay, **kw)
    p, rng = dataclasses.replace(RECIPE, batch_size=s.batch_size), np.random.default_rng(0)
    steps = classification.BLOCK if device == "cuda" else 2  # a CPU's steps are long enough to time

    def block(i: int) -> list[Tensor]:
        orders = list(rng.integers(len(ds.train_labels), size=(s.seeds, steps * s.batch_size)))
        rngs = [draws.stream(seed, "block", i) for seed in range(s.seeds)]
        return classification.block(ds, p, rngs, orders, num_draws=stack.num_draws, dtype=stack.dtype)

    return stack, block


def _batched(s: Setting, ds: data.Dataset, device: str) -> Callable[[int], int]:
    """The engine's blocks, one a call."""
    stack, block = _engine(s, ds, device)

    def step(i: int) -> int:
        made = block(i)
        steps = made[0].shape[1]
        stack.train(made, [1e-4] * steps, [0] * steps)
        return made[0].shape[:3].numel()

    return step


def _conventional(s: Setting, ds: data.Dataset, device: str, workers: int) -> Callable[[int], int]:
    """What a user would write: torchvision's transforms on PIL images, a DataLoader with workers, eager fp32."""
    mean, std = ds.stats
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(32, padding=4),
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=128),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            v2.RandomErasing(0.25, (0.02, 0.4), (0.3, 1 / 0.3), value=list(mean)),
        ]
    )
    pictures = [v2.functional.to_pil_image(x) for x in ds.train_images]
    mixing = v2.RandomChoice([v2.MixUp(num_classes=100), v2.CutMix(num_classes=100)])

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return transform(pictures[i]), int(ds.train_labels[i])

    loader = DataLoader(
        Pictures(), s.batch_size, shuffle=True, drop_last=True, num_workers=workers, pin_memory=device == "cuda",
        persistent_workers=workers > 0,
    )  # fmt: skip
    model = zoo.build(s.row, **SIZES, form=s.form).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=RECIPE.weight_decay)

    def batches() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    source = batches()

    def step(i: int) -> int:
        images, labels = (t.to(device, non_blocking=True) for t in next(source))
        if torch.rand(()) < 0.5:
            images, labels = mixing(images, labels)
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # the progress bar of the usual loop
        return s.batch_size

    return step


def measure(group: str, s: Setting, ds: data.Dataset, device: str, seconds: float, workers: int) -> Rate:
    """The rate of one setting; what goes wrong is part of the result, so that one failure hides no other figure."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        step = _batched(s, ds, device) if s.engine else _conventional(s, ds, device, workers)
        found = rate(step, device, seconds)
    except Exception as error:
        return Rate(group, s, failed=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return Rate(group, s, found, torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None)


def settings(device: str) -> Iterator[tuple[str, Setting]]:
    """What is measured on a device, group by group."""
    yield "ladder", Setting("PIL, DataLoader, convolution form", engine=False, form="conv")
    yield "ladder", Setting("matrix form", engine=False)
    yield "ladder", Setting("batched augmentation on the device", engine=True)
    precision = machine.fastest_precision(device)
    best = functools.partial(Setting, precision=precision, execution="captured" if device == "cuda" else "eager")
    if device == "cuda":
        yield "ladder", Setting("tf32", precision="tf32")
    if precision == "bf16":
        yield "ladder", Setting("bf16", precision="bf16")
    if device == "cuda":
        yield "ladder", best("CUDA graph")
        yield "ladder", Setting("torch.compile", precision="bf16", execution="compiled")
        yield "ladder", best("CUDA graph, 8 seeds in a step", seeds=8)
    for row in ("ViT/0.5M", "ViT/0.5M-LKCA", "ViT", "ViT-LKCA", "ViT/8M", "ViT/8M-LKCA", "LKCA-L"):
        yield "rows", best(row, row=row)
    row = ROW if device == "cuda" else "ViT/0.5M-LKCA"  # what a reader would train there
    for seeds in (1, 2, 4, 8, 16):
        yield "seeds", best(f"{row}, {seeds} seed{'s' * (seeds > 1)}", row=row, seeds=seeds)
    for batch_size in (32, 128, 512):
        yield "batch", best(f"batch {batch_size}", batch_size=batch_size)


def parts(ds: data.Dataset, device: str, seconds: float) -> dict[str, float]:
    """Seconds of a step of 128 images, one seed, by what it does; each measured alone, uncaptured."""
    s = Setting("", precision=machine.fastest_precision(device))
    stack, block = _engine(s, ds, device)
    batch = [t[:, 0] for t in block(0)]
    images = s.batch_size

    def forward(i: int) -> int:
        stack.losses(batch)
        return images

    def backward(i: int) -> int:
        stack.losses(batch).sum().backward()
        return images

    def optimise(i: int) -> int:
        stack.optimizer.step()
        return images

    def augmentation(i: int) -> int:
        return block(i)[0].shape[:3].numel()

    def evaluation(i: int) -> int:
        classification.evaluate(stack, ds)
        return ds.num_test

    with multiplying(s.precision):
        took = {
            f.__name__: images / rate(f, device, seconds)
            for f in (augmentation, forward, backward, optimise, evaluation)
        }
    took["backward"] -= took["forward"]
    return took


def augmentation_rates(ds: data.Dataset, device: str, seconds: float) -> dict[str, float]:
    """Images a second through flip, crop and AutoAugment: torchvision's and ours on one core, ours on a GPU."""
    pil = v2.Compose(
        [v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=4), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)]
    )
    pictures = [v2.functional.to_pil_image(x) for x in ds.train_images[:512]]

    def ours(images: Tensor, n: int) -> Callable[[int], int]:
        def step(i: int) -> int:
            policy = augment.POLICIES["cifar100"]
            draws = augment.draw(np.random.default_rng(i), n, flip=0.5, crop_padding=4, policy=policy)
            augment.augment(images[:n], draws, crop_padding=4)
            return n

        return step

    with one_core():
        found = {
            "torchvision on PIL, one core": rate(lambda i: len([pil(x) for x in pictures]), "cpu", seconds),
            "batched, one core": rate(ours(ds.train_images.cpu(), 1024), "cpu", seconds),
        }
    if device == "cuda":
        found["batched, GPU"] = rate(ours(ds.train_images, 16_384), device, seconds)
    return found


def matmul_flops(device: str, precision: str, seconds: float = 1.0) -> float:
    """Floating-point operations a second of a large square product: what this machine gives at best."""
    n, dtype = 8192 if device == "cuda" else 2048, torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    return 2 * n**3 * rate(lambda i: len([a @ b]), device, seconds)


def core_rates(names: Sequence[str]) -> dict[str, float]:
    """Training images a second of processor time on one core, by row: fp32, the whole step without augmentation.

    Two steps of a batch of 32, at 64 pixels and 200 classes. Processor time, unlike the clock's, hardly counts what
    else the machine does.
    """
    size, classes, batch, steps = 64, 200, 32, 2
    p, found = dataclasses.replace(RECIPE, batch_size=batch), {}
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(batch) % classes
    ds = data.Dataset("tiny-imagenet", images, labels, images, labels, list(map(str, range(classes))), "noise")
    with one_core():
        for name in names:
            model = zoo.build(name, image_size=size, num_classes=classes)
            loss = classification.loss(ds, p, "cpu", torch.float32)
            how = {"device": "cpu", "precision": "fp32", "execution": "eager"}
            stack = Stack([model], loss, betas=p.betas, weight_decay=p.weight_decay, **how)
            rng, order = np.random.default_rng(0), np.arange(batch)
            block = classification.block(ds, p, [rng], [order], num_draws=stack.num_draws)
            stack.train(block, [1e-4], [0])
            began = time.process_time()
            for _ in range(steps):
                stack.train(block, [1e-4], [0])
            found[name] = steps * batch / (time.process_time() - began)
            print(f"{name:24} {found[name]:.1f} img/s", flush=True)
    return found


def run_rows(results_root: Path = RESULTS) -> Path:
    """Measure the rows of Tables 4 and 5 on a core and write ``results/speed/rows/<device>.json``."""
    names = dict.fromkeys(zoo.canonical(row) for t in (4, 5) for row in (*zoo.TABLES[t].rows, *zoo.TABLES[t].extra))
    found = {
        "device": machine.device_in_words("cpu"),
        "rates": core_rates(tuple(names)),
        "versions": {name: version(name) for name in ("torch", "timm", "vit-pytorch")},
        "git_commit": machine.COMMIT,
        "git_clean": machine.CLEAN,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return _write(found, Path(results_root) / "speed" / "rows")


def _file(found: dict, folder: Path) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', found['device']).strip('-').lower()}.json"


def _write(found: dict, folder: Path) -> Path:
    file = _file(found, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def ladders(ds: data.Dataset, home: data.Dataset, device: str, seconds: float, workers: int) -> list[dict]:
    """The rates of all `settings`, printed as they come."""
    rates = []
    for group, s in settings(device):
        r = measure(group, s, home if s.engine else ds, device, seconds, workers)
        rates.append(dataclasses.asdict(r))
        print(f"{group:8} {s.label:40} {r.failed or f'{r.images_per_second:.0f} img/s'}", flush=True)
    return rates


def run(device: str, seconds: float, workers: int, results_root: Path = RESULTS, only: str | None = None) -> Path:
    """Measure on ``device`` and write ``results/speed/<device>.json``.

    Everything is measured, and replaces an earlier file; or ``only`` one of PARTS: the earlier file keeps the others,
    and says under ``later`` with which commit and when this one was measured.

    Raises ValueError on an unknown device or part, FileNotFoundError on ``only`` without an earlier file.
    """
    if only and only not in PARTS:
        raise ValueError(f"only={only!r} is not one of {', '.join(map(repr, PARTS))}")
    name, kind = machine.device_in_words(machine.checked_device(device)), machine.fastest_precision(device)
    folder = Path(results_root) / "speed"
    if only and not _file({"device": name}, folder).exists():
        raise FileNotFoundError(f"{name} has not been measured yet: measure everything once, without only")
    commit, clean = machine.COMMIT, machine.CLEAN
    ds = noise()
    home = ds.to(device)
    measurements = {
        "parts": lambda: parts(home, device, seconds),
        "augmentation": lambda: augmentation_rates(home, device, seconds),
        "gathers": lambda: gathers(device, min(seconds, 1)),
        "matmul_flops": lambda: matmul_flops(device, kind),
        "forms": lambda: forms(device, min(seconds, 1)),
        "rates": lambda: ladders(ds, home, device, seconds, workers),
    }
    stamp = {
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "lkca": lkca.__version__},
        "git_commit": commit,
        "git_clean": clean,
    }  # fmt: skip
    found: dict[str, Any] = {"device": name, "matmul_precision": kind, "workers": workers, **stamp}
    if only:
        found = json.loads(_file(found, folder).read_text(encoding="utf-8"))
    for part in [only] if only else PARTS:
        found[part] = measurements[part]()
    stamp["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    if only:
        found.setdefault("later", {})[only] = stamp
    else:
        found |= stamp
    return _write(found, folder)
