"""The site of the docs builds without a warning, and shows nothing of another machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from repository import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    assert [str(page) for page in pages if not (site / page).is_file()] == []
    assert "learns from every click" in (site / "index.html").read_text(encoding="utf-8")


def test_the_reference_shows_the_docstrings(site: Path) -> None:
    import livefactor
    import livefactor.aio

    text = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    names = {f"livefactor.{name}" for name in livefactor.__all__} - {"livefactor.__version__"}
    names |= {f"livefactor.aio.{name}" for name in livefactor.aio.__all__}
    # A name is shown where it is defined, with what it is also called as an anchor.
    assert {name for name in names if f'id="{name}"' not in text} == set()
    assert "k best items of each" in text


def test_links_lead_to_files_of_the_site(site: Path) -> None:
    lost, elsewhere = [], []
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r'(?:href|src)="([^"#?]+)', text):
            # `/` begins the links of the page of lost addresses.
            if not re.match(r"[a-z]+:|/", link) and not (page.parent / link).exists():
                lost.append(f"{page.relative_to(site)}: {link}")
        elsewhere += re.findall(r'<(?:script|img|link)\b[^>]*(?:src|href)="(https?:[^"]+)', text)
    assert lost == [] and elsewhere == []
