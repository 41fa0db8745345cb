"""The training engine, whatever the task.

A *run* is one training of a cell under a protocol with a seed; it leaves a record. Streams of random numbers, each a
function of the seed and the step alone, feed it: initialisation, order, and what happens inside a step (augmentation,
mixing, drop path). So several seeds can share a step, and a run that was killed resumes from its checkpoint and ends,
on a CPU, with the weights of an undisturbed one, bit for bit.

The data set stays on the device. Work goes in blocks of a few steps: all of a block's draws are made on the host, its
images augmented together on the device, then its steps taken (`lkca.training.stack`). Nothing between two looks at the
loss waits for the device. A run is evaluated at the end of each of its stages: a protocol says where they end.

What differs between tasks is a module of functions, found by the type of the data set: `lkca.training.classification`
and `lkca.training.segmentation`.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from lkca.data import images as data
from lkca.data import scenes
from lkca.ledger import records
from lkca.ledger.protocols import Recipe
from lkca.ledger.records import RESULTS, Run
from lkca.models import zoo
from lkca.training import checkpoints, classification, machine, segmentation
from lkca.training.progress import Progress
from lkca.training.stack import EXECUTIONS, PRECISIONS, Stack, stackable
from lkca.training.task import Task

TASKS: dict[type, Task] = {data.Dataset: classification, scenes.Scenes: segmentation}


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
    protocol: Recipe,
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
        row, dataset, protocol, seeds: what to train, one run a seed, see `Asked`.
        device, precision, execution: how, see `Asked`.
        results_root: the ledger; records go to ``runs/``, checkpoints to ``checkpoints/`` until the runs are done.
        keep_weights: also write the first seed's trained weights to ``weights/``, see `records.write_weights`.
        checkpoint_every: seconds between checkpoints, to the next block; one is also written after every stage.
        time_budget: seconds from now after which to stop, at a checkpoint.
        progress: "bar" with loss, rate and time left, "lines" (one a stage), or None.

    Returns:
        The records, as written, by seed; None if the time ran out first. Call it again to go on, with the seeds that
        have no record yet.

    Raises:
        ValueError, FileExistsError: before any training, see `checked`; ValueError also on a checkpoint that is
            damaged or belongs to other data or another precision.
        FloatingPointError: when a loss is not finite, naming seed and step; no record is written.
    """
    deadline, every = time.perf_counter() + time_budget, checkpoint_every
    asked = checked(Asked(row, dataset, protocol, tuple(seeds), device, precision, execution, Path(results_root)))
    found: list[Run] = []
    for part in shares(asked):
        training = Training(part, deadline, every)
        with Progress(progress, training.title, training.state.step, training.stages[-1]) as show:
            if not all(training.train_stage(number, show) for number in range(len(training.stages))):
                return None
        found += training.record(keep_weights and not found)
    return found


@dataclass(frozen=True)
class Asked:
    """What is asked of `fit`.

    Args:
        row: the row's name, see `lkca.models.zoo`; of two names of one row, the record has the first.
        dataset: see `images.load` and `scenes.load`; its type says what the task is.
        protocol: one of the task's in `lkca.ledger.protocols`, or another.
        seeds: one run each.
        device: "cpu" or "cuda".
        precision: "fp32", "tf32", "bf16" (autocast, weights and their moments in fp32), "fp64", or "auto", see
            `machine.fastest_precision`.
        execution: "eager", "captured" or "compiled", see `lkca.training.stack.Stack`; "auto" captures on CUDA what it
            can.
        results_root: the ledger.
    """

    row: str
    dataset: data.Dataset | scenes.Scenes
    protocol: Recipe
    seeds: tuple[int, ...]
    device: str
    precision: str
    execution: str
    results_root: Path

    @property
    def task(self) -> Task:
        """The module of the data set's task."""
        return TASKS[type(self.dataset)]

    @property
    def targets(self) -> list[Path]:
        """Where the record of each seed belongs."""
        p, name = self.protocol, self.dataset.name
        return [records.path(self.results_root, self.row, name, p.name, p.hash, seed) for seed in self.seeds]

    @property
    def name(self) -> str:
        """Of the checkpoint that these seeds share."""
        return self.targets[0].stem + "".join(f"+{seed}" for seed in self.seeds[1:])

    def model(self, seed: int) -> torch.nn.Module:
        """The row's model as a seed initialises it."""
        torch.manual_seed(int(stream(seed, "init").integers(2**63)))
        return self.task.build(self.row, self.task.subset(self.dataset, self.protocol), self.protocol)


