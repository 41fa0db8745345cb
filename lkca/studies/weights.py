"""The runs whose trained weights are kept in ``results/weights/``, the pairs of them, and their models."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from lkca.data import images as data
from lkca.ledger import records
from lkca.ledger.cells import SHOWN, of_cell
from lkca.ledger.records import RESULTS
from lkca.ledger.runs import Record
from lkca.ledger.trained import path as file_of
from lkca.ledger.trained import read as weights_of
from lkca.models import zoo
from lkca.models.vit import ViT


def runs(dataset: str, protocol: str, results_root: Path = RESULTS) -> list[Record]:
    """The records of a data set and a protocol whose trained weights were kept, in the zoo's order of rows, by seed."""
    for name, value, known in (("protocol", protocol, SHOWN), ("dataset", dataset, tuple(data.NAMES))):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}")
    ledger, _ = records.read(results_root)
    rows = [row for row in zoo.ROWS if any(r.row == row for r in ledger)]
    found = [r for row in rows for r in of_cell(ledger, dataset, protocol, row)]
    return [r for r in found if file_of(r, results_root).exists()]


def kept(vit: str, dataset: str, protocol: str, results_root: Path = RESULTS) -> dict[str, Record]:
    """The kept run of a ViT, of its LKCA, and of the 3 x 3 control where there is one: of the last seed they share.

    Raises ValueError, naming the rows there are, if the weights of the first two were not both kept.
    """
    vit = zoo.canonical(vit)
    found = _of_one_seed(runs(dataset, protocol, results_root), vit)
    if not found:
        known = [a.row for a, _ in pairs(results_root) if (a.dataset, a.protocol) == (dataset, protocol)]
        raise ValueError(
            f"there are no weights of {vit!r} and its LKCA, trained on {dataset} under {protocol}; "
            f"{'take one of ' * bool(known)}{', '.join(map(repr, known))}{', or ' * bool(known)}train them with "
            "keep_weights=True"
        )
    return found


def _of_one_seed(of_all: Sequence[Record], vit: str) -> dict[str, Record]:
    """Of these runs those of a ViT, its LKCA and its 3 x 3 control, of the last seed that the first two share."""
    of = {row: {r.seed: r for r in of_all if r.row == row} for row in (vit, f"{vit}-LKCA", f"{vit}-LKCA-3x3")}
    shared = of[vit].keys() & of[f"{vit}-LKCA"].keys()
    return {row: known[max(shared)] for row, known in of.items() if max(shared) in known} if shared else {}


def pairs(results_root: Path = RESULTS) -> list[tuple[Record, Record]]:
    """The runs of every ViT and its LKCA that were trained on one data set under one protocol and kept."""
    found = []
    for dataset, protocol in product(data.NAMES, SHOWN):
        of_all = runs(dataset, protocol, results_root)
        rows = dict.fromkeys(r.row for r in of_all if f"{r.row}-LKCA" in zoo.ROWS)
        found += [(pair[row], pair[f"{row}-LKCA"]) for row in rows if (pair := _of_one_seed(of_all, row))]
    return found


def model_of(record: Record, *, trained: bool, results_root: Path = RESULTS) -> ViT:
    """The model of a run, in evaluation mode: with its trained weights, or freshly initialised.

    Raises ValueError if its row is neither a ViT nor an LKCA.
    """
    torch.manual_seed(record.seed)
    model = zoo.build(record.row, image_size=record.image_size, num_classes=record.num_classes)
    if not isinstance(model, ViT):
        raise ValueError(f"{record.row} is neither a ViT nor an LKCA")
    if trained:
        model.load_state_dict(weights_of(record, results_root))
    return model.eval()
