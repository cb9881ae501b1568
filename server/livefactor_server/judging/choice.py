"""Chooses the judged events and the items to rank them against.

All draws are by counter, so that a replay of the log judges the same events.

A random share of the records is judged, and more while a floor asks for it (`floor.py`). A record's
random number is the first word of Philox4x32-10 (`livefactor_kernels.numbers.random`) with the
counter (revision low, revision high, 0, 1). Records of up to `EVENTS_LEAST` events are judged by
blocks of `BLOCK_RECORDS` consecutive revisions, because they arrive in groups, and to judge one
event costs nearly as much as to judge sixteen together. A block's random number has the counter
(block low, block high, 0, 3). Of a judged record with n events, min(n, most, max(8, n
/ 128)) events are judged. The record is divided into so many equal stretches, and one event of each
stretch is judged. Its draw has the counter (revision low, revision high, stretch, 0). The first
word chooses the event in the stretch. The third and the fourth word decide whether it is ranked
against sampled items and against all items. The sampled items come from `draw_negative` with a
separate key. The negatives are the ones that the model learns from.

The kernels keep the GIL, since they run for microseconds, and to get it back from a busy thread
takes longer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.random import NEGATIVE_DOMAIN, domain_key, draw_negative, philox

CHOICE_DOMAIN = 0x6C66_6A75_6467_0001
"""It is XORed with the seed to choose the judged events."""
CANDIDATE_DOMAIN = 0x6C66_6A75_6467_0002
"""It is XORed with the seed to sample the items that a judged event is ranked against."""

EVENTS_LEAST, EVENTS_SHARE = 8, 1 / 128
"""A judged record has EVENTS_SHARE of its events judged, and at least EVENTS_LEAST."""

BLOCK_RECORDS = 16
"""Number of consecutive revisions that are judged together if their records are small."""

_RECORD, _BLOCK = np.uint64(1), np.uint64(3)
"""The last word of the counter of a record's or a block's number."""

_MASK, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_0, _2 = np.uint64(0), np.uint64(2)


@compiled(nogil=False, error_model="python")
def _lots_kernel(key: Any, share: Any, numbers: Any, kind: Any, judged: Any) -> None:
    for i in range(numbers.size):
        lot, _, _, _ = philox(numbers[i] & _MASK, numbers[i] >> _32, _0, kind, key)
        judged[i] = lot * 2.0**-32 < share


@compiled(nogil=False, error_model="python")
def _choose_kernel(
    key: Any, revisions: Any, sizes: Any, counts: Any, records: Any, events: Any, lots: Any
) -> None:
    at = 0
    for record in range(sizes.size):
        low, high, n = revisions[record] & _MASK, revisions[record] >> _32, sizes[record]
        chosen = counts[record]
        for j in range(chosen):
            place, _, sampled, ranked = philox(low, high, np.uint64(j), _0, key)
            start, stop = j * n // chosen, (j + 1) * n // chosen
            records[at] = record
            events[at] = start + np.int64((place * np.uint64(stop - start)) >> _32)
            lots[at, 0], lots[at, 1] = sampled * 2.0**-32, ranked * 2.0**-32
            at += 1


@compiled(nogil=False, error_model="python")
def _event_lots_kernel(key: Any, revisions: Any, events: Any, lots: Any) -> None:
    for i in range(revisions.size):
        revision = revisions[i]
        lot, _, _, _ = philox(revision & _MASK, revision >> _32, np.uint64(events[i]), _2, key)
        lots[i] = lot * 2.0**-32


@compiled(nogil=False, error_model="python")
def _draw_kernel(key: Any, revisions: Any, events: Any, positives: Any, items: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            drawn = np.uint64(positives[i])
            if items[i] > np.uint64(1):
                drawn = draw_negative(key, revisions[i], np.uint64(events[i]), np.uint64(d), drawn, items[i])
            out[i, d] = np.uint32(drawn)


class Chosen(NamedTuple):
    """The m judged events.

    Attributes:
        records: position of the event's record among the judged records, int64[m].
        events: position of the event in its record, int64[m].
        lots: random numbers in [0, 1) for the two rankings, float64[m, 2].
    """

    records: np.ndarray
    events: np.ndarray
    lots: np.ndarray


def judged_records(seed: int, share: float, revisions: np.ndarray) -> np.ndarray:
    """Which of the records with `revisions` (uint64[r]) are judged: bool[r]."""
    return _judged(seed, share, revisions, _RECORD)


def judged_small_records(seed: int, share: float, revisions: np.ndarray) -> np.ndarray:
    """As `judged_records`, for records of at most `EVENTS_LEAST` events."""
    return _judged(seed, share, revisions // np.uint64(BLOCK_RECORDS), _BLOCK)


def _judged(seed: int, share: float, numbers: np.ndarray, kind: np.uint64) -> np.ndarray:
    judged = np.empty(numbers.size, np.bool_)
    _lots_kernel(domain_key(seed, CHOICE_DOMAIN), share, numbers, kind, judged)
    return judged


def counts_of(sizes: np.ndarray, most: int) -> np.ndarray:
    """How many events are judged of records with so many events, int64[r]. See `choose`."""
    wanted = np.maximum(EVENTS_LEAST, (sizes * EVENTS_SHARE).astype(np.int64))
    counts: np.ndarray = np.minimum(np.minimum(sizes, most), wanted)
    return counts


def count_of(size: int, most: int) -> int:
    """As `counts_of`, for one record. It takes a tenth of the time."""
    return min(size, most, max(EVENTS_LEAST, int(size * EVENTS_SHARE)))


def choose(seed: int, revisions: np.ndarray, sizes: np.ndarray, most: int) -> Chosen:
    """Chooses at most `most` events of each judged record, in log order.

    Args:
        seed: the seed of the spec.
        revisions: revisions of the judged records, uint64[r].
        sizes: their numbers of events, int64[r].
        most: maximum number of judged events per record.
    """
    counts = counts_of(sizes, most)
    total = int(counts.sum())
    chosen = Chosen(np.empty(total, np.int64), np.empty(total, np.int64), np.empty((total, 2)))
    _choose_kernel(domain_key(seed, CHOICE_DOMAIN), revisions, sizes, counts, *chosen)
    return chosen


def event_lots(seed: int, revisions: np.ndarray, events: np.ndarray) -> np.ndarray:
    """A random number in [0, 1) for each event, float64[n]. Challengers are judged by these lots.

    An event's draw has the counter (revision low, revision high, event, 2).

    Args:
        seed: the seed of the spec.
        revisions: revisions of the records, uint64[n].
        events: positions in the records, int64[n].
    """
    lots = np.empty(revisions.size)
    _event_lots_kernel(domain_key(seed, CHOICE_DOMAIN), revisions, events, lots)
    return lots


def draw(
    seed: int, domain: int, revisions: np.ndarray, events: np.ndarray, positives: np.ndarray,
    item_counts: np.ndarray, width: int,
) -> np.ndarray:  # fmt: skip
    """Draws `width` items for each of n events, other than the event's own.

    Args:
        seed: the seed of the spec.
        domain: `NEGATIVE_DOMAIN` for the negatives that the model learns from, or
            `CANDIDATE_DOMAIN`.
        revisions: revisions of the records, uint64[n].
        events: positions in the records, int64[n].
        positives: item rows of the events, uint32[n].
        item_counts: number of items at each event, uint64[n].
        width: items per event.

    Returns:
        Item rows, uint32[n, width]. They come from `random.draw_negative`. If there is only one
        item, they are its row.
    """
    out = np.empty((len(events), width), np.uint32)
    _draw_kernel(domain_key(seed, domain), revisions, events, positives, item_counts, out)
    return out


__all__ = [
    "CANDIDATE_DOMAIN",
    "CHOICE_DOMAIN",
    "NEGATIVE_DOMAIN",
    "Chosen",
    "choose",
    "counts_of",
    "draw",
    "event_lots",
    "judged_records",
    "judged_small_records",
]