def checked(asked: Asked) -> Asked:
    """What was asked, with the row's first name and the precision that "auto" is here.

    Raises:
        ValueError: on an unknown row, device, precision or execution, seeds that are not different whole numbers from 0
            up, or a training set smaller than a batch.
        FileExistsError: if a run has a record already.
    """
    seeds, device, execution = asked.seeds, asked.device, asked.execution
    if len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds={list(seeds)!r} are not different whole numbers from 0 up")
    asked = dataclasses.replace(asked, row=zoo.canonical(asked.row))
    for target in asked.targets:
        if target.exists():
            raise FileExistsError(f"{target} exists: a record is never overwritten")
    machine.checked_device(device)
    precision = machine.checked_precision(asked.precision)
    precision = machine.fastest_precision(device) if precision == "auto" else precision
    if execution not in ("auto", *EXECUTIONS) or (device == "cpu" and execution not in ("auto", "eager")):
        raise ValueError(f"execution={execution!r} is not one of 'auto', 'eager' and, on CUDA, 'captured', 'compiled'")
    subset = asked.task.subset(asked.dataset, asked.protocol)
    asked.task.count(asked.row, subset)
    asked.protocol.stages(subset.num_train)
    return dataclasses.replace(asked, precision=precision)


def shares(asked: Asked) -> list[Asked]:
    """What is trained one after the other: all seeds in one step, or each for itself."""
    if len(asked.seeds) == 1 or share_a_step(asked.model(asked.seeds[0]), asked.device):
        return [asked]
    return [dataclasses.replace(asked, seeds=(seed,)) for seed in asked.seeds]


def share_a_step(model: torch.nn.Module, device: str) -> bool:
    """Whether several seeds of a model are trained together on a device."""
    return device != "cpu" and stackable(model)


@dataclass
class State:
    """What a checkpoint holds beside weights and moments. Seconds are of all seeds in the step."""

    precision: str
    made: dict  # where and with which versions
    curves: list[list[dict]]  # by seed: the points so far
    step: int = 0  # steps taken
    train_seconds: float = 0.0  # of steps alone
    wall_seconds: float = 0.0  # all, interruptions left out
    stage_seconds: float = 0.0  # all since the last evaluation
    commit: str = machine.COMMIT
    clean: bool = machine.CLEAN
    ends: list[dict] = field(default_factory=list)  # by seed: what else the last evaluation said

    def here(self, made: dict) -> None:
        """Say that the run goes on with this code and where ``made`` says."""
        if (self.commit, self.clean) != (machine.COMMIT, machine.CLEAN):  # the tree was not one commit
            self.commit, self.clean = machine.COMMIT, False
        for part, was in self.made.items():
            same = was.split(", then ")[-1] == made[part]
            self.made[part] = was if same else f"{was}, then {made[part]}"


