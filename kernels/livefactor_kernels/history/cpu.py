"""Records events in compiled code. The semantics are in `history/__init__.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.history import COUNT_MIN, DECAY_STEPS, decays
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import (
    VECTOR_BYTES,
    address_of,
    load1,
    match16,
    prefetch,
    store1,
    store_u32,
)
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.simd.steps import real, word
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.pages import append_event, memory_of, newest, one_back
from livefactor_kernels.update import Update, writable

_NO_ROWS = np.empty((0, 0), np.uint32)
_NO_FLOATS = np.empty((0, 0), np.float32)
_NO_COLUMN = np.empty(0, np.float32)
_NO_TIMES = np.empty(0, np.int64)
_0, _1, _2, _4, _8, _16 = (np.uint64(number) for number in (0, 1, 2, 4, 8, LANES))
_64, _AHEAD = VECTOR_BYTES, np.uint64(6)
_ADDITIONS_MAX = 1 << 16
_F0, _F1 = np.float32(0.0), np.float32(1.0)


class Visits(NamedTuple):
    """Users' visits: present uint32[cap], last_time int64[cap]."""

    now: np.ndarray
    last_time: np.ndarray


class Followers(NamedTuple):
    """The items' followers.

    Attributes:
        rows: uint32[cap, M]; M is 0 without counts.
        counts: float32[cap, M].
        span: maximum number of earlier events that an event follows.
        decay: float32[DECAY_STEPS].
    """

    rows: np.ndarray
    counts: np.ndarray
    span: np.uint64
    decay: np.ndarray


@inlined
def _lowest_bit(hits: Any) -> Any:
    """The number of the lowest bit that is set in 16 bits, of which one is."""
    place = _0
    for half in (_8, _4, _2, _1):
        is_upper = hits & ((_1 << half) - _1) == _0
        hits = hits >> half if is_upper else hits
        place = place + half if is_upper else place
    return place


@inlined
def _place_of(words: Any, size: Any, word: Any) -> Any:
    """The first place of a word (uint64) in `size` words (uint32), `size` if it is missing."""
    for start in range(_0, size, _16):
        hits = match16(words, word, start * _4)
        if hits:
            return start + _lowest_bit(hits)
    return size


@inlined
def _add(rows: Any, counts: Any, size: Any, follower: Any, amount: Any) -> None:
    """Adds to the count of a follower of an item.

    `rows` and `counts` are the addresses of its followers uint32[size] and of their counts. Bits of
    counts have the order of counts, since no count is negative.
    """
    # Places fill from the front and never become empty again. Row 0, which empty places seem to
    # hold, is therefore found at its own place, or at the first empty place, where it belongs.
    place = _place_of(rows, size, follower)
    if place < size:
        store1(counts, load1(counts, place * _4) + amount, place * _4)
        return
    least = word(counts, _0)
    for other in range(_1, size):
        least = min(least, word(counts, other))
    place = _place_of(counts, size, least)
    left = load1(counts, place * _4) - amount
    if left > _F0:
        store1(counts, left, place * _4)
        return
    store_u32(rows, follower, place * _4)
    store1(counts, max(-left, COUNT_MIN), place * _4)


class Additions(NamedTuple):
    """Counts to add, in order: rows and followers uint32[n], amounts float32[n].

    They are listed before they are added, so that their memory can be prefetched.
    """

    rows: np.ndarray
    followers: np.ndarray
    amounts: np.ndarray

    @staticmethod
    def of(size: int) -> Additions:
        """Allocates room for `size` additions."""
        return Additions(np.empty(size, np.uint32), np.empty(size, np.uint32), np.empty(size, np.float32))


@compiled
def livefactor_add_kernel(followers: Any, additions: Any, size: Any) -> None:
    """Adds the first `size` additions, in order."""
    # A loop that takes an array out of a tuple would count a reference each time.
    rows, counts = address_of(followers.rows), address_of(followers.counts)
    items, others = address_of(additions.rows), address_of(additions.followers)
    amounts, places = address_of(additions.amounts), np.uint64(followers.rows.shape[1])
    line = places * _4
    for n in range(size):
        ahead = word(items, min(n + _AHEAD, size - _1)) * line
        for at in range(_0, line, _64):
            prefetch(rows + ahead, at)
            prefetch(counts + ahead, at)
        own = word(items, n) * line
        _add(rows + own, counts + own, places, word(others, n), real(amounts, n))


class Event(NamedTuple):
    """An event: its rows, and its weight float32."""

    user: Any
    item: Any
    weight: Any


class Columns(NamedTuple):
    """The columns of a record. Empty columns have their defaults.

    Attributes:
        user_rows, item_rows: uint32[n].
        values, weights: float32[n], or empty for 1.
        times: int64[n], or empty for 0.
    """

    user_rows: np.ndarray
    item_rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    times: np.ndarray

    @staticmethod
    def of(update: Update) -> Columns:
        """The columns of an update."""
        return Columns(
            update.user_rows,
            update.item_rows,
            _NO_COLUMN if update.values is None else writable(update.values),
            _NO_COLUMN if update.weights is None else writable(update.weights),
            _NO_TIMES if update.times is None else writable(update.times),
        )


