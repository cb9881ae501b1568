"""GPU kernels that order the gradients of a record by row, and divide them into chunks.

A record is processed in spans of whole micro-batches. Each contribution of an event to a row is an
entry with a key of at most 62 bits. After sorting, the entries of a row in a micro-batch are
consecutive, in the order of (event, slot):

    group (side, micro-batch)  |  row  |  entry: event * entries per event + number of the entry

A segment is the entries of one row in one micro-batch. A chunk is up to 32 of them (`sums.CHUNK`),
counted from the start of the segment. `Plan` lists the starts of groups, segments and chunks.
Everything is counted on the device, so that the host never waits for it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.device.warp import cuda, kernel
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import draw_negative, dropout_word, rounding_word
from livefactor_kernels.numbers.sums import CHUNK
from livefactor_kernels.spec.model import ITEMS, USERS, Loss, ModelSpec

UNUSED = np.int64(2**63 - 1)
"""Key of an unused entry. It sorts after all other keys."""
SPAN_ENTRIES = 1 << 19
"""Maximum number of entries per span, unless one micro-batch has more."""
KEY_BITS = 62
_SEGMENT = 1 << 32
_CHUNK_MASK = _SEGMENT - 1
_LOGISTIC, _BPR = int(Loss.LOGISTIC), int(Loss.BPR)


class Span(NamedTuple):
    """The numbers of a span (all int64). Offsets count 32-bit words in the record's memory.

    Attributes:
        events: number of events.
        first: number of the first event in the record.
        batch: events per micro-batch; the last one may have fewer.
        batches: number of micro-batches.
        width: negatives per event.
        user_entries, item_entries: entries per event.
        row_bits, entry_bits: bits of a key.
        users_at, items_at, values_at, weights_at, means_at: offsets of the record's columns, -1 for
            a column of ones.
    """

    events: int
    first: int
    batches: int
    batch: int
    width: int
    user_entries: int
    item_entries: int
    row_bits: int
    entry_bits: int
    users_at: int
    items_at: int
    values_at: int
    weights_at: int
    means_at: int


class Plan(NamedTuple):
    """The arrays of a span, int64 unless stated otherwise.

    Attributes:
        keys: the sorted entries.
        negatives: uint32[events * width].
        errors: float32[events * (1 + width)].
        marks: per entry, (starts a segment) << 32 | (starts a chunk).
        counts: the running sum of the marks.
        chunk_start: the first entry of each chunk, and the end.
        segment_chunk: the first chunk of each segment, and the end.
        segment_word: random word of each segment's step if factors are narrow
            (`random.rounding_word`), uint32.
        group_chunk, group_segment: the first chunk and segment of each group (the users'
            micro-batches, then the items'), and the end.
        dropout_words: random word of each event's dropout, if there is any (`random.dropout_word`),
            uint32[events].
    """

    keys: Any
    marks: Any
    counts: Any
    chunk_start: Any
    segment_chunk: Any
    segment_word: Any
    group_chunk: Any
    group_segment: Any
    negatives: Any
    errors: Any
    dropout_words: Any


def entries_per_event(spec: ModelSpec, width: int) -> tuple[int, int]:
    """The maximum number of user entries and of item entries of an event with `width` negatives.

    BPR compares pairs: each negative gives one entry to the user, one to the positive and one to
    itself.
    """
    return (width, 2 * width) if spec.loss == Loss.BPR else (1 + width, 1 + width)


def spans_of(spec: ModelSpec, events: int, width: int, rows: int, offsets: dict[str, int]) -> list[Span]:
    """Splits a record of `events` events into spans. The list is empty if no row can change.

    Args:
        spec: the spec.
        events: number of events.
        width: negatives per event.
        rows: number of rows of the larger table.
        offsets: the offsets of the record's columns, from which a `Span` takes its own.
    """
    users, items = entries_per_event(spec, width)
    if not events or not users:
        return []
    offsets = {name: offsets[name] for name in Span._fields if name.endswith("_at")}
    row_bits, batch = max(1, (rows - 1).bit_length()), spec.micro_batch
    events_max = span_events_max(spec, width, row_bits)
    spans = []
    for first in range(0, events, events_max):
        count = min(events_max, events - first)
        batches = -(-count // batch)
        entry_bits = max(1, (count * items - 1).bit_length())
        numbers = {
            "events": count,
            "first": first,
            "batches": batches,
            "batch": batch,
            "width": width,
            "user_entries": users,
            "item_entries": items,
            "row_bits": row_bits,
            "entry_bits": entry_bits,
        }
        spans.append(Span(**numbers, **offsets))
    return spans


def span_events_max(spec: ModelSpec, width: int, row_bits: int) -> int:
    """The maximum number of events of a span, in whole micro-batches."""
    users, items = entries_per_event(spec, width)
    at_once = max(1, SPAN_ENTRIES // (spec.micro_batch * (users + items)))
    while at_once > 1 and _key_bits(at_once, spec.micro_batch * items, row_bits) > KEY_BITS:
        at_once //= 2
    return at_once * spec.micro_batch


def _key_bits(batches: int, entries: int, row_bits: int) -> int:
    return (2 * batches - 1).bit_length() + row_bits + max(1, (batches * entries - 1).bit_length())


@inlined
def value_of(span: Any, floats: Any, t: Any) -> Any:
    """The value of the span's event t, float32."""
    return np.float32(1.0) if span.values_at < 0 else floats[span.values_at + span.first + t]


@inlined
def weight_of(span: Any, floats: Any, t: Any) -> Any:
    """The weight of the span's event t, float32."""
    return np.float32(1.0) if span.weights_at < 0 else floats[span.weights_at + span.first + t]


@inlined
def row_of(span: Any, key: Any) -> Any:
    """The row of a key, int64."""
    return (key >> span.entry_bits) & ((1 << span.row_bits) - 1)


@inlined
def event_of(span: Any, key: Any, entries: Any) -> Any:
    """The event and the number of the entry in it (both int64) of a key.

    `entries` is the number per event.
    """
    entry = key & ((1 << span.entry_bits) - 1)
    return entry // entries, entry % entries


@inlined
def _key(span: Any, side: Any, row: Any, t: Any, entry: Any) -> Any:
    group = side * span.batches + t // span.batch
    return (((group << span.row_bits) | row) << span.entry_bits) | entry


@cache
def entries_kernel(loss: int) -> Any:
    """Makes the kernel that draws the negatives of a span and writes the keys of its entries.

    It has one thread per slot of an event.
    """
    LOSS = int(loss)

    @kernel
    def livefactor_entries_kernel(
        span: Any, plan: Any, words: Any, floats: Any, seed: Any, revision: Any, items: Any
    ) -> None:
        i = cuda.grid(1)
        slots = span.width + 1
        if i >= span.events * slots:
            return
        t, slot = i // slots, i % slots
        user = np.int64(words[span.users_at + span.first + t])
        positive = np.int64(words[span.items_at + span.first + t])
        item = positive
        if slot > 0:
            event, draw = np.uint64(span.first + t), np.uint64(slot - 1)
            item = np.int64(draw_negative(seed, revision, event, draw, np.uint64(positive), items))
            plan.negatives[t * span.width + slot - 1] = np.uint32(item)
        items_first = span.events * span.user_entries
        if LOSS == _BPR:
            if slot > 0:
                entry = t * span.user_entries + slot - 1
                plan.keys[entry] = _key(span, USERS, user, t, entry)
                entry = t * span.item_entries + slot - 1
                plan.keys[items_first + entry] = _key(span, ITEMS, positive, t, entry)
                entry += span.width
                plan.keys[items_first + entry] = _key(span, ITEMS, item, t, entry)
            return
        used = True
        # An explicit negative has no sampled negatives.
        if LOSS == _LOGISTIC and slot > 0:
            used = value_of(span, floats, t) != np.float32(0.0)
        plan.keys[i] = _key(span, USERS, user, t, i) if used else UNUSED
        plan.keys[items_first + i] = _key(span, ITEMS, item, t, i) if used else UNUSED

    return livefactor_entries_kernel


@kernel
def livefactor_mark_kernel(span: Any, plan: Any, entries: Any) -> None:
    """Writes the marks of the sorted entries: (starts a segment) << 32 | (starts a chunk).

    One thread per entry.
    """
    i = cuda.grid(1)
    if i >= entries:
        return
    key, mark = plan.keys[i], np.int64(0)
    if key != UNUSED:
        # The name of a segment is its group and row.
        name = key >> span.entry_bits
        low = i
        if i > 0 and plan.keys[i - 1] >> span.entry_bits == name:
            # The first entry of the segment is in [low, high].
            low, high = np.int64(0), i - 1
            while low < high:
                middle = (low + high) // 2
                if plan.keys[middle] >> span.entry_bits < name:
                    low = middle + 1
                else:
                    high = middle
        if low == i:
            mark = np.int64(_SEGMENT | 1)
        elif (i - low) % CHUNK == 0:
            mark = np.int64(1)
    plan.marks[i] = mark


@kernel
def livefactor_list_kernel(span: Any, plan: Any, entries: Any) -> None:
    """Writes the starts of chunks, segments and groups from the running sum of the marks.

    One thread per entry.
    """
    i = cuda.grid(1)
    if i >= entries or plan.keys[i] == UNUSED:
        return
    before = plan.counts[i - 1] if i > 0 else np.int64(0)
    count, key = plan.counts[i], plan.keys[i]
    chunk, segment = (count & _CHUNK_MASK) - 1, (count >> 32) - 1
    if count != before:
        plan.chunk_start[chunk] = i
    if count >> 32 != before >> 32:
        plan.segment_chunk[segment] = chunk
        shift = span.row_bits + span.entry_bits
        if i == 0 or plan.keys[i - 1] >> shift != key >> shift:
            plan.group_chunk[key >> shift] = chunk
            plan.group_segment[key >> shift] = segment
    if i == entries - 1 or plan.keys[i + 1] == UNUSED:
        plan.chunk_start[chunk + 1] = i + 1
        plan.segment_chunk[segment + 1] = chunk + 1
        plan.group_chunk[2 * span.batches] = chunk + 1
        plan.group_segment[2 * span.batches] = segment + 1


@kernel
def livefactor_words_kernel(span: Any, plan: Any, key: Any, revision: Any) -> None:
    """Writes the random words of the segments' steps, if factors are narrow.

    One thread per segment.
    """
    i = cuda.grid(1)
    if i >= plan.group_segment[2 * span.batches]:
        return
    first = plan.keys[plan.chunk_start[plan.segment_chunk[i]]]
    group = first >> (span.row_bits + span.entry_bits)
    side, number = group // span.batches, span.first // span.batch + group % span.batches
    word = rounding_word(key, revision, np.uint64(number), np.uint64(side), np.uint64(row_of(span, first)))
    plan.segment_word[i] = np.uint32(word)


@kernel
def livefactor_dropout_kernel(span: Any, plan: Any, key: Any, revision: Any) -> None:
    """Writes the random words of the events' dropout. One thread per event."""
    t = cuda.grid(1)
    if t < span.events:
        plan.dropout_words[t] = np.uint32(dropout_word(key, revision, np.uint64(span.first + t)))
