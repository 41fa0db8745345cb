"""What is stated twice agrees: environment.yml and pyproject.toml, README and Makefile, contents and files."""

import ast
import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def wanted():
    return PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]


def test_environment_states_the_same_dependencies():
    python, pip, pypi = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert python == "python" + PROJECT["project"]["requires-python"] and pip.startswith("pip")
    assert sorted(pypi["pip"]) == sorted([*wanted(), "--editable ."])


def test_constraints_pin_every_dependency_within_its_range():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for requirement in map(Requirement, wanted()):
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_readme_names_targets_that_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named == {"book", "test"} <= targets


def test_the_workflow_runs_targets_that_exist_on_the_oldest_and_the_newest_python():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs == {"make": ["make test", "make book"], "oldest": ["make oldest"], "publish": []}
    assert "oldest:" in (ROOT / "Makefile").read_text()
    allowed = Requirement("python" + PROJECT["project"]["requires-python"]).specifier
    minors = [minor for minor in range(30) if allowed.contains(f"3.{minor}")]
    assert jobs["make"]["strategy"]["matrix"]["python"] == [f"3.{minors[0]}", f"3.{minors[-1]}"]


def test_every_notebook_is_in_the_book():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = {toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])}
    on_disk = {
        str(f.relative_to(ROOT).with_suffix("")) for f in [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    }
    assert files == on_disk


def test_stored_outputs_show_no_warning_and_no_place_on_the_machine_that_made_them():
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert outputs, f"{path.name} is stored without outputs"
        assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"], path.name
        assert not re.search(r"(?<![\w.<])/(home|root|tmp|usr|work|Users)/", json.dumps(outputs)), path.name


def test_nothing_is_unpickled_from_disk():
    for path in [*ROOT.glob("lkca/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]:
        for call in re.findall(r"torch\.load\(.*", path.read_text()):
            assert "weights_only=True" in call, path.name
        assert "import pickle" not in path.read_text(), path.name


def test_every_figure_has_alternative_text_and_a_caption():
    figures = 0
    for path in ROOT.glob("notebooks/*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            for output in cell.get("outputs", []):
                page = "".join(output.get("data", {}).get("text/html", ""))
                for figure in re.findall(r"<figure.*?</figure>", page, re.DOTALL):
                    figures += 1
                    assert "<figcaption" in figure and ("aria-label=" in figure or "<canvas" in figure), path.name
                assert "image/png" not in output.get("data", {}), path.name
    assert figures >= 10


@pytest.mark.parametrize("address", ["", "https://github.com/OWNER/NAME"])
def test_one_setting_gives_every_button_or_none(address):
    spec = importlib.util.spec_from_file_location("sphinx_setup", ROOT / "book" / "sphinx_setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    config = SimpleNamespace(html_theme_options={"repository_url": address, "use_edit_page_button": False})
    setup.buttons(None, config)
    options = config.html_theme_options
    assert options["use_repository_button"] is options["use_issues_button"] is bool(address)
    assert bool(options["launch_buttons"]) is bool(address)


def test_the_version_is_one():
    citation, changes = yaml.safe_load((ROOT / "CITATION.cff").read_text()), (ROOT / "CHANGELOG.md").read_text()
    version = PROJECT["project"]["version"]
    assert citation["version"] == version == re.search(r"^## ([\d.]+)", changes, re.MULTILINE)[1]
    assert citation["authors"] == [{"name": "the lkca companion's maintainers"}] and citation["license"] == "MIT"


def test_the_repository_stays_below_100_mb():
    """Every file stands in it twice: checked out, and in git's store."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in filter(None, listed.split("\0")) if (ROOT / name).exists()}
    assert sum(sizes.values()) < 50e6, sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_no_function_is_longer_than_sixty_lines():
    """Signature and docstring included: what is longer has more than one step, and each step can have a name."""
    functions = 0
    for path in ROOT.glob("lkca/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                assert node.end_lineno - node.lineno < 60, f"{node.name} in {path.relative_to(ROOT)}"
    assert functions > 300


def test_every_floor_is_in_the_contract_on_the_map_and_has_tests():
    floors = {path.parent.name for path in ROOT.glob("lkca/*/__init__.py")} - {"published"}
    layers = " ".join(PROJECT["tool"]["importlinter"]["contracts"][0]["layers"])
    contributing, design = (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / "README.md").read_text()
    for floor in floors:
        assert floor in layers and f"`lkca/{floor}/`" in contributing and f"`{floor}/`" in design, floor
        assert list((ROOT / "tests" / floor).glob("test_*.py")), floor
    order = re.findall(r"lkca\.(\w+)", layers)
    assert re.findall(r"^\| `lkca/(\w+)[/.]", contributing, re.MULTILINE) == order
