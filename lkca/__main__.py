"""The one command line: ``lkca``, or ``python -m lkca``.

Each command is a function that takes the parsed arguments and returns the exit status. What it needs it imports itself,
so that none of them waits for, or lacks, what another needs: no command imports Jupyter or a plotting library.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lkca.data import places

if TYPE_CHECKING:
    from lkca.ledger.runs import Run

EXAMPLES = {
    "train": "lkca train --table 2 --rows ViT/0.5M ViT/0.5M-LKCA --protocol sketch --seeds 0 1",
    "work": "lkca work --seeds 0 1 2 --budget 1500 --keep-weights",
    "bench": "lkca bench --device cpu",
    "data": "lkca data cifar100 --data-root ~/data",
    "records": "lkca records --table 2",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, 1 where what it looked at is broken, 2 where it could not run.

    Wrong arguments raise SystemExit, as argparse does.
    """
    args = _parser().parse_args(arguments)
    if places.CHECKOUT is None:
        print(places.said(), flush=True)
    try:
        return args.command(args)
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"lkca: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"lkca: {stopped or 'interrupted; the same command goes on from the last checkpoint'}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lkca", description="Train, measure and look up what the book shows.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_train, _add_work, _add_bench, _add_data, _add_records):
        add(commands)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """A subcommand named as its function, with the first line of its docstring and an example."""
    name, (about, *_) = run.__name__, (run.__doc__ or "").splitlines()
    parser = commands.add_parser(name, help=about, description=about, epilog=f"Example: {EXAMPLES[name]}")
    parser.set_defaults(command=run)
    return parser


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _add_roots(parser: argparse.ArgumentParser, *, data: bool = True, results: bool = True) -> None:
    if data:
        parser.add_argument(
            "--data-root", type=_folder, default=places.DATA, metavar="DIR", help="folder of the data sets"
        )
    if results:
        parser.add_argument(
            "--results-root", type=_folder, default=places.RESULTS, metavar="DIR", help="folder of the ledger"
        )


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, train)
    parser.add_argument("--table", help="1 to 7, or controls; with --data 2 if not said")
    parser.add_argument("--rows", nargs="+", default="all", metavar="ROW", help="of the table; all of them if not said")
    parser.add_argument("--size", default="0.5M", help="of the controls' rows: 0.5M, 2M or 2.69M")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dataset", metavar="NAME", help="one of the table's, if it has several, or another")
    which.add_argument("--data", type=_folder, metavar="FOLDER", help="your own images, in {train,test}/<class>/*")
    parser.add_argument("--protocol", default="auto", help="auto is the authors' with a GPU and the data, else smoke")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run of each row a seed")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, tf32 or fp64")
    _add_roots(parser)


def train(args: argparse.Namespace) -> int:
    """Train rows of a table, as its notebook does, and say what came out."""
    from lkca.data import own
    from lkca.models import zoo
    from lkca.training import jobs

    if not (args.table or args.data):
        raise ValueError("which rows to train is not said: --table with 1 to 7 or controls is wanted")
    called = args.table or "2"
    table = int(called) if called.isdigit() else called
    rows = zoo.control_rows(args.size) if (table, args.rows) == ("controls", "all") else args.rows
    dataset = own.look(args.data) if args.data else args.dataset
    job = jobs.plan(
        table, dataset=dataset, protocol=args.protocol, rows=rows, seeds=args.seeds, device=args.device,
        precision=args.precision, data_root=args.data_root, results_root=args.results_root,
    )  # fmt: skip
    print(job.why, flush=True)
    for run in jobs.run(job, "bar" if sys.stderr.isatty() else "lines"):
        print(_line(run))
    return 0