class Training:
    """What is alive while some seeds of a row train together: models, data set, and how far they are.

    Begins where the checkpoint of these seeds stands, if there is one. ``stages`` are the steps at which it evaluates.

    Args:
        asked: what to train, checked; all seeds in one step.
        deadline: when to stop, at a checkpoint, by `time.perf_counter`.
        checkpoint_every: seconds.

    Raises:
        ValueError: on a checkpoint that is damaged or belongs to other data or another precision.
    """

    def __init__(self, asked: Asked, deadline: float = math.inf, checkpoint_every: float = 60.0):
        self.asked, self.deadline, self.checkpoint_every = asked, deadline, checkpoint_every
        self.late = False
        ds, p, device = asked.task.subset(asked.dataset, asked.protocol), asked.protocol, asked.device
        self.counts, self.stages = asked.task.count(asked.row, ds), p.stages(ds.num_train)
        models = [asked.model(seed) for seed in asked.seeds]
        execution = asked.execution
        if execution == "auto":
            execution = "captured" if device == "cuda" and getattr(models[0], "capturable", True) else "eager"
        loss = asked.task.loss(ds, p, device, PRECISIONS[asked.precision])
        self.stack = Stack(models, loss, betas=p.betas, weight_decay=p.weight_decay, device=device,
                           precision=asked.precision, execution=execution)  # fmt: skip
        made = {"device": machine.device_in_words(device), **machine.VERSIONS}
        self.state = State(asked.precision, made, [[] for _ in asked.seeds])
        self.checkpoint = asked.results_root / "checkpoints" / f"{asked.name}.pt"
        if self.checkpoint.exists():
            self.state = State(**checkpoints.load(self.checkpoint, self.stack, ds.fingerprint, asked.precision))
            self.state.here(made)
        self.ds = ds.to(device)
        self.clock = self.saved = time.perf_counter()

    @property
    def title(self) -> str:
        """Of the progress bar."""
        seeds = ", ".join(map(str, self.asked.seeds))
        return f"{self.asked.row} · {self.ds.name} · {self.asked.protocol.name} · seed {seeds}"

    def train_stage(self, number: int, show: Progress) -> bool:
        """Train to the end of a stage, evaluate, save; False if the time ran out first. A stage that is past is done.

        Raises FloatingPointError when a loss is not finite, naming seed and step.
        """
        start, end = [0, *self.stages][number], self.stages[number]
        if self.state.step >= end:
            return True
        p, seeds = self.asked.protocol, self.asked.seeds
        orders = [order(seed, number, self.ds.num_train, (end - start) * p.batch_size) for seed in seeds]
        while self.state.step < end:
            first = self.state.step
            stop = min(first + self.asked.task.BLOCK, end)
            part = slice((first - start) * p.batch_size, (stop - start) * p.batch_size)
            self._train_block(first, stop, [o[part] for o in orders])
            if not self._look(start, stop, end, show):
                return False
        self._evaluate(number, end - start)
        self.save()
        show.stage(self.asked.task, [curve[-1] for curve in self.state.curves], self._at(-1))
        return not self.late or end == self.stages[-1]

    def _train_block(self, first: int, stop: int, orders: list[np.ndarray]) -> None:
        """Make a block's draws, augment its images, take its steps; ``orders`` says by seed which images."""
        p, seeds, n = self.asked.protocol, self.asked.seeds, self.ds.num_train
        rngs = [stream(seed, "block", first) for seed in seeds]
        batches = self.asked.task.block(self.ds, p, rngs, orders, num_draws=self.stack.num_draws,
                                        dtype=self.stack.dtype)  # fmt: skip
        noise = [int(stream(seeds[0], "noise", step).integers(2**63)) for step in range(first, stop)]
        self.stack.train(batches, [p.learning_rate(step, n) for step in range(first, stop)], noise)
        self.state.step = stop

    def _look(self, start: int, stop: int, end: int, show: Progress) -> bool:
        """After a block, as seldom as the device wants: check the loss, show it, save; False if the time is over."""
        now = time.perf_counter()
        self.late = now > self.deadline
        due = stop < end and (self.late or now - self.saved >= self.checkpoint_every)
        if self.asked.device == "cpu" or stop == end or due:  # elsewhere looking would wait for the device
            self._check_finite()
            self._spend("train_seconds", "wall_seconds", "stage_seconds")
            images = stop * self.asked.protocol.batch_size * len(self.asked.seeds)
            loss = self.stack.loss_sum.mean().item() / (stop - start)
            show.update(stop, loss, images / self.state.train_seconds)
        if due:
            self.save()
        return not (self.late and stop < end)

    def _check_finite(self) -> None:
        for seed, step in zip(self.asked.seeds, self.stack.first_bad.tolist(), strict=True):
            if step >= 0:
                raise FloatingPointError(
                    f"{self.asked.name}: the loss of seed {seed} is not finite at step {step}; there is no record"
                )

    def _evaluate(self, number: int, steps: int) -> None:
        """Test every seed at the end of a stage of so many steps, and add the point to its curve."""
        task, p, state = self.asked.task, self.asked.protocol, self.state
        losses = (self.stack.loss_sum / steps).tolist()
        self.stack.loss_sum.zero_()
        measured = task.evaluate(self.stack, self.ds)
        self._spend("wall_seconds", "stage_seconds")
        common = {task.AT: self._at(number), "lr": p.learning_rate(state.step - 1, self.ds.num_train)}
        for curve, loss, (point, _) in zip(state.curves, losses, measured, strict=True):
            curve.append({**common, "train_loss": loss, **point, "seconds": state.stage_seconds})
        state.ends, state.stage_seconds = [end for _, end in measured], 0.0

    def _at(self, number: int) -> int:
        """Where a stage ends, as its task counts."""
        return {"epoch": range(1, len(self.stages) + 1), "iteration": self.stages}[self.asked.task.AT][number]

    def _spend(self, *keys: str) -> None:
        """Add the time since the last call to some of the state's seconds."""
        before, self.clock = self.clock, time.perf_counter()
        for key in keys:
            setattr(self.state, key, getattr(self.state, key) + self.clock - before)

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoints.save(self.checkpoint, self.stack, dataclasses.asdict(self.state), self.ds.fingerprint)
        self._spend("wall_seconds", "stage_seconds")
        self.saved = time.perf_counter()

    def record(self, keep_weights: bool) -> list[Run]:
        """Write a record a seed, and the first one's weights if asked, all or none; then drop the checkpoint."""
        found = self._records()
        written: list[Path] = []
        try:
            for i, record in enumerate(found):
                if keep_weights and i == 0:
                    weights = self.stack.weights(i)
                    written.append(records.write_weights(record, weights, self.asked.results_root))
                written.append(records.write(record, self.asked.results_root))
        except BaseException:  # all or none: the checkpoint is of all seeds together
            for file in written:
                file.unlink()
            raise
        self.checkpoint.unlink(missing_ok=True)
        return found

    def _records(self) -> list[Run]:
        ds, p, state, counts, seeds = self.ds, self.asked.protocol, self.state, self.counts, self.asked.seeds
        versions = {name: version for name, version in state.made.items() if name != "device"}
        common = {
            "row": self.asked.row, "dataset": ds.name,
            "protocol": p.name, "protocol_hash": p.hash, "protocol_fields": p.fields,
            "params": counts.params, "params_paper": counts.params_paper,
            "macs": counts.macs, "macs_paper": counts.macs_paper,
            "image_size": ds.image_size, "num_classes": ds.num_classes,
            "num_train": ds.num_train, "num_test": ds.num_test, "data_fingerprint": ds.fingerprint,
            "precision": self.asked.precision, "device": state.made["device"], "versions": versions,
            "images_per_second": self.stages[-1] * p.batch_size * len(seeds) / state.train_seconds,
            "wall_seconds": state.wall_seconds,
            "git_commit": state.commit, "git_clean": state.clean,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"), "stacked": len(seeds),
        }  # fmt: skip
        by_seed = zip(seeds, state.curves, state.ends, strict=True)
        return [self.asked.task.record(curve, end, seed=seed, **common) for seed, curve, end in by_seed]
