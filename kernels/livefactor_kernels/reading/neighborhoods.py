"""Reads the similar users and the walks of a block of users (semantics: `reading/__init__.py`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.reading import SIMILAR, WALKS, Reach
from livefactor_kernels.reading.cpu_neighbors import (
    Hood,
    add_neighbors,
    find_neighbors,
    keep_best,
    share_out,
    walked_items,
    weigh_own,
    weigh_walks,
)
from livefactor_kernels.reading.cpu_people import Histories, Person
from livefactor_kernels.reading.cpu_rows import Rows
from livefactor_kernels.reading.remembered import Source
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.recent import Recent

_0, _1, _4 = np.uint64(0), np.uint64(1), np.uint64(4)
_F1 = np.float32(1.0)


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


class Walks(NamedTuple):
    """The items at the ends of the walks of n users, end to end.

    Attributes:
        ends: those of user u are ends[u]:ends[u + 1], int64[n + 1]; empty without walks.
        rows: distinct rows of each user, uint32[m].
        gains: float32[m].
    """

    ends: np.ndarray
    rows: np.ndarray
    gains: np.ndarray


NO_WALKS = Walks(np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.float32))


class NeighborReader:
    """Finds similar users. One thread may use it at a time."""

    def __init__(self, spec: ModelSpec) -> None:
        self._most, self._hood = spec.mix.neighbors, Hood.similar_users(spec, 0)

    def read(self, source: Source, user_rows: np.ndarray, histories: Histories) -> Neighborhood:
        """The neighbours of the users of rows uint32[n] (or `NO_ROW`) with these histories."""
        return _found(source, user_rows, histories, self._most, SIMILAR, self._hood)


class WalkReader:
    """Follows walks. One thread may use it at a time."""

    def __init__(self, spec: ModelSpec) -> None:
        self._most = spec.mix.walk_users
        self._hood, self._items = Hood.walks(spec), Rows.of(walked_items(spec), 1)

    def read(self, source: Source, user_rows: np.ndarray, histories: Histories) -> Walks:
        """The walks of the users of rows uint32[n] (or `NO_ROW`) with these histories."""
        if not self._most:
            return NO_WALKS
        found = _found(source, user_rows, histories, self._most, WALKS, self._hood)
        rows, gains = (
            np.empty(found.events.rows.size, np.uint32),
            np.empty(found.events.rows.size, np.float32),
        )
        ends = np.zeros_like(found.ends)
        size = livefactor_walks_kernel(found, self._hood, self._items, rows, gains, ends)
        seen = source.read(ITEMS, rows[:size], ("seen_count",))["seen_count"]
        gains[:size] /= np.sqrt(seen.astype(np.float32) + _F1)
        size = livefactor_best_kernel(self._hood, self._items, rows, gains, ends)
        return Walks(ends, rows[:size], gains[:size])


def _found(
    source: Source, user_rows: np.ndarray, histories: Histories, most: int, reach: Reach, hood: Hood
) -> Neighborhood:
    """The neighbours of users, at most `most` each."""
    if not most:
        return NO_NEIGHBORS
    events = source.recent(ITEMS, histories.last_rows(reach.span), reach.users)
    ends, users = np.zeros(len(user_rows) + 1, np.int64), np.empty(len(user_rows) * most, np.uint32)
    similarities = np.empty(users.size, np.float32)
    columns = histories.rows, histories.values, histories.weights, histories.ends
    livefactor_neighbors_kernel(user_rows, *columns, events, hood, users, similarities, ends)
    found = int(ends[-1])
    return Neighborhood(ends, similarities[:found], source.recent(USERS, users[:found], reach.events))


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
        if hood.is_walk:
            weigh_walks(hood, last, events.seen, first)
        count = find_neighbors(np.uint64(user_rows[user]), events, first, last, hood)
        for n in range(count):
            users[found + n], similarities[found + n] = hood.users[n], hood.similarities[n]
        first, found = first + last, found + count
        out_ends[user + _1] = np.int64(found)


@compiled
def livefactor_walks_kernel(
    found: Any, hood: Any, items: Any, out_rows: Any, out_gains: Any, out_ends: Any
) -> Any:
    """Writes the items at the ends of walks, and their gains before the last division.

    `found` is a `Neighborhood`. Returns the number of items.
    """
    share_out(found.similarities, found.events.seen, np.uint64(found.similarities.size))
    at = _0
    for user in range(np.uint64(found.ends.size) - _1):
        first, last = np.uint64(found.ends[user]), np.uint64(found.ends[user + _1])
        size = add_neighbors(found.events, first, found.similarities[first:last], _0, hood, items, _0, _0)
        for n in range(size):
            out_rows[at + n], out_gains[at + n] = items.loose_rows[n], items.loose[n, 0]
        at += size
        out_ends[user + _1] = np.int64(at)
    return at


@compiled
def livefactor_best_kernel(hood: Any, items: Any, rows: Any, gains: Any, ends: Any) -> Any:
    """Moves the items of each user that stay to the front. Returns the number of all of them."""
    first, at = _0, _0
    for user in range(np.uint64(ends.size) - _1):
        last = np.uint64(ends[user + _1])
        for n in range(last - first):
            items.loose_rows[n], items.loose[n, 0] = rows[first + n], gains[first + n]
        kept = keep_best(items, last - first, hood)
        for n in range(kept):
            rows[at + n], gains[at + n] = items.rows[n], items.gains[n, 0]
        first, at = last, at + kept
        ends[user + _1] = np.int64(at)
    return at
