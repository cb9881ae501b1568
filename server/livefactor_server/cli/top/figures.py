"""What `livefactor top` shows: differences between two readings of the metrics."""

from __future__ import annotations

import math
import ssl
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

READ_S = 5.0
ANSWER_BYTES_MAX = 16 << 20
SCORE = "ScoringService.Score"


@dataclass
class Reading:
    """The samples of one answer of the metrics port, by name and labels, and when it came."""

    at: float
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        wanted = labels.items()
        return sum(
            value for found, value in self.samples.get(name, {}).items() if wanted <= dict(found).items()
        )

    def values(self, name: str, label: str) -> list[str]:
        """The values of a label, in order."""
        return sorted({dict(found)[label] for found in self.samples.get(name, {}) if label in dict(found)})


@dataclass(frozen=True)
class ModelFigures:
    """One model: totals, and rates a second since the reading before."""

    model: str
    state: str
    revision: int
    events_per_s: float
    calls_per_s: float
    refused_per_s: float
    score_p99_s: float
    update_p99_s: float
    lag_records: int
    users: int
    items: int
    memory_bytes: int


def read(url: str, token: str = "", ca: str = "") -> Reading:
    """Reads the metrics of a server.

    Args:
        url: address of the metrics port.
        token: bearer token, where the server asks for one. It is only sent with TLS or to loopback.
        ca: file of the authorities of the server's certificate; "" for those of the system.

    Raises:
        OSError: there is no answer, or it has an error.
        ValueError: the answer has no metrics.
    """
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context(cafile=ca or None) if url.startswith("https:") else None
    # A proxy must not be asked for a server of the own machine.
    handlers = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))  # type: ignore[arg-type]
    with urllib.request.build_opener(*handlers).open(request, timeout=READ_S) as answer:
        text = answer.read(ANSWER_BYTES_MAX).decode()
    return parse(text, time.monotonic())


def parse(text: str, at: float) -> Reading:
    """The samples in the text of a metrics port, which was read at `at`."""
    reading = Reading(at)
    for family in text_string_to_metric_families(text):
        if family.name.startswith("livefactor_"):
            for sample in family.samples:
                by_labels = reading.samples.setdefault(sample.name, {})
                by_labels[tuple(sorted(sample.labels.items()))] = sample.value
    return reading


def models(before: Reading, now: Reading) -> list[ModelFigures]:
    """The figures of all models."""
    seconds = max(now.at - before.at, 1e-9)

    def rate(name: str, **labels: str) -> float:
        # A counter that fell belongs to a server that has started anew.
        return max(0.0, now.total(name, **labels) - before.total(name, **labels)) / seconds

    found = []
    for model in sorted(
        {*now.values("livefactor_revision", "model"), *now.values("livefactor_fault", "model")}
    ):
        calls = rate("livefactor_call_seconds_count", model=model)
        accepted = rate("livefactor_call_seconds_count", model=model, code="OK")
        found.append(
            ModelFigures(
                model,
                _state(now, model),
                int(now.total("livefactor_revision", model=model)),
                rate("livefactor_events_total", model=model),
                calls,
                calls - accepted,
                _p99(before, now, "livefactor_call_seconds_bucket", model=model, rpc=SCORE, code="OK"),
                _p99(before, now, "livefactor_apply_latency_seconds_bucket", model=model),
                int(now.total("livefactor_log_lag_records", model=model)),
                int(now.total("livefactor_rows", model=model, table="users")),
                int(now.total("livefactor_rows", model=model, table="items")),
                int(now.total("livefactor_memory_bytes", model=model)),
            )
        )
    return found


def _state(now: Reading, model: str) -> str:
    if now.total("livefactor_fault", model=model):
        return "not opened"
    if not now.total("livefactor_writable", model=model):
        return "read only"
    return "on hold" if now.total("livefactor_held", model=model) else "serving"


def _p99(before: Reading, now: Reading, name: str, **labels: str) -> float:
    """The bound of the bucket that holds the 99th percentile. NaN without observations."""
    counts: dict[float, float] = defaultdict(float)
    for reading, sign in ((now, 1.0), (before, -1.0)):
        for found, value in reading.samples.get(name, {}).items():
            if labels.items() <= dict(found).items():
                counts[float(dict(found)["le"])] += sign * value
    total = counts.get(math.inf, 0.0)
    if total <= 0:
        return math.nan
    return next(bound for bound in sorted(counts) if counts[bound] >= 0.99 * total)
