"""The report of `livefactor evaluate` in headless Chromium: the example of evaluate.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from browser import WITH_PICTURES, check_page, chromium, draw, needs_chromium
from doc_blocks import ROOT, blocks_of

pytestmark = needs_chromium

DATA = "server/livefactor_server/data"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report that the example of the page writes."""
    folder = tmp_path_factory.mktemp("evaluated")
    (block,) = (block for block in blocks_of(ROOT / "docs/guides/evaluate.md") if block.kind == "elsewhere")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    code = block.code.replace(DATA, str(ROOT / DATA))
    done = subprocess.run(
        ["bash", "-eu", "-c", code],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.mark.parametrize("width", [1000, 390])
def test_the_report_as_people_see_it(report: Path, width: int) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800})
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on(
            "request", lambda request: errors.append(request.url) if request.url != report.as_uri() else None
        )
        page.goto(report.as_uri())
        check_page(page, width)
        assert [head.inner_text() for head in page.locator("h2").all()] == [
            "Over time",
            "By users",
            "Settings of auto",
        ]
        assert (
            page.locator(".verdict").inner_text().startswith("auto is the best, and better than most-popular")
        )
        assert errors == []
        if WITH_PICTURES and width == 1000:
            draw(page, "report")
