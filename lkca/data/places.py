"""Where data sets and the ledger lie: in the checkout, or, where the package is installed alone, in the working folder.

``CHECKOUT`` is the folder of the checkout that this package belongs to, None for an installed one.
"""

import os
from pathlib import Path

_above = Path(__file__).resolve().parents[2]
CHECKOUT = _above if (_above / "pyproject.toml").exists() and (_above / "lkca").is_dir() else None
_base = CHECKOUT or Path()
RESULTS = _base / "results"  # the ledger
DATA = Path(os.environ.get("LKCA_DATA") or _base / ".data").expanduser()


def said() -> str | None:
    """Where things go without a checkout, in a sentence for the first line of a command; None in a checkout."""
    if CHECKOUT:
        return None
    return f"There is no checkout here: the ledger is {RESULTS.absolute()}, the data sets are in {DATA.absolute()}."
