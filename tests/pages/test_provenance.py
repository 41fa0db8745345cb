"""Each number leads to its records; a record's command repeats it; the page searches, sorts and follows links."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from lkca.data import images as data
from lkca.ledger import provenance, records
from lkca.ledger.cells import of_cell
from lkca.ledger.protocols import PROTOCOLS
from lkca.ledger.runs import Run
from lkca.pages import figures, rendering, tables
from lkca.pages.provenance import page as whole_page
from lkca.training import engine

LEDGER = records.read(kind=Run)[0]
CLASSIFIED = records.read()[0]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def anchors(link):
    """What the page's script makes of a link, written again."""
    for part in link.partition("#")[2].split(";"):
        cell, _, seeds = part.rpartition("--seed")
        yield from (f"{cell}--seed{seed}" for seed in seeds.split(","))


def test_every_number_of_a_table_leads_to_records_on_the_page():
    page = whole_page(LEDGER).data
    there = set(re.findall(r'<tr id="([^"]+)"', page))
    assert len(there) == len(LEDGER)
    shown = (
        figures.comparison(2, CLASSIFIED).data
        + rendering.table_html(tables.controls(CLASSIFIED, "cifar100", "0.5M")).data
    )
    links = re.findall(r'<td><a href="([^"]+)">', shown)
    assert links and all(set(anchors(link)) <= there for link in links)
    numbers = re.findall(r"<td>(?:<a[^>]+>)?([^<]*±\s[^<]*|[^<]*n\s=\s\d+)<", shown)
    assert len(numbers) == len(re.findall(r"<td><a[^>]+>(?:[^<]*±\s[^<]*|[^<]*n\s=\s\d+)<", shown)) > 5  # none without


def test_a_number_leads_to_exactly_its_records():
    ledger = [r for r in CLASSIFIED if r.dataset == "cifar100"]
    both = (
        of_cell(ledger, "cifar100", "sketch", "ViT/0.5M"),
        of_cell(ledger, "cifar100", "sketch", "ViT/0.5M-LKCA"),
    )
    shared = {r.seed for r in both[0]} & {r.seed for r in both[1]}
    cell = tables.differences(2, ledger).loc["ViT/0.5M-LKCA − ViT/0.5M", "ours, sketch"]
    assert set(anchors(provenance.link(cell.runs))) == {
        provenance.anchor(r) for x in both for r in x if r.seed in shared
    }
    assert provenance.link(both[0][:1]) == f"../notebooks/provenance.html#{provenance.anchor(both[0][0])}"


def test_what_is_shown_is_escaped():
    run = dataclasses.replace(LEDGER[0], device="<b>, 1 threads")
    assert "<b>" not in whole_page([run], ["<i>"]).data and "<i>" not in whole_page([run], ["<i>"]).data


def test_the_command_repeats_the_run(tmp_path):
    """All but the times. The checkout is left out, the training is called as it stands."""
    (first,) = engine.fit(
        "ViT/0.5M-LKCA", data.load("digits"), PROTOCOLS["smoke"], [3], results_root=tmp_path, progress=None
    )
    checkout, call = provenance.command(first)
    assert checkout == f"git checkout {first.git_commit}" and call.startswith("OMP_NUM_THREADS=")
    python = call.replace(" python ", f" {sys.executable} ", 1)
    environment = os.environ | {"PYTHONPATH": str(records.RESULTS.parent)}
    subprocess.run(python, shell=True, check=True, cwd=tmp_path, env=environment, capture_output=True)
    again = records.read_one(records.path_of(first, tmp_path / "again"))
    differ = {f.name for f in dataclasses.fields(first) if getattr(first, f.name) != getattr(again, f.name)}
    assert differ <= {"curve", "images_per_second", "wall_seconds", "finished"}
    assert [dataclasses.replace(e, seconds=0) for e in first.curve] == [
        dataclasses.replace(e, seconds=0) for e in again.curve
    ]


def test_commands_know_what_their_commit_knew():
    """In a git checkout: what a record's command imports and calls is there at the record's commit."""
    root = records.RESULTS.parent
    if subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a git checkout")
    for run in {r.git_commit: r for r in LEDGER}.values():

        def at(path, commit=run.git_commit):
            done = subprocess.run(["git", "-C", root, "show", f"{commit}:{path}"], capture_output=True, text=True)
            return done.stdout

        if not at("lkca/training/engine.py"):
            continue  # a shallow clone has not all commits
        _, call = provenance.command(run)
        modules = re.search(r"from lkca import ([^;]+);", call)[1].split(", ")
        assert all(at(f"lkca/{module}.py") for module in modules)
        keeper = re.search(r"(\w+)\.PROTOCOLS", call)[1]
        assert "PROTOCOLS = {" in at(f"lkca/{keeper}.py")
        signature = re.search(r"def fit\((.*?)\n\)", at("lkca/training/engine.py"), re.DOTALL)[1]
        assert all(f" {name}: " in signature for name in re.findall(r"(\w+)='", call))
        assert ("seeds:" in signature) == bool(re.search(r"\], \[\d+\],", call))


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_the_page_searches_sorts_and_follows_links(tmp_path):
    runs = [r for r in LEDGER if r.dataset == "cifar100"][:3]
    drive = """<pre id="seen"></pre><script>
    const rows = () => [...document.querySelectorAll("tbody tr")].filter(r => !r.hidden).map(r => r.id), seen = [];
    seen.push(rows());
    const input = document.querySelector("input"), seeds = [...document.querySelectorAll("th button")][3];
    document.querySelector(".lkca-controls button").click(); seen.push(rows());
    input.value = "nothing such"; input.dispatchEvent(new Event("input")); seen.push(rows());
    input.value = runs_word; input.dispatchEvent(new Event("input")); seen.push(rows().length);
    document.querySelector(".lkca-controls button").click();
    seeds.click(); seeds.click(); seen.push(rows());
    document.getElementById("seen").textContent = JSON.stringify(seen);
    </script>""".replace("runs_word", f"'{runs[0].git_commit}'")
    file = tmp_path / "page.html"
    file.write_text(whole_page(runs).data + drive, encoding="utf-8")
    where = f"{file.as_uri()}#{provenance.link(runs[1:]).partition('#')[2]}"
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [BROWSER, "--headless", "--disable-gpu", "--disable-dev-shm-usage", *root, "--dump-dom", where]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    names = [provenance.anchor(r) for r in runs]
    linked, everything, none, of_commit, by_seed = json.loads(re.search(r'<pre id="seen">(\[.*?)</pre>', page)[1])
    assert linked == names[1:] and everything == names and none == []
    assert of_commit == sum(r.git_commit == runs[0].git_commit for r in runs)
    assert by_seed == [provenance.anchor(r) for r in sorted(runs, key=lambda r: -r.seed)]
