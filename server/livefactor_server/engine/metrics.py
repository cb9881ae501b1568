"""The Prometheus metrics of a model's engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from prometheus_client import Counter, Gauge, Histogram

from livefactor_server.changes.interactions import InteractionsChange
from livefactor_server.engine.submission import Submission
from livefactor_server.judging.observer import Observer
from livefactor_server.judging.prometheus import JUDGES
from livefactor_server.log.store import Log
from livefactor_server.model.state import ModelState

_TABLES = ("users", "items")

REPLAY_RECORD_S = 10e-6
"""Seconds that a restart takes to read, verify and decode a small record, at most."""
_PARTS = (
    *_TABLES, "labels", "marks", "producers", "judge", "promotion", "sightings", "touches", "embeddings",
    "features", "context",
)  # fmt: skip
"""The parts whose memory is reported (`Engine.memory_bytes`). A model may lack some of them."""
_LATENCY_BUCKETS = (*(0.0005 * 2**power for power in range(11)), 1.0, 2.0, 5.0)

EVENTS = Counter("livefactor_events", "Interactions applied.", ["model"])
REJECTED = Counter("livefactor_rejected_rows", "Rows rejected in batches that were applied.", ["model"])
PACED = Counter(
    "livefactor_paced_batches",
    "Times that a batch had to wait, or was refused, because its producer sent rows too fast.",
    ["model"],
)
BATCHES = Counter("livefactor_batches", "Batches applied.", ["model"])
REVISION = Gauge("livefactor_revision", "Published revision.", ["model"])
LOG_LAG = Gauge("livefactor_log_lag_records", "Records that are durable but not yet applied.", ["model"])
QUEUE = Gauge("livefactor_queue_bytes", "Bytes of batches that wait for the log.", ["model"])
PROMOTION_LAG = Gauge(
    "livefactor_promotion_lag_records",
    "Records that the state with the promoted spec has not learned yet, 0 without a promotion.",
    ["model"],
)
SWITCHES = Counter("livefactor_switches", "Switches of the spec since the start.", ["model"])
DAMAGED = Gauge(
    "livefactor_log_damaged", "1 if a segment that a start did not read turned out to be damaged.", ["model"]
)
LOG_BYTES = Gauge("livefactor_log_bytes", "Bytes of the log on disk.", ["model"])
MEMORY = Gauge(
    "livefactor_memory_bytes",
    "Bytes of memory of a part of the model: used rows with their key map, or state beside them.",
    ["model", "table"],
)
ROWS = Gauge("livefactor_rows", "Published rows.", ["model", "table"])
APPLY_LATENCY = Histogram(
    "livefactor_apply_latency_seconds",
    "Time from the decoded batch to its acknowledgement.",
    ["model"],
    buckets=_LATENCY_BUCKETS,
)
COMMIT_TIME = Counter(
    "livefactor_commit_seconds",
    "Time that a step of the commits took: append (write and sync), place (keys to rows), apply.",
    ["model", "step"],
)
EVICTED = Counter(
    "livefactor_evicted_rows",
    "Rows that left because no event had touched them for long.",
    ["model", "table"],
)
WAITING = Gauge("livefactor_quarantine_batches", "Batches that wait in quarantine.", ["model"])
WAITING_BYTES = Gauge(
    "livefactor_quarantine_bytes", "Bytes of the batches that wait in quarantine, in the log.", ["model"]
)
WRITABLE = Gauge(
    "livefactor_writable", "1 while the model accepts updates, 0 after a failed sync.", ["model"]
)


class Arrival(NamedTuple):
    """The last applied batch of a producer.

    Attributes:
        time_us: when it arrived, microseconds since the epoch.
        event_time_us: the time of its last event, 0 if the batch has none.
        rejected: rows that were rejected since the start of the server.
    """

    time_us: int
    event_time_us: int
    rejected: int


class Arrivals:
    """The last arrival of each producer since the start of the server. It is no part of the state.

    The APPLY stage writes, and any thread reads.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, Arrival] = {}

    def note(self, applied: Sequence[Submission]) -> None:
        """Takes batches that were applied."""
        last = self._last
        for batch in applied:
            if not batch.producer or batch.change.opens_producer:
                continue
            before = last.get(batch.producer)
            event_time_us = before.event_time_us if before is not None else 0
            if isinstance(batch.change, InteractionsChange):
                times = batch.change.columns.times_us
                # The last row stands for all, because a search in every batch would cost too much.
                event_time_us = int(times[-1]) if times is not None and len(times) else 0
            rejected = batch.rejects.count + (before.rejected if before is not None else 0)
            last[batch.producer] = Arrival(batch.time_us, event_time_us, rejected)

    def of(self, producer: bytes) -> Arrival | None:
        """The last arrival of a producer, None if nothing came since the start of the server."""
        return self._last.get(producer)


