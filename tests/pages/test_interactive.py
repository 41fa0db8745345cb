"""The interactive figures in a browser: what keys, clicks and sliders choose is what is shown."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch
from PIL import Image

from lkca.data import scenes
from lkca.operator import attention_matrix
from lkca.pages import equivalence, segmentation_figures

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVE = """
<pre id="seen"></pre>
<script>
const figure = document.querySelector("figure"), [h, w] = GRID, states = [];
const panel = name => figure.querySelector(`[data-panel=${name}]`);
const at = (name, rows, columns, r, c) => {  // the colour in the middle of a cell
  const canvas = panel(name), [x, y] = [(c + 0.5) / columns * canvas.width, (r + 0.5) / rows * canvas.height];
  return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
};
function see(what) {
  const [row, column] = [...figure.querySelectorAll("input")].map(s => Number(s.value));
  const views = {kernel: [], matrix: [], image: []};
  for (let r = 0; r < h; r++) for (let c = 0; c < w; c++) {
    views.kernel.push(at("kernel", 2 * h - 1, 2 * w - 1, h - 1 - row + r, w - 1 - column + c));
    views.matrix.push(at("matrix", h * w, h * w, row * w + column, r * w + c));
    views.image.push(at("image", 3 * h - 2, 3 * w - 2, h - 1 + r, w - 1 + c));
  }
  states.push({what, token: [row, column], caption: figure.querySelector("figcaption").textContent, views});
}
const key = (name, k) => {
  panel(name).dispatchEvent(new KeyboardEvent("keydown", {key: k, cancelable: true}));
  see(`${name} ${k}`);
};
const click = (name, r, c) => {  // in shares of the panel; a touch ends in the same event
  const box = panel(name).getBoundingClientRect();
  const [clientX, clientY] = [box.left + c * box.width, box.top + r * box.height];
  panel(name).dispatchEvent(new MouseEvent("click", {clientX, clientY}));
  see(`${name} clicked`);
};
see("start");
key("image", "ArrowRight"); key("matrix", "ArrowDown"); key("kernel", "ArrowLeft"); key("image", "ArrowUp");
const [down, across] = figure.querySelectorAll("input");
down.value = 0; down.oninput(); across.value = w - 1; across.oninput(); see("sliders");
key("image", "ArrowRight"); key("image", "ArrowUp");
click("matrix", 0.999, 0.5);
click("image", (h - 0.5) / (3 * h - 2), (w + 0.5) / (3 * w - 2));
click("kernel", 0.5, 0.5);
document.querySelector("#seen").textContent = JSON.stringify(states);
</script>
"""


def colour(v):
    """The figure's, of a weight in [-1, 1]."""
    end = (179, 88, 6) if v < 0 else (84, 39, 136)
    return [247 + (e - 247) * abs(v) ** 0.7 for e in end]


OTHER = "another '</script>\" model"
COMPARE = """
<pre id="seen"></pre>
<script>
const pair = document.querySelector(".lkca-pair"), states = [];
const see = () => states.push({
  shown: [...pair.querySelectorAll("img")].map(side => [side.alt, side.src]),
  border: getComputedStyle(pair).getPropertyValue("--border"),
});
const choose = (of, value) => {
  const select = document.querySelector(`[data-of=${of}]`);
  [select.value] = [value]; select.onchange();
};
see();
choose("picture", 1); choose("left", 1); see();
const slider = document.querySelector("input");
slider.value = 10; slider.oninput(); see();
document.querySelector("#seen").textContent = JSON.stringify(states);
</script>
"""


def driven(page, folder):
    """What the page's script leaves in ``#seen`` after it has run in the browser."""
    file = folder / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8>{page}", encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom"]
    out = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', out.stdout, re.DOTALL)[1]))


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_the_three_panels_move_in_step(tmp_path):
    grid = h, w = 3, 5
    kernel = equivalence._drawn(grid)[1]
    page = equivalence.sliding_figure(kernel, grid).data + DRIVE.replace("GRID", str(list(grid)))
    states = driven(page, tmp_path)

    start = [(h - 1) // 2, (w - 1) // 2]
    moves = {"start": (0, 0), "image ArrowRight": (0, 1), "matrix ArrowDown": (1, 1), "kernel ArrowLeft": (1, 0),
             "image ArrowUp": (0, 0)}  # fmt: skip
    expected = [[start[0] + i, start[1] + j] for i, j in moves.values()]
    expected += [[0, w - 1], [0, 0], [h - 1, 0]]  # by the sliders; over an edge it comes in again
    expected += [[h - 1, w - 1], [0, 1], [h // 2, w // 2]]  # where it was clicked
    assert [state["token"] for state in states] == expected

    matrix = attention_matrix(kernel, grid) / kernel.abs().max()
    for state in states:
        row = state["token"][0] * w + state["token"][1]
        assert f"is row {row} of the matrix" in state["caption"]
        for view in state["views"].values():
            shown, weights = torch.tensor(view), matrix[row].tolist()
            assert (shown[:, 3] == 255).all()
            torch.testing.assert_close(shown[:, :3].double(), torch.tensor(list(map(colour, weights))).double(),
                                       rtol=0, atol=1.5)  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_any_two_pictures_lie_on_each_other(tmp_path):
    columns = {
        name: [Image.new("P", (4, 3), color=3 * i + j) for j in range(2)]
        for i, name in enumerate(("truth", "one model", OTHER))
    }
    page = segmentation_figures._gallery(columns, scenes.CAMVID, "Two pictures.", OTHER).data
    first, chosen, moved = driven(page + COMPARE, tmp_path)
    assert [alt for alt, _ in first["shown"]] == ["truth, picture 1", f"{OTHER}, picture 1"]
    assert [alt for alt, _ in chosen["shown"]] == ["one model, picture 2", f"{OTHER}, picture 2"]
    assert all(src == segmentation_figures._png(columns[alt.split(",")[0]][1]) for alt, src in chosen["shown"])
    assert (first["border"], chosen["border"], moved["border"]) == ("50%", "50%", "10%")
    assert moved["shown"] == chosen["shown"]
