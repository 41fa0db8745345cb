"""The training engine.

A *run* is one training of a cell under a protocol with a seed; it leaves a record. Streams of random numbers, each a
function of the seed and the step alone, feed it: initialisation, order, and what happens inside a step (augmentation,
mixing, drop path). So several seeds can share a step, and a run that was killed resumes from its checkpoint and ends,
on a CPU, with the weights of an undisturbed one, bit for bit.

The data set stays on the device. Work goes in blocks of a few steps: all of a block's draws are made on the host, its
images augmented together on the device, then its steps taken (`lkca.stack`). Nothing in an epoch waits for the device.
"""

import dataclasses
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

import lkca
from lkca import augment, complexity, data, records, zoo
from lkca.protocols import Protocol
from lkca.records import RESULTS, Epoch, Record
from lkca.stack import EXECUTIONS, PRECISIONS, Stack

BLOCK = 8  # steps whose images are augmented together


def learning_rate(p: Protocol, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up from ``lr_floor`` to ``lr``, then cosine to ``lr_floor``, per step (0-based)."""
    warmup, total = p.warmup_epochs * steps_per_epoch, p.epochs * steps_per_epoch
    if step < warmup:
        return p.lr_floor + (p.lr - p.lr_floor) * step / warmup
    progress = (step - warmup) / (total - warmup)
    return p.lr_floor + (p.lr - p.lr_floor) * (1 + math.cos(math.pi * progress)) / 2


def _stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """The random numbers for one purpose at one index (an epoch, a step): the same in every process."""
    return np.random.default_rng([seed, *name.encode(), index])


def _order(seed: int, epoch: int, n: int, passes: int) -> np.ndarray:
    rng = _stream(seed, "order", epoch)
    return np.concatenate([rng.permutation(n) for _ in range(passes)])


def block(
    ds: data.Dataset,
    p: Protocol,
    seeds: Sequence[int],
    first: int,
    orders: Sequence[np.ndarray],
    *,
    num_draws: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """A block of batches for every seed, each by its own streams: what `Stack.train` takes.

    Args:
        ds: the data set, on the device to train on.
        p: the recipe.
        seeds: S of them.
        first: the run's step at which the block begins; with a seed it fixes every draw.
        orders: for each seed, which images, G * p.batch_size of them.
        num_draws: uniform numbers an image for stochastic depth.
        dtype: of the draws that enter products.

    Returns:
        (S, G, B, …) each: uint8 images, labels, boxes to erase, the permutation to mix with (all by image), share,
        weight and box of the mixing (by batch), and the uniform numbers.
    """
    device, size, batch, length = ds.train_images.device, (ds.image_size,) * 2, p.batch_size, len(orders[0])
    policy = augment.POLICIES[ds.name] if p.auto_augment else None
    made = []
    for seed in seeds:
        rng = _stream(seed, "block", first)
        made.append(
            (
                augment.draw(rng, length, flip=p.flip, crop_padding=p.crop_padding, policy=policy),
                augment.draw_erasing(
                    rng, length, size, probability=p.erase_probability, area=p.erase_area, aspect=p.erase_aspect
                ),
                augment.draw_mixing(
                    rng, length // batch, batch, size, probability=p.mix_probability, cutmix_share=p.cutmix_share,
                    beta=p.mix_beta,
                ),
                rng.random((length, num_draws), np.float32),
            )
        )  # fmt: skip
    draws, boxes, mixing, uniform = zip(*made, strict=True)
    shape = (len(seeds), length // batch, batch)
    chosen = augment.upload(np.concatenate(orders), device)
    images = augment.augment(ds.train_images[chosen], augment.Draws.concatenate(draws), crop_padding=p.crop_padding)

    def stacked(arrays: Iterable[np.ndarray], kind: torch.dtype | None = None) -> Tensor:
        tensor = augment.upload(np.stack(list(arrays)), device)
        return tensor.to(kind) if kind else tensor

    return [
        images.view(*shape, *images.shape[1:]),
        ds.train_labels[chosen].view(shape),
        stacked(boxes).view(*shape, 4),
        stacked(m.other for m in mixing),
        stacked((m.share for m in mixing), dtype),
        stacked((m.weight for m in mixing), dtype),
        stacked(m.box for m in mixing),
        stacked(uniform).view(*shape, num_draws),
    ]


def fit(
    row: str,
    dataset: data.Dataset,
    protocol: Protocol,
    seeds: Sequence[int] = (0,),
    *,
    device: str = "cpu",
    precision: str = "auto",
    execution: str = "auto",
    results_root: Path = RESULTS,
    keep_weights: bool = False,
    checkpoint_every: int = 100,
    time_budget: float = math.inf,
    progress: str | None = "bar",
) -> list[Record] | None:
    """Train one run a seed, all in one step, and write their records; resume them if their checkpoint is there.

    Args:
        row: the row's name, see `lkca.zoo`.
        dataset: see `lkca.data.load`.
        protocol: one of `lkca.protocols.PROTOCOLS`, or another.
        seeds: one run each.
        device: "cpu" or "cuda".
        precision: "fp32", "tf32", "bf16" (autocast, weights and their moments in fp32), "fp64", or "auto", see
            `fastest_precision`.
        execution: "eager", "captured" or "compiled", see `lkca.stack.Stack`; "auto" captures on CUDA.
        results_root: the ledger; records go to ``runs/``, checkpoints to ``checkpoints/`` until the runs are done.
        keep_weights: also write the trained weights to ``weights/``, see `lkca.records.write_weights`.
        checkpoint_every: steps between checkpoints, to the next block; one is also written after every epoch.
        time_budget: seconds from now after which to stop, at a checkpoint.
        progress: "bar" with loss, rate and time left, "lines" (one an epoch), or None.

    Returns:
        The records, as written, by seed; None if the time ran out first. Call it again to go on.

    Raises:
        ValueError: before any training, on an unknown row, device, precision or execution, a training set smaller than
            a batch, or a checkpoint that is damaged or belongs to other data.
        FileExistsError: before any training, if a run has a record already.
        FloatingPointError: when a loss is not finite, naming seed and step; no record is written.
    """
    began, p = time.perf_counter(), protocol
    settings = complexity.count(row, image_size=dataset.image_size, num_classes=dataset.num_classes)
    targets = [records.path(results_root, row, dataset.name, p.name, p.hash, seed) for seed in seeds]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists: a record is never overwritten")
    checked_device(device)
    precision = fastest_precision(device) if precision == "auto" else precision
    execution = {"cuda": "captured", "cpu": "eager"}[device] if execution == "auto" else execution
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not one of 'auto', {', '.join(map(repr, PRECISIONS))}")
    if execution not in EXECUTIONS or (device == "cpu" and execution != "eager"):
        raise ValueError(f"execution={execution!r} is not one of 'auto', 'eager' and, on CUDA, 'captured', 'compiled'")
    ds = dataset.subset(p.train_images) if p.train_images and p.train_images < len(dataset.train_labels) else dataset
    n = len(ds.train_labels)
    steps_per_epoch = p.passes_per_epoch * n // p.batch_size
    if not steps_per_epoch:
        raise ValueError(f"{ds.name} has {n} training images, fewer than a batch of {p.batch_size}")

    models = []
    for seed in seeds:
        torch.manual_seed(int(_stream(seed, "init").integers(2**63)))
        models.append(zoo.build(row, image_size=ds.image_size, num_classes=ds.num_classes, drop_path=p.drop_path))
    stack = Stack(models, p, *data.stats(ds.name), device=device, precision=precision, execution=execution)
    commit, clean = git_state()
    state = {"step": 0, "train_seconds": 0.0, "wall_seconds": 0.0, "epoch_seconds": 0.0, "commit": commit,
             "clean": clean, "curves": [[] for _ in seeds], "per_class": [], "correct": []}  # fmt: skip
    name = targets[0].stem + "".join(f"+{seed}" for seed in seeds[1:])
    checkpoint = Path(results_root) / "checkpoints" / f"{name}.pt"
    if checkpoint.exists():
        state = _load_checkpoint(checkpoint, stack, ds.fingerprint)
        if (state["commit"], state["clean"]) != (commit, clean):  # begun by other code: say the tree was not one commit
            state |= {"commit": commit, "clean": False}
    ds = ds.to(device)

    total, clock = p.epochs * steps_per_epoch, time.perf_counter()
    show = _Progress(
        progress, f"{row} · {ds.name} · {p.name} · seed {', '.join(map(str, seeds))}", state["step"], total
    )

    def spend(*keys: str) -> None:
        nonlocal clock
        before, clock = clock, time.perf_counter()
        for key in keys:
            state[key] += clock - before

    with show:
        while state["step"] < total:
            epoch = state["step"] // steps_per_epoch
            start, end = epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch
            orders = [_order(seed, epoch, n, p.passes_per_epoch) for seed in seeds]
            while state["step"] < end:
                step, stop = state["step"], min(state["step"] + BLOCK, end)
                part = slice((step - start) * p.batch_size, (stop - start) * p.batch_size)
                batches = block(ds, p, seeds, step, [order[part] for order in orders], num_draws=stack.num_draws,
                                dtype=stack.dtype)  # fmt: skip
                stack.train(batches, [learning_rate(p, s, steps_per_epoch) for s in range(step, stop)])
                state["step"] = stop
                late = time.perf_counter() - began > time_budget
                due = stop < end and (late or stop // checkpoint_every > step // checkpoint_every)
                if device == "cpu" or stop == end or due:  # elsewhere looking would wait for the device
                    _check_finite(stack, seeds, name)
                    spend("train_seconds", "wall_seconds", "epoch_seconds")
                    rate = stop * p.batch_size * len(seeds) / state["train_seconds"]
                    show.update(stop, stack.loss_sum.mean().item() / (stop - start), rate)
                if due:
                    _save_checkpoint(checkpoint, stack, state, ds.fingerprint)
                if late and stop < end:
                    return None
            train_loss = (stack.loss_sum / steps_per_epoch).tolist()
            stack.loss_sum.zero_()
            test_loss, right = stack.evaluate(ds.test_images, ds.test_labels)
            right, test_loss = right.cpu(), test_loss.tolist()
            seconds = state["epoch_seconds"]
            spend("wall_seconds", "epoch_seconds")
            seconds, state["epoch_seconds"] = state["epoch_seconds"], 0.0
            labels = dataset.test_labels
            state["per_class"] = [
                [100 * r[labels == c].double().mean().item() for c in range(ds.num_classes)] for r in right
            ]
            state["correct"] = [records.pack(r.numpy()) for r in right]
            for curve, r, train, test in zip(state["curves"], right, train_loss, test_loss, strict=True):
                curve.append(
                    dataclasses.asdict(
                        Epoch(
                            epoch=epoch + 1,
                            lr=learning_rate(p, end - 1, steps_per_epoch),
                            train_loss=train,
                            test_loss=test,
                            top1=100 * r.double().mean().item(),
                            seconds=seconds,
                        )
                    )
                )
            _save_checkpoint(checkpoint, stack, state, ds.fingerprint)
            show.epoch(epoch + 1, p.epochs, [curve[-1] for curve in state["curves"]])
            if late and end < total:
                return None

    found = []
    for seed, curve, per_class, correct in zip(
        seeds, state["curves"], state["per_class"], state["correct"], strict=True
    ):
        curve = [Epoch(**point) for point in curve]
        best = max(curve, key=lambda e: e.top1)
        record = Record(
            row=row,
            dataset=ds.name,
            protocol=p.name,
            protocol_hash=p.hash,
            protocol_fields=p.fields,
            seed=seed,
            top1=curve[-1].top1,
            top1_best=best.top1,
            best_epoch=best.epoch,
            test_loss=curve[-1].test_loss,
            per_class_top1=per_class,
            curve=curve,
            params=settings.params,
            params_paper=settings.params_paper,
            macs=settings.macs,
            macs_paper=settings.macs_paper,
            image_size=ds.image_size,
            num_classes=ds.num_classes,
            num_train=n,
            num_test=len(ds.test_labels),
            data_fingerprint=ds.fingerprint,
            precision=precision,
            device=device_in_words(device),
            images_per_second=total * p.batch_size * len(seeds) / state["train_seconds"],
            wall_seconds=state["wall_seconds"],
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "numpy": np.__version__,
                "lkca": lkca.__version__,
            },
            git_commit=state["commit"],
            git_clean=state["clean"],
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            stacked=len(seeds),
            correct=correct,
        )
        found.append(record)
    for i, record in enumerate(found):
        if keep_weights:
            records.write_weights(record, stack.weights(i), results_root)
        records.write(record, results_root)
    checkpoint.unlink(missing_ok=True)
    return found


def _check_finite(stack: Stack, seeds: Sequence[int], name: str) -> None:
    for seed, step in zip(seeds, stack.first_bad.tolist(), strict=True):
        if step >= 0:
            raise FloatingPointError(
                f"{name}: the loss of seed {seed} is not finite at step {step}; there is no record"
            )


class _Progress:
    """What a run shows of itself: a bar, a line an epoch, or nothing."""

    def __init__(self, kind: str | None, name: str, step: int, total: int):
        self.kind, self.name, self.bar = kind, name, None
        if kind == "bar":
            from tqdm import tqdm  # a machine that only trains, and logs lines, need not have it

            self.bar = tqdm(total=total, initial=step, desc=name, unit="step", mininterval=1, leave=False)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, step: int, loss: float, rate: float) -> None:
        self.rate = rate
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.3f}", img_s=f"{rate:.0f}", refresh=False)
            self.bar.update(step - self.bar.n)

    def epoch(self, epoch: int, epochs: int, points: Sequence[dict]) -> None:
        if self.kind == "lines":
            top1 = ", ".join(f"{point['top1']:.2f}" for point in points)
            done = f"epoch {epoch}/{epochs} · top-1 {top1} · {self.rate:.0f} img/s"
            print(f"{datetime.now(UTC):%H:%M:%S} {self.name} · {done}", flush=True)


def _save_checkpoint(file: Path, stack: Stack, state: dict, fingerprint: str) -> None:
    """Write aside and rename, so that a kill or a full disk leaves the last whole checkpoint."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{os.getpid()}.aside")
    try:
        torch.save({"stack": stack.state_dict(), "state": state, "fingerprint": fingerprint}, aside)
        os.replace(aside, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        aside.unlink(missing_ok=True)
        raise OSError(
            f"the checkpoint {file} cannot be written ({error}): free some space and run the same again"
        ) from error


def _load_checkpoint(file: Path, stack: Stack, fingerprint: str) -> dict:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if saved["fingerprint"] == fingerprint:
            stack.load_state_dict(saved["stack"])
            return saved["state"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"the checkpoint {file} is damaged ({error}): delete it to begin this run again") from error
    raise ValueError(f"the checkpoint {file} was made on other data: delete it to begin this run again")


def checked_device(device: str) -> str:
    """``device`` if it can be used here; raises ValueError with what to do otherwise."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not one of 'auto', 'cpu', 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' needs an NVIDIA GPU that PyTorch can see, and there is none: use device='cpu'")
    return device


def fastest_precision(device: str) -> str:
    """ "bf16" on CUDA and on CPUs that multiply it in hardware (there about twice as fast), else "fp32"."""
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if device == "cuda" or has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"


def device_in_words(device: str) -> str:
    """The GPU's name, or the CPU's and the number of threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads"


def git_state() -> tuple[str, bool]:
    """The commit of this checkout, and whether the package in it is exactly that commit's."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), not git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
