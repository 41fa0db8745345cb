"""The package as others get it: a wheel that holds all of it, installed where nothing leads to the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from lkca.models import comparators, complexity, segmenters, zoo

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
COMMANDS = [
    ["data", "digits"],
    ["work", "--list"],
    ["records", "--table", "2", "--results-root", "elsewhere"],
    ["train", "--table", "2", "--rows", "ViT/0.5M-LKCA", "--protocol", "smoke"],
]
# all in one process: to import torch takes longer than most of this
USE = """
import contextlib, dataclasses, io, json, sys
from lkca import LKCA, ViT
from lkca.__main__ import main
from lkca.models import comparators, complexity, segmenters, zoo

def said(command):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(command) == 0, command
    return out.getvalue().splitlines()

json.dump({
    "files": [sys.modules[name].__file__ for name in ("lkca", "lkca.published", LKCA.__module__, ViT.__module__)],
    "said": [said(command) for command in json.loads(sys.argv[1])],
    "counts": {
        row: dataclasses.asdict(complexity.count(row, **complexity.printed_at(row)))
        for row in [*zoo.ROWS, *comparators.ROWS]
    },
    "segmenters": {row: segmenters.count(row, crop=512, num_classes=150).printed for row in segmenters.ROWS},
}, sys.stdout)
"""


def run(*command, cwd=None):
    """What a command prints, with nothing in its environment that leads to the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LKCA_DATA")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_of_the_package():
    return {path for path in (ROOT / "lkca").rglob("*") if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built in a copy, because setuptools leaves what it builds beside the sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-text.md"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "lkca", copy / "lkca", ignore=shutil.ignore_patterns("__pycache__"))
    run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", copy / "dist", copy)
    (file,) = (copy / "dist").iterdir()
    return file


def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in archive.namelist()} - {""}
    assert held == {path.relative_to(ROOT).as_posix() for path in files_of_the_package()}
    assert about >= {"entry_points.txt", "licenses/LICENSE", "licenses/LICENSE-text.md"}


def installed(wheel, folder):
    """The commands of a new environment that has the wheel, and of this one the libraries, but not the checkout."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel)
    new = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # of a folder that a .pth file adds, the .pth files are not read: so the editable checkout is not seen
    Path(new, "libraries.pth").write_text("".join(f"{path}\n" for path in libraries))
    return folder / "bin"


def test_the_installed_package_works_in_an_empty_folder(wheel, tmp_path):
    commands, here = installed(wheel, tmp_path / "env"), tmp_path / "empty"
    here.mkdir()
    found = json.loads(run(commands / "python", "-c", USE, json.dumps(COMMANDS), cwd=here))
    assert all(Path(file).is_relative_to(tmp_path / "env") for file in found["files"]), found["files"]

    first, (data, work, table, trained) = {lines[0] for lines in found["said"]}, found["said"]
    (where,) = first
    assert where.startswith("There is no checkout here")
    assert f" {here / 'results'}" in where and f" {here / '.data'}" in where
    assert data[1] == "digits: found in .data" and data[-1].endswith("the known one")
    assert work[1].startswith("tiny-imagenet released ViT seeds 0")
    assert any("76.50" in line for line in table)
    assert trained[-1].startswith("digits--ViT_0.5M-LKCA--smoke-")
    (kept,) = here.rglob("*.json")
    assert kept.is_relative_to(here / "results")

    rows = [*zoo.ROWS, *comparators.ROWS]
    counts = {row: vars(complexity.count(row, **complexity.printed_at(row))) for row in rows}
    assert found["counts"] == counts
    assert found["segmenters"].keys() == segmenters.ROWS.keys()
    assert found["segmenters"]["LKCA-S/FPN"] == ["30.19M", "77.92G"]

    listed = run(commands / "lkca", "records", "--check", cwd=here)
    assert listed.splitlines()[0] == where
