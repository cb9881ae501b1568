"""Reads the similar users of a block of users (semantics: `reading/__init__.py`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.reading import NEIGHBOR_EVENTS, NEIGHBOR_SPAN, NEIGHBOR_USERS
from livefactor_kernels.reading.cpu_neighbors import Hood, find_neighbors, weigh_own
from livefactor_kernels.reading.cpu_people import Histories, Person
from livefactor_kernels.reading.remembered import Source
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.recent import Recent

_0, _1, _4 = np.uint64(0), np.uint64(1), np.uint64(4)


class Neighborhood(NamedTuple):
    """The neighbours of n users, end to end.

    Attributes:
        ends: those of user u are ends[u]:ends[u + 1], int64[n + 1]; empty without similar users.
        similarities: s, float32[m].
        events: their last events.
    """

    ends: np.ndarray
    similarities: np.ndarray
    events: Recent


NO_NEIGHBORS = Neighborhood(np.empty(0, np.int64), np.empty(0, np.float32), Recent.of(0, 0))


class NeighborReader:
    """Finds similar users. One thread may use it at a time."""

    def __init__(self, spec: ModelSpec) -> None:
        self._most, self._hood = spec.mix.neighbors, Hood.of(spec, 0)

    def read(self, source: Source, user_rows: np.ndarray, histories: Histories) -> Neighborhood:
        """The neighbours of the users of rows uint32[n] (or `NO_ROW`) with these histories."""
        if not self._most:
            return NO_NEIGHBORS
        last = histories.last_rows(NEIGHBOR_SPAN)
        events, ends = source.recent(ITEMS, last, NEIGHBOR_USERS), np.zeros(len(user_rows) + 1, np.int64)
        users = np.empty(len(user_rows) * self._most, np.uint32)
        similarities = np.empty(users.size, np.float32)
        columns = histories.rows, histories.values, histories.weights, histories.ends
        livefactor_neighbors_kernel(user_rows, *columns, events, self._hood, users, similarities, ends)
        found = int(ends[-1])
        return Neighborhood(ends, similarities[:found], source.recent(USERS, users[:found], NEIGHBOR_EVENTS))


@compiled
def livefactor_neighbors_kernel(
    user_rows: Any, rows: Any, values: Any, weights: Any, ends: Any, events: Any, hood: Any, users: Any,
    similarities: Any, out_ends: Any,
) -> None:  # fmt: skip
    """Writes the neighbours of users, end to end. `events` are those of the users' last items."""
    first, found = _0, _0
    for user in range(np.uint64(user_rows.size)):
        start, stop = np.uint64(ends[user]), np.uint64(ends[user + _1])
        skip, own_rows = start * _4, address_of(rows)
        person = Person(
            own_rows + skip,
            own_rows,
            address_of(values) + skip,
            address_of(weights) + skip,
            own_rows,
            stop - start,
        )
        last = weigh_own(person, hood)
        count = find_neighbors(np.uint64(user_rows[user]), events, first, last, hood)
        for n in range(count):
            users[found + n], similarities[found + n] = hood.users[n], hood.similarities[n]
        first, found = first + last, found + count
        out_ends[user + _1] = np.int64(found)