def _add_work(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from lkca.ledger.protocols import PROTOCOLS, SEGMENTATION

    parser = _command(commands, work)
    protocols = [name for name in PROTOCOLS | SEGMENTATION if name != "smoke"]  # that shows, and fills nothing
    parser.add_argument("--protocol", choices=protocols, help="instead of released and paper")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="of every cell")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="to work for")
    parser.add_argument("--keep-weights", action="store_true", help="of the main rows' first seed, 1 to 5 MB each")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "tf32", "fp64"], default="auto", help="of runs")
    parser.add_argument("--list", action="store_true", help="show what is missing, in order, and stop")
    _add_roots(parser)


def work(args: argparse.Namespace) -> int:
    """Fill the ledger unattended, in the order of what decides most."""
    import torch

    from lkca.ledger import records
    from lkca.training import machine, work

    seeds = list(dict.fromkeys(args.seeds))
    if min(seeds) < 0:
        raise ValueError(f"seed {min(seeds)} is not a whole number from 0 up")
    todo = list(work.cells(args.protocol))
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    roots = {"data_root": args.data_root, "results_root": args.results_root}
    worker = work.Work(seeds, device, **roots, budget=args.budget, precision=args.precision,
                       keep_weights=args.keep_weights)  # fmt: skip
    if args.list:
        cells: dict[str, list[int]] = {}
        for run in worker.missing(*todo):
            cells.setdefault(f"{run.dataset} {run.protocol} {run.row}", []).append(run.seed)
        for cell, missing in cells.items():
            print(cell, "seeds", *missing)
        return 0
    machine.checked_device(device)
    records.check_writable(args.results_root)
    finished, left = worker.off(todo), len(worker.missing(*todo))
    print(f"{finished} runs finished, {left} are missing; `lkca work --list` shows which", flush=True)
    return 1 if left else 0


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, bench)
    what = "engine (how fast it trains), rows (those of Tables 4 and 5 on one core), rounding (what bf16 rounds away, "
    what += "on kept weights), counts (parameters and MACs of the comparators and of the rows of Tables 6 and 7)"
    parser.add_argument(
        "what", nargs="?", choices=["engine", "rows", "rounding", "counts"], default="engine", help=what
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="of engine")
    parser.add_argument("--seconds", type=float, default=8, help="a figure of engine")
    parser.add_argument("--workers", type=int, default=4, help="of the conventional DataLoader beside it, as released")
    parser.add_argument("--only", metavar="PART", help="of engine: measure one part again, keep the others")
    _add_roots(parser)


def bench(args: argparse.Namespace) -> int:
    """Measure this machine, and keep what was measured for the pages."""
    import torch

    from lkca.ledger import records

    if args.what != "counts":
        records.check_writable(args.results_root)
    if args.what == "counts":
        from lkca.models import complexity, segmenters

        print(complexity.write(), segmenters.write(), sep="\n")
    elif args.what == "rounding":
        from lkca.studies import rounding

        print(rounding.write(args.data_root, args.results_root))
    else:
        from lkca.studies import benchmark

        device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if args.what == "rows":
            print(benchmark.run_rows(args.results_root))
        else:
            print(benchmark.run(device, args.seconds, args.workers, args.results_root, args.only))
    return 0


def _add_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, data)
    parser.add_argument("name", nargs="?", help="of a data set, or your own folder; without it, which are there")
    _add_roots(parser, results=False)


def data(args: argparse.Namespace) -> int:
    """Look for a data set, download it if it is not there, verify it, and say what was found."""
    from lkca.data import images, own, scenes
    from lkca.training.jobs import source

    if args.name is None:
        for name in (*images.DATASETS, *scenes.DATASETS):
            print(f"{name:14} {'there' if source(name).available(name, args.data_root) else 'not there'}")
        return 0
    ds: images.Dataset | scenes.Scenes
    if args.name not in images.DATASETS | scenes.DATASETS and _folder(args.name).is_dir():
        known, ds = None, own.load(args.name)
        print(f"{ds.name}: your own, mean {_percent(ds.stats[0])}, deviation {_percent(ds.stats[1])}")
    else:
        origin = source(args.name)
        known = origin.spec(args.name).fingerprint
        there = "found in" if origin.available(args.name, args.data_root) else "not in"
        print(f"{args.name}: {there} {args.data_root}")
        ds = origin.load(args.name, args.data_root)
    pixels = f"{ds.image_size} x {ds.image_size} pixels" if isinstance(ds, images.Dataset) else "of several sizes"
    print(f"{ds.num_train:,} training and {ds.num_test:,} test images, {pixels}, {ds.num_classes} classes")
    print(f"fingerprint {ds.fingerprint}: {'the known one' if known else 'recorded as found, none is known to us'}")
    return 0


