"""The console in headless Chromium: `make test-browser`.

It looks at every page as people see it: no error in the browser's console, no request to another
machine, nothing wider than a phone, figures that change by themselves, text that can be read.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import uvicorn

from browser import WITH_PICTURES, check_page, chromium, draw, needs_chromium, sync_api
from livefactor.in_process import Local, local
from livefactor_server.console.app import ConsoleSettings, make_app

pytestmark = needs_chromium

FIRST_PAGE_MS = 2_000
SHARE_MAX = 0.2
WATCHED_S = 10
"""Bound for a loaded machine. docs/console.md has the figure of a quiet one."""


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
        self.users = 300

    def push(self, events: int) -> None:
        """Push events: users have tastes, so that a model can be above most-popular."""
        users = self.rng.integers(0, self.users, events)
        self.users += 40
        types = self.rng.integers(1, 3, events)
        items = (users % 6) * 30 + (30 * self.rng.random(events) ** 2).astype(np.int64)
        with self.server.producer("till-7") as producer:
            producer.push(
                [f"customer {user}" for user in users],
                [f"article {item}" for item in items],
                event_types=types,
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
    with chromium() as started:
        yield started


@pytest.mark.parametrize(("name", "width", "colours"), [("wide", 1200, "light"), ("phone", 390, "dark")])
def test_every_page_as_people_see_it(shown: Shown, browser: Any, name: str, width: int, colours: str) -> None:
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
    assert [head.inner_text() for head in page.locator("#live h2").all()][1:3] == [
        "By event type",
        "By users",
    ]
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
    if WITH_PICTURES:
        page.fill("input[name=user]", "customer 7")
        page.press("input[name=user]", "Enter")
        page.wait_for_selector("#answer table")
        draw(page, f"console-{name}")
    page.close()


def test_an_administrator_takes_a_snapshot(shown: Shown, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{shown.address}/models/default")
    before = len(shown.server.auditor().list())
    page.click("#admin button:text-is('Take a snapshot')")
    page.wait_for_selector("[role=status]:has-text('Take a snapshot: snapshot')")
    assert len(shown.server.auditor().list()) == before + 1
    page.fill("#admin input[name=preset]", "clicks_sgd")
    page.fill("#admin form:has(input[name=preset]) input[name=confirm]", "another")
    page.click("#admin button:text-is('Promote')")
    page.wait_for_selector("#acted .trouble:has-text('type the name of the model')")
    page.close()


def test_an_open_page_costs_little(shown: Shown, browser: Any) -> None:
    """`-rP` shows the figures. The bounds are those of a loaded machine."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    address = json.dumps([shown.server.target, "127.0.0.1", port])
    command = [sys.executable, "-m", "livefactor_server.console.serving", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as console:
        try:
            page = open_when_ready(browser, console, f"http://127.0.0.1:{port}/models/default")
            loads = []
            for _ in range(5):
                page.reload()
                timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
                loads.append(page.evaluate(timing))
            used = psutil.Process(console.pid)
            before, began = sum(used.cpu_times()[:2]), time.monotonic()
            page.wait_for_timeout(WATCHED_S * 1000)
            share = (sum(used.cpu_times()[:2]) - before) / (time.monotonic() - began)
            page.close()
        finally:
            console.kill()
    print(f"page loaded in {sorted(loads)[2]:.0f} ms; an open page takes {share:.1%} of a core")
    assert sorted(loads)[2] < FIRST_PAGE_MS and share < SHARE_MAX


def open_when_ready(browser: Any, console: subprocess.Popen[bytes], address: str) -> Any:
    page = browser.new_page()
    while True:
        assert console.poll() is None
        try:
            page.goto(address)
            return page
        except sync_api.Error:
            page.wait_for_timeout(100)
