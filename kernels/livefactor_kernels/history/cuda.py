"""Records events on the GPU. The semantics are in `history/__init__.py`.

One thread records the events of a row in order, since rows are independent in this step. A record
is processed in pieces of whole micro-batches. Their events are sorted once by (micro-batch, row,
event), separately for users and items. Counts are processed in slices of a micro-batch. The users'
threads list the additions of a slice; the place of an addition follows from its event and its
number in the event. After sorting by (item, place), one thread adds the additions of an item in
order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.plan import value_of, weight_of
from livefactor_kernels.device.staging import Slot
from livefactor_kernels.device.warp import cuda, kernel
from livefactor_kernels.history import COUNT_MIN, DECAY_STEPS, decays
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.pins.cuda import PinnedRows
from livefactor_kernels.scoring.cuda_reads import livefactor_save_followed_kernel
from livefactor_kernels.spec.model import ITEMS, LANES, USERS, Counts, History, ModelSpec
from livefactor_kernels.tables import history_sections
from livefactor_kernels.tables.cuda import CudaTable

PIECE_EVENTS = 1 << 16
"""Maximum number of events per piece. No micro-batch has more."""
_BATCHES_MAX = 1 << 15
ADDITIONS_AT_ONCE = 1 << 18
"""Maximum number of additions per slice, unless one event has more."""
_UNUSED = np.int64(2**63 - 1)
# Bits of the parts of keys: (micro-batch, row, event) and (row, place).
EVENT_BITS, _ROW_BITS, _PLACE_BITS = 16, 32, 20
_EVENT_MASK, _ROW_MASK, _PLACE_MASK = (1 << EVENT_BITS) - 1, (1 << _ROW_BITS) - 1, (1 << _PLACE_BITS) - 1
_F0 = np.float32(0.0)
_EVERY = ModelSpec(history=History(LANES, LANES), counts=Counts(LANES))
TYPES = {
    name: section.dtype.type
    for side in (USERS, ITEMS)
    for name, section in history_sections(_EVERY, side).items()
}
"""Element types of the arrays in a `HistoryRows`."""


class Piece(NamedTuple):
    """The numbers of a piece of a record (all int64).

    Attributes:
        events: number of events.
        first: number of the first event in the record.
        batch: events per micro-batch.
        times_at: offset of the times in the record's int64 words, -1 for zeros.

    The other fields are those of `plan.Span`.
    """

    events: int
    first: int
    batch: int
    users_at: int
    items_at: int
    values_at: int
    weights_at: int
    times_at: int
    means_at: int


class HistoryRows(NamedTuple):
    """The history of one side on the device, flat (`tables.history_sections`).

    `length` and `neighbors` are the sizes of a row's lists, 0 without lists. Missing arrays have
    one unused element.
    """

    seen_rows: Any
    seen_values: Any
    seen_weights: Any
    seen_visits: Any
    visits: Any
    last_time: Any
    seen_count: Any
    neighbor_rows: Any
    neighbor_counts: Any
    length: int
    neighbors: int

    @staticmethod
    def of(table: CudaTable, device: Device) -> HistoryRows:
        """The history of a table."""
        arrays = [
            table.arrays[name].buffer.argument if name in table.arrays else device.empty(1, dtype).argument
            for name, dtype in TYPES.items()
        ]
        lengths = (table.widths.get(name, 0) for name in ("seen_rows", "neighbor_rows"))
        return HistoryRows(*arrays, *lengths)


class Additions(NamedTuple):
    """The counts to add in a slice.

    Attributes:
        keys: (row, place), int64; they are sorted before the additions.
        followers: uint32 by place.
        amounts: float32 by place.
        span: maximum number of earlier events that an event follows.
        decay: float32[DECAY_STEPS].
    """

    keys: Any
    followers: Any
    amounts: Any
    decay: Any
    span: int


def pieces_of(
    events: int, batch: int, offsets: dict[str, int], batches_max: int = _BATCHES_MAX
) -> Iterator[Piece]:
    """Yields the pieces of a record, with at most `batches_max` micro-batches each.

    The record has `events` events. A `Piece` takes its offsets from `offsets`.
    """
    offsets = {name: offsets[name] for name in Piece._fields if name.endswith("_at")}
    at_once = min(PIECE_EVENTS // batch, batches_max) * batch
    for first in range(0, events, at_once):
        yield Piece(min(at_once, events - first), first, batch, **offsets)


@inlined
def row_of(key: Any) -> Any:
    """The row of an event's key, int64."""
    return (key >> EVENT_BITS) & _ROW_MASK


@inlined
def event_of(key: Any) -> Any:
    """The number of the event in the piece, int64."""
    return key & _EVENT_MASK


