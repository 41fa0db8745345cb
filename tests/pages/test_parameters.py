"""A notebook refuses a parameter that it does not have; each notebook names all of its own."""

import json
import re
from pathlib import Path

import pytest

from lkca.pages.parameters import refuse_others

ROOT = Path(__file__).parents[2]


def test_what_papermill_injects_is_compared_with_the_parameters():
    cells = ["", 'protocol = "auto"', '# Parameters\nprotocol = "smoke"\nrows = ["ViT"]\n', "x = 1"]
    refuse_others({"In": cells, "job": 1}, "protocol", "rows")
    refuse_others({"job": 1}, "protocol")
    with pytest.raises(ValueError, match="there is no parameter 'rows' in this notebook; its parameters are protocol"):
        refuse_others({"In": cells}, "protocol")


def test_every_notebook_with_parameters_refuses_others():
    checked = 0
    for path in ROOT.glob("notebooks/*.ipynb"):
        first, second, *_ = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"] + [{}]
        if "parameters" not in first["metadata"].get("tags", []):
            continue
        names = re.findall(r"^(\w+) = ", "".join(first["source"]), re.MULTILINE)
        (call,) = re.findall(r"refuse_others\(globals\(\), (.*)\)", "".join(second["source"]))
        assert re.findall(r'"(\w+)"', call) == names, path.name
        checked += 1
    assert checked == 9
