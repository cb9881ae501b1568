"""Device memory for learning from a record: the plan of a span and the sums of a micro-batch.

The memory is reserved before a record is started. For records up to the server's maximum it is
reserved at the start of the model. A started record cannot fail for lack of memory. Sorting and
summing take temporary memory from a separate pool (`Device.learning`). After they have run once at
the maximum size, the pool has enough.
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
"""Events of a record, without replayed ones, for which memory is reserved at the start.

Servers accept no more.
"""
_TYPES = {"negatives": np.uint32, "errors": np.float32, "segment_word": np.uint32, "dropout_words": np.uint32}


def chunks_of(spec: ModelSpec, events: int, width: int, user_rows: int, item_rows: int) -> tuple[int, int]:
    """The maximum numbers of user chunks and item chunks in a micro-batch.

    The micro-batch has `events` events with `width` negatives each; the tables have `user_rows` and
    `item_rows` rows.
    """
    rows = min(events, user_rows), min(events * (1 + width), item_rows)
    entries = [events * each for each in entries_per_event(spec, width)]
    users, items = (min(most, few + most // CHUNK) for most, few in zip(entries, rows, strict=True))
    return users, items


def record_bytes(spec: ModelSpec, events: int) -> int:
    """Maximum bytes of a record's columns (`device/staging.py`): all present, all keys new."""
    # Two columns of new keys, and the rows of both sides, values and weights.
    elements = [KEY_BYTES] * 2 + [WORD_BYTES] * 4
    if spec.history.users:
        # The times.
        elements.append(KEY_BYTES)
    nbytes = sum(aligned(events * each) for each in elements) + shared_bytes(spec, events)
    means = -(-events // spec.micro_batch) if spec.loss == Loss.SQUARED else 0
    return nbytes + aligned(means * WORD_BYTES)


def shared_bytes(spec: ModelSpec, events: int) -> int:
    """Bytes of a record's columns for shared negatives (rule SOFTMAX)."""
    if spec.rule != Rule.SOFTMAX:
        return 0
    return 2 * aligned(spec.drawn(events) * WORD_BYTES) + aligned(events * WORD_BYTES)


def plan_sizes(spec: ModelSpec, events: int, width: int) -> dict[str, int]:
    """Sizes of a plan's arrays for any span of a record.

    The record has `events` events with `width` negatives each.
    """
    events = min(events, span_events_max(spec, width, row_bits=1))
    entries, batches = events * sum(entries_per_event(spec, width)), -(-events // spec.micro_batch)
    sizes = dict.fromkeys(("keys", "marks", "counts", "chunk_start", "segment_chunk"), entries + 1)
    sizes |= dict.fromkeys(("group_chunk", "group_segment"), 2 * batches + 1)
    sizes |= {"negatives": events * width, "errors": events * (1 + width), "segment_word": entries}
    return sizes | {"dropout_words": events if spec.regularization.dropout > 0 else 0}


class Sums(NamedTuple):
    """The chunk sums of one micro-batch: the users' from place 0 on, the items' from `items_at` on.

    Attributes:
        gradients: factors, then the bias, float32[places * (k_padded + 16)].
        events: number of events that start in the chunk, int32[places].
    """

    gradients: Any
    events: Any
    items_at: int


class Scratch:
    """The plan and the sums of a model, as large as its largest record so far needs.

    `arrays` are those of the plan, in the device's array module.
    """

    plan: Plan
    arrays: Plan
    sums: Sums

    def __init__(self, spec: ModelSpec, device: Device) -> None:
        """Reserves memory for a record of `RECORD_EVENTS_MAX` events and its replay.

        Raises MemoryError.
        """
        self._spec, self._device = spec, device
        self._sizes = dict.fromkeys(Plan._fields, 0)
        self._places = (0, 0)
        # While there is only one item, no negatives are drawn, so that a span has more events.
        widths = (0, spec.negatives)
        self.hold(most_events(spec, RECORD_EVENTS_MAX), widths, spec.limits.users_max, spec.limits.items_max)

    def hold(self, events: int, widths: Iterable[int], user_rows: int, item_rows: int) -> None:
        """Reserves memory for a record of `events` events with any number of negatives in `widths`.

        The tables have `user_rows` and `item_rows` rows. The caller holds the model's lock. Raises
        MemoryError, with nothing lost, if the device has too little memory.
        """
        sizes, places, batch = self._sizes, self._places, min(events, self._spec.micro_batch)
        for width in widths:
            if not events or not entries_per_event(self._spec, width)[USERS]:
                # No row can change.
                continue
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
