"""Pages in headless Chromium: how people see them, and pictures of them for the docs.

`make test-browser` installs what it takes.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="`make test-browser` installs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="`make test-browser` installs axe")
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; `make test-browser`")

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WITH_PICTURES = bool(os.environ.get("BROWSER_PICTURES"))
"""Whether the tests draw the pictures of the docs anew."""

PICTURE_COLOURS = 64
"""Pages have few colours, so that pictures of them are small."""

RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
"""What axe-core checks: contrast of text, names of fields and pictures, use by keyboard."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    with sync_api.sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def check_page(page: Any, width: int) -> None:
    """Nothing is wider than the screen, and axe-core finds nothing against WCAG 2.1, level AA."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page, options=RULES)
    assert found.response["violations"] == [], found.generate_report()
    assert "color-contrast" in {rule["id"] for rule in found.response["passes"]}


def draw(page: Any, name: str) -> None:
    """Writes a picture of the whole page to the pictures of the docs."""
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot.quantize(PICTURE_COLOURS, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)
