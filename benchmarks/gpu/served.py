"""Figures of a GPU server over a Unix-domain socket: throughput, device load, and Score latency
under full ingest.

Client and server share one process and its GIL. Separate processes would carry more.
"""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.figures import Figures, zipf_rows
from livefactor import BatchSettings, Models, Producer, Scorer
from livefactor.channel import open_channel
from livefactor_kernels.cuda import CudaModel
from livefactor_server.rpc.embedded import EmbeddedServer

KEY_STEP = np.uint64(0x9E3779B97F4A7C15)
"""Spreads small numbers over all 64-bit keys."""


@dataclass(frozen=True, slots=True)
class Load:
    """The load.

    Attributes:
        users, items: numbers of distinct keys.
        batch: events per batch.
        batches: number of distinct batches.
        micro_batch: micro-batch size of the model.
        candidates: candidates per Score call.
        waiting: maximum number of batches that wait in the producer.
        seconds: duration of each measurement.
    """

    users: int = 1_000_000
    items: int = 100_000
    batch: int = 65_536
    batches: int = 16
    micro_batch: int = 16_384
    candidates: int = 500
    waiting: int = 16
    seconds: float = 8.0

    def columns(self) -> list[tuple[np.ndarray, ...]]:
        """The batches, each with user keys, item keys and values."""
        generator = np.random.default_rng(3)
        return [
            (
                generator.integers(0, self.users, self.batch).astype(np.uint64) * KEY_STEP,
                zipf_rows(generator, self.batch, self.items).astype(np.uint64) * KEY_STEP,
                generator.normal(3.5, 1.0, self.batch).astype(np.float32),
            )
            for _ in range(self.batches)
        ]


class Busy:
    """Measures the device time of updates in seconds, by events around each on its stream."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._pairs: list[tuple[Any, Any]] = []
        self._usual = CudaModel._put_on_stream

    def __enter__(self) -> Busy:
        xp, pairs, usual = self._xp, self._pairs, self._usual

        def timed(model: CudaModel, *arguments: Any) -> None:
            started, done = xp.cuda.Event(), xp.cuda.Event()
            with model.device.working() as stream:
                started.record(stream)
                usual(model, *arguments)
                done.record(stream)
            pairs.append((started, done))

        CudaModel._put_on_stream = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        CudaModel._put_on_stream = self._usual  # type: ignore[method-assign]

    def seconds(self) -> float:
        """The device time of all updates so far. It waits for the last one."""
        pairs = list(self._pairs)
        if pairs:
            pairs[-1][1].synchronize()
        return float(sum(self._xp.cuda.get_elapsed_time(*pair) for pair in pairs)) / 1e3


def measure(xp: Any, load: Load = Load()) -> Figures:
    """Streams batches, first alone and then together with Score calls. `xp` is CuPy."""
    columns = load.columns()
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer("ratings_sgd", Path(folder) / "data", backend="cuda")
        channel = open_channel(server.target)
        try:
            Models(channel=channel).create("bench", preset="ratings_sgd", k=64, micro_batch=load.micro_batch)
            options: dict[str, Any] = {
                "model": "bench",
                "producer_id": "bench",
                "channel": channel,
                "batch": BatchSettings(events_max=load.batch),
                "buffer_events_max": load.waiting * load.batch,
            }
            with (
                Busy(xp) as busy,
                Producer(**options) as producer,
            ):
                # The first batches grow the tables and warm up.
                _push(producer, columns, load.seconds / 4)
                wire = _alone(producer, columns, busy, load.seconds)
                scorer = Scorer(model="bench", channel=channel)
                times = _scores_under_ingest(producer, scorer, columns, load)
        finally:
            channel.close()
            server.stop()
    name = f"gpu_score_{load.candidates}_ingest"
    return wire | {
        f"{name}_p50_ms": float(np.quantile(times, 0.5)),
        f"{name}_p99_ms": float(np.quantile(times, 0.99)),
    }


def _alone(producer: Producer, columns: list[tuple[np.ndarray, ...]], busy: Busy, seconds: float) -> Figures:
    before, started = busy.seconds(), time.perf_counter()
    events = _push(producer, columns, seconds)
    wall = time.perf_counter() - started
    return {"gpu_wire_events_per_s": events / wall, "gpu_device_busy_share": (busy.seconds() - before) / wall}


def _push(producer: Producer, columns: list[tuple[np.ndarray, ...]], seconds: float) -> int:
    """Pushes whole batches for `seconds`, waits for their acks, and returns the event count."""
    end, number = time.perf_counter() + seconds, 0
    while number == 0 or time.perf_counter() < end:
        users, items, values = columns[number % len(columns)]
        producer.push(users, items, values)
        number += 1
    producer.flush()
    return number * columns[0][0].size


def _scores_under_ingest(
    producer: Producer, scorer: Scorer, columns: list[tuple[np.ndarray, ...]], load: Load
) -> list[float]:
    """Milliseconds of each Score call while the producer pushes at full speed."""
    stop = threading.Event()

    def push() -> None:
        while not stop.is_set():
            _push(producer, columns, load.seconds / 8)

    pusher = threading.Thread(target=push)
    pusher.start()
    times, end, generator = [], time.perf_counter() + load.seconds, np.random.default_rng(4)
    while not times or time.perf_counter() < end:
        users, items, _ = columns[int(generator.integers(len(columns)))]
        at = int(generator.integers(load.batch - load.candidates + 1))
        started = time.perf_counter()
        scorer.score(users[at : at + 1], items[at : at + load.candidates], timeout=60.0)
        times.append((time.perf_counter() - started) * 1e3)
    stop.set()
    pusher.join()
    return times
