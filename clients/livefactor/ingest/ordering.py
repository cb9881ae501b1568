"""Rows that wait to be pushed, in the order of arrival, or in that of their times."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Any, NamedTuple

from livefactor.ingest.mapping import Rows


class Origin(NamedTuple):
    """Where rows come from: a message of a partition, and the numbers of their events in it."""

    partition: str
    position: int
    numbers: list[int]


class Cut(NamedTuple):
    """Rows that are pushed as one batch, in the columns of `Rows` behind `numbers`."""

    columns: list[list[Any]]
    origins: list[Origin]

    def origin(self, row: int) -> tuple[str, int, int]:
        """The partition, the position and the number of the event of a row."""
        for origin in self.origins:
            if row < len(origin.numbers):
                return origin.partition, origin.position, origin.numbers[row]
            row -= len(origin.numbers)
        raise IndexError(row)


class Arrivals:
    """Rows in the order of their arrival."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[str, int, Rows]] = deque()
        self.rows = 0

    def add(self, partition: str, position: int, rows: Rows, now: float) -> None:
        """Add the rows of a message."""
        self._chunks.append((partition, position, rows))
        self.rows += len(rows.numbers)

    def due(self, now: float) -> int:
        """How many rows may be pushed at `now`."""
        return self.rows

    def take(self, count: int) -> Cut:
        """Take out the first `count` rows that may be pushed."""
        columns: list[list[Any]] = [[] for _ in Rows._fields[1:]]
        origins = []
        self.rows -= count
        while count:
            partition, position, rows = self._chunks.popleft()
            if len(rows.numbers) > count:
                self._chunks.appendleft((partition, position, Rows._make(column[count:] for column in rows)))
                rows = Rows._make(column[:count] for column in rows)
            parts: tuple[list[Any], ...] = rows[1:]
            for column, part in zip(columns, parts, strict=True):
                column += part
            origins.append(Origin(partition, position, rows.numbers))
            count -= len(rows.numbers)
        return Cut(columns, origins)


class Delayed:
    """Rows in the order of their times.

    A row may be pushed `delay_s` seconds after its arrival. Rows with earlier times, and with the
    same time and an earlier arrival, go before it. delay_s: above 0.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._heap: list[tuple[int, int, str, int, tuple[Any, ...]]] = []
        self._arrived: deque[tuple[float, int]] = deque()
        self._count = 0
        self._due: deque[tuple[str, int, tuple[Any, ...]]] = deque()
        self._threshold = -1

    @property
    def rows(self) -> int:
        """How many rows wait."""
        return len(self._heap) + len(self._due)

    def add(self, partition: str, position: int, rows: Rows, now: float) -> None:
        """Add the rows of a message that arrived at `now`."""
        for row in zip(*rows, strict=True):
            time = row[-1]
            heappush(self._heap, (time, self._count, partition, position, row))
            self._arrived.append((now, time))
            self._count += 1

    def due(self, now: float) -> int:
        """How many rows may be pushed at `now`."""
        while self._arrived and self._arrived[0][0] <= now - self._delay_s:
            self._threshold = max(self._threshold, self._arrived.popleft()[1])
        while self._heap and self._heap[0][0] <= self._threshold:
            self._due.append(heappop(self._heap)[2:])
        if not self._heap:
            # What comes next waits its own time.
            self._threshold = -1
        return len(self._due)

    def take(self, count: int) -> Cut:
        """Take out the first `count` rows that may be pushed."""
        columns: list[list[Any]] = [[] for _ in Rows._fields[1:]]
        origins: list[Origin] = []
        for _ in range(count):
            partition, position, row = self._due.popleft()
            if not origins or origins[-1][:2] != (partition, position):
                origins.append(Origin(partition, position, []))
            origins[-1].numbers.append(row[0])
            for column, value in zip(columns, row[1:], strict=True):
                column.append(value)
        return Cut(columns, origins)
