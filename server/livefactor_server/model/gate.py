"""The gate: a lock that readers share, and that alternates with the writer.

The writer holds it while it applies a run of records. A reader that needs the present revision for
more than one step holds it for these steps: for a pin, for the parts of a description, or for a
score that the writer interrupted too often. So readers never see a part of a record. A reader goes
before a waiting writer, but the writer waits for at most `READERS_BEFORE_WRITER` readers, so that
readers cannot starve it.

Only the writer and the readers that it can admit are woken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

READERS_BEFORE_WRITER = 16


class _Writing(AbstractContextManager[None]):
    """A write. A generator would take longer than the gate itself."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end = begin, end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, *_: object) -> None:
        self._end()


class Gate:
    """A lock for one writer or any number of readers."""

    def __init__(self, is_shared: bool = True) -> None:
        """A free gate. Without `is_shared` readers exclude each other, too."""
        lock = threading.Lock()
        self._lock, self._readers_turn, self._writer_turn = lock, *(threading.Condition(lock) for _ in "rw")
        self._is_shared = is_shared
        self._readers = self._readers_waiting = self._readers_ahead = 0
        self._writes = self._writer_waits = False
        self._writing = _Writing(self._begin_write, self._end_write)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Holds the gate for a short read."""
        with self._lock:
            while not self._admits_reader():
                self._readers_waiting += 1
                self._readers_turn.wait()
                self._readers_waiting -= 1
            self._readers_ahead += self._writer_waits
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                self._wake()

    def writing(self) -> AbstractContextManager[None]:
        """Holds the gate for a write. One thread at a time may call it."""
        return self._writing

    def _begin_write(self) -> None:
        with self._lock:
            self._writer_waits, self._readers_ahead = True, 0
            while not self._admits_writer():
                self._writer_turn.wait()
            self._writer_waits, self._writes = False, True

    def _end_write(self) -> None:
        with self._lock:
            self._writes = False
            self._wake()

    def _admits_reader(self) -> bool:
        if self._writes or (self._readers and not self._is_shared):
            return False
        return not self._writer_waits or self._readers_ahead < READERS_BEFORE_WRITER

    def _admits_writer(self) -> bool:
        is_readers_turn = self._readers_waiting and self._readers_ahead < READERS_BEFORE_WRITER
        return not self._readers and not is_readers_turn

    def _wake(self) -> None:
        if self._readers_waiting and self._admits_reader():
            self._readers_turn.notify(self._readers_waiting if self._is_shared else 1)
        elif self._writer_waits and self._admits_writer():
            self._writer_turn.notify()
