"""A server at its peak for minutes, while clients come and go, or read nothing, or say nothing.

It restarts meanwhile. Nothing acknowledged is lost, and memory, files and threads stay as they are.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import psutil

from livefactor.errors import LivefactorError
from livefactor.scorer import Scorer
from livefactor.v1 import scoring_pb2, updates_pb2
from load import MODEL, Findings, Load, create_model
from server_process import Server

Serve = Callable[..., Server]
SECONDS_LONG, CLIENTS_LONG = float(os.environ.get("BATTLE_SOAK_S", "1800")), 500
SECONDS, CLIENTS = 3.0, 20
SLOPE_MAX = 60.0
"""MB an hour. An hour of this load adds no row, so only noise is left."""

ANSWERS = scoring_pb2.ScoreRequest(model=MODEL, user_ids=range(50), top_k=scoring_pb2.TopK(k=10))


class Crowd:
    """Clients beside the producers: some come and go, some read nothing, some are half open."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self.errors: list[Exception] = []
        self.calls = 0
        kinds = (self._come_and_go, self._come_and_go, self._read_nothing, self._say_nothing)
        self._threads = [threading.Thread(target=self._until_stopped, args=(kind,)) for kind in kinds]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _until_stopped(self, kind: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                kind()
            except (LivefactorError, grpc.RpcError, OSError):
                # The server restarts.
                self._stop.wait(0.2)
            except Exception as error:
                self.errors.append(error)

    def _come_and_go(self) -> None:
        with self._server.channel() as channel, Scorer(channel, model=MODEL) as scorer:
            for user in range(5):
                scorer.recommend(user, 10)
                self.calls += 1

    def _read_nothing(self) -> None:
        """Send batches on streams whose answers nobody reads, and leave."""
        rows = updates_pb2.StreamUpdatesRequest(
            model=MODEL, interactions=updates_pb2.Interactions(user_ids=[1] * 50, item_ids=[1] * 50)
        )
        del rows.interactions.user_ids[:]

        def empty() -> Iterator[Any]:
            for _ in range(200):
                yield rows.SerializeToString()

        with self._server.channel() as channel:
            call = channel.stream_stream("/livefactor.v1.UpdateService/StreamUpdates")(empty(), timeout=5)
            self._stop.wait(0.5)
            call.cancel()

    def _say_nothing(self) -> None:
        with ExitStack() as stack:
            for _ in range(10):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", self._server.port), 5))
                if random.random() < 0.5:
                    one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            self._stop.wait(0.5)


def many_clients(server: Server, count: int) -> int:
    """Call once on each of `count` connections at the same time, and count the answers."""
    path = "/livefactor.v1.ScoringService/Score"
    with ExitStack() as stack:
        channels = [stack.enter_context(server.channel()) for _ in range(count)]
        raw = ANSWERS.SerializeToString()
        calls = [channel.unary_unary(path).future(raw, timeout=120) for channel in channels]
        return sum(call.exception() is None for call in calls)


def slope(times: list[float], values: list[float]) -> float:
    """The slope of a line through the points after the first third."""
    first = len(times) // 3
    return float(np.polyfit(times[first:], values[first:], 1)[0])


def watch(server: Server, seconds: float) -> tuple[list[float], list[float], list[int], list[int]]:
    """Look at the process for some seconds. Return times, megabytes, files and threads."""
    process, until = psutil.Process(server.pid), time.monotonic() + seconds
    times, megabytes, files, threads = [], [], [], []
    while time.monotonic() < until:
        times.append(time.monotonic())
        megabytes.append(process.memory_info().rss / 1e6)
        files.append(process.num_fds())
        threads.append(process.num_threads())
        time.sleep(min(1.0, seconds / 20))
    return times, megabytes, files, threads


def test_a_crowd_for_minutes(serve: Serve, is_long: bool, record: Callable[..., None]) -> None:
    server = serve("--auto-cpu-share", "0", "--snapshot-every-events", "200000")
    create_model(server, "clicks_sgd")
    load, findings = Load(server, seed=1, producers=3), Findings()
    load.start()
    load.wait_for_acks()
    with Crowd(server) as crowd:
        # A restart by a kill and one by a drain while all this goes on.
        for end in (server.kill, server.stop):
            time.sleep(1.0)
            end()
            server.start()
            load.wait_for_acks(60)
        clients = CLIENTS_LONG if is_long else CLIENTS
        answered = many_clients(server, clients)
        times, megabytes, files, threads = watch(server, SECONDS_LONG if is_long else SECONDS)
    load.finish(120)
    assert crowd.errors == [] and load.errors == []
    findings.add_log(server.model_folder(MODEL), load)
    per_hour = 3600 * slope(times, megabytes)
    print(f"{findings.acked} acks, {crowd.calls} calls, {per_hour:.1f} MB/h, {max(files)} files")
    third = len(files) // 3
    assert findings.sound, findings
    assert answered == clients
    assert max(files[-third:]) <= max(files[:third]) + 50
    assert max(threads[-third:]) <= max(threads[:third]) + 10
    if is_long:
        record(acked_lost=findings.lost, acked=findings.acked, soak_memory_slope_mb_per_hour=round(per_hour, 1),
               soak_seconds=SECONDS_LONG, soak_clients_answered_share=answered / clients)  # fmt: skip
        assert per_hour <= SLOPE_MAX
