"""The machine that a run is made on: what it can do, what it is called, and which code and libraries run there."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import torchvision

import lkca
from lkca.training.stack import PRECISIONS


def checked_device(device: str) -> str:
    """``device`` if it can be used here; raises ValueError with what to do otherwise."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not one of 'auto', 'cpu', 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' needs an NVIDIA GPU that PyTorch can see, and there is none: use device='cpu'")
    return device


def checked_precision(precision: str) -> str:
    """``precision`` if the engine knows it; raises ValueError with the choices otherwise."""
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision={precision!r} is not one of 'auto', {', '.join(map(repr, PRECISIONS))}")
    return precision


def fastest_precision(device: str) -> str:
    """ "bf16" on CUDA and on CPUs that multiply it in hardware (there about twice as fast), else "fp32"."""
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
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
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", package, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a checkout around an installed package is not its own
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
