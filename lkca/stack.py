"""Several seeds of one row, trained together in one step.

The parameters of S models are stacked, (S, …), and one vectorised call computes all S losses; each seed has its own
batch, draws and optimiser state, so that it ends where it would have ended alone. On CUDA the whole step (forward,
backward, AdamW) is captured once as a CUDA graph and replayed: launches bind a small ViT, not products.
"""

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel

from lkca import augment
from lkca.protocols import Protocol

PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32}  # of weights
EXECUTIONS = ("eager", "captured", "compiled")


class Stack:
    """S models of one shape, their optimiser and their step.

    Args:
        models: the freshly initialised models, on the CPU.
        protocol: the recipe.
        mean, std: of the data set, per channel, in [0, 1].
        device: "cpu" or "cuda".
        precision: "fp32"; "tf32" products; "bf16", autocast with fp32 weights; "fp64", for tests.
        execution: "eager"; "captured" as a CUDA graph; "compiled", by torch.compile and then captured.
    """

    def __init__(
        self,
        models: list[nn.Module],
        protocol: Protocol,
        mean: tuple,
        std: tuple,
        *,
        device: str,
        precision: str,
        execution: str,
    ):
        self.protocol, self.device, self.precision, self.execution = protocol, device, precision, execution
        self.dtype = dtype = PRECISIONS[precision]
        self.num_draws = getattr(models[0], "num_draws", 0)
        models = [model.to(device, dtype) for model in models]
        self.params, self.buffers = stack_module_state(models)
        self._model = copy.deepcopy(models[0]).to("meta")
        self._mean, self._std = (torch.tensor(v, dtype=dtype, device=device) for v in (mean, std))
        self._lr = torch.zeros((), dtype=dtype, device=device)
        self._optimizer = torch.optim.AdamW(
            list(self.params.values()),
            lr=self._lr,
            betas=protocol.betas,
            weight_decay=protocol.weight_decay,
            fused=True,
        )
        seeds = len(models)
        self.loss_sum = torch.zeros(seeds, dtype=torch.float64, device=device)
        self.first_bad = torch.full((seeds,), -1, device=device)  # step of the first loss that is not finite
        self._count = torch.zeros((), dtype=torch.long, device=device)
        losses = torch.vmap(self._loss)
        self._losses = torch.compile(losses) if execution == "compiled" else losses
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: list[Tensor] = []

    def _loss(self, params: dict, buffers: dict, images: Tensor, labels: Tensor, erased: Tensor, other: Tensor,
              share: Tensor, weight: Tensor, box: Tensor, uniform: Tensor) -> Tensor:  # fmt: skip
        """One seed's loss on one batch of a `train.block`."""
        x = augment.normalise(images, self._mean, self._std)
        x = augment.erase(x, erased, self._mean)
        x = augment.mix(x, other, weight, box)
        logits = functional_call(self._model, (params, buffers), (x, uniform) if self.num_draws else (x,))
        smoothing = self.protocol.label_smoothing
        own, theirs = (F.cross_entropy(logits, y, label_smoothing=smoothing) for y in (labels, labels[other]))
        return share * own + (1 - share) * theirs

    @contextlib.contextmanager
    def _arithmetic(self):
        """The precision's switches; on the CPU, attention in products that stack."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        math = sdpa_kernel(SDPBackend.MATH) if self.device == "cpu" else contextlib.nullcontext()
        bf16 = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)
        try:
            with math, bf16:
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def _step(self, batch: list[Tensor]) -> None:
        with self._arithmetic():
            losses = self._losses(self.params, self.buffers, *batch)
        self._optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self._optimizer.step()
        losses = losses.detach()
        self.loss_sum += losses
        bad = ~losses.isfinite() & (self.first_bad < 0)
        self.first_bad.copy_(torch.where(bad, self._count, self.first_bad))
        self._count += 1

    def _capture(self, batch: list[Tensor]) -> None:
        """Record the step as a CUDA graph that reads ``self._batch``; the warm-up it needs leaves no trace."""
        self._batch = [t.clone() for t in batch]
        saved, fresh = copy.deepcopy(self.state_dict()), not self._optimizer.state
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step(self._batch)
        torch.cuda.current_stream().wait_stream(side)
        if fresh:  # moments and step counts begin at zero
            for state in self._optimizer.state.values():
                for value in state.values():
                    value.zero_()
            saved.pop("optimizer")
        self.load_state_dict(saved)
        self._optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step(self._batch)

    def train(self, block: list[Tensor], rates: list[float]) -> None:
        """Take a step for each rate on the batches of a `train.block`, without waiting for the device."""
        self._model.train()
        for i, rate in enumerate(rates):
            batch = [t[:, i] for t in block]
            self._lr.fill_(rate)
            if self.execution == "eager":
                self._step(batch)
                continue
            if self._graph is None:
                self._capture(batch)
            for held, t in zip(self._batch, batch, strict=True):
                held.copy_(t)
            self._graph.replay()

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
        """Test every seed on the whole test set, on the device.

        Args:
            images: uint8, (N, 3, H, W), on the device.
            labels: int64, (N,), on the device.
            batch_size: images at a time.

        Returns:
            Mean cross entropy in nats, (S,), and which images were right, bool (S, N).
        """
        self._model.eval()

        def logits(params: dict, buffers: dict, x: Tensor) -> Tensor:
            return functional_call(self._model, (params, buffers), (x,))

        loss, right = 0.0, []
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            with self._arithmetic():
                x = augment.normalise(x, self._mean, self._std)
                out = torch.vmap(logits, in_dims=(0, 0, None))(self.params, self.buffers, x)  # (S, batch, classes)
            picked = out.double().log_softmax(-1).gather(-1, y.expand(len(out), -1)[..., None])
            loss = loss - picked.sum((1, 2))
            right.append(out.argmax(-1) == y)
        return loss / len(labels), torch.cat(right, dim=1)

    def weights(self, i: int) -> dict[str, Tensor]:
        """Parameters and buffers of the i-th seed by name: a state dict of its model."""
        return {name: w[i].detach() for name, w in (self.params | self.buffers).items()}

    def state_dict(self) -> dict:
        """All that a stack needs to go on: weights, moments, and what was added up since the last evaluation."""
        return {
            "params": {name: p.detach() for name, p in self.params.items()},
            "optimizer": self._optimizer.state_dict()["state"],
            "loss_sum": self.loss_sum,
            "count": self._count,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state``, in place."""
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(state["params"][name])
            self.loss_sum.copy_(state["loss_sum"])
            self._count.copy_(state["count"])
            self.first_bad.fill_(-1)
        if "optimizer" in state:
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
            self._optimizer.param_groups[0]["lr"] = self._lr
