"""The training engine.

A *run* is one training of a cell under a protocol with a seed; it leaves a record. Three streams of random numbers,
each a function of the seed and the step alone, feed it: initialisation, order, and what happens inside a step
(augmentation, mixing, drop path). So a run that was killed resumes from its checkpoint and ends, on a CPU, with the
weights of an undisturbed one, bit for bit.
"""

import dataclasses
import math
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

import lkca
from lkca import augment, complexity, data, records, zoo
from lkca.protocols import Protocol
from lkca.records import RESULTS, Epoch, Record


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


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, ds: data.Dataset, p: Protocol,
    rng: np.random.Generator, device: torch.device,
) -> Tensor:  # fmt: skip
    """One optimiser step on a batch of uint8 images; returns the loss, detached."""
    mean, std = data.stats(ds.name)
    images = augment.augment(
        images,
        rng,
        flip=p.flip,
        crop_padding=p.crop_padding,
        policy=augment.POLICIES[ds.name] if p.auto_augment else None,
    )
    x = augment.normalise(images.to(device), mean, std)
    augment.erase(x, rng, probability=p.erase_probability, area=p.erase_area, aspect=p.erase_aspect, fill=mean)
    x, other, share = augment.mix(x, rng, probability=p.mix_probability, cutmix_share=p.cutmix_share, beta=p.mix_beta)
    labels = labels.to(device)
    torch.manual_seed(int(rng.integers(2**63)))  # drop path draws from torch's own generator
    logits = model(x)
    loss = share * F.cross_entropy(logits, labels, label_smoothing=p.label_smoothing)
    if share < 1:
        loss = loss + (1 - share) * F.cross_entropy(logits, labels[other], label_smoothing=p.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model: nn.Module, ds: data.Dataset, device: torch.device | str = "cpu") -> tuple[float, Tensor]:
    """Test ``model`` on the test set: mean cross entropy in nats, and which images were right, bool (num_test,)."""
    mean, std = data.stats(ds.name)
    model.eval()
    loss, right = 0.0, []
    for images, labels in zip(ds.test_images.split(500), ds.test_labels.split(500), strict=True):
        logits = model(augment.normalise(images.to(device), mean, std))
        labels = labels.to(device)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right.append((logits.argmax(1) == labels).cpu())
    model.train()
    return loss / len(ds.test_labels), torch.cat(right)


