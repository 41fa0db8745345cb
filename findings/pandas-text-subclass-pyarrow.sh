#!/usr/bin/env bash
# What: pandas turns a subclass of str into plain str in a mapped column, if pyarrow happens to be installed.
# Guess: installing a library that the program never imports changes no result; a column of objects keeps its objects.
# Seen (pandas 3.1.1): `Series.map` to instances of a str subclass keeps them without pyarrow, and with pyarrow 26.0.1
#   beside it gives plain str, without their attributes. `dtype=object` at construction keeps them either way.
# Cost: every link from a number to its runs vanished from three tables of a book, without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pandas==3.1.1 numpy==2.4.6
cat > "$folder/look.py" <<'P'
import importlib.util
import sys

import pandas as pd


class Linked(str):
    target = "a page"


column = pd.Series([1.5, 2.5]).map(lambda value: Linked(f"{value:+.1f}"))
held = pd.Series([Linked("+1.5"), Linked("+2.5")], dtype=object)
kinds = type(column.iloc[0]).__name__, type(held.iloc[0]).__name__
pyarrow = importlib.util.find_spec("pyarrow") is not None
print(f"pandas {pd.__version__}, pyarrow {'there' if pyarrow else 'absent'}: mapped {kinds[0]}, dtype=object {kinds[1]}")
sys.exit(kinds != (("str" if pyarrow else "Linked"), "Linked"))
P
"$folder/env/bin/python" "$folder/look.py"
"$folder/env/bin/pip" install --quiet pyarrow==26.0.1
"$folder/env/bin/python" "$folder/look.py"
