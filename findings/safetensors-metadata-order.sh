#!/usr/bin/env bash
# What: safetensors writes the same tensors with the same metadata as different bytes from one save to the next.
# Guess: a format made for safe, comparable weights gives the same file for the same content, so that a digest of the
#   file, or a comparison of two files, says whether two runs ended alike.
# Seen (safetensors 0.8.0): with three entries of metadata a dozen saves in one process give several different files of
#   one length, because the entries come in another order each time; with one entry, or none, all are one file. The
#   tensors are in the same order always.
# Cost: a test that resumed runs end bit for bit alike failed by chance; digests must be over the content, or the
#   metadata one entry.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cat > "$folder/look.py" <<'P'
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save

tensors = {"b": np.arange(3.0), "a": np.ones(2)}
three, one = {"run": "x", "digest": "y", "version": "z"}, {"run": "x"}
found = {name: {save(tensors, said) for _ in range(12)} for name, said in {"three": three, "one": one}.items()}
found["none"] = {save(tensors) for _ in range(12)}
same = all(set(load(file)) == set(tensors) for files in found.values() for file in files)
print(f"safetensors {version('safetensors')}: different files of 12 saves", {k: len(v) for k, v in found.items()})
sys.exit(not (same and len(found["three"]) > 1 and len(found["one"]) == len(found["none"]) == 1))
P
"$folder/env/bin/python" "$folder/look.py"
