"""The durations of calls, as a Prometheus histogram to which other processes add theirs."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import REGISTRY
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

Key = tuple[str, str, str]
"""The RPC, the model and the status of calls."""

BOUNDS_S = (*(0.0005 * 2**power for power in range(11)), 1.0, 2.0, 5.0)


_BOUNDS = (*map(str, BOUNDS_S), "+Inf")


class Series(NamedTuple):
    """The durations of some calls.

    `counts` has the number of calls up to each of `BOUNDS_S` and above the one before, and last
    that of all longer ones. `seconds` is their sum.
    """

    key: Key
    counts: Sequence[int]
    seconds: float


class Durations(Collector):
    """A histogram of durations. Thread-safe."""

    def __init__(self, name: str, help: str) -> None:
        self._name, self._help = name, help
        self._lock = threading.Lock()
        self._counts: dict[Key, list[int]] = {}
        self._seconds: dict[Key, float] = {}

    def observe(self, key: Key, seconds: float) -> None:
        """Counts a call."""
        with self._lock:
            counts = self._counts.get(key) or self._begin(key)
            counts[bisect_left(BOUNDS_S, seconds)] += 1
            self._seconds[key] += seconds

    def add(self, series: Iterable[Series]) -> None:
        """Counts calls of another process."""
        with self._lock:
            for key, added, seconds in series:
                counts = self._counts.get(key) or self._begin(key)
                for place, count in enumerate(added):
                    counts[place] += count
                self._seconds[key] += seconds

    def take(self) -> list[Series]:
        """The calls since the last `take`. They are counted here no more."""
        with self._lock:
            taken = [Series(key, counts, self._seconds[key]) for key, counts in self._counts.items()]
            self._counts, self._seconds = {}, {}
        return taken

    def _begin(self, key: Key) -> list[int]:
        self._seconds[key] = 0.0
        counts = self._counts[key] = [0] * (len(BOUNDS_S) + 1)
        return counts

    def describe(self) -> list[HistogramMetricFamily]:
        """The histogram without calls."""
        return [HistogramMetricFamily(self._name, self._help, labels=("rpc", "model", "code"))]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram, for a scrape."""
        (family,) = self.describe()
        with self._lock:
            series = [Series(key, tuple(counts), self._seconds[key]) for key, counts in self._counts.items()]
        for key, counts, seconds in series:
            total, buckets = 0, []
            for place, count in enumerate(counts):
                total += count
                buckets.append((_BOUNDS[place], float(total)))
            family.add_metric(key, buckets, seconds)
        yield family


CALL_SECONDS = Durations(
    "livefactor_call_seconds", "Time from the message of a call to its end, by RPC, model and status."
)
REGISTRY.register(CALL_SECONDS)
