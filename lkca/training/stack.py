"""Several seeds of one row, trained together in one step, whatever the task.

The parameters of S models are stacked, (S, …), and one vectorised call computes all S losses; each seed has its own
batch, draws and optimiser state, so that it ends where it would have ended alone. On CUDA the whole step (forward,
backward, AdamW) is captured once as a CUDA graph and replayed: launches bind a small ViT, not products.

A model says with ``stackable = False`` that it cannot be vectorised, because it draws random numbers of its own: it is
a stack of one, called as it is, with torch's generator seeded anew for each step.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32}  # of weights
EXECUTIONS = ("eager", "captured", "compiled")


def stackable(model: nn.Module) -> bool:
    """Whether several seeds of a model can share a step."""
    return getattr(model, "stackable", True)


@contextlib.contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Products and convolutions of float32 tensors in TF32 if ``precision`` is "tf32", else in full (on CUDA)."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _first(stacked: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t[0] for name, t in stacked.items()}


def _same_shapes(what: str, own: Mapping[Any, Tensor], others: Mapping[Any, Tensor | None]) -> None:
    """Raise ValueError unless both have tensors of the same names and shapes."""
    shapes = {name: tuple(t.shape) for name, t in own.items()}
    found = {name: tuple(t.shape) for name, t in others.items() if t is not None}
    if wrong := sorted(str(name) for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
        raise ValueError(f"{what} of {wrong[0]} are missing, too many or of another shape")


class Stack:
    """S models of one shape, their optimiser and their step.

    Args:
        models: the freshly initialised models, on the CPU.
        loss: one seed's: ``loss(call, *batch)`` is a scalar, with ``call(x, …)`` the model's forward and ``batch`` that
            seed's part of what `train` is given.
        betas, weight_decay: AdamW's.
        device: "cpu" or "cuda".
        precision: "fp32"; "tf32" products and convolutions; "bf16", autocast with fp32 weights; "fp64", for tests.
        execution: "eager"; "captured" as a CUDA graph; "compiled", by torch.compile and then captured.

    Raises:
        ValueError: on several models that cannot be stacked.
    """

    def __init__(
        self,
        models: list[nn.Module],
        loss: Callable[..., Tensor],
        *,
        betas: tuple[float, float],
        weight_decay: float,
        device: str,
        precision: str,
        execution: str,
    ):
        self.device, self.precision, self.execution = device, precision, execution
        self.dtype = dtype = PRECISIONS[precision]
        self.num_draws = getattr(models[0], "num_draws", 0)
        self.stackable = stackable(models[0])
        if len(models) > 1 and not self.stackable:
            raise ValueError(f"{len(models)} seeds were asked for, but this row can only be trained one at a time")
        models = [model.to(device, dtype) for model in models]
        self.params, self.buffers = stack_module_state(models)
        self._model = copy.deepcopy(models[0]).to("meta")
        self._loss = loss
        self._lr = torch.zeros((), device=device)  # float32 whatever the weights: on CUDA a fused step reads no other
        self.optimizer = torch.optim.AdamW(
            list(self.params.values()), lr=self._lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        seeds = len(models)
        self.loss_sum = torch.zeros(seeds, dtype=torch.float64, device=device)
        self.first_bad = torch.full((seeds,), -1, device=device)  # step of the first loss that is not finite
        self._count = torch.zeros((), dtype=torch.long, device=device)
        # One seed on a CPU needs no vectorising: matrices multiply faster there than batches of one do. Convolutions
        # keep it: without, the weight gradient of a stride of 2 over one pixel (RegionViT's) can be garbage in bf16
        # (torch 2.15 on a processor with AMX).
        convolves = any(isinstance(m, nn.Conv2d) for m in models[0].modules())
        self._vectorised = self.stackable and (seeds > 1 or device != "cpu" or convolves)
        losses = torch.vmap(self._one) if self._vectorised else self._alone
        self._losses = torch.compile(losses) if execution == "compiled" else losses
        self._captured: CapturedStep | None = None

    def _one(self, params: dict, buffers: dict, *batch: Tensor) -> Tensor:
        return self._loss(partial(self._call, params, buffers), *batch)

    def _alone(self, params: dict, buffers: dict, *batch: Tensor) -> Tensor:
        return self._one(_first(params), _first(buffers), *(t[0] for t in batch))[None]

    def _call(self, params: dict, buffers: dict, *inputs: Tensor) -> Tensor:
        return functional_call(self._model, (params, buffers), inputs)

    def _forward(self) -> torch.autocast:
        """The forward pass in bf16 if that is the precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def losses(self, batch: list[Tensor]) -> Tensor:
        """The loss of every seed, (S,), on a task's batch, (S, …): the forward half of a step."""
        with self._forward():
            return self._losses(self.params, self.buffers, *batch)

    def step(self, batch: list[Tensor]) -> None:
        """One step on a task's batch, (S, …): losses, gradients, AdamW; and what is known of the losses so far."""
        with multiplying(self.precision):
            losses = self.losses(batch)
            self.optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            self.optimizer.step()
        losses = losses.detach()
        self.loss_sum += losses
        bad = ~losses.isfinite() & (self.first_bad < 0)
        self.first_bad.copy_(torch.where(bad, self._count, self.first_bad))
        self._count += 1

    def train(self, block: list[Tensor], rates: Sequence[float], noise: Sequence[int]) -> None:
        """Take steps, without waiting for the device.

        Args:
            block: a task's batches, (S, G, …) each.
            rates: the learning rates of the G steps.
            noise: for each step, the seed of what a model that is not stackable draws in it.
        """
        self._model.train()
        for i, (rate, seed) in enumerate(zip(rates, noise, strict=True)):
            batch = [t[:, i] for t in block]
            self._lr.fill_(rate)
            if self.execution != "eager" and self._captured is None:
                self._captured = CapturedStep(self, batch)
            if not self.stackable:
                torch.manual_seed(seed)
            if self._captured is None:
                self.step(batch)
            else:
                self._captured.replay(batch)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """What every seed's model says of the same input in evaluation mode, (S, …)."""
        self._model.eval()
        with multiplying(self.precision), self._forward():
            if self._vectorised:
                return torch.vmap(self._call, in_dims=(0, 0, None))(self.params, self.buffers, x)
            return self._call(_first(self.params), _first(self.buffers), x)[None]

    def weights(self, i: int) -> dict[str, Tensor]:
        """Parameters and buffers of the i-th seed by name: a state dict of its model."""
        held = self.params | self.buffers
        return {name: held[name][i].detach() for name in self._model.state_dict()}

    def state_dict(self) -> dict:
        """All that a stack needs to go on: weights, buffers, moments, and what was added up since the last stage."""
        return {
            "params": {name: p.detach() for name, p in self.params.items()},
            "buffers": self.buffers,
            "optimizer": self.optimizer.state_dict()["state"],
            "loss_sum": self.loss_sum,
            "count": self._count,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state``, in place; raises ValueError if it is not of this stack, by names and shapes."""
        for part in ("params", "buffers"):
            _same_shapes(part, getattr(self, part), state[part])
        if state.get("optimizer"):
            by_number = dict(enumerate(self.params.values()))
            for moment in ("exp_avg", "exp_avg_sq"):
                held = {number: of.get(moment) for number, of in state["optimizer"].items()}
                _same_shapes(moment, by_number, held)
        with torch.no_grad():
            for part in ("params", "buffers"):
                for name, t in getattr(self, part).items():
                    t.copy_(state[part][name])
            self.loss_sum.copy_(state["loss_sum"])
            self._count.copy_(state["count"])
            self.first_bad.fill_(-1)
        if "optimizer" in state:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
            self.optimizer.param_groups[0]["lr"] = self._lr


class CapturedStep:
    """A stack's step as a CUDA graph, recorded once and replayed on other batches of the same shapes.

    Args:
        stack: whose step; the warm-up that recording needs leaves no trace in it.
        batch: a task's batch, (S, …): the first that will be replayed.
    """

    def __init__(self, stack: Stack, batch: list[Tensor]):
        self._batch = [t.clone() for t in batch]
        saved, fresh = copy.deepcopy(stack.state_dict()), not stack.optimizer.state
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                stack.step(self._batch)
        torch.cuda.current_stream().wait_stream(side)
        if fresh:  # moments and step counts begin at zero
            for state in stack.optimizer.state.values():
                for value in state.values():
                    value.zero_()
            saved.pop("optimizer")
        stack.load_state_dict(saved)
        stack.optimizer.zero_grad(set_to_none=True)
        stack.optimizer.param_groups[0]["capturable"] = True  # torch captures no step without; a fused one is the same
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            stack.step(self._batch)

    def replay(self, batch: list[Tensor]) -> None:
        """Take the step on ``batch``."""
        for held, t in zip(self._batch, batch, strict=True):
            held.copy_(t)
        self._graph.replay()
