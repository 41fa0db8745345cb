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


def folder(name: str, value: object, default: Path) -> Path:
    """The folder that a parameter of this name gives, ``~`` as the home folder; None and "" are the default.

    Raises ValueError, naming the parameter, on what is no path.
    """
    if value is None or value == "":
        return default
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name}={value!r} is no path of a folder: give a text such as 'results', or None")
    found = os.fspath(value)
    if not isinstance(found, str) or "\0" in found or any(len(part) > 255 for part in Path(found).parts):
        raise ValueError(f"{name} is no path that a folder can have: {str(found)[:60]!r}…")
    return Path(found).expanduser()


def shown(path: Path) -> str:
    """A path for a line that may be published: within the checkout, or the home folder, from there."""
    for base, word in ((CHECKOUT, "the checkout's "), (Path.home(), "~/")):
        if base and path.absolute().is_relative_to(base):
            return f"{word}{path.absolute().relative_to(base)}"
    return str(path)


def said() -> str | None:
    """Where things go without a checkout, in a sentence for the first line of a command; None in a checkout."""
    if CHECKOUT:
        return None
    where = f"the ledger is {RESULTS.absolute()}, the data sets are in {DATA.absolute()}"
    return f"There is no checkout here: unless you name other folders, {where}."
