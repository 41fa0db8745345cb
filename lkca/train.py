"""The training engine, whatever the task.

A *run* is one training of a cell under a protocol with a seed; it leaves a record. Streams of random numbers, each a
function of the seed and the step alone, feed it: initialisation, order, and what happens inside a step (augmentation,
mixing, drop path). So several seeds can share a step, and a run that was killed resumes from its checkpoint and ends,
on a CPU, with the weights of an undisturbed one, bit for bit.

The data set stays on the device. Work goes in blocks of a few steps: all of a block's draws are made on the host, its
images augmented together on the device, then its steps taken (`lkca.stack`). Nothing between two looks at the loss
waits for the device. A run is evaluated at the end of each of its stages: a protocol says where they end.

What differs between tasks is a module of functions, found by the type of the data set: `lkca.classification` and
`lkca.segment`.
"""

import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torchvision

import lkca
from lkca import classification, data, records, scenes, segment, zoo
from lkca.protocols import Settings
from lkca.records import RESULTS, Run
from lkca.stack import EXECUTIONS, PRECISIONS, Stack, stackable

TASKS: dict[type, ModuleType] = {data.Dataset: classification, scenes.Scenes: segment}


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """The random numbers for one purpose at one index (a stage, a step): the same in every process."""
    return np.random.default_rng([seed, *name.encode(), index])


