"""Events of one source that wait for those of another with the same id."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, NamedTuple

from livefactor.ingest.config import Join
from livefactor.ingest.mapping import reader

LOOKUPS_MAX = 1_000_000
"""Ids of a joined source that are remembered; the oldest go first."""

WAITING_MAX = 100_000
"""Events that wait for their counterpart; the oldest become dead letters first."""


class Waiting(NamedTuple):
    """An event that waits. until: on the monotonic clock."""

    until: float
    partition: str
    position: int
    number: int
    event: dict[str, Any]


class Joiner:
    """The join of one source with another one."""

    def __init__(self, join: Join) -> None:
        self.join = join
        self._on, self._id = reader(join.on), reader(join.id)
        self._known: OrderedDict[Any, dict[str, Any]] = OrderedDict()
        self._waiting: dict[Any, list[Waiting]] = {}
        self._queue: deque[tuple[Any, Waiting]] = deque()
        self._left = 0

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return self._left

    def counterpart(self, event: dict[str, Any]) -> list[tuple[Waiting, dict[str, Any]]]:
        """Remember an event of the other source; returns the events that waited for it, joined."""
        key = _key(self._id(event))
        if key is None:
            return []
        self._known[key] = event
        self._known.move_to_end(key)
        if len(self._known) > LOOKUPS_MAX:
            self._known.popitem(last=False)
        found = self._waiting.pop(key, [])
        self._left -= len(found)
        return [(each, {**event, **each.event}) for each in found]

    def joined(self, waiting: Waiting) -> dict[str, Any] | None:
        """The event with the fields of its counterpart; None if it now waits for that."""
        key = _key(self._on(waiting.event))
        counterpart = self._known.get(key)
        if counterpart is not None:
            return {**counterpart, **waiting.event}
        self._waiting.setdefault(key, []).append(waiting)
        self._queue.append((key, waiting))
        self._left += 1
        return None

    def expired(self, now: float) -> list[tuple[Waiting, str]]:
        """The events that wait no longer, with the reason."""
        found = []
        while self._queue and (self._queue[0][1].until <= now or self._left > WAITING_MAX):
            key, waiting = self._queue.popleft()
            others = self._waiting.get(key, [])
            if waiting not in others:
                continue
            others.remove(waiting)
            if not others:
                del self._waiting[key]
            self._left -= 1
            where = f"source {self.join.source!r}"
            if waiting.until <= now:
                reason = f"join: {where} had no event with the id {key!r} within {self.join.wait_s:g} s"
            else:
                reason = f"join: more than {WAITING_MAX} events wait for {where}"
            found.append((waiting, reason))
        return found


def _key(value: Any) -> Any:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
