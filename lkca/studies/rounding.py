"""What bf16 rounds away, of a step's gradient and of a test: ``lkca bench rounding`` measures and keeps it.

Runs of the ledger are in fp32 or in bf16, and what parts them has in it what seeds do. One step and one test can be
compared by themselves: the same trained weights, images and draws, in both precisions.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lkca.data import images as data
from lkca.data.images import NAMES
from lkca.ledger import records
from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.provenance import Number, anchor
from lkca.ledger.records import RESULTS
from lkca.ledger.runs import Record
from lkca.studies import weights
from lkca.training import classification, draws, machine
from lkca.training.stack import PRECISIONS, Stack

BATCHES = 16
FILE = "rounding.json"


def _stack(run: Record, ds: data.Dataset, precision: str, results_root: Path) -> Stack:
    p, model = PROTOCOLS[run.protocol], weights.model_of(run, trained=True, results_root=results_root).train()
    loss = classification.loss(ds, p, "cpu", PRECISIONS[precision])
    how = {"device": "cpu", "precision": precision, "execution": "eager"}
    return Stack([model], loss, betas=p.betas, weight_decay=p.weight_decay, **how)


def gradients(run: Record, ds: data.Dataset, precision: str, results_root: Path = RESULTS) -> dict[str, Tensor]:
    """Of the loss of `BATCHES` training batches at a run's trained weights, by parameter: float64, (BATCHES, …).

    The recipe and the training images are the run's; which of them, and all draws, are the same in all precisions.
    """
    p, stack = PROTOCOLS[run.protocol], _stack(run, ds, precision, results_root)
    ds = classification.subset(ds, p)
    order = draws.order(0, 0, ds.num_train, BATCHES * p.batch_size)
    rngs = [draws.stream(0, "block")]
    block = classification.block(ds, p, rngs, [order], num_draws=stack.num_draws, dtype=stack.dtype)
    losses = (stack.losses([t[:, i] for t in block]) for i in range(BATCHES))
    slopes = zip(*(torch.autograd.grad(loss.sum(), list(stack.params.values())) for loss in losses), strict=True)
    return {name: torch.cat(of).double() for name, of in zip(stack.params, slopes, strict=True)}


def compare(exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> dict[str, dict[str, float] | None]:
    """What rounding takes from gradients, (batches, …) each by parameter: of all together, and of LKCA's kernels.

    As shares of the exact gradient's length, root mean squares over the batches: ``step``, of rounded - exact in one
    batch; ``batch``, of what parts the exact gradients of two batches, by which a step is uncertain anyway, divided by
    the root of two; and ``mean``, of the mean of rounded - exact, as a share of the mean gradient's: the larger, the
    more is rounded alike in every batch, as the weights are. ``worst`` is the largest step / batch of a parameter.
    "kernels" is None of a row that has none.
    """

    def squares(names: Sequence[str], of: Callable[[Tensor, Tensor], Tensor]) -> float:
        return sum(of(exact[name], rounded[name]).square().sum().item() for name in names)

    def shares(names: Sequence[str]) -> dict[str, float]:
        length = squares(names, lambda e, r: e)
        step = (squares(names, lambda e, r: r - e) / length) ** 0.5
        batch = (squares(names, lambda e, r: e - e.mean(0)) / length * batches / (batches - 1)) ** 0.5
        mean = squares(names, lambda e, r: (r - e).mean(0)) / squares(names, lambda e, r: e.mean(0))
        return {"step": step, "batch": batch, "mean": mean**0.5}

    batches = len(next(iter(exact.values())))
    kernels = [name for name in exact if name.endswith(".kernel")]
    each = [shares([name]) for name in exact]
    return {
        "all": shares(list(exact)) | {"worst": max(s["step"] / s["batch"] for s in each)},
        "kernels": shares(kernels) if kernels else None,
    }


def measure(run: Record, ds: data.Dataset, results_root: Path = RESULTS) -> dict:
    """All that is kept of a run: its name, `compare` of its gradients, and both tests of its weights."""
    exact, rounded = (gradients(run, ds, precision, results_root) for precision in ("fp32", "bf16"))
    stacks = {precision: _stack(run, ds, precision, results_root) for precision in ("fp32", "bf16")}
    tests = {precision: classification.evaluate(stack, ds)[0][0]["top1"] for precision, stack in stacks.items()}
    return {"run": anchor(run), **compare(exact, rounded), "top1": tests}


def read(results_root: Path = RESULTS) -> dict | None:
    """What `write` has kept; None if it has not run."""
    file = Path(results_root).expanduser() / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _by_run(results_root: Path) -> list[tuple[Record, dict]]:
    """What `write` has kept of the runs whose records are sound."""
    ledger = {anchor(r): r for r in records.read(results_root)[0]}
    found = (read(results_root) or {"runs": []})["runs"]
    return [(ledger[of["run"]], of) for of in found if of["run"] in ledger]


def table(results_root: Path = RESULTS) -> pd.DataFrame:
    """What bf16 rounds away, a line a run whose weights were measured and whose record is sound (strings)."""
    lines = []
    for run, found in _by_run(results_root):
        of = found["all"]
        kernels = Number(f"{100 * found['kernels']['step']:.1f} %", [run]) if found["kernels"] else "no kernel"
        lines.append(
            {
                "row": run.row,
                "weights of": f"{NAMES.get(run.dataset, run.dataset)}, {run.protocol}",
                "bf16 rounds away": Number(f"{100 * of['step']:.1f} %", [run]),
                "of the kernels": kernels,
                "of the batches' mean": Number(f"{100 * of['mean']:.1f} %", [run]),
                "top-1 in fp32": Number(f"{found['top1']['fp32']:.2f}", [run]),
                "in bf16": Number(f"{found['top1']['bf16']:.2f}", [run]),
            }
        )
    return pd.DataFrame(lines, dtype=object)


def sentence(results_root: Path = RESULTS) -> str:
    """The table in a sentence, with where and at which commit it was measured, and how many runs it lacks."""
    kept, by_run = read(results_root), _by_run(results_root)
    if not kept or not by_run:
        return "Not measured."
    measured, runs = zip(*by_run, strict=True)
    lacking = {anchor(run) for pair in weights.pairs(results_root) for run in pair} - set(map(anchor, measured))
    step, mean, worst = (max(100 * r["all"][of] for r in runs) for of in ("step", "mean", "worst"))
    batch = min(100 * r["all"]["batch"] for r in runs)
    test = max(abs(r["top1"]["bf16"] - r["top1"]["fp32"]) for r in runs)
    return (
        f"Over {kept['batches']} batches of each of these runs, bf16 rounds away at most {step:.1f} % of a "
        f"step's gradient, where another batch changes at least {batch:.0f} %; of a single parameter's, at most "
        f"{worst:.1f} % of what another batch changes; of the batches' mean, at most {mean:.1f} %. A test in bf16 is "
        f"at most {test:.2f} points from one in fp32. Measured on {kept['device']}, {kept['finished'][:10]}, PyTorch "
        f"{kept['versions']['torch']}, at commit {kept['git_commit'][:7]}{'' if kept['git_clean'] else ', changed'}."
        f"{f' Runs whose weights were kept since then, not measured: {len(lacking)}.' if lacking else ''}"
    )


def write(data_root: Path = data.ROOT, results_root: Path = RESULTS) -> Path:
    """Measure every pair whose weights are kept, and keep it as ``rounding.json`` of the ledger; its path.

    Raises ValueError if no weights of a pair are kept, or a data set is missing; OSError if it cannot be written.
    """
    runs = [run for pair in weights.pairs(results_root) for run in pair]
    if not runs:
        raise ValueError(f"no weights of a pair are kept in {results_root}: train one with keep_weights=True")
    if absent := sorted({r.dataset for r in runs if not data.available(r.dataset, data_root)}):
        raise ValueError(f"{', '.join(absent)} not in {data_root}: name the folder of the data sets with --data-root")
    found = []
    for name in dict.fromkeys(r.dataset for r in runs):
        ds = data.load(name, data_root)
        for run in runs:
            if run.dataset == name:
                found.append(measure(run, ds, results_root))
                print(found[-1], flush=True)
    kept = {
        "device": machine.device_in_words("cpu"),
        "batches": BATCHES,
        "runs": found,
        "versions": machine.VERSIONS,
        "git_commit": machine.COMMIT,
        "git_clean": machine.CLEAN,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    file = Path(results_root).expanduser() / FILE
    file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file
