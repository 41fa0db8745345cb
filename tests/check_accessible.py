"""Fail if a built page, light or dark, has a serious or critical finding of axe, or does not work from ``file://``.

`check_accessible.py DIR`, see `make accessible`. Opens every page in Chromium: the one that $CHROMIUM names, else one
on the path, else Playwright's own. A page works if the browser reports no error, every request it makes is for a file,
every font is there, and it scrolls sideways at none of WIDTHS. (The theme asks for its fonts twice; the first,
`crossorigin`, fails from ``file://`` alone.)
"""

import os
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
FONTS = "/webfonts/"
ARGUMENTS = ["--disable-dev-shm-usage", *["--no-sandbox"] * (os.geteuid() == 0)]
WIDTHS = (390, 768, 1024, 1280)  # pixels: a phone, a tablet upright and on its side, a laptop
NAMES = ("chromium", "chromium-browser", "google-chrome")
RUN = """async () => (await axe.run(document, {resultTypes: ["violations"], preload: false})).violations
    .filter(v => ["serious", "critical"].includes(v.impact))
    .map(v => `${v.impact}, ${v.id}: ${v.nodes.length} × e.g. ${v.nodes[0].target.join(" ")}: `
              + v.nodes[0].failureSummary.replace(/\\s+/g, " "))"""

SETTLED = """new Promise(requestAnimationFrame).then(() => Promise.allSettled(
    document.getAnimations().filter(a => a.effect.getComputedTiming().endTime < Infinity).map(a => a.finished)))
    .then(() => null)"""


def faults(page: Page, file: Path) -> list[str]:
    """What is wrong with one page as it stands in the browser."""
    found: list[str] = []
    listeners = {
        "console": lambda m: (
            m.type != "error" or FONTS in m.text + m.location["url"] or found.append(f"console: {m.text}")
        ),
        "pageerror": lambda error: found.append(f"script: {error}"),
        "requestfailed": lambda r: FONTS in r.url or found.append(f"failed: {r.url}"),
        "request": lambda r: r.url.startswith(("file:", "data:", "blob:")) or found.append(f"asks for {r.url}"),
    }
    for event, listen in listeners.items():
        page.on(event, listen)
    page.goto(file.resolve().as_uri(), wait_until="load")
    found += page.evaluate("document.fonts.ready.then(f => [...f].filter(f => f.status == 'error').map(f => f.family))")
    page.evaluate("document.querySelectorAll('details').forEach(folded => { folded.open = true; })")
    page.evaluate(SETTLED)
    page.evaluate(AXE)
    found += page.evaluate(RUN)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate(SETTLED)
        if (needs := page.evaluate("document.documentElement.scrollWidth")) > width:
            found.append(f"at {width} pixels it scrolls sideways, to {needs}")
    for event, listen in listeners.items():
        page.remove_listener(event, listen)
    return found


def main(folder: Path) -> int:
    """Print every fault of the pages in ``folder``; returns how many there are."""
    leads_on = 'http-equiv="Refresh"'  # to another page; and in _static lie templates
    files = (file for file in sorted(folder.rglob("*.html")) if "_static" not in file.parts)
    pages = [file for file in files if leads_on not in file.read_text(encoding="utf-8")]
    if not pages:
        raise SystemExit(f"{folder} holds no built pages")
    chromium, count = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None), 0
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme, reduced_motion="reduce").new_page()
            for file in pages:
                for fault in faults(page, file):
                    count += 1
                    print(f"{file.relative_to(folder)}, {scheme}: {fault}", flush=True)
        browser.close()
    print(f"{len(pages)} pages, light and dark: {count or 'no'} serious fault{'s' * (count != 1)}")
    return count


if __name__ == "__main__":
    raise SystemExit(bool(main(Path(sys.argv[1]))))