def order(seed: int, stage: int, n: int, images: int) -> np.ndarray:
    """Which of n images a stage shows, one after the other: permutation after permutation, cut off at ``images``."""
    rng = stream(seed, "order", stage)
    return np.concatenate([rng.permutation(n) for _ in range(-(-images // n))])[:images]


def fit(
    row: str,
    dataset: data.Dataset | scenes.Scenes,
    protocol: Settings,
    seeds: Sequence[int] = (0,),
    *,
    device: str = "cpu",
    precision: str = "auto",
    execution: str = "auto",
    results_root: Path = RESULTS,
    keep_weights: bool = False,
    checkpoint_every: float = 60.0,
    time_budget: float = math.inf,
    progress: str | None = "bar",
) -> list[Run] | None:
    """Train one run a seed and write their records; resume them if their checkpoint is there.

    On CUDA all seeds share a step. On a CPU, where that gains nothing, and if the row cannot be stacked, they train one
    after the other, and each has its record when it is done.

    Args:
        row: the row's name, see `lkca.zoo`; of two names of one row, the record has the first.
        dataset: see `lkca.data.load`; its type says what the task is.
        protocol: one of the task's, e.g. of `lkca.protocols.PROTOCOLS`, or another.
        seeds: one run each.
        device: "cpu" or "cuda".
        precision: "fp32", "tf32", "bf16" (autocast, weights and their moments in fp32), "fp64", or "auto", see
            `fastest_precision`.
        execution: "eager", "captured" or "compiled", see `lkca.stack.Stack`; "auto" captures on CUDA what it can.
        results_root: the ledger; records go to ``runs/``, checkpoints to ``checkpoints/`` until the runs are done.
        keep_weights: also write the first seed's trained weights to ``weights/``, see `lkca.records.write_weights`.
        checkpoint_every: seconds between checkpoints, to the next block; one is also written after every stage.
        time_budget: seconds from now after which to stop, at a checkpoint.
        progress: "bar" with loss, rate and time left, "lines" (one a stage), or None.

    Returns:
        The records, as written, by seed; None if the time ran out first. Call it again to go on, with the seeds that
        have no record yet.

    Raises:
        ValueError: before any training, on an unknown row, device, precision or execution, seeds that are not
            different whole numbers from 0 up, a training set smaller than a batch, or a checkpoint that is damaged or
            belongs to other data or another precision.
        FileExistsError: before any training, if a run has a record already.
        FloatingPointError: when a loss is not finite, naming seed and step; no record is written.
    """
    began, p, task, row = time.perf_counter(), protocol, TASKS[type(dataset)], zoo.canonical(row)
    if len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds={seeds!r} are not different whole numbers from 0 up")
    targets = [records.path(results_root, row, dataset.name, p.name, p.hash, seed) for seed in seeds]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists: a record is never overwritten")
    checked_device(device)
    precision = fastest_precision(device) if precision == "auto" else precision
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not one of 'auto', {', '.join(map(repr, PRECISIONS))}")
    if execution not in ("auto", *EXECUTIONS) or (device == "cpu" and execution not in ("auto", "eager")):
        raise ValueError(f"execution={execution!r} is not one of 'auto', 'eager' and, on CUDA, 'captured', 'compiled'")
    ds = task.subset(dataset, p)
    counts, stages = task.count(row, ds), p.stages(ds.num_train)

    models = []
    for seed in seeds:
        torch.manual_seed(int(stream(seed, "init").integers(2**63)))
        models.append(task.build(row, ds, p))
    if len(seeds) > 1 and not share_a_step(models[0], device):
        return _one_after_the_other(
            row, dataset, p, seeds, time_budget=time_budget, device=device, precision=precision, execution=execution,
            results_root=results_root, keep_weights=keep_weights, checkpoint_every=checkpoint_every, progress=progress,
        )  # fmt: skip
    if execution == "auto":
        execution = "captured" if device == "cuda" and getattr(models[0], "capturable", True) else "eager"
    loss = task.loss(ds, p, device, PRECISIONS[precision])
    stack = Stack(models, loss, betas=p.betas, weight_decay=p.weight_decay, device=device, precision=precision,
                  execution=execution)  # fmt: skip
    made = {"device": device_in_words(device), **VERSIONS}
    state = {"step": 0, "train_seconds": 0.0, "wall_seconds": 0.0, "stage_seconds": 0.0, "commit": COMMIT,
             "clean": CLEAN, "precision": precision, "made": made, "curves": [[] for _ in seeds],
             "ends": []}  # fmt: skip
    name = targets[0].stem + "".join(f"+{seed}" for seed in seeds[1:])
    checkpoint = Path(results_root) / "checkpoints" / f"{name}.pt"
    if checkpoint.exists():
        state = _load_checkpoint(checkpoint, stack, ds.fingerprint, precision)
        if (state["commit"], state["clean"]) != (COMMIT, CLEAN):  # begun by other code: say the tree was not one commit
            state |= {"commit": COMMIT, "clean": False}
        for part, was in state["made"].items():  # begun elsewhere: say both
            same = was.split(", then ")[-1] == made[part]
            state["made"][part] = was if same else f"{was}, then {made[part]}"
    ds = ds.to(device)

    total, clock, saved = stages[-1], time.perf_counter(), time.perf_counter()
    title = f"{row} · {ds.name} · {p.name} · seed {', '.join(map(str, seeds))}"
    show = _Progress(progress, title, state["step"], total)

    def spend(*keys: str) -> None:
        nonlocal clock
        before, clock = clock, time.perf_counter()
        for key in keys:
            state[key] += clock - before

    def save() -> None:
        nonlocal saved
        _save_checkpoint(checkpoint, stack, state, ds.fingerprint)
        spend("wall_seconds", "stage_seconds")
        saved = time.perf_counter()

    def at(stage: int) -> int:
        return {"epoch": range(1, len(stages) + 1), "iteration": stages}[task.AT][stage]

    with show:
        for number, (start, end) in enumerate(zip([0, *stages], stages, strict=False)):
            if state["step"] >= end:
                continue
            orders = [order(seed, number, ds.num_train, (end - start) * p.batch_size) for seed in seeds]
            while state["step"] < end:
                step, stop = state["step"], min(state["step"] + task.BLOCK, end)
                part = slice((step - start) * p.batch_size, (stop - start) * p.batch_size)
                rngs = [stream(seed, "block", step) for seed in seeds]
                batches = task.block(ds, p, rngs, [o[part] for o in orders], num_draws=stack.num_draws,
                                     dtype=stack.dtype)  # fmt: skip
                rates = [p.learning_rate(s, ds.num_train) for s in range(step, stop)]
                noise = [int(stream(seeds[0], "noise", s).integers(2**63)) for s in range(step, stop)]
                stack.train(batches, rates, noise)
                state["step"] = stop
                late = time.perf_counter() - began > time_budget
                due = stop < end and (late or time.perf_counter() - saved >= checkpoint_every)
                if device == "cpu" or stop == end or due:  # elsewhere looking would wait for the device
                    _check_finite(stack, seeds, name)
                    spend("train_seconds", "wall_seconds", "stage_seconds")
                    rate = stop * p.batch_size * len(seeds) / state["train_seconds"]
                    show.update(stop, stack.loss_sum.mean().item() / (stop - start), rate)
                if due:
                    save()
                if late and stop < end:
                    return None
            train_loss = (stack.loss_sum / (end - start)).tolist()
            stack.loss_sum.zero_()
            measured = task.evaluate(stack, ds)
            spend("wall_seconds", "stage_seconds")
            for curve, loss, (point, _) in zip(state["curves"], train_loss, measured, strict=True):
                curve.append({task.AT: at(number), "lr": rates[-1], "train_loss": loss, **point,
                              "seconds": state["stage_seconds"]})  # fmt: skip
            state["ends"], state["stage_seconds"] = [end for _, end in measured], 0.0
            save()
            show.stage(task, [curve[-1] for curve in state["curves"]], at(-1))
            if late and end < total:
                return None

    where = state["made"].pop("device")
    found = [
        task.record(
            curve,
            end,
            row=row,
            dataset=ds.name,
            protocol=p.name,
            protocol_hash=p.hash,
            protocol_fields=p.fields,
            seed=seed,
            params=counts.params,
            params_paper=counts.params_paper,
            macs=counts.macs,
            macs_paper=counts.macs_paper,
            image_size=ds.image_size,
            num_classes=ds.num_classes,
            num_train=ds.num_train,
            num_test=ds.num_test,
            data_fingerprint=ds.fingerprint,
            precision=precision,
            device=where,
            images_per_second=total * p.batch_size * len(seeds) / state["train_seconds"],
            wall_seconds=state["wall_seconds"],
            versions=state["made"],
            git_commit=state["commit"],
            git_clean=state["clean"],
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            stacked=len(seeds),
        )
        for seed, curve, end in zip(seeds, state["curves"], state["ends"], strict=True)
    ]
    written = []
    try:
        for i, record in enumerate(found):
            if keep_weights and i == 0:
                written.append(records.write_weights(record, stack.weights(i), results_root))
            written.append(records.write(record, results_root))
    except BaseException:  # all or none: the checkpoint is of all seeds together
        for file in written:
            file.unlink()
        raise
    checkpoint.unlink(missing_ok=True)
    return found


def share_a_step(model: torch.nn.Module, device: str) -> bool:
    """Whether several seeds of a model are trained together on a device."""
    return device != "cpu" and stackable(model)


def _one_after_the_other(
    row: str,
    dataset: data.Dataset | scenes.Scenes,
    p: Settings,
    seeds: Sequence[int],
    *,
    time_budget: float,
    keep_weights: bool,
    **settings: object,
) -> list[Run] | None:
    began, found = time.perf_counter(), []
    for seed in seeds:
        left, keep = time_budget - (time.perf_counter() - began), keep_weights and seed == seeds[0]
        one = fit(row, dataset, p, [seed], time_budget=left, keep_weights=keep, **settings)
        if one is None:
            return None
        found += one
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

    def stage(self, task: ModuleType, points: Sequence[dict], of: int) -> None:
        if self.kind == "lines":
            shown = ", ".join(f"{point[task.SHOWN]:.2f}" for point in points)
            done = f"{task.AT} {points[0][task.AT]}/{of} · {task.SHOWN} {shown} · {self.rate:.0f} img/s"
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


def _load_checkpoint(file: Path, stack: Stack, fingerprint: str, precision: str) -> dict:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        data, state = saved["fingerprint"], saved["state"]
        if (data, state["precision"]) == (fingerprint, precision):
            stack.load_state_dict(saved["stack"])
            return state
    except (OSError, torch.OutOfMemoryError):  # nothing is wrong with the file
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"the checkpoint {file} is damaged ({error}): delete it to begin this run again") from error
    other = "on other data" if data != fingerprint else f"in {state['precision']}, not {precision}"
    raise ValueError(f"the checkpoint {file} was made {other}: delete it to begin this run again")


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
    """The GPU's name, or the CPU's, the instructions PyTorch uses there ("AVX2", "AVX512", …) and the threads.

    Virtual machines give processors that are several times as fast as each other one name.
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def git_state() -> tuple[str, bool]:
    """The commit of this checkout, and whether the package in it is exactly that commit's."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a checkout around an installed package is not its own
        return git("rev-parse", "HEAD"), not git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


COMMIT, CLEAN = git_state()  # of the code as it was loaded, whatever is committed while it trains
VERSIONS = {
    "python": platform.python_version(),
    "torch": str(torch.__version__),
    "torchvision": str(torchvision.__version__),
    "numpy": np.__version__,
    "lkca": lkca.__version__,
}
