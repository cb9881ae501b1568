"""The answers to Score calls that a server keeps for a time, each under a score id.

They are no part of a state. A later event can name the call that showed its item, and an auditor
can ask what was shown. The bytes and the time are limited, so an answer can be gone: the oldest go
first. They are in memory, and in files that a restart reads (`journal.py`).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter, Gauge

from livefactor_server.engine.answering.journal import Claim, Journal, KeptCall

OUTCOME_BYTES = 400
"""Approximate memory of an outcome, in bytes."""

ENTRY_BYTES = 400
"""Approximate memory of an entry beside its messages, in bytes."""

FILES = 8
"""About so many files have the kept answers. One of them goes at a time."""

_TAG = bytes([10 << 3 | 1])
"""The tag of `ScoreResponse.score_id`, a fixed64 with number 10."""

KEPT = Gauge("livefactor_served_answers", "Answers to Score calls that are kept under a score id.")
KEPT_BYTES = Gauge("livefactor_served_bytes", "Memory of the kept answers, in bytes.")
DROPPED = Counter(
    "livefactor_served_dropped", "Kept answers that went before their time, because of the limit in bytes."
)


class Call(NamedTuple):
    """A kept call: the model's name, when it was answered (seconds since 1970), both messages, the
    events that were its outcomes, and the number of the file that has it.
    """

    model: str
    time_s: float
    request: bytes
    answer: bytes
    outcomes: dict[tuple[int, int, int], tuple[bytes, int, bytes, int]]
    file: int = 0

    @property
    def nbytes(self) -> int:
        """Approximate memory, in bytes."""
        return ENTRY_BYTES + len(self.request) + len(self.answer) + OUTCOME_BYTES * len(self.outcomes)


class Served:
    """The kept calls of a server. Thread-safe."""

    def __init__(
        self,
        bytes_max: int,
        seconds: float,
        clock: Callable[[], float] = time.time,
        folder: Path | None = None,
        is_lost: Callable[[str], bool] = lambda model: False,
    ) -> None:
        """Keeps calls for `seconds`, at most `bytes_max` bytes of them. `clock` gives seconds.

        It takes over what an earlier process kept in `folder`, but not the calls of a model that
        `is_lost`. Without a folder nothing is written.
        """
        self._bytes_max, self._seconds, self._clock = bytes_max, seconds, clock
        # In order of time.
        self._calls: dict[int, Call] = {}
        self._nbytes = 0
        self._lock = threading.Lock()
        self._journal = None if folder is None else Journal(folder, max(bytes_max // FILES, 1))
        with self._lock:
            self._load(is_lost)

    def _load(self, is_lost: Callable[[str], bool]) -> None:
        if self._journal is None:
            return
        lost = dict[str, bool]()
        for file, entry in self._journal.read():
            if isinstance(entry, Claim):
                if (call := self._calls.get(entry.score_id)) and entry.outcome not in call.outcomes:
                    call.outcomes[entry.outcome] = entry.owner
                    self._nbytes += OUTCOME_BYTES
            elif not lost.setdefault(entry.model, is_lost(entry.model)):
                call = Call(entry.model, entry.time_s, entry.request, entry.answer, {}, file)
                self._calls[entry.score_id] = call
                self._nbytes += call.nbytes
        self._expire(self._clock())
        self._trim()
        if any(lost.values()):
            self._write_again()
        elif not self._calls:
            self._journal.drop_before(self._journal.last + 1)
        self._count()

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
        with self._lock:
            score_id = 0
            while not score_id or score_id in self._calls:
                score_id = secrets.randbits(64)
            kept = KeptCall(score_id, now, model, request, answer)
            file = 0 if self._journal is None else self._journal.write(kept)
            if self._journal is not None:
                self._journal.flush()
            call = self._calls[score_id] = Call(model, now, request, answer, {}, file)
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
        """Drops all kept calls of a model, and overwrites them with zeros on the disk.

        Raises:
            OSError: the disk reports an error. They are dropped from memory.
        """
        with self._lock:
            for score_id in [each for each, call in self._calls.items() if call.model == model]:
                self._drop(score_id)
            self._count()
            self._write_again()

    def close(self) -> None:
        """Closes the file. What is kept later gets another one."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()

    def _write_again(self) -> None:
        """Replaces the files by new ones with what is kept."""
        if self._journal is None:
            return
        self._journal.destroy()
        for score_id, call in self._calls.items():
            kept = KeptCall(score_id, call.time_s, call.model, call.request, call.answer)
            self._calls[score_id] = call._replace(file=self._journal.write(kept))
            for outcome, owner in call.outcomes.items():
                self._journal.write(Claim(score_id, outcome, owner))
        self._journal.flush()

    def claim(self, claims: Iterable[Claim]) -> list[bool]:
        """Notes outcomes of kept calls, those of one batch.

        Returns for each whether it is the first event with this outcome. A call that is gone has no
        outcomes any more.
        """
        with self._lock:
            are_first = [self._claim(each) for each in claims]
            if self._journal is not None:
                self._journal.flush()
            self._trim()
            return are_first

    def _claim(self, claim: Claim) -> bool:
        call = self._calls.get(claim.score_id)
        if call is None:
            return True
        first = call.outcomes.setdefault(claim.outcome, claim.owner)
        if first is claim.owner:
            self._nbytes += OUTCOME_BYTES
            if self._journal is not None:
                self._journal.write(claim)
        return first == claim.owner

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
        if self._journal is not None:
            first = next(iter(self._calls.values()), None)
            self._journal.drop_before(self._journal.last if first is None else first.file)
        KEPT.set(len(self._calls))
        KEPT_BYTES.set(self._nbytes)