def _percent(channels: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.2f} %" for value in channels)


def _add_records(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, records)
    parser.add_argument("name", nargs="?", help="show this record: its name, or the path of its file")
    parser.add_argument("--check", action="store_true", help="say how many are sound, and name those that are not")
    parser.add_argument("--table", type=int, metavar="N", help="set table N beside the paper's numbers")
    _add_roots(parser, data=False)


def records(args: argparse.Namespace) -> int:
    """List the ledger, check it, show one record, or set a table beside the paper's."""
    from lkca.ledger import diverged, records
    from lkca.ledger.runs import Run

    if args.name is not None:
        return _show(args.name, args.results_root)
    found, broken = records.read(args.results_root, Run)
    if args.table is not None:
        print(_comparison(args.table, found))
    elif not args.check:
        print("".join(f"{_line(run)}\n" for run in found), end="")
    if args.check or not found:
        print(f"{len(found)} records in {args.results_root} are sound, {len(broken)} are not")
    for run in found:
        if run.apart:
            print(f"apart: {_line(run)}: {run.apart}")
    for note in diverged.read(args.results_root):
        print(f"diverged: {note.get('row')} on {note.get('dataset')}: {note['what']}")
    for sentence in broken:
        print(f"broken: {sentence}", file=sys.stderr)
    return 1 if broken else 0


def _line(run: "Run") -> str:
    """A record in a line."""
    from lkca.ledger.provenance import anchor, result

    return f"{anchor(run)}  {result(run)}  {run.precision}  {run.wall_seconds / 60:.1f} min  {run.finished[:10]}"


def _show(name: str, results_root: Path) -> int:
    """Print a record's fields, its curve, and what repeats it."""
    import dataclasses

    from lkca.ledger import records
    from lkca.ledger.provenance import command

    file = _folder(name)
    run = records.read_one(file if file.suffix == ".json" else results_root / "runs" / f"{file.name}.json")
    for field, value in dataclasses.asdict(run).items():
        if field == "curve":
            for point in value:
                print("  ".join(f"{key} {number:.6g}" for key, number in point.items()))
        elif not isinstance(value, list) and field != "correct":
            print(f"{field}: {value}")
    print("to repeat it, in a checkout:", *command(run), sep="\n")
    return 0


def _comparison(table: int, ledger: "Sequence[Run]") -> str:
    """A table beside the paper's numbers, as text."""
    import pandas as pd

    from lkca.ledger.runs import Record, SegmentationRecord
    from lkca.models import segmenters, zoo
    from lkca.pages import segmentation_tables, tables

    if table in segmenters.TABLES:
        frames = [segmentation_tables.compare(table, [r for r in ledger if isinstance(r, SegmentationRecord)])]
    elif table in zoo.TABLES:
        classified = [r for r in ledger if isinstance(r, Record)]
        frames = [tables.compare(table, classified, dataset) for dataset in zoo.TABLES[table].datasets]
        frames += [tables.differences(table, classified)] if tables.pairs(table) else []
    else:
        known = ", ".join(map(str, (*zoo.TABLES, *segmenters.TABLES)))
        raise ValueError(f"table {table} does not exist; the tables are {known}")
    with pd.option_context("display.width", None, "display.max_colwidth", None):
        return "\n\n".join(frame.to_string() for frame in frames)


if __name__ == "__main__":
    sys.exit(main())
