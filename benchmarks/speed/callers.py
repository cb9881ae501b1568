"""Callers in a process of their own. `benchmarks.speed.calls` starts two such processes.

`python -m benchmarks.speed.callers` reads jobs from its standard input, one a line: a target, the
name of a call, the number of callers, and the seconds. It answers each job with a line of JSON: the
number of calls, the seconds, and the latency of each call in milliseconds.

A caller is a thread that makes one call after the other. All of a process share one connection. The
requests are encoded before the job starts, and the answers of reads are not decoded, so that the
client costs the same for each kind of call.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice
from typing import Any

import grpc
import numpy as np

from benchmarks.speed.plain_server import METHOD, SERVICE
from benchmarks.speed.streams import ITEMS, KEY_STEP, USERS, zipf_ids
from livefactor.channel import open_channel
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.scoring import encode_score

LIVE, LARGE, AUTO = "live", "large", "auto"
"""The models: one that learns, with `ITEMS` items, one with `LARGE_ITEMS` that only answers, and
one of preset `auto`, with `ITEMS` items and `AUTO_USERS` users of `AUTO_EVENTS` events each.
"""

AUTO_USERS, AUTO_EVENTS = 20_000, 8

LARGE_ITEMS = 100_000
CANDIDATES, TOP, STREAM_BATCH = 500, 100, 512
REQUESTS = 256
"""Number of different requests of a kind, which are sent in turn."""

STREAM_WINDOW = 64
"""Batches that the callers of a process send ahead of their answers, over all their streams."""

TIMEOUT_S = 60.0
SCORE = "/livefactor.v1.ScoringService/Score"
APPLY = "/livefactor.v1.UpdateService/ApplyUpdates"
STREAM = "/livefactor.v1.UpdateService/StreamUpdates"
METHODS = {
    "plain": f"/{SERVICE}/{METHOD}",
    "plain_loop": f"/{SERVICE}/{METHOD}",
    "score_1": SCORE,
    "score_500": SCORE,
    "top_100": SCORE,
    "update_1": APPLY,
    "update_16": APPLY,
    "stream_512": STREAM,
    "auto_500": SCORE,
    "auto_top_100": SCORE,
}
"""The calls: name -> method."""

CALLS = tuple(name for name in METHODS if not name.startswith(AUTO))
"""All but those of `AUTO`, which are made to servers with score workers alone."""


@cache
def requests_of(name: str) -> list[bytes]:
    """The requests of a call."""
    draw = np.random.default_rng(9)
    if name.startswith("plain"):
        return [bytes(100)]
    if METHODS[name] == SCORE:
        return [_score(name, draw) for _ in range(REQUESTS)]
    return [_update(int(name.split("_")[1]), draw) for _ in range(REQUESTS)]


def _score(name: str, draw: np.random.Generator) -> bytes:
    is_auto = name.startswith(AUTO)
    user = draw.integers(0, AUTO_USERS if is_auto else USERS, 1, np.uint64) * KEY_STEP
    if name.endswith("top_100"):
        return encode_score(AUTO if is_auto else LARGE, user, k=TOP)
    items = draw.integers(0, ITEMS, 1 if name == "score_1" else CANDIDATES, np.uint64) * KEY_STEP
    return encode_score(AUTO if is_auto else LIVE, user, candidates=items)


def _update(events: int, draw: np.random.Generator) -> bytes:
    body = wire.encode_interactions(
        zipf_ids(draw, events, USERS) * KEY_STEP,
        zipf_ids(draw, events, ITEMS) * KEY_STEP,
        draw.normal(3.5, 1.0, events).astype(np.float32),
    )
    return wire.encode_apply(LIVE, wire.Stamp("", 0, 0), wire.INTERACTIONS, body)


def _unary(channel: grpc.Channel, name: str, number: int) -> Iterator[float]:
    """Makes calls, and yields the latency of each one in milliseconds."""
    call, requests = channel.unary_unary(METHODS[name]), requests_of(name)
    for request in islice(cycle(requests), number % len(requests), None):
        started = time.perf_counter()
        call(request, timeout=TIMEOUT_S)
        yield (time.perf_counter() - started) * 1e3


def _streamed(channel: grpc.Channel, name: str, number: int, window: int) -> Iterator[float]:
    """Sends batches on a stream, and yields the latency of each one in milliseconds."""
    room, sent_at, over = threading.Semaphore(window), deque[float](), threading.Event()

    def batches() -> Iterator[bytes]:
        requests = requests_of(name)
        for request in islice(cycle(requests), number % len(requests), None):
            room.acquire()
            if over.is_set():
                return
            sent_at.append(time.perf_counter())
            yield request

    try:
        for raw in channel.stream_stream(METHODS[name])(batches()):
            now = time.perf_counter()
            for answer in updates_pb2.StreamUpdatesResponse.FromString(raw).answers:
                assert answer.response.accepted == STREAM_BATCH, answer
                room.release()
                yield (now - sent_at.popleft()) * 1e3
    finally:
        over.set()
        room.release()


def run(channel: grpc.Channel, name: str, callers: int, seconds: float) -> dict[str, Any]:
    """Runs a job."""
    requests_of(name)
    latencies: list[list[float]] = [[] for _ in range(callers)]
    failures: list[Exception] = []
    started = time.perf_counter()

    def caller(number: int) -> None:
        first = number * REQUESTS // callers
        if METHODS[name] == STREAM:
            calls = _streamed(channel, name, first, max(1, STREAM_WINDOW // callers))
        else:
            calls = _unary(channel, name, first)
        try:
            for latency in calls:
                latencies[number].append(latency)
                if time.perf_counter() - started > seconds:
                    return
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    taken = [latency for own in latencies for latency in own]
    return {"calls": len(taken), "seconds": time.perf_counter() - started, "ms": taken}


def main() -> None:
    """Runs jobs until the standard input ends."""
    channels: dict[str, grpc.Channel] = {}
    for line in sys.stdin:
        target, name, callers, seconds = line.split()
        if target not in channels:
            channels[target] = open_channel(target)
        print(json.dumps(run(channels[target], name, int(callers), float(seconds))), flush=True)


if __name__ == "__main__":
    main()
