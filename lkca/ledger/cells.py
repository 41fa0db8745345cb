"""Which runs make a cell: those of the protocols that count, under their present settings, by seed."""

from collections.abc import Sequence

from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.runs import Record
from lkca.models import zoo

FULL = ("released", "paper")  # protocols that may speak about the paper's numbers
SHORT = ("brief", "sketch")  # those that show who is ahead so far
SHOWN = (*FULL, *SHORT)
LISTED = (*SHOWN, *(f"{protocol}-drop-path" for protocol in ("released", "sketch")))  # whose records a table names


def of_cell(ledger: Sequence[Record], dataset: str, protocol: str, row: str) -> list[Record]:
    """The records of a cell under a protocol, by seed: those made with the present settings of protocol and row.

    Of a seed that was trained in several precisions the first run counts: they share every draw, so that the others
    say nothing new about the cell.
    """
    settings = (dataset, zoo.canonical(row), protocol, PROTOCOLS[protocol].hash)
    found = [r for r in ledger if (r.dataset, r.row, r.protocol, r.protocol_hash) == settings and not r.apart]
    first = {r.same_draws: r for r in sorted(found, key=lambda r: r.finished, reverse=True)}
    return [first[draws] for draws in sorted(first)]


def select(
    table: int, ledger: Sequence[Record], protocol: str, row: str | None = None, dataset: str | None = None
) -> list[Record]:
    """The records a table shows on a data set of it under a protocol, by row and seed."""
    spec = zoo.TABLES[table]
    rows = [row] if row else spec.rows
    return [r for name in rows for r in of_cell(ledger, dataset or spec.dataset, protocol, name)]
