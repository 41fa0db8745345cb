"""Fail if a built page asks the network for a script, a style sheet, a font or an image: `check_offline.py DIR`."""

import re
import sys
from pathlib import Path

REQUEST = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?:https?:)?//[^"']+|"""
    r"""<link\b(?=[^>]*\brel=["'](?:stylesheet|preload|icon))[^>]*\bhref=["'](?:https?:)?//[^"']+""",
    re.IGNORECASE,
)


def requests(folder: Path) -> list[str]:
    """Every reference in the pages of ``folder`` that a browser would fetch from the network."""
    pages = sorted(folder.rglob("*.html"))
    if not pages:
        raise SystemExit(f"{folder} holds no built pages")
    return [f"{page}: {found}" for page in pages for found in REQUEST.findall(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    found = requests(Path(sys.argv[1]))
    print("\n".join(found) or "No page asks the network for anything")
    raise SystemExit(bool(found))
