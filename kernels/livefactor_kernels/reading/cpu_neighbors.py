"""Similar users and walks, in compiled code (semantics: `reading/__init__.py`).

The functions are parts of the kernels of reads (`cpu_readers.py`) and of learning
(`cpu_learning.py`). `neighborhoods.py` reads the users of a block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.history import decays
from livefactor_kernels.numbers.parts import inlined, part
from livefactor_kernels.reading import NEIGHBOR_DISTANCE, SIMILAR, WALK_ITEMS, WALK_UNIT, WALKS, Reach
from livefactor_kernels.reading.cpu_rows import Rows, sort_largest
from livefactor_kernels.simd.steps import real, word
from livefactor_kernels.spec.model import ModelSpec

_0, _1, _32 = np.uint64(0), np.uint64(1), np.uint64(32)
_WALK_ITEMS = np.uint64(WALK_ITEMS)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_F0, _F1 = np.float32(0.0), np.float32(1.0)


class Hood(NamedTuple):
    """Working memory for the neighbours of one user, or for her walks. S is `mix.neighbors`, or W.

    Attributes:
        own, weights: item rows and r_j of the user's last events, uint32 and float32[span].
        table: hash map of users, uint32.
        found, marks: rows of the users, and the j that last found them, uint32[users].
        similar: s of the users, float32[users].
        order: memory to sort them, or items.
        users, similarities: rows and s of the neighbours, uint32[S] and float32[S].
        item_table: hash map of items, uint32.
        item_marks: the neighbour that last had an item, uint32[items].
        own_decay, decay: by the number of events, float32[any].
        roots: whether gains are square roots.
        is_walk: whether it is for walks.
    """

    own: np.ndarray
    weights: np.ndarray
    table: np.ndarray
    found: np.ndarray
    marks: np.ndarray
    similar: np.ndarray
    order: Rows
    users: np.ndarray
    similarities: np.ndarray
    item_table: np.ndarray
    item_marks: np.ndarray
    own_decay: np.ndarray
    decay: np.ndarray
    roots: bool
    is_walk: bool

    @staticmethod
    def similar_users(spec: ModelSpec, items: int) -> Hood:
        """For similar users of a model, with room for `items` items that gain."""
        return Hood._of(spec.mix.neighbors, SIMILAR, items, spec.mix.neighbor_roots, False)

    @staticmethod
    def walks(spec: ModelSpec) -> Hood:
        """For walks."""
        return Hood._of(spec.mix.walk_users, WALKS, walked_items(spec), False, True)

    @staticmethod
    def _of(neighbors: int, reach: Reach, items: int, roots: bool, is_walk: bool) -> Hood:
        size = reach.span * reach.users if neighbors else 0
        return Hood(
            np.empty(reach.span, np.uint32),
            np.empty(reach.span, np.float32),
            empty_map(size),
            np.empty(size, np.uint32),
            np.empty(size, np.uint32),
            np.empty(size, np.float32),
            Rows.of(max(size, items) if neighbors else 0, 1),
            np.empty(neighbors, np.uint32),
            np.empty(neighbors, np.float32),
            empty_map(items if neighbors else 0),
            np.empty(items if neighbors else 0, np.uint32),
            decays(reach.half_life),
            decays(NEIGHBOR_DISTANCE),
            roots,
            is_walk,
        )


def gaining_items(spec: ModelSpec) -> int:
    """The largest number of items that gain from counts, similar users or walks."""
    followers = min(spec.counts.span, spec.history.users) * spec.counts.neighbors
    return followers + spec.mix.neighbors * SIMILAR.events + (WALK_ITEMS if spec.mix.walk_users else 0)


def walked_items(spec: ModelSpec) -> int:
    """The largest number of items at the ends of a user's walks."""
    return spec.mix.walk_users * WALKS.events


def empty_map(rows: int) -> np.ndarray:
    """A hash map of up to `rows` rows: places uint32[n] of rows, plus 1; 0 if empty."""
    return np.zeros(1 << max(2 * rows - 1, 1).bit_length(), np.uint32)


@inlined
def slot_of(table: Any, found: Any, row: Any) -> Any:
    """The place in `table` that has `row` of `found`, or the empty place for it."""
    last = np.uint64(table.size) - _1
    at = ((np.uint64(row) * _GOLDEN) >> _32) & last
    while table[at] != 0 and found[np.uint64(table[at]) - _1] != row:
        at = (at + _1) & last
    return at


@inlined
def weigh_own(person: Any, hood: Any) -> Any:
    """Writes the user's last events to `hood`. Those left out weigh 0. Returns their number."""
    last = min(person.count, np.uint64(hood.own.size))
    for j in range(last):
        event = person.count - _1 - j
        is_liked = real(person.values, event) > _F0
        hood.own[j] = np.uint32(word(person.rows, event))
        hood.weights[j] = real(person.weights, event) * hood.own_decay[j] if is_liked else _F0
    return last


@inlined
def weigh_walks(hood: Any, last: Any, seen: Any, first: Any) -> None:
    """Turns the weights of the user's `last` last events into those of walks.

    seen[first + j] is the number of events of the item of event j.
    """
    for j in range(last):
        hood.weights[j] = (hood.weights[j] * WALK_UNIT) / np.sqrt(np.float32(seen[first + j]) + _F1)


