"""The asyncio client beside the blocking one: `python -m benchmarks.speed.asynchronous`.

A process asks one server for the scores of 500 candidates: with threads that share a `Scorer`, and
with as many tasks of one event loop that share an `AsyncScorer`. 32 calls are in flight, and in a
third run 1,000, of the loop alone. All runs take turns. Figures are medians of calls per second and
of the client's CPU time a call.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np

from benchmarks.speed.callers import CANDIDATES, LIVE
from benchmarks.speed.ingest import serving
from benchmarks.speed.latency import fill
from benchmarks.speed.streams import ITEMS, KEY_STEP
from livefactor import Scorer
from livefactor.aio import AsyncScorer

CALLERS, MANY = 32, 1000
ROUNDS, SECONDS = 5, 4.0
TIMEOUT_S = 60.0
Figures = tuple[float, float]


def _candidates() -> np.ndarray:
    return np.random.default_rng(9).integers(0, ITEMS, CANDIDATES, np.uint64) * KEY_STEP


def _threads(target: str, callers: int, seconds: float) -> int:
    """The number of calls that threads make."""
    items, made, until = _candidates(), itertools.count(), time.perf_counter() + seconds
    with Scorer(target, model=LIVE, timeout=TIMEOUT_S) as scorer:

        def caller(user: int) -> None:
            while time.perf_counter() < until:
                scorer.score(user, items)
                next(made)

        threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return next(made)


def _tasks(target: str, callers: int, seconds: float) -> int:
    """The number of calls that tasks of an event loop make."""
    items, made, until = _candidates(), itertools.count(), time.perf_counter() + seconds

    async def run() -> None:
        async with AsyncScorer(target, model=LIVE, timeout=TIMEOUT_S) as scorer:

            async def caller(user: int) -> None:
                while time.perf_counter() < until:
                    await scorer.score(user, items)
                    next(made)

            await asyncio.gather(*map(caller, range(callers)))

    asyncio.run(run())
    return next(made)


def _figures(run: Callable[[], int]) -> Figures:
    """Calls per second, and microseconds of CPU time a call in this process."""
    started, cpu = time.perf_counter(), time.process_time()
    calls = run()
    return calls / (time.perf_counter() - started), (time.process_time() - cpu) / calls * 1e6


def measure(rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, float]:
    """Flat figures: calls per second, microseconds of CPU time, and their ratios."""
    taken: dict[str, list[Figures]] = {}
    with serving() as target:
        fill(target, LIVE, ITEMS)
        runs = {
            "threads_32": lambda: _threads(target, CALLERS, seconds),
            "loop_32": lambda: _tasks(target, CALLERS, seconds),
            "loop_1000": lambda: _tasks(target, MANY, seconds),
        }
        for number in range(rounds + 1):
            for name, run in runs.items():
                figures = _figures(run)
                # The first round warms up.
                if number:
                    taken.setdefault(name, []).append(figures)
    figures = {}
    for name, pairs in taken.items():
        figures[f"client_{name}_per_s"] = statistics.median(rate for rate, _ in pairs)
        figures[f"client_{name}_cpu_us"] = statistics.median(cpu for _, cpu in pairs)
    for name in ("loop_32", "loop_1000"):
        figures[f"ratio_client_{name}_to_threads"] = statistics.median(
            own / other for (own, _), (other, _) in zip(taken[name], taken["threads_32"], strict=True)
        )
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