@inlined
def _append(additions: Any, size: Any, row: Any, follower: Any, amount: Any) -> Any:
    """Lists an addition after `size` others. Returns the new number of additions."""
    at = size * _4
    store_u32(address_of(additions.rows), row, at)
    store_u32(address_of(additions.followers), follower, at)
    store1(address_of(additions.amounts), amount, at)
    return size + _1


@compiled
def _count(pages: Any, visits: Any, followers: Any, additions: Any, size: Any, event: Any) -> Any:
    """Lists the additions of an event after `size` others. Returns the new number of additions."""
    user, item = event.user, event.item
    seen, now = word(pages.seen, user), np.uint64(visits.now[user])
    index, place = newest(pages, user)
    for _ in range(min(min(seen, followers.span), pages.length)):
        other = word(pages.rows, index)
        age = now - word(pages.visits, index)
        index, place = one_back(pages, index, place)
        amount = event.weight * followers.decay[min(age, np.uint64(DECAY_STEPS - 1))]
        if amount < COUNT_MIN:
            continue
        size = _append(additions, size, other, item, amount)
        if age == _0 and other != item:
            size = _append(additions, size, item, other, amount)
    return size


@compiled
def livefactor_record_kernel(
    user_pages: Any, item_pages: Any, visits: Any, followers: Any, additions: Any, user_rows: Any, item_rows: Any,
    values: Any, weights: Any, times: Any, start: Any, stop: Any,
) -> Any:  # fmt: skip
    """Records events [start, stop) in the rings of users and items, and in visits.

    The columns are those of `Columns`.

    Returns:
        The number of listed additions to counts, which remain to be added.
    """
    size, most = _0, _2 * followers.span
    users, items = memory_of(user_pages), memory_of(item_pages)
    for t in range(start, stop):
        user, item = np.uint64(user_rows[t]), np.uint64(item_rows[t])
        value = values[t] if values.size else _F1
        weight = weights[t] if weights.size else _F1
        time = times[t] if times.size else np.int64(0)
        if time == 0 or time != visits.last_time[user]:
            visits.now[user] += np.uint32(1)
        visits.last_time[user] = time
        if followers.counts.shape[1]:
            if size + most > np.uint64(additions.rows.size):
                livefactor_add_kernel(followers, additions, size)
                size = _0
            size = _count(users, visits, followers, additions, size, Event(user, item, weight))
        append_event(users, user, item, value, weight, visits.now[user])
        append_event(items, item, user, value, weight, visits.now[user])
    return size


class Recorder:
    """Records the events of a model in its tables."""

    def __init__(self, spec: ModelSpec, users: Table, items: Table) -> None:
        """Prepares tables with histories, and compiles or loads the kernels."""
        assert users.pages is not None and items.pages is not None
        self.users, self.items = users.pages, items.pages
        own, followers = users.history, items.history
        self._visits = Visits(own["visits"], own["last_time"])
        counts = followers.get("neighbor_counts", _NO_FLOATS)
        self._followers = Followers(
            followers.get("neighbor_rows", _NO_ROWS),
            counts,
            np.uint64(spec.counts.span),
            decays(spec.counts.half_life),
        )
        self._counts = spec.counts
        most = min(2 * spec.counts.span * spec.micro_batch, _ADDITIONS_MAX)
        self._additions = Additions.of(max(most, 2 * spec.counts.span))
        empty = np.empty(0, np.uint32)
        livefactor_record_kernel(*self.state, *Columns.of(Update(0, empty, empty, None, None, 0, 0)), _0, _0)
        livefactor_add_kernel(self._followers, self._additions, _0)

    @property
    def state(self) -> tuple[np.ndarray, np.ndarray, Visits, Followers, Additions]:
        """The first arguments of `livefactor_record_kernel`."""
        return self.users.fields, self.items.fields, self._visits, self._followers, self._additions

    def check_room(self, events: int) -> None:
        """See `tables.pages.Pages.check_room`."""
        for pages in (self.users, self.items):
            pages.check_room(events)

    def record(self, update: Update, start: int, stop: int) -> None:
        """Records the events [start, stop) of an update. It releases the GIL."""
        self.check_room(stop - start)
        columns = Columns.of(update)
        self.count(livefactor_record_kernel(*self.state, *columns, np.uint64(start), np.uint64(stop)))

    def count(self, additions: int) -> None:
        """Adds what `livefactor_record_kernel` has listed.

        It only changes counts, and may run in parallel with code that does not read them.
        """
        if additions:
            livefactor_add_kernel(self._followers, self._additions, np.uint64(additions))

    def recent_items(self, update: Update) -> np.ndarray:
        """The other items, uint32[n * span], whose counts the update changes; with repeats."""
        if not self._counts.neighbors:
            return np.empty(0, np.uint32)
        users = np.unique(update.user_rows)
        return self.users.recent(users, self._counts.span)
