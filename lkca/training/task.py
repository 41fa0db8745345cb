"""What the engine asks of a task: a module of these functions and constants."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lkca.ledger.runs import Run
from lkca.models.complexity import Complexity
from lkca.models.segmenters import Size
from lkca.training.stack import Stack


class Task(Protocol):
    """Of classification and of segmentation. ``ds`` and ``p`` are Any, for each takes its own kind of both."""

    BLOCK: int  # steps whose images are augmented together
    AT: str  # what a point of the curve is counted in
    SHOWN: str  # what a log line shows of it

    def build(self, row: str, ds: Any, p: Any) -> nn.Module:
        """A freshly initialised model of a row for a data set."""

    def count(self, row: str, ds: Any) -> Complexity | Size:
        """Parameters and MACs of a row on a data set."""

    def subset(self, ds: Any, p: Any) -> Any:
        """The data set as the protocol looks at it."""

    def block(
        self, ds: Any, p: Any, rngs: Sequence[np.random.Generator], orders: Sequence[np.ndarray], *, num_draws: int,
        dtype: torch.dtype,
    ) -> list[Tensor]:  # fmt: skip
        """A block of batches for every seed."""

    def loss(self, ds: Any, p: Any, device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
        """One seed's loss on one batch of a block."""

    def evaluate(self, stack: Stack, ds: Any) -> list[tuple[dict, dict]]:
        """For each seed the curve's part, and what else a record says of its last stage."""

    def record(self, curve: list[dict], end: dict, **common: Any) -> Run:
        """The record of a finished run, from its curve and what `evaluate` said last."""