class EngineMetrics:
    """The metrics of one model.

    Gauges are read from the engine at each scrape, so that the hot path only counts.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._events = EVENTS.labels(model)
        self._batches = BATCHES.labels(model)
        self._rejected = REJECTED.labels(model)
        self._latency = APPLY_LATENCY.labels(model)
        self._append, self._place, self._apply = (
            COMMIT_TIME.labels(model, step) for step in ("append", "place", "apply")
        )
        self._switches = SWITCHES.labels(model)
        self.arrivals = Arrivals()
        # Estimated time that a replay of all records applied since the start would take.
        self.replay_s = 0.0
        self._learned = self._learned_s = 0.0
        DAMAGED.labels(model).set(0)

    def observe_apply(self, records: int, seconds: float) -> None:
        """Counts a run of `records` records whose application took `seconds`."""
        self._apply.inc(seconds)
        self._learned_s += seconds
        self.replay_s += records * REPLAY_RECORD_S + seconds

    @property
    def learned(self) -> tuple[float, float]:
        """Events that were learned since the start, and the seconds that it took."""
        return self._learned, self._learned_s

    def observe_switch(self) -> None:
        """Counts a switch of the spec."""
        self._switches.inc()

    def observe_eviction(self, users: int, items: int) -> None:
        """Counts the rows of an eviction."""
        for table, rows in zip(_TABLES, (users, items), strict=True):
            EVICTED.labels(self._model, table).inc(rows)

    def observe_append(self, seconds: float) -> None:
        """Counts a group whose write and sync took `seconds`."""
        self._append.inc(seconds)

    def observe_place(self, seconds: float) -> None:
        """Counts a group whose keys became rows in `seconds`."""
        self._place.inc(seconds)

    def observe_damage(self) -> None:
        """Reports damage to an earlier segment of the log."""
        DAMAGED.labels(self._model).set(1)

    def watch(
        self,
        state: Callable[[], ModelState],
        log: Log,
        observer: Observer,
        memory_bytes: Callable[[], dict[str, int]],
        promotion_lag: Callable[[], int],
        queued_bytes: Callable[[], int],
        is_writable: Callable[[], bool],
    ) -> None:
        """Connects the gauges to the parts of a running engine."""
        model = self._model
        REVISION.labels(model).set_function(lambda: state().revision)
        LOG_LAG.labels(model).set_function(lambda: log.last_revision - state().revision)
        PROMOTION_LAG.labels(model).set_function(promotion_lag)
        QUEUE.labels(model).set_function(queued_bytes)
        LOG_BYTES.labels(model).set_function(lambda: log.size_bytes)
        WAITING.labels(model).set_function(lambda: len(state().quarantine))
        WAITING_BYTES.labels(model).set_function(lambda: state().quarantine.body_bytes)
        WRITABLE.labels(model).set_function(lambda: float(is_writable()))
        JUDGES.watch(model, observer.report, lambda: observer.hold is not None)
        for part in _PARTS:
            MEMORY.labels(model, part).set_function(partial(_memory_of, memory_bytes, part))
        for side, table in enumerate(_TABLES):
            ROWS.labels(model, table).set_function(partial(_rows_of, state, side))

    def observe(self, applied: Sequence[Submission], now: float) -> None:
        """Counts applied batches.

        `now` is the time of their acknowledgement, in seconds of `time.perf_counter`.
        """
        self._batches.inc(len(applied))
        events = sum(item.change.rows for item in applied if item.change.has_events)
        self._events.inc(events)
        self._learned += events
        rejected = sum(item.rejects.count for item in applied)
        if rejected:
            self._rejected.inc(rejected)
        for item in applied:
            self._latency.observe(now - item.started)

    def close(self) -> None:
        """Removes the gauges of the model, so that they do not keep its tables in memory."""
        JUDGES.forget(self._model)
        for gauge in (
            REVISION,
            LOG_LAG,
            PROMOTION_LAG,
            QUEUE,
            LOG_BYTES,
            DAMAGED,
            WAITING,
            WAITING_BYTES,
            WRITABLE,
        ):
            gauge.remove(self._model)
        for part in _PARTS:
            MEMORY.remove(self._model, part)
        for table in _TABLES:
            ROWS.remove(self._model, table)


def _memory_of(memory_bytes: Callable[[], dict[str, int]], part: str) -> float:
    return memory_bytes().get(part, 0)


def _rows_of(state: Callable[[], ModelState], side: int) -> float:
    return state().backend.published[side]