@inlined
def share_out(similarities: Any, seen: Any, count: Any) -> None:
    """Divides s of `count` users by n + 1. seen uint32[count] has the numbers of their events."""
    for n in range(count):
        similarities[n] /= np.float32(seen[n]) + _F1


@part
def find_neighbors(user: Any, events: Any, first: Any, last: Any, hood: Any) -> Any:
    """Writes the neighbours of the user of row `user` to `hood`. Returns their number.

    Lines [first, first + last) of `events` (`tables.recent.Recent`) are those of the items of the
    user's `last` last events.
    """
    table, found, similar, marks = hood.table, hood.found, hood.similar, hood.marks
    size = _0
    table[:] = np.uint32(0)
    for j in range(last):
        weight, line, mark = hood.weights[j], first + j, np.uint32(j + _1)
        if weight <= _F0:
            continue
        for n in range(np.uint64(events.counts[line])):
            other = events.rows[line, n]
            if events.values[line, n] <= _F0 or np.uint64(other) == user:
                continue
            at = slot_of(table, found, other)
            if table[at] == 0:
                found[size], similar[size], marks[size] = other, _F0, np.uint32(0)
                size += _1
                table[at] = np.uint32(size)
            slot = np.uint64(table[at]) - _1
            if marks[slot] != mark:
                marks[slot] = mark
                similar[slot] += weight
    kept = sort_largest(similar, size, np.uint64(hood.users.size), hood.order)
    for n in range(kept):
        slot = np.uint64(hood.order.order[n])
        hood.users[n], hood.similarities[n] = found[slot], similar[slot]
    return kept


@inlined
def _is_own(hood: Any, last: Any, row: Any) -> Any:
    """Whether an item is that of one of the user's last events."""
    found = False
    for j in range(last):
        found |= hood.own[j] == row and hood.weights[j] > _F0
    return found


@inlined
def _nearest(hood: Any, last: Any, events: Any, line: Any, count: Any) -> Any:
    """q, the first place of a line whose item is one of the user's. It is `count` without one."""
    for place in range(count):
        if events.values[line, place] > _F0 and _is_own(hood, last, events.rows[line, place]):
            return place
    return count


@part
def add_neighbors(
    events: Any, first: Any, similarities: Any, last: Any, hood: Any, items: Any, size: Any, lane: Any
) -> Any:
    """Adds the gains from neighbours to a lane of the loose gains of `items` (`Rows`).

    Lines from `first` on of `events` are those of the neighbours, and `similarities` float32[n] are
    their s. `size` items have a place, and others are appended. Returns the number of items.
    """
    table, marks, rows, gains = hood.item_table, hood.item_marks, items.loose_rows, items.loose
    table[:] = np.uint32(0)
    for n in range(size):
        table[slot_of(table, rows, rows[n])] = np.uint32(n + _1)
        marks[n] = np.uint32(0)
    for n in range(np.uint64(similarities.size)):
        line, mark = first + n, np.uint32(n + _1)
        count = np.uint64(events.counts[line])
        nearest = _0 if hood.is_walk else _nearest(hood, last, events, line, count)
        if nearest == count:
            continue
        for place in range(count):
            if events.values[line, place] <= _F0:
                continue
            at = slot_of(table, rows, events.rows[line, place])
            if table[at] == 0:
                size = _append(items, size, events.rows[line, place])
                marks[size - _1] = np.uint32(0)
                table[at] = np.uint32(size)
            slot = np.uint64(table[at]) - _1
            if marks[slot] != mark:
                marks[slot] = mark
                gain = similarities[n] * events.weights[line, place]
                if not hood.is_walk:
                    gain *= hood.decay[place - nearest if place > nearest else nearest - place]
                gains[slot, lane] += gain
    return size


@inlined
def _append(items: Any, size: Any, row: Any) -> Any:
    """Appends an item without gains to `size` loose ones. Returns the new number."""
    items.loose_rows[size] = row
    for lane in range(np.uint64(items.loose.shape[1])):
        items.loose[size, lane] = _F0
    return size + _1


@part
def keep_best(items: Any, size: Any, hood: Any) -> Any:
    """Writes the loose items that stay, and their gains, to `items`. Returns their number."""
    kept = sort_largest(items.loose[:, 0], size, _WALK_ITEMS, hood.order)
    for n in range(kept):
        place = np.uint64(hood.order.order[n])
        items.rows[n], items.gains[n, 0] = items.loose_rows[place], items.loose[place, 0]
    return kept


@part
def add_gained(gained: Any, gains: Any, hood: Any, items: Any, size: Any, lane: Any) -> Any:
    """Adds items of rows uint32[n] and their gains to a lane of the loose gains of `items`.

    hood.item_table has the places of the `size` items before. Returns the number of items.
    """
    table, rows = hood.item_table, items.loose_rows
    for n in range(np.uint64(gained.size)):
        at = slot_of(table, rows, gained[n])
        if table[at] == 0:
            size = _append(items, size, gained[n])
            table[at] = np.uint32(size)
        items.loose[np.uint64(table[at]) - _1, lane] = gains[n]
    return size
