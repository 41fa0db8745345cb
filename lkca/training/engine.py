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
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import numpy as np

from lkca.data import images as data
from lkca.data import scenes
from lkca.ledger import diverged, records, trained
from lkca.ledger.protocols import Recipe
from lkca.ledger.records import RESULTS
from lkca.ledger.runs import Run
from lkca.training import checkpoints, machine, stopping
from lkca.training.asked import Asked, checked, shares
from lkca.training.draws import order, stream
from lkca.training.locks import lock
from lkca.training.progress import Progress
from lkca.training.stack import PRECISIONS, Stack


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
    """Train one run a seed and write their records; go on where their checkpoint is, if there is one.

    On CUDA all seeds share a step. On a CPU, where that gains nothing, and if the row cannot be stacked, they train one
    after the other, and each has its record when it is done. The row is locked meanwhile. Ctrl-C and SIGTERM stop it at
    a checkpoint.

    Args:
        row, dataset, protocol, seeds: what to train, one run a seed, see `Asked`.
        device, precision, execution: how, see `Asked`.
        results_root: the ledger; records go to ``runs/``, checkpoints to ``checkpoints/`` until the runs are done.
        keep_weights: also keep the first seed's trained weights, see `lkca.ledger.trained`.
        checkpoint_every: seconds between checkpoints, to the next block; one is also written after every stage.
        time_budget: seconds from now after which to stop, at a checkpoint.
        progress: "bar" with loss, rate and time left, "lines" (one a stage), or None.

    Returns:
        The records, by seed; None if the time ran out first. Call it again to go on.

    Raises:
        ValueError, FileExistsError: before any training, see `checked` and `shares`; ValueError also on a checkpoint
            that is damaged, another's, or on other data.
        FloatingPointError: when a run diverges or did before, naming run, seed and step; there is no record.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, saying how to go on.
    """
    deadline, every, root = time.perf_counter() + time_budget, checkpoint_every, Path(results_root).expanduser()
    asked = checked(Asked(row, dataset, protocol, tuple(seeds), device, precision, execution, root))
    first = asked.seeds[0]
    found: dict[int, Run] = {}
    with lock(asked.whose.identity, root), stopping.watched() as stop:
        for part in shares(asked):
            training = Training(part, deadline, every, stop)
            keep = keep_weights and first in part.seeds
            if not training.finished(Progress(progress, training.title, training.state.step, training.stages[-1])):
                training.stopped()
                return None
            found |= training.record(first if keep else None)
    return [found[seed] for seed in asked.seeds]


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
        stop: says when a signal asks to stop.

    Raises:
        ValueError: on a checkpoint that is damaged, another's, or on other data.
        FloatingPointError: if one of the runs diverged before.
    """

    def __init__(self, asked: Asked, deadline: float, checkpoint_every: float, stop: stopping.Stopping):
        self.asked, self.deadline, self.checkpoint_every, self.stop = asked, deadline, checkpoint_every, stop
        self.whose, self.late = asked.whose, False
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
        self.checkpoint = self.whose.file(asked.results_root)
        self._resume(ds.fingerprint, made)
        self.ds = ds.to(device)
        self.clock = self.saved = time.perf_counter()

    @property
    def title(self) -> str:
        """Of the progress bar."""
        seeds = ", ".join(map(str, self.asked.seeds))
        return f"{self.asked.row} · {self.asked.dataset.name} · {self.asked.protocol.name} · seed {seeds}"

    def _resume(self, fingerprint: str, made: dict) -> None:
        """Clear what kills left; go on from the checkpoint, if there is one under its present or its former name."""
        root, seeds = self.asked.results_root, self.asked.seeds
        checkpoints.clear(root, [self.whose.name, *(self.whose.of(seed).name for seed in seeds)])
        for seed in seeds:
            if (note := diverged.path(self.whose.of(seed), root)).exists():
                raise FloatingPointError(
                    f"{self.title}: seed {seed} diverged before, as {note} says; take another seed"
                )
        for file, whose in checkpoints.found(root, self.whose.identity):
            if whose == self.whose:
                self.checkpoint = file
                stack, state = checkpoints.load(file, whose, fingerprint)
                try:
                    self.stack.load_state_dict(stack)
                    self.state = State(**state)
                except (KeyError, TypeError, ValueError, RuntimeError) as error:
                    raise ValueError(f"the checkpoint {file} does not fit {self.title}: {error}") from error
                if not 0 <= self.state.step <= self.stages[-1]:
                    raise ValueError(f"the checkpoint {file} says step {self.state.step} of {self.stages[-1]}")
                self.state.here(made)

    def finished(self, show: Progress) -> bool:
        """Train what is left; False if it stopped first, because the time ran out or a signal asked for it."""
        with show:
            return all(self.train_stage(number, show) for number in range(len(self.stages)))

    def stopped(self) -> None:
        """After a stop at a checkpoint: None if the time ran out, else raise what the signal means."""
        if self.stop.signal is None:
            return
        at = f"stopped at step {self.state.step} of {self.stages[-1]}; the same call goes on from there"
        if self.stop.signal == signal.SIGINT:
            raise KeyboardInterrupt(f"{self.title}: {at}")
        raise SystemExit(f"{self.title}: {at}")

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
        self.late = now > self.deadline or self.stop.signal is not None
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
        """Raise FloatingPointError, and note it, if a loss so far or a weight is not finite."""
        for i, (seed, step) in enumerate(zip(self.asked.seeds, self.stack.first_bad.tolist(), strict=True)):
            if step >= 0:
                self._diverged(seed, f"the loss of seed {seed} is not finite at step {step}")
            if not all(bool(w.isfinite().all()) for w in self.stack.weights(i).values()):
                self._diverged(seed, f"the weights of seed {seed} are not finite after step {self.state.step}")

    def _diverged(self, seed: int, what: str) -> NoReturn:
        """Note that a run diverged, so that it is not tried for ever, and say so."""
        made, root = self.state.made, self.asked.results_root
        note = diverged.note(self.whose.of(seed), root, what=what, made=made, commit=self.state.commit)
        raise FloatingPointError(f"{self.title}: {what}; there is no record, and {note} says so; take another seed")

    def _evaluate(self, number: int, steps: int) -> None:
        """Test every seed at the end of a stage of so many steps, and add the point to its curve."""
        task, p, state = self.asked.task, self.asked.protocol, self.state
        losses = (self.stack.loss_sum / steps).tolist()
        self.stack.loss_sum.zero_()
        measured = task.evaluate(self.stack, self.ds)
        self._spend("wall_seconds", "stage_seconds")
        common = {task.AT: self._at(number), "lr": p.learning_rate(state.step - 1, self.ds.num_train)}
        for seed, curve, loss, (point, _) in zip(self.asked.seeds, state.curves, losses, measured, strict=True):
            bad = [name for name, value in point.items() if not math.isfinite(value)]
            if bad or not math.isfinite(loss):
                self._diverged(
                    seed, f"{' and '.join(bad) or 'train_loss'} of seed {seed} is not finite after step {state.step}"
                )
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
        """Write the checkpoint; raises FloatingPointError rather than keep weights that are not finite."""
        self._check_finite()
        state = dataclasses.asdict(self.state)
        former, self.checkpoint = self.checkpoint, self.whose.file(self.asked.results_root)
        checkpoints.save(self.checkpoint, self.whose, self.stack.state_dict(), state, self.ds.fingerprint)
        if former != self.checkpoint:  # it had the name that checkpoints had before 0.6.0
            former.unlink(missing_ok=True)
        self._spend("wall_seconds", "stage_seconds")
        self.saved = time.perf_counter()

    def record(self, keep: int | None) -> dict[int, Run]:
        """Write the records that are lacking, and the weights of the seed to keep; then drop the checkpoint.

        The record is what says that a run is done: a kill between two of these steps loses none, because the
        checkpoint of the finished training is still there.
        """
        found, root = {}, self.asked.results_root
        for i, run in enumerate(self._records()):
            target = records.path_of(run, root)
            if target.exists():
                run = records.read_one(target)
            else:
                records.write(run, root)
            found[run.seed] = run
            if run.seed == keep and not trained.path(run, root).exists():
                trained.write(run, self.stack.weights(i), root)
        self.checkpoint.unlink(missing_ok=True)
        return found

    def _records(self) -> list[Run]:
        ds, p, state, counts, seeds = self.ds, self.asked.protocol, self.state, self.counts, self.asked.seeds
        versions = {name: version for name, version in state.made.items() if name != "device"}
        identity = dataclasses.asdict(self.whose.identity)
        del identity["seed"]
        common = identity | {
            "protocol_fields": p.fields,
            "params": counts.params, "params_paper": counts.params_paper,
            "macs": counts.macs, "macs_paper": counts.macs_paper,
            "image_size": ds.image_size, "num_classes": ds.num_classes,
            "num_train": ds.num_train, "num_test": ds.num_test, "data_fingerprint": ds.fingerprint,
            "device": state.made["device"], "versions": versions,
            "images_per_second": self.stages[-1] * p.batch_size * len(seeds) / state.train_seconds,
            "wall_seconds": state.wall_seconds,
            "git_commit": state.commit, "git_clean": state.clean,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"), "stacked": len(seeds),
        }  # fmt: skip
        by_seed = zip(seeds, state.curves, state.ends, strict=True)
        return [self.asked.task.record(curve, end, seed=seed, **common) for seed, curve, end in by_seed]
