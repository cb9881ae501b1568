"""The console in headless Chromium: `make test-browser`.

It looks at every page as people see it: no error in the browser's console, no request to another
machine, nothing wider than a phone, figures that change by themselves, text that can be read.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn

from livefactor.in_process import Local, local
from livefactor_server.console.app import ConsoleSettings, make_app

sync_api = pytest.importorskip("playwright.sync_api", reason="`make test-browser` installs playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; `make test-browser`")

PICTURES = Path(__file__).parents[3] / "docs" / "images"
FIRST_PAGE_MS = 2_000
"""Bound for a loaded machine. docs/console.md has the figure of a quiet one."""

CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.className === "skip") continue;
    const a = light(parse(getComputedStyle(node).color)), b = light(back(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}
"""
"""Finds text whose contrast is below that of WCAG 2.1, level AA (1.4.3)."""


class Shown:
    """A console in this process, a stream of events, and the browser."""

    def __init__(self, server: Local) -> None:
        self.server = server
        settings = uvicorn.Config(make_app(ConsoleSettings(server.target)), port=0, log_level="warning")
        self.uvicorn = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self.thread.start()
        while not self.uvicorn.started:
            assert self.thread.is_alive()
        port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://localhost:{port}"
        self.rng = np.random.default_rng(7)

    def push(self, events: int) -> None:
        """Push events: users have tastes, so that a model can be above most-popular."""
        users = self.rng.integers(0, 300, events)
        items = (users % 6) * 30 + (30 * self.rng.random(events) ** 2).astype(np.int64)
        with self.server.producer("till-7") as producer:
            producer.push(
                [f"customer {user}" for user in users], [f"article {item}" for item in items]
            ).result()


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    with local("clicks") as server:
        console = Shown(server)
        console.push(4_000)
        server.auditor().snapshot()
        yield console
        console.uvicorn.should_exit = True
        console.thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize(("name", "width", "colours"), [("wide", 1200, "light"), ("phone", 390, "dark")])
def test_every_page_as_people_see_it(
    shown: Shown, browser: Any, name: str, width: int, colours: str, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
    errors: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(shown.address)
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert loaded < FIRST_PAGE_MS
    check_page(page, width)
    page.click("text=default")
    page.wait_for_selector("#curve canvas")
    revision = page.locator("dt:text-is('revision') + dd")
    before = revision.inner_text()
    for _ in range(6):
        shown.push(400)
        page.wait_for_timeout(1_100)
    sync_api.expect(revision).not_to_have_text(before)
    # The keyboard alone is enough.
    page.focus("input[name=user]")
    page.keyboard.type("customer 7")
    page.keyboard.press("Tab")
    page.keyboard.type("article 3, article 5")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer table")
    assert page.locator("#answer table").count() == 2
    page.fill("input[name=item]", "article 31")
    page.press("input[name=item]", "Enter")
    page.wait_for_selector("#neighbours table")
    page.fill("input[name=user]", " ")
    page.press("input[name=user]", "Enter")
    page.wait_for_selector("#answer .trouble")
    check_page(page, width)
    assert errors == [] and hosts == {urlsplit(shown.address).netloc}
    if os.environ.get("CONSOLE_PICTURES"):
        page.fill("input[name=user]", "customer 7")
        page.press("input[name=user]", "Enter")
        page.wait_for_selector("#answer table")
        page.screenshot(path=PICTURES / f"console-{name}.png", full_page=True)
    page.close()


def check_page(page: Any, width: int) -> None:
    """Nothing is wider than the screen, and all text has enough contrast."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
