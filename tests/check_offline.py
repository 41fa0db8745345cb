"""Fail if a built page asks the network for a script, a style sheet, a font or an image, or weighs more than 5 MB.

`check_offline.py DIR`
"""

import re
import sys
from pathlib import Path

REQUEST = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?:https?:)?//[^"']+|"""
    r"""<link\b(?=[^>]*\brel=["'](?:stylesheet|preload|icon))[^>]*\bhref=["'](?:https?:)?//[^"']+""",
    re.IGNORECASE,
)


def faults(folder: Path) -> list[str]:
    """Every page of ``folder`` that is too heavy, and every reference that a browser would fetch from the network."""
    pages = sorted(folder.rglob("*.html"))
    if not pages:
        raise SystemExit(f"{folder} holds no built pages")
    heavy = [f"{page}: {page.stat().st_size / 1e6:.1f} MB" for page in pages if page.stat().st_size > 5e6]
    return heavy + [f"{page}: {found}" for page in pages for found in REQUEST.findall(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    found = faults(Path(sys.argv[1]))
    print("\n".join(found) or "Every page is light and asks the network for nothing")
    raise SystemExit(bool(found))
