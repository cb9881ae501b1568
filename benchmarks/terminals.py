"""Pictures of terminals: the demo, and `livefactor top` beside a server at work. `make pictures`
draws them.
"""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from livefactor import Models, Producer, Scorer

if TYPE_CHECKING:
    from livefactor_server.cli.top.screen import Top

FONT = re.compile(r"\s*@font-face \{.*?\}", re.S)
"""Fonts that a browser would fetch from another machine."""

TOP_SIZE = (116, 7)
"""Columns and lines of the picture of `livefactor top`."""

READINGS, EVERY_S = 4, 1.0
WORK = {"shop": 400, "films": 60}
"""Events of a batch of each model."""

USERS, ITEMS, ASKED = 4_000, 900, 10


def write_terminal(path: Path, svg: str) -> None:
    """Writes the picture of a terminal. It links to no other machine."""
    path.write_text(FONT.sub("", svg) + "\n", encoding="utf-8")


def recording() -> Console:
    """A console that prints, and keeps what it printed for `write_terminal`."""
    return Console(record=True, width=110)


def draw_top(path: Path) -> None:
    """Draws `livefactor top` beside a server whose models learn and are read."""
    from benchmarks.speed.ingest import serving_process
    from livefactor_server.cli.top import figures
    from livefactor_server.cli.top.screen import Top

    with serving_process(flags=("--metrics-port", "0")) as (ports, _):
        target, stopped = f"127.0.0.1:{ports[0]}", threading.Event()
        with Models(target) as models:
            for name in WORK:
                models.create(name, preset="clicks_sgd")
        workers = [threading.Thread(target=_work, args=(target, name, stopped)) for name in WORK]
        for worker in workers:
            worker.start()
        url = f"http://127.0.0.1:{ports[1]}/metrics"
        try:
            top = Top(lambda: figures.read(url), "http://127.0.0.1:50052/metrics", EVERY_S)
            write_terminal(path, asyncio.run(_screenshot(top)))
        finally:
            stopped.set()
            for worker in workers:
                worker.join()


def _work(target: str, model: str, stopped: threading.Event) -> None:
    """Pushes random events and asks for lists until `stopped` is set."""
    draw = np.random.default_rng(7)
    with Producer(target, "pictures", model=model) as producer, Scorer(target, model=model) as scorer:
        while not stopped.wait(0.02):
            count = WORK[model]
            producer.push(draw.integers(USERS, size=count), draw.integers(ITEMS, size=count)).result()
            for user in draw.integers(USERS, size=3).tolist():
                scorer.recommend(user, k=ASKED)


async def _screenshot(top: Top) -> str:
    async with top.run_test(size=TOP_SIZE) as pilot:
        await pilot.pause(READINGS * EVERY_S)
        svg = top.export_screenshot(title="livefactor top")
        await pilot.press("q")
    return svg