def fit(
    row: str,
    dataset: data.Dataset,
    protocol: Protocol,
    seed: int = 0,
    *,
    device: str = "cpu",
    results_root: Path = RESULTS,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> Record:
    """Train one run and write its record; resume it if a checkpoint of it is there.

    Args:
        row: the row's name, see `lkca.zoo`.
        dataset: see `lkca.data.load`.
        protocol: one of `lkca.protocols.PROTOCOLS`, or another.
        seed: of all streams.
        device: "cpu" or "cuda".
        results_root: the ledger; records go to ``runs/``, checkpoints to ``checkpoints/`` until the run is done.
        checkpoint_every: steps between checkpoints; one is also written after every epoch.
        progress: show a bar with loss, rate and time left.

    Returns:
        The record, as written.

    Raises:
        ValueError: before any training, on an unknown row or device, a precision that is not there, a training set
            smaller than a batch, or a checkpoint that is damaged or belongs to other data.
        FileExistsError: before any training, if the run has a record already.
        FloatingPointError: when the loss is not finite, naming the step; no record is written.
    """
    p, settings = protocol, complexity.count(row, image_size=dataset.image_size, num_classes=dataset.num_classes)
    target = records.path(results_root, row, dataset.name, p.name, p.hash, seed)
    if target.exists():
        raise FileExistsError(f"{target} exists: a record is never overwritten")
    if p.precision != "fp32":
        raise ValueError(f"precision={p.precision!r} is not built yet; the engine trains in 'fp32'")
    checked_device(device)
    ds = dataset.subset(p.train_images) if p.train_images and p.train_images < len(dataset.train_labels) else dataset
    n = len(ds.train_labels)
    steps_per_epoch = p.passes_per_epoch * n // p.batch_size
    if not steps_per_epoch:
        raise ValueError(f"{ds.name} has {n} training images, fewer than a batch of {p.batch_size}")

    torch.manual_seed(int(_stream(seed, "init").integers(2**63)))
    model = zoo.build(row, image_size=ds.image_size, num_classes=ds.num_classes, drop_path=p.drop_path).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=p.lr, betas=p.betas, weight_decay=p.weight_decay)
    commit, clean = _git()
    state = {"step": 0, "loss_sum": 0.0, "train_seconds": 0.0, "wall_seconds": 0.0, "epoch_seconds": 0.0, "curve": [],
             "commit": commit, "clean": clean}  # fmt: skip
    per_class: list[float] = []
    checkpoint = Path(results_root) / "checkpoints" / f"{target.stem}.pt"
    if checkpoint.exists():
        saved = _load_checkpoint(checkpoint, ds.fingerprint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        per_class, state = saved["per_class"], saved["state"]
        if (state["commit"], state["clean"]) != (commit, clean):  # begun by other code: say the tree was not one commit
            state |= {"commit": commit, "clean": False}

    bar = tqdm(
        total=p.epochs * steps_per_epoch,
        initial=state["step"],
        desc=f"{row} · {ds.name} · {p.name} · seed {seed}",
        unit="step",
        disable=not progress,
        mininterval=1,
        leave=False,
    )
    model.train()
    clock = time.perf_counter()

    def elapsed() -> float:
        nonlocal clock
        before, clock = clock, time.perf_counter()
        return clock - before

    with bar:
        while state["step"] < p.epochs * steps_per_epoch:
            epoch = state["step"] // steps_per_epoch
            order = torch.from_numpy(_order(seed, epoch, n, p.passes_per_epoch))
            while state["step"] < (epoch + 1) * steps_per_epoch:
                step = state["step"]
                lr = learning_rate(p, step, steps_per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                first = (step - epoch * steps_per_epoch) * p.batch_size
                batch = order[first : first + p.batch_size]
                loss = _step(
                    model,
                    optimizer,
                    ds.train_images[batch],
                    ds.train_labels[batch],
                    ds,
                    p,
                    _stream(seed, "step", step),
                    device,
                ).item()
                if not math.isfinite(loss):
                    raise FloatingPointError(f"{target.stem}: the loss is {loss} at step {step}; the run has no record")
                state["step"] += 1
                state["loss_sum"] += loss
                spent = elapsed()
                for key in ("train_seconds", "wall_seconds", "epoch_seconds"):
                    state[key] += spent
                bar.update()
                bar.set_postfix(
                    loss=f"{loss:.3f}",
                    img_s=f"{state['step'] * p.batch_size / state['train_seconds']:.0f}",
                    refresh=False,
                )
                ends_epoch = state["step"] == (epoch + 1) * steps_per_epoch
                if state["step"] % checkpoint_every == 0 and not ends_epoch:
                    _save_checkpoint(checkpoint, model, optimizer, per_class, state, ds.fingerprint)
            test_loss, right = evaluate(model, ds, device)
            spent = elapsed()
            state["wall_seconds"] += spent
            per_class = [100 * right[ds.test_labels == c].float().mean().item() for c in range(ds.num_classes)]
            point = Epoch(
                epoch=epoch + 1,
                lr=lr,
                train_loss=state["loss_sum"] / steps_per_epoch,
                test_loss=test_loss,
                top1=100 * right.double().mean().item(),
                seconds=state["epoch_seconds"] + spent,
            )
            state["curve"].append(dataclasses.asdict(point))
            state["loss_sum"] = state["epoch_seconds"] = 0.0
            _save_checkpoint(checkpoint, model, optimizer, per_class, state, ds.fingerprint)

    curve = [Epoch(**point) for point in state["curve"]]
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
        precision=p.precision,
        device=_device_in_words(device),
        images_per_second=state["step"] * p.batch_size / state["train_seconds"],
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
    )
    records.write(record, results_root)
    checkpoint.unlink(missing_ok=True)
    return record


def _save_checkpoint(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, per_class: list, state: dict,
                     fingerprint: str) -> None:  # fmt: skip
    """Write aside and rename, so that a kill or a full disk leaves the last whole checkpoint."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{os.getpid()}.aside")
    try:
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "per_class": per_class, "state": state,
             "fingerprint": fingerprint},
            aside,
        )  # fmt: skip
        os.replace(aside, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        aside.unlink(missing_ok=True)
        raise OSError(
            f"the checkpoint {file} cannot be written ({error}): free some space and run the same again"
        ) from error


def _load_checkpoint(file: Path, fingerprint: str) -> dict:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        theirs = saved["fingerprint"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"the checkpoint {file} is damaged ({error}): delete it to begin this run again") from error
    if theirs != fingerprint:
        raise ValueError(f"the checkpoint {file} was made on other data: delete it to begin this run again")
    return saved


def checked_device(device: str) -> str:
    """``device`` if it can be used here; raises ValueError with what to do otherwise."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not one of 'auto', 'cpu', 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' needs an NVIDIA GPU that PyTorch can see, and there is none: use device='cpu'")
    return device


def _device_in_words(device: str) -> str:
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


def _git() -> tuple[str, bool]:
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
