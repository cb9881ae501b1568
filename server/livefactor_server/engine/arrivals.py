"""What producers send: when their last batches came, how old the events in them were, what waits.

It is no part of the state: it is counted from the start of the server on, and forgotten with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from livefactor_server.changes.interactions import InteractionsChange
from livefactor_server.engine.submission import Submission


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
    """The last arrival of each producer. The APPLY stage writes, and any thread reads."""

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