@inlined
def first_of_row(keys: Any, start: Any, stop: Any, row: Any, bits: Any) -> Any:
    """The first of the sorted entries [start, stop) whose row is `row` or above, int64.

    The row of a key is above its lowest `bits` bits.
    """
    low, high = np.int64(start), np.int64(stop)
    while low < high:
        middle = (low + high) // 2
        if (keys[middle] >> bits) & _ROW_MASK < row:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def begins_row(keys: Any, i: Any, start: Any) -> Any:
    """Whether entry i is the first one of its row at or after `start`."""
    return i == start or keys[i - 1] >> EVENT_BITS != keys[i] >> EVENT_BITS


@inlined
def end_of_row(keys: Any, i: Any, stop: Any) -> Any:
    """The end of entry i's row, at most `stop`, int64."""
    return end_of_events(keys, i, stop, 1 << EVENT_BITS)


@inlined
def end_of_events(keys: Any, i: Any, stop: Any, last: Any) -> Any:
    """The end, in [i, stop], of the events below number `last` in entry i's row, int64."""
    limit, low, high = ((keys[i] >> EVENT_BITS) << EVENT_BITS) + last, np.int64(i), np.int64(stop)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < limit:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def livefactor_order_kernel(piece: Any, words: Any, user_keys: Any, item_keys: Any) -> None:
    """Writes the keys of a piece's events. One thread per event."""
    t = cuda.grid(1)
    if t >= piece.events:
        return
    batch, at = np.int64(t // piece.batch) << (_ROW_BITS + EVENT_BITS), piece.first + t
    user_keys[t] = batch | (np.int64(words[piece.users_at + at]) << EVENT_BITS) | t
    item_keys[t] = batch | (np.int64(words[piece.items_at + at]) << EVENT_BITS) | t


@inlined
def _list_additions(
    users: Any, additions: Any, user: Any, now: Any, item: Any, weight: Any, place: Any
) -> None:
    """Lists the additions of an event from `place` on."""
    length, seen = users.length, np.int64(users.seen_count[user])
    for back in range(1, min(min(seen, additions.span), length) + 1):
        at = user * length + (seen - back) % length
        other = np.int64(users.seen_rows[at])
        age = now - np.int64(users.seen_visits[at])
        amount = weight * additions.decay[min(age, DECAY_STEPS - 1)]
        if amount < COUNT_MIN:
            continue
        additions.keys[place] = (other << _PLACE_BITS) | place
        additions.followers[place], additions.amounts[place] = np.uint32(item), amount
        place += 1
        if age == 0 and other != item:
            additions.keys[place] = (item << _PLACE_BITS) | place
            additions.followers[place], additions.amounts[place] = np.uint32(other), amount
            place += 1


@inlined
def _remember(side: Any, row: Any, seen: Any, other: Any, value: Any, weight: Any) -> Any:
    """Writes event number `seen` of a row to its ring. Returns its place."""
    at = row * side.length + seen % side.length
    side.seen_rows[at] = np.uint32(other)
    side.seen_values[at] = value
    side.seen_weights[at] = weight
    return at


@kernel
def livefactor_record_users_kernel(
    piece: Any, keys: Any, words: Any, floats: Any, longs: Any, users: Any, additions: Any, counts: Any, start: Any,
    stop: Any, first: Any, last: Any,
) -> None:  # fmt: skip
    """Records the events [first, last) of the micro-batch [start, stop) in their users' rows.

    With `counts`, it also lists their additions to counts. One thread per entry; the thread of a
    user's first entry in the slice records all of the user's entries.
    """
    i = start + cuda.grid(1)
    if i >= stop or event_of(keys[i]) < first or event_of(keys[i]) >= last:
        return
    if not begins_row(keys, i, start) and event_of(keys[i - 1]) >= first:
        return
    user, end = row_of(keys[i]), end_of_row(keys, i, stop)
    while i < end and event_of(keys[i]) < last:
        t = event_of(keys[i])
        at = piece.first + t
        time = longs[piece.times_at + at] if piece.times_at >= 0 else np.int64(0)
        if time == 0 or time != users.last_time[user]:
            users.visits[user] += np.uint32(1)
        users.last_time[user] = time
        item, weight = np.int64(words[piece.items_at + at]), weight_of(piece, floats, t)
        if counts:
            place, now = (t - first) * (2 * additions.span), np.int64(users.visits[user])
            _list_additions(users, additions, user, now, item, weight, place)
        where = _remember(
            users, user, np.int64(users.seen_count[user]), item, value_of(piece, floats, t), weight
        )
        users.seen_visits[where] = users.visits[user]
        users.seen_count[user] += np.uint32(1)
        i += 1


@kernel
def livefactor_record_items_kernel(
    piece: Any, keys: Any, words: Any, floats: Any, items: Any, start: Any, stop: Any, last: Any
) -> None:
    """Records the events below `last` of the micro-batch [start, stop) in their items' rows.

    One thread per entry; the thread of an item's first entry writes those entries that its ring
    will still hold.
    """
    i = start + cuda.grid(1)
    if i >= stop or not begins_row(keys, i, start):
        return
    item, end = row_of(keys[i]), end_of_events(keys, i, stop, last)
    seen = np.int64(items.seen_count[item])
    for j in range(max(i, end - items.length), end):
        t = event_of(keys[j])
        user = np.int64(words[piece.users_at + piece.first + t])
        _remember(items, item, seen + (j - i), user, value_of(piece, floats, t), weight_of(piece, floats, t))
    items.seen_count[item] = np.uint32(seen + (end - i))


@inlined
def _add(items: Any, item: Any, follower: Any, amount: Any) -> None:
    at = item * items.neighbors
    least = at
    for place in range(at, at + items.neighbors):
        count = items.neighbor_counts[place]
        if count > _F0 and items.neighbor_rows[place] == follower:
            items.neighbor_counts[place] = count + amount
            return
        if count < items.neighbor_counts[least]:
            least = place
        # Places fill from the front, so that all later places are empty, too.
        if count == _F0:
            break
    left = items.neighbor_counts[least] - amount
    if left > _F0:
        items.neighbor_counts[least] = left
        return
    items.neighbor_rows[least] = follower
    items.neighbor_counts[least] = max(-left, COUNT_MIN)


@kernel
def livefactor_add_kernel(items: Any, additions: Any, count: Any) -> None:
    """Adds the additions of the first `count` keys, which are sorted.

    One thread per addition; the thread of an item's first addition adds all of them.
    """
    i = cuda.grid(1)
    if i >= count or additions.keys[i] == _UNUSED:
        return
    item = additions.keys[i] >> _PLACE_BITS
    if i > 0 and additions.keys[i - 1] >> _PLACE_BITS == item:
        return
    while i < count and additions.keys[i] >> _PLACE_BITS == item:
        place = additions.keys[i] & _PLACE_MASK
        _add(items, item, additions.followers[place], additions.amounts[place])
        i += 1


class Recorder:
    """Records the events of a model in its tables on the device.

    All of its memory is reserved at the start.
    """

    def __init__(self, spec: ModelSpec, device: Device, users: CudaTable, items: CudaTable) -> None:
        """Prepares tables with histories.

        Raises MemoryError if the device has too little memory.
        """
        self._device, self._counts = device, bool(spec.counts.neighbors)
        self.users, self.items = HistoryRows.of(users, device), HistoryRows.of(items, device)
        self.keys = device.empty(PIECE_EVENTS, np.int64), device.empty(PIECE_EVENTS, np.int64)
        self._event_additions = 2 * spec.counts.span if self._counts else 1
        self._at_once = max(1, ADDITIONS_AT_ONCE // self._event_additions) if self._counts else PIECE_EVENTS
        self._hold(self._at_once * self._event_additions if self._counts else 1, spec)

    def _hold(self, size: int, spec: ModelSpec) -> None:
        device = self._device
        self._entries = device.empty(size, np.int64)
        self._columns = device.empty(size, np.uint32), device.empty(size, np.float32)
        self._decay = device.put(decays(spec.counts.half_life) if self._counts else np.ones(1, np.float32))
        followers, amounts = self._columns
        columns = self._entries.argument, followers.argument, amounts.argument, self._decay.argument
        self._additions = Additions(*columns, spec.counts.span)
        # From now on, sorting finds its memory in the pool.
        with device.learning():
            for buffer in (*self.keys, self._entries):
                buffer.array.fill(0)
                buffer.array.sort()

    def save_recent_items(self, items: PinnedRows, slot: Slot, users_at: int, events: int) -> None:
        """Copies for pins the items whose counts may change beside those that the record names."""
        if self._counts:
            which = slot.words, users_at, self.users, self._additions.span
            items.save_by(livefactor_save_followed_kernel, events * self._additions.span, *which)

    def order(self, piece: Piece, slot: Slot) -> None:
        """Sorts the events of a piece."""
        keys = (buffer.argument for buffer in self.keys)
        self._device.launch(livefactor_order_kernel, piece.events, piece, slot.words, *keys)
        for buffer in self.keys:
            buffer.array[: piece.events].sort()

    def record(self, piece: Piece, slot: Slot, start: int, fresh: int, stop: int) -> None:
        """Records the events [start, fresh) of the micro-batch [start, stop) of a sorted piece."""
        if start == fresh:
            return
        columns = slot.words, slot.floats
        for first in range(start, fresh, self._at_once):
            last = min(first + self._at_once, fresh)
            entries = (last - first) * self._event_additions
            if self._counts:
                self._entries.array[:entries].fill(_UNUSED)
            self._device.launch(
                livefactor_record_users_kernel, stop - start, piece, self.keys[0].argument, *columns, slot.longs,
                self.users, self._additions, int(self._counts), start, stop, first, last,
            )  # fmt: skip
            if self._counts:
                self._entries.array[:entries].sort()
                self._device.launch(livefactor_add_kernel, entries, self.items, self._additions, entries)
        arguments = piece, self.keys[1].argument, *columns, self.items, start, stop, fresh
        self._device.launch(livefactor_record_items_kernel, stop - start, *arguments)
