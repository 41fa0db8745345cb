"""How long a step takes, and what the operator's forms cost: the clock of `lkca.studies.benchmark`."""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lkca import operator
from lkca.training import machine
from lkca.training.stack import multiplying

SIDES = (4, 8, 12, 16, 20, 24, 28, 32, 48, 64)  # of the grids on which the forms are timed


def rate(step: Callable[[int], int], device: str, seconds: float) -> float:
    """Images a second of ``step(i)``, which returns how many it took: after a warm-up, for about ``seconds``."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    step(0)
    wait()
    began, images, i = time.perf_counter(), 0, 1
    while i < 2 or time.perf_counter() - began < seconds:
        images += step(i)
        i += 1
        if i % 8 == 0:
            wait()  # so that the clock sees the device, not the queue
    wait()
    return images / (time.perf_counter() - began)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """The CPU's work on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@multiplying("fp32")
def forms(device: str, seconds: float) -> list[dict]:
    """Milliseconds of LKCA's forms, forward and backward, by the grid's side: 192 channels, about 8192 tokens, fp32.

    ``ms`` is None of a form that the device refuses, as a convolution's library may a kernel that large.
    """
    found = []
    for n in SIDES:
        images = max(1, 8192 // n**2)
        v, out = (torch.randn(images, n * n, 192, device=device, requires_grad=i == 0) for i in range(2))
        kernel = torch.randn(2 * n - 1, 2 * n - 1, device=device, requires_grad=True)
        for form in operator.FORMS:

            def step(
                i: int, v: Tensor = v, kernel: Tensor = kernel, n: int = n, form: str = form, out: Tensor = out
            ) -> int:
                operator.lkca(v, kernel, (n, n), form).backward(out)
                return 1

            try:
                ms: float | None = 1000 / rate(step, device, seconds)
            except RuntimeError as error:
                print(f"{form} on {n} x {n}: {error}", flush=True)
                ms = None
            found.append({"n": n, "images": images, "form": form, "ms": ms})
    return found


def gathers(device: str, seconds: float) -> list[dict]:
    """Milliseconds, forward and backward, of the score matrix alone and of its whole layer, by the grid's side.

    192 channels, about 8192 tokens, the precision of `machine.fastest_precision`, one core on a CPU. ``windows_ms`` is
    `attention_matrix`, whose gradient is a sum over windows; ``index_ms`` the same by indexing: its gradient scatters.
    """
    found = []
    bf16 = torch.autocast(device, torch.bfloat16, enabled=machine.fastest_precision(device) == "bf16")
    for n in (8, 16, 32):
        layer = operator.LKCA(192, n, kernel_init="random", form="matrix").to(device)
        x = torch.randn(8192 // n**2, n * n, 192, device=device, requires_grad=True)
        place = torch.arange((2 * n - 1) ** 2, device=device).view(2 * n - 1, 2 * n - 1)
        place = operator.attention_matrix(place, (n, n))
        ways = {
            "windows_ms": lambda layer=layer, n=n: operator.attention_matrix(layer.kernel, (n, n)),
            "index_ms": lambda layer=layer, place=place: layer.kernel.flatten()[place],
            "layer_ms": lambda layer=layer, x=x: layer(x),
        }
        line: dict[str, float] = {"n": n}
        for name, way in ways.items():

            def step(i: int, way: Callable[[], Tensor] = way) -> int:
                with bf16:
                    out = way()
                out.backward(torch.ones_like(out))
                return 1

            with one_core():
                line[name] = 1000 / rate(step, device, seconds)
        found.append(line)
    return found
