"""When users and items get and lose rows. The server decides it, and the kernels see only rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_SIGHTINGS = 64
"""Maximum of `admission.sightings`."""

MIN_IDLE_EVENTS = 1000
"""Minimum of `eviction.idle_events`. Each eviction costs as much as a copy of all rows."""


@dataclass(frozen=True, slots=True)
class Admission:
    """When a new user or item gets a row.

    Attributes:
        sightings: number of the event at which it gets one, 2 to `MAX_SIGHTINGS`. With 0 or 1 it
            gets one at its first event.
    """

    sightings: int = 0


@dataclass(frozen=True, slots=True)
class Eviction:
    """When a user or an item loses its row (`tables/compaction.py`).

    Attributes:
        idle_events: number of learned events after the last one of a row, after which the row may
            leave, at least `MIN_IDLE_EVENTS`. With 0 no row leaves.
    """

    idle_events: int = 0

    def problems(self, replayed: int) -> Iterator[tuple[str, str, object]]:
        """What is wrong: (field, expected, got). `replayed` is `replay.size`."""
        idle = self.idle_events
        if idle and not MIN_IDLE_EVENTS <= idle <= 1 << 53:
            yield "eviction.idle_events", f"0, or {MIN_IDLE_EVENTS}..2**53", idle
        if idle and replayed:
            # The reservoir names rows, and each of its places has the same chance.
            yield "replay.size", "0 with eviction", replayed
