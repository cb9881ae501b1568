"""What learning from a record takes of the device beside the tables: the plan of a span, the sums of a micro-batch.

It is held before a record is begun, from the start for records as large as servers let in: a record that has been
begun cannot fail for want of memory. Sorting and summing take memory by themselves, out of a pool that nothing
else uses (`Device.learning`): once they have run on as much as there can be, they find it there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.plan import Plan, entries_per_event, span_events_max
from livefactor_kernels.device.staging import KEY_BYTES, WORD_BYTES, aligned
from livefactor_kernels.numbers.sums import CHUNK
from livefactor_kernels.replay import most_events
from livefactor_kernels.spec.model import ITEMS, LANES, USERS, Loss, ModelSpec, Rule

RECORD_EVENTS_MAX = 1 << 16
"""Events of a record, beside those that it replays, that memory is held for from the start: no server lets in more."""
_TYPES = {"negatives": np.uint32, "errors": np.float32, "segment_word": np.uint32, "dropped": np.uint32}


def chunks_of(spec: ModelSpec, events: int, width: int, user_rows: int, item_rows: int) -> tuple[int, int]:
    """Most chunks of users and of items in a micro-batch of `events` events with `width` negatives each, in tables of
    so many rows."""
    rows = min(events, user_rows), min(events * (1 + width), item_rows)
    entries = [events * each for each in entries_per_event(spec, width)]
    users, items = (min(most, few + most // CHUNK) for most, few in zip(entries, rows, strict=True))
    return users, items


def record_bytes(spec: ModelSpec, events: int) -> int:
    """Bytes of a record's columns (`device.staging`), if all are there and every key in it is new."""
    elements = [KEY_BYTES] * 2 + [WORD_BYTES] * 4  # new keys; rows of both sides, values, weights
    if spec.history.users:
        elements.append(KEY_BYTES)  # times
    nbytes = sum(aligned(events * each) for each in elements) + shared_bytes(spec, events)
    means = -(-events // spec.micro_batch) if spec.loss == Loss.SQUARED else 0
    return nbytes + aligned(means * WORD_BYTES)


def shared_bytes(spec: ModelSpec, events: int) -> int:
    """Bytes of the columns of a record's shared negatives (rule SOFTMAX): rows and rarity of each, its events' rarity."""
    if spec.rule != Rule.SOFTMAX:
        return 0
    return 2 * aligned(spec.drawn(events) * WORD_BYTES) + aligned(events * WORD_BYTES)


def plan_sizes(spec: ModelSpec, events: int, width: int) -> dict[str, int]:
    """Elements of a plan's arrays for any span of a record of `events` events with `width` negatives each."""
    events = min(events, span_events_max(spec, width, row_bits=1))
    entries, batches = events * sum(entries_per_event(spec, width)), -(-events // spec.micro_batch)
    sizes = dict.fromkeys(("keys", "marks", "counts", "chunk_start", "segment_chunk"), entries + 1)
    sizes |= dict.fromkeys(("group_chunk", "group_segment"), 2 * batches + 1)
    sizes |= {"negatives": events * width, "errors": events * (1 + width), "segment_word": entries}
    return sizes | {"dropped": events if spec.regularization.dropout > 0 else 0}


class Sums(NamedTuple):
    """Chunk sums of one micro-batch: users' chunks from place 0 on, items' from `items_at` on.

    gradients float32[places * (k_padded + 16)]: factors, then the bias. events int32[places]: how many events
    begin in the chunk.
    """

    gradients: Any
    events: Any
    items_at: int


class Scratch:
    """The plan and the sums of a model, as large as its largest record so far needs them. arrays: the plan's, as
    the device's array module takes them."""

    plan: Plan
    arrays: Plan
    sums: Sums

    def __init__(self, spec: ModelSpec, device: Device) -> None:
        """Memory for a record of `RECORD_EVENTS_MAX` events and what it replays; MemoryError if the device has not so much."""
        self._spec, self._device = spec, device
        self._sizes = dict.fromkeys(Plan._fields, 0)
        self._places = (0, 0)
        # While there is one item no negatives are drawn, and a span has more events then.
        widths = (0, spec.negatives)
        self.hold(most_events(spec, RECORD_EVENTS_MAX), widths, spec.limits.users_max, spec.limits.items_max)

    def hold(self, events: int, widths: Iterable[int], user_rows: int, item_rows: int) -> None:
        """Have memory for a record of `events` events with as many negatives each as any of `widths`, in tables of so
        many rows; MemoryError, with nothing lost, if the device has not so much. The caller holds the model's
        lock."""
        sizes, places, batch = self._sizes, self._places, min(events, self._spec.micro_batch)
        for width in widths:
            if not events or not entries_per_event(self._spec, width)[USERS]:
                continue  # no row can change
            needed = plan_sizes(self._spec, events, width)
            sizes = {name: max(needed[name], sizes[name]) for name in sizes}
            users, items = chunks_of(self._spec, batch, width, user_rows, item_rows)
            places = max(users, places[USERS]), max(items, places[ITEMS])
        if sizes != self._sizes:
            self._take_plan(sizes)
        if places != self._places:
            self._take_sums(places)

    def _take_plan(self, sizes: dict[str, int]) -> None:
        buffers = {name: self._device.empty(size, _TYPES.get(name, np.int64)) for name, size in sizes.items()}
        arrays = Plan(*(buffers[name].array for name in Plan._fields))
        with self._device.learning():
            arrays.keys.sort()
            self._device.xp.cumsum(arrays.marks, out=arrays.counts)
        self.plan, self.arrays = Plan(*(buffers[name].argument for name in Plan._fields)), arrays
        self._sizes = sizes

    def _take_sums(self, places: tuple[int, int]) -> None:
        gradients = self._device.empty(sum(places) * (self._spec.k_padded + LANES), np.float32)
        events = self._device.empty(sum(places), np.int32)
        self.sums = Sums(gradients.argument, events.argument, places[USERS])
        self._memory = gradients, events
        self._places = places
