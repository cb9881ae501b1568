"""The Prometheus metrics. `METRICS` lists their names; docs/operations.md explains each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from livefactor_server.changes import InteractionsChange

if TYPE_CHECKING:
    from livefactor_server.engine.engine import Engine
    from livefactor_server.engine.submission import Submission
    from livefactor_server.judging.observer import Observer
    from livefactor_server.model.state import ModelState

_LATENCY_BUCKETS = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.128,
    0.256,
    0.512,
    1.0,
    2.0,
    5.0,
)

EVENTS = Counter("livefactor_events", "Interactions applied.", ["model"])
REJECTED = Counter("livefactor_rejected_rows", "Rows rejected in batches that were applied.", ["model"])
BATCHES = Counter("livefactor_batches", "Batches applied.", ["model"])
REVISION = Gauge("livefactor_revision", "Published revision.", ["model"])
LOG_LAG = Gauge("livefactor_log_lag_records", "Records that are durable but not yet applied.", ["model"])
QUEUE = Gauge("livefactor_queue_bytes", "Bytes of batches that wait for the log.", ["model"])
LOG_BYTES = Gauge("livefactor_log_bytes", "Bytes of the log on disk.", ["model"])
MEMORY = Gauge("livefactor_memory_bytes", "Bytes of used rows and key maps.", ["model", "table"])
ROWS = Gauge("livefactor_rows", "Published rows.", ["model", "table"])
APPLY_LATENCY = Histogram(
    "livefactor_apply_latency_seconds",
    "Time from the decoded batch to its acknowledgement.",
    ["model"],
    buckets=_LATENCY_BUCKETS,
)
SCORE_LATENCY = Histogram(
    "livefactor_score_latency_seconds", "Server time of a Score call.", ["model"], buckets=_LATENCY_BUCKETS
)
REFUSED = Counter("livefactor_refused_calls", "Calls answered with a status other than OK.", ["code"])
WRITABLE = Gauge(
    "livefactor_writable", "1 while the model accepts updates, 0 after a failed sync.", ["model"]
)
DRIFTS = Counter(
    "livefactor_drifts", "Changes that ADWIN found in the judged metrics.", ["model", "metric", "direction"]
)
WARNINGS = Counter("livefactor_judge_warnings", "Violations of the judge's bounds.", ["model", "kind"])
HELD = Gauge("livefactor_held", "1 while a hold stops updates, else 0.", ["model"])


class JudgeCollector(Collector):
    """The judges' figures of all models, computed at each scrape.

    Label sets follow models and event types.
    """

    NAMES = (
        "livefactor_judge_figure",
        "livefactor_judged_events",
        "livefactor_judge_row_norm",
        "livefactor_judge_clamped_share",
    )

    def __init__(self) -> None:
        self._observers: dict[str, Observer] = {}
        self._lock = threading.Lock()

    def watch(self, model: str, observer: Observer) -> None:
        """Adds a model."""
        with self._lock:
            self._observers[model] = observer

    def forget(self, model: str) -> None:
        """Removes a model."""
        with self._lock:
            self._observers.pop(model, None)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the metric families."""
        labels = ["model", "metric", "scorer", "event_type", "span"]
        figures, judged, norm, clamped = (
            GaugeMetricFamily(name, text, labels=names)
            for name, text, names in zip(
                self.NAMES,
                (
                    "A figure of progressive validation for one scorer, windowed or decayed.",
                    "Judged events since the start.",
                    "Mean norm of the judged rows.",
                    "Share of the judged factors at the spec's bound.",
                ),
                (labels, ["model"], ["model"], ["model"]),
                strict=True,
            )
        )
        with self._lock:
            observers = list(self._observers.items())
        for model, observer in observers:
            report = observer.report()
            if report is None:
                continue
            judged.add_metric([model], report.judged_events)
            norm.add_metric([model], report.row_norm)
            clamped.add_metric([model], report.clamped_share)
            for figure in report.figures:
                kind = "all" if figure.event_type is None else str(figure.event_type)
                for span, value in (("window", figure.windowed), ("decayed", figure.decayed)):
                    figures.add_metric([model, figure.metric, figure.scorer, kind, span], value)
        yield from (figures, judged, norm, clamped)


JUDGES = JudgeCollector()
REGISTRY.register(JUDGES)

_ALL = (
    EVENTS,
    REJECTED,
    BATCHES,
    REVISION,
    LOG_LAG,
    QUEUE,
    LOG_BYTES,
    MEMORY,
    ROWS,
    APPLY_LATENCY,
    SCORE_LATENCY,
    REFUSED,
    WRITABLE,
    DRIFTS,
    WARNINGS,
    HELD,
)
METRICS = (*(metric._name for metric in _ALL), *JudgeCollector.NAMES)
"""Names of all metrics. In the exposition format, counters have the suffix _total."""


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
        self._score = SCORE_LATENCY.labels(model)

    def watch(self, engine: Engine) -> None:
        """Connects the gauges to a running engine."""
        model, state = self._model, engine.state
        REVISION.labels(model).set_function(lambda: state.revision)
        LOG_LAG.labels(model).set_function(lambda: engine.log.last_revision - state.revision)
        QUEUE.labels(model).set_function(lambda: engine.queued_bytes)
        LOG_BYTES.labels(model).set_function(lambda: engine.log.size_bytes)
        WRITABLE.labels(model).set_function(lambda: float(engine.failure is None))
        HELD.labels(model).set_function(lambda: float(engine.observer.hold is not None))
        JUDGES.watch(model, engine.observer)
        for side, table in enumerate(("users", "items")):
            MEMORY.labels(model, table).set_function(partial(_memory_of, state, table))
            ROWS.labels(model, table).set_function(partial(_rows_of, state, side))

    def observe(self, applied: Sequence[Submission], now: float) -> None:
        """Counts applied batches.

        `now` is the time of their acknowledgement, in seconds of `time.perf_counter`.
        """
        self._batches.inc(len(applied))
        self._events.inc(
            sum(item.change.rows for item in applied if isinstance(item.change, InteractionsChange))
        )
        rejected = sum(item.rejects.count for item in applied)
        if rejected:
            self._rejected.inc(rejected)
        for item in applied:
            self._latency.observe(now - item.started)

    def observe_score(self, seconds: float) -> None:
        """Counts a Score call that took `seconds`."""
        self._score.observe(seconds)

    def close(self) -> None:
        """Removes the gauges of the model, so that they do not keep its tables in memory."""
        JUDGES.forget(self._model)
        for gauge in (REVISION, LOG_LAG, QUEUE, LOG_BYTES, WRITABLE, HELD):
            gauge.remove(self._model)
        for table in ("users", "items"):
            MEMORY.remove(self._model, table)
            ROWS.remove(self._model, table)


def _memory_of(state: ModelState, table: str) -> float:
    return state.memory_bytes[table]


def _rows_of(state: ModelState, side: int) -> float:
    return state.backend.published[side]


def serve_metrics(host: str, port: int) -> int:
    """Starts the Prometheus endpoint in its own thread and returns the port, which `port` 0 chooses
    freely.
    """
    server, _ = start_http_server(port, host, REGISTRY)
    return int(server.server_port)
