"""Latency of Score calls, and the time until an event is visible: `python -m
benchmarks.speed.latency`.

A server runs in a separate process with k = 64 and 100 thousand users. This process makes one call
at a time: 500 random candidates, and the best 100 items from models with 100 thousand and with a
million items. They take turns with faiss's exact `IndexFlatIP` (in process, one thread, inner
products only).

Freshness is measured on the model of the ingest benchmark (20 thousand items). It is the time from
sending one event to the answer of a Score that waits for the position of its ack. An ack means
durable and visible. This takes two calls, so that two empty calls (health checks, measured with
them) are the lower limit of gRPC.

Each figure is measured idle and loaded. For "loaded", a producer in a third process pushes at half
of its peak rate on that model in this run, in batches of 8,192 ("64k": 65,536). Idle and loaded
blocks take turns, and quantiles are over all blocks.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.speed import paced
from benchmarks.speed.ingest import serving
from benchmarks.speed.streams import ITEMS, KEY_STEP, USERS, K
from livefactor import Models, Position, Producer, Scorer
from livefactor.channel import open_channel
from livefactor.position import position_of
from livefactor.pushing.batching import BatchSettings
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire

try:
    import faiss
except ImportError:
    faiss = None

SIZES = {"100k": 100_000, "1m": 1_000_000}
CANDIDATES, TOP = 500, 100
BATCH, BATCH_64K = 8_192, 65_536
LOAD_SHARE = 0.5
PAUSE_MAX_S = 0.004
"""Maximum random pause of a probe, so that it meets the load at any phase."""

Times = defaultdict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Samples:
    """The number of samples in each of `rounds` idle and loaded blocks."""

    rounds: int = 3
    scores: int = 500
    recommends: dict[str, int] | None = None
    events: int = 700
    peak_s: float = 3.0

    def recommends_of(self, size: str) -> int:
        """Number of top-k calls on the model of that size."""
        return (self.recommends or {"100k": 150, "1m": 60})[size]


QUICK = Samples(1, 200, {"100k": 60, "1m": 20}, 200, 1.5)


class Clock:
    """Times calls, and collects milliseconds by name."""

    def __init__(self) -> None:
        self.times: Times = defaultdict(list)

    def take(self, name: str, call: Callable[[], Any]) -> Any:
        """Times a call and returns its result."""
        started = time.perf_counter()
        result = call()
        self.times[name].append((time.perf_counter() - started) * 1e3)
        return result

    def quantiles(self) -> dict[str, float]:
        """p50 and p99 of each name in milliseconds."""
        return {
            f"{name}_p{percent}_ms": float(np.percentile(values, percent))
            for name, values in self.times.items()
            for percent in (50, 99)
        }


def fill(target: str, model: str, items: int) -> None:
    """Makes a model with k = 64 that knows all users, and all items from one event each."""
    with Models(target) as models:
        models.create(model, "ratings_sgd", k=K)
    keys = np.arange(max(USERS, items), dtype=np.uint64)
    values = np.random.default_rng(items).normal(3.5, 1.0, keys.size).astype(np.float32)
    settings = BatchSettings(events_max=BATCH_64K, latency_ms_max=None)
    with Producer(target, "fill", model=model, batch=settings) as producer:
        for start in range(0, keys.size, BATCH_64K):
            part = slice(start, start + BATCH_64K)
            producer.push(keys[part] % USERS * KEY_STEP, keys[part] % items * KEY_STEP, values[part])
        producer.flush(60)


def faiss_index(items: int) -> Any:
    """An index of random vectors for `items` items; None if faiss is not installed."""
    if faiss is None:
        return None
    faiss.omp_set_num_threads(1)
    index, generator = faiss.IndexFlatIP(K), np.random.default_rng(items)
    for start in range(0, items, 1 << 17):
        index.add(generator.standard_normal((min(1 << 17, items - start), K), dtype=np.float32))
    return index


class Reads:
    """Score calls on one model, in turns with faiss."""

    def __init__(self, target: str, size: str) -> None:
        self.size, self.items = size, SIZES[size]
        self.scorer = Scorer(target, model=f"items_{size}", timeout=60)
        self.index = faiss_index(self.items)
        self._generator = np.random.default_rng(5)

    def block(self, clock: Clock, suffix: str, scores: int, recommends: int) -> None:
        """Makes calls one after the other. `suffix` is "" or "_loaded"."""
        draw = self._generator
        for _ in range(scores):
            user = draw.integers(0, USERS, 1, np.uint64) * KEY_STEP
            candidates = draw.integers(0, self.items, CANDIDATES, np.uint64) * KEY_STEP
            answer = clock.take(
                f"score_{CANDIDATES}{suffix}", lambda u=user, c=candidates: self.scorer.score(u, c)
            )
            assert len(answer[0]) == CANDIDATES and answer.item_known.all()
        name = f"{TOP}_of_{self.size}"
        for _ in range(recommends):
            user = draw.integers(0, USERS, 1, np.uint64) * KEY_STEP
            answer = clock.take(f"recommend_{name}{suffix}", lambda u=user: self.scorer.recommend(u, TOP))
            assert len(answer[0]) == TOP
            if self.index is not None:
                query = draw.standard_normal((1, K), dtype=np.float32)
                clock.take(f"faiss_{name}{suffix}", lambda q=query: self.index.search(q, TOP))


def measure_reads(target: str, size: str, samples: Samples) -> dict[str, float]:
    """Figures of one model, idle and loaded. Only the larger model gets candidates."""
    model, items = f"items_{size}", SIZES[size]
    fill(target, model, items)
    reads, clock = Reads(target, size), Clock()
    scores, recommends = samples.scores if size == "1m" else 0, samples.recommends_of(size)
    # The first block warms up.
    reads.block(Clock(), "", min(scores, 50), 5)
    peak = paced.peak(target, model, BATCH, items, samples.peak_s)
    carried = []
    for _ in range(samples.rounds):
        reads.block(clock, "", scores, recommends)
        with paced.running(target, model, LOAD_SHARE * peak, BATCH, items) as load:
            reads.block(clock, "_loaded", scores, recommends)
        carried.append(load.rate / peak)
    reads.scorer.close()
    figures = clock.quantiles()
    for suffix in ("", "_loaded") if reads.index is not None else ():
        ours, theirs = (figures[f"{name}_{TOP}_of_{size}{suffix}_p50_ms"] for name in ("recommend", "faiss"))
        figures[f"recommend_{TOP}_of_{size}{suffix}_ratio_to_faiss"] = theirs / ours
    return figures | {
        f"reads_{size}_peak_events_per_s": peak,
        f"reads_{size}_load_share_of_peak": float(np.median(carried)),
    }


class Probe:
    """Sends single events, and asks for Scores that must include them."""

    def __init__(self, target: str, model: str) -> None:
        self.model = model
        self.scorer = Scorer(target, model=model)
        self.producer = Producer(target, "probe", model=model, batch=BatchSettings(latency_ms_max=0.0))
        self.channel = open_channel(target)
        self._apply = self.channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
        self._check = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        self._generator = np.random.default_rng(6)

    def block(self, clock: Clock, suffix: str, events: int) -> None:
        """Sends events one after the other, each at a random time, by stream and by unary call in
        turns.
        """
        for number in range(events):
            time.sleep(self._generator.uniform(0.0, PAUSE_MAX_S))
            clock.take(f"empty_call{suffix}", lambda: self._check(b"", timeout=60))
            time.sleep(self._generator.uniform(0.0, PAUSE_MAX_S))
            user = self._generator.integers(0, USERS, 1, np.uint64) * KEY_STEP
            item = self._generator.integers(0, ITEMS, 1, np.uint64) * KEY_STEP
            send, way = ((self._stream, ""), (self._unary, "_unary"))[number % 2]
            started = time.perf_counter()
            position = send(user, item)
            acked = time.perf_counter()
            answer = self.scorer.score(user, item, min_position=position)
            done = time.perf_counter()
            assert answer.position.lineage == position.lineage
            assert answer.position.revision >= position.revision
            clock.times[f"ack{way}{suffix}"].append((acked - started) * 1e3)
            clock.times[f"freshness{way}{suffix}"].append((done - started) * 1e3)

    def _stream(self, user: np.ndarray, item: np.ndarray) -> Position:
        return self.producer.push(user, item, 4.0).result(60).position

    def _unary(self, user: np.ndarray, item: np.ndarray) -> Position:
        body = wire.encode_interactions(user, item, np.array([4.0], np.float32))
        request = wire.encode_apply(self.model, wire.Stamp("", 0, 0), wire.INTERACTIONS, body)
        answer = updates_pb2.ApplyUpdatesResponse.FromString(self._apply(request, timeout=60))
        assert answer.accepted == 1
        return position_of(answer.position)

    def close(self) -> None:
        """Closes all connections."""
        self.producer.close()
        self.scorer.close()
        self.channel.close()


def measure_freshness(target: str, samples: Samples) -> dict[str, float]:
    """Freshness, idle and at half of the peak load.

    Names without a suffix have batches of 8,192.
    """
    model = "live"
    fill(target, model, ITEMS)
    probe, clock = Probe(target, model), Clock()
    # The first block warms up.
    probe.block(Clock(), "", 100)
    peaks = {size: paced.peak(target, model, size, ITEMS, samples.peak_s) for size in (BATCH, BATCH_64K)}
    carried: dict[int, list[float]] = {size: [] for size in peaks}
    for _ in range(samples.rounds):
        probe.block(clock, "_quiet", samples.events)
        for size, suffix in ((BATCH, ""), (BATCH_64K, "_64k")):
            with paced.running(target, model, LOAD_SHARE * peaks[size], size, ITEMS) as load:
                probe.block(clock, suffix, samples.events)
            carried[size].append(load.rate / peaks[size])
    probe.close()
    figures = clock.quantiles()
    limits = {
        f"ratio_freshness{suffix}_to_two_empty_calls": figures[f"freshness{suffix}_p50_ms"]
        / (2 * figures[f"empty_call{suffix}_p50_ms"])
        for suffix in ("", "_quiet")
    }
    return (
        figures
        | limits
        | {
            "freshness_peak_events_per_s": peaks[BATCH],
            "freshness_64k_peak_events_per_s": peaks[BATCH_64K],
            "freshness_load_share_of_peak": float(np.median(carried[BATCH])),
            "freshness_64k_load_share_of_peak": float(np.median(carried[BATCH_64K])),
        }
    )


def measure(samples: Samples | None = None) -> dict[str, float]:
    """All figures, flat: milliseconds, events per second, and speed ratios (over 1: faster than
    faiss).
    """
    samples = samples or Samples()
    with serving() as target:
        figures = measure_freshness(target, samples)
    for size in SIZES:
        with serving() as target:
            figures |= measure_reads(target, size, samples)
    return figures


if __name__ == "__main__":
    if faiss is None:
        print("faiss is not installed: its figures and ratios are missing")
    print(json.dumps(measure(), indent=1))
