"""The Prometheus metrics of score workers."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from livefactor_server.metrics import REFUSED

RUNNING = Gauge("livefactor_score_workers", "Score workers that answer calls.")
REPLACED = Counter("livefactor_score_workers_replaced", "Score workers that ended and were replaced.")
CALLS = Counter(
    "livefactor_score_worker_calls",
    "Score calls that came to a worker, by what it did: answered, or passed on to the process that learns.",
    ["way"],
)

COUNTED = {"refused": REFUSED, "calls": CALLS}
"""What workers count and report. Each counter has one label."""


def counts() -> dict[str, dict[str, int]]:
    """What this process has counted, by counter and label."""
    return {name: _counts_of(counter) for name, counter in COUNTED.items()}


def _counts_of(counter: Counter) -> dict[str, int]:
    samples = [sample for family in counter.collect() for sample in family.samples]
    return {
        next(iter(sample.labels.values())): int(sample.value)
        for sample in samples
        if sample.name.endswith("_total")
    }
