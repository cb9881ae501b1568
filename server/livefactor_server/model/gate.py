"""The gate: a lock that alternates small reads and the writer, and prefers readers.

The writer holds it while it applies a run of records. A small read holds it for its look-up and
gather. So readers never see a part of a record. A waiting reader goes before the writer, but the
writer waits for at most `READERS_BEFORE_WRITER` readers, so that readers cannot starve it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

READERS_BEFORE_WRITER = 16


class Gate:
    """A lock with one holder at a time. Readers go first within a bound."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._held = False
        self._readers_waiting = 0
        self._readers_ahead = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Holds the gate for a short read."""
        with self._condition:
            self._readers_waiting += 1
            while self._held:
                self._condition.wait()
            self._readers_waiting -= 1
            self._readers_ahead += 1
            self._held = True
        try:
            yield
        finally:
            self.release()

    def try_reading(self) -> bool:
        """Takes the gate for a short read if it is free. The caller then calls `release`."""
        with self._condition:
            if self._held:
                return False
            self._readers_ahead += 1
            self._held = True
            return True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the gate for a write."""
        with self._condition:
            self._readers_ahead = 0
            while self._held or (self._readers_waiting and self._readers_ahead < READERS_BEFORE_WRITER):
                self._condition.wait()
            self._held = True
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Gives the gate back."""
        with self._condition:
            self._held = False
            self._condition.notify_all()
