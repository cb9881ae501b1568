"""The answers to Score calls that a server keeps for a time, each under a score id.

They are in memory alone, and no part of a state. A later event can name the call that showed its
item, and an auditor can ask what was shown. The bytes and the time are limited, so an answer can be
gone: the oldest go first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import Counter, Gauge

OUTCOME_BYTES = 400
"""Approximate memory of an outcome, in bytes."""

ENTRY_BYTES = 400
"""Approximate memory of an entry beside its messages, in bytes."""

_TAG = bytes([10 << 3 | 1])
"""The tag of `ScoreResponse.score_id`, a fixed64 with number 10."""

KEPT = Gauge("livefactor_served_answers", "Answers to Score calls that are kept under a score id.")
KEPT_BYTES = Gauge("livefactor_served_bytes", "Memory of the kept answers, in bytes.")
DROPPED = Counter(
    "livefactor_served_dropped", "Kept answers that went before their time, because of the limit in bytes."
)


class Call(NamedTuple):
    """A kept call: the model's name, when it was answered (seconds since 1970), both messages, and
    the events that were its outcomes.
    """

    model: str
    time_s: float
    request: bytes
    answer: bytes
    outcomes: dict[tuple[int, int, int], tuple[bytes, int, bytes, int]]

    @property
    def nbytes(self) -> int:
        """Approximate memory, in bytes."""
        return ENTRY_BYTES + len(self.request) + len(self.answer) + OUTCOME_BYTES * len(self.outcomes)


class Served:
    """The kept calls of a server. Thread-safe."""

    def __init__(self, bytes_max: int, seconds: float, clock: Callable[[], float] = time.time) -> None:
        """Keeps calls for `seconds`, at most `bytes_max` bytes of them. `clock` gives seconds."""
        self._bytes_max, self._seconds, self._clock = bytes_max, seconds, clock
        # In order of time.
        self._calls: dict[int, Call] = {}
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Approximate memory of all kept calls, in bytes."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._calls)

    def is_too_large(self, nbytes: int) -> bool:
        """Whether messages of so many bytes can never be kept."""
        return ENTRY_BYTES + nbytes > self._bytes_max

    def keep(self, model: str, request: bytes, answer: bytes) -> bytes:
        """Keeps a call. Returns the answer with the score id in it."""
        now = self._clock()
        call = Call(model, now, request, answer, {})
        with self._lock:
            score_id = 0
            while not score_id or score_id in self._calls:
                score_id = secrets.randbits(64)
            self._calls[score_id] = call
            self._nbytes += call.nbytes
            self._expire(now)
            self._trim()
            self._count()
        return answer + _TAG + score_id.to_bytes(8, "little")

    def get(self, score_id: int) -> Call | None:
        """A kept call, or None."""
        with self._lock:
            self._expire(self._clock())
            self._count()
            return self._calls.get(score_id)

    def forget(self, model: str) -> None:
        """Drops all kept calls of a model."""
        with self._lock:
            for score_id in [each for each, call in self._calls.items() if call.model == model]:
                self._drop(score_id)
            self._count()

    def claim(
        self, score_id: int, outcome: tuple[int, int, int], owner: tuple[bytes, int, bytes, int]
    ) -> bool:
        """Notes an outcome of a kept call: user, item and event type.

        `owner` is the event: its producer and sequence, a hash of its batch, and its row. Returns
        False if another event had the same outcome. A call that is gone has no outcomes any more.
        """
        with self._lock:
            call = self._calls.get(score_id)
            if call is None:
                return True
            first = call.outcomes.setdefault(outcome, owner)
            if first is owner:
                self._nbytes += OUTCOME_BYTES
                self._trim()
            return first == owner

    def _expire(self, now: float) -> None:
        while self._calls:
            oldest = next(iter(self._calls))
            if self._calls[oldest].time_s > now - self._seconds:
                return
            self._drop(oldest)

    def _trim(self) -> None:
        while self._nbytes > self._bytes_max:
            self._drop(next(iter(self._calls)))
            DROPPED.inc()

    def _drop(self, score_id: int) -> None:
        self._nbytes -= self._calls.pop(score_id).nbytes

    def _count(self) -> None:
        KEPT.set(len(self._calls))
        KEPT_BYTES.set(self._nbytes)
