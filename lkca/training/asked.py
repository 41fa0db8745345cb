"""What is asked of the engine, checked before any training, and in which parts it is trained."""

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lkca.data import images as data
from lkca.data import scenes
from lkca.ledger import records
from lkca.ledger.protocols import Recipe
from lkca.ledger.runs import Identity
from lkca.models import zoo
from lkca.training import checkpoints, classification, machine, segmentation
from lkca.training.checkpoints import Whose
from lkca.training.draws import stream
from lkca.training.stack import EXECUTIONS, stackable
from lkca.training.task import Task

TASKS: dict[type, Task] = {data.Dataset: classification, scenes.Scenes: segmentation}


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
    def whose(self) -> Whose:
        """The runs that are asked for; their precision may still be "auto"."""
        first = Identity.of(self.dataset.name, self.row, self.protocol, self.seeds[0], self.precision)
        return Whose(first, self.seeds)

    def model(self, seed: int) -> torch.nn.Module:
        """The row's model as a seed initialises it."""
        torch.manual_seed(int(stream(seed, "init").integers(2**63)))
        return self.task.build(self.row, self.task.subset(self.dataset, self.protocol), self.protocol)


def checked(asked: Asked) -> Asked:
    """What was asked, by the row's first name and with seeds that are whole numbers of Python's.

    Raises:
        ValueError: on an unknown row, device, precision or execution, seeds that are not different whole numbers from 0
            up, or a training set smaller than a batch.
    """
    device, execution = asked.device, asked.execution
    asked = dataclasses.replace(asked, row=zoo.canonical(asked.row), seeds=whole_seeds(asked.seeds))
    machine.checked_device(device)
    machine.checked_precision(asked.precision)
    if execution not in ("auto", *EXECUTIONS) or (device == "cpu" and execution not in ("auto", "eager")):
        raise ValueError(f"execution={execution!r} is not one of 'auto', 'eager' and, on CUDA, 'captured', 'compiled'")
    subset = asked.task.subset(asked.dataset, asked.protocol)
    asked.task.count(asked.row, subset)
    asked.protocol.stages(subset.num_train)
    return asked


def whole_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Seeds as Python's whole numbers; raises ValueError unless they are different ones from 0 up, at least one."""
    try:
        found = tuple(operator.index(seed) for seed in seeds if not isinstance(seed, bool))
    except TypeError:
        found = ()
    if not found or len(found) < len(seeds) or len(set(found)) < len(found) or min(found) < 0:
        raise ValueError(f"seeds={seeds!r} are not different whole numbers from 0 up")
    return found


def shares(asked: Asked) -> list[Asked]:
    """What is trained one after the other: what was begun, as it was begun, then the rest in one step or each alone.

    The runs of a checkpoint go on together, in the precision they were begun in if that is "auto", and those of its
    seeds that were not asked for, too.

    Raises FileExistsError if a run that is left to begin has a record, RecordError if that record is broken.
    """
    parts, left = [], list(asked.seeds)
    for _, whose in checkpoints.found(asked.results_root, asked.whose.identity):
        if set(whose.seeds) & set(left):
            parts.append(dataclasses.replace(asked, seeds=whose.seeds, precision=whose.identity.precision))
            left = [seed for seed in left if seed not in whose.seeds]
    if not left:
        return parts
    precision = machine.fastest_precision(asked.device) if asked.precision == "auto" else asked.precision
    rest = dataclasses.replace(asked, seeds=tuple(left), precision=precision)
    for seed in left:
        target = records.path(rest.whose.of(seed), asked.results_root)
        if target.exists():
            records.read_one(target)
            raise FileExistsError(f"{target} exists: a record is never overwritten")
    if len(left) == 1 or share_a_step(asked.model(left[0]), asked.device):
        return [*parts, rest]
    return [*parts, *(dataclasses.replace(rest, seeds=(seed,)) for seed in left)]


def share_a_step(model: torch.nn.Module, device: str) -> bool:
    """Whether several seeds of a model are trained together on a device."""
    return device != "cpu" and stackable(model)
