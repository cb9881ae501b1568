"""Which events are judged, and among which items: draws by counter, so that a replay of the log judges the same ones.

A share of the records is judged, by a lot each: the first word of Philox4x32-10 (`livefactor_kernels.numbers.random`) with counter
(revision low, revision high, 0, 1). Of a judged record of n events min(n, most, max(8, n / 128)) are, one from each of as many
equal stretches: with counter (revision low, revision high, stretch, 0) the first word says where in its stretch the event
lies, the third and the fourth are lots that decide whether it is also ranked among drawn items, and among all. The candidates
come from `draw_negative` under a key of their own; the negatives are the very ones that the model will learn from.

The judge's kernels take microseconds and keep the GIL: to get it back from a busy thread takes longer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.random import NEGATIVE_DOMAIN, domain_key, draw_negative, philox

CHOICE_DOMAIN = 0x6C66_6A75_6467_0001
"""XORed to the seed for the choice of events."""
CANDIDATE_DOMAIN = 0x6C66_6A75_6467_0002
"""XORed to the seed for the items that a judged event is ranked among."""

EVENTS_LEAST, EVENTS_SHARE = 8, 1 / 128
"""Events of a judged record that are judged: this share of them, but this many if it has them."""

_MASK, _32, _0, _1 = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0), np.uint64(1)


@compiled(nogil=False, error_model="python")
def _lots_kernel(key: Any, share: Any, revisions: Any, judged: Any) -> None:
    for record in range(revisions.size):
        lot, _, _, _ = philox(revisions[record] & _MASK, revisions[record] >> _32, _0, _1, key)
        judged[record] = lot * 2.0**-32 < share


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
def _draw_kernel(key: Any, revisions: Any, events: Any, positives: Any, items: Any, out: Any) -> None:
    for i in range(out.shape[0]):
        for d in range(out.shape[1]):
            drawn = np.uint64(positives[i])
            if items[i] > np.uint64(1):
                drawn = draw_negative(key, revisions[i], np.uint64(events[i]), np.uint64(d), drawn, items[i])
            out[i, d] = np.uint32(drawn)


class Chosen(NamedTuple):
    """Judged events: record's place among the judged records int64[m], index in the record int64[m], two lots float64[m, 2] in [0, 1)."""

    records: np.ndarray
    events: np.ndarray
    lots: np.ndarray


def judged_records(seed: int, share: float, revisions: np.ndarray) -> np.ndarray:
    """Which records of `revisions` uint64[r] are judged: bool[r]."""
    judged = np.empty(revisions.size, np.bool_)
    _lots_kernel(domain_key(seed, CHOICE_DOMAIN), share, revisions, judged)
    return judged


def choose(seed: int, revisions: np.ndarray, sizes: np.ndarray, most: int) -> Chosen:
    """At most `most` events of each judged record, `revisions` uint64[r] and `sizes` int64[r], in log order."""
    counts = np.minimum(
        np.minimum(sizes, most), np.maximum(EVENTS_LEAST, (sizes * EVENTS_SHARE).astype(np.int64))
    )
    total = int(counts.sum())
    chosen = Chosen(np.empty(total, np.int64), np.empty(total, np.int64), np.empty((total, 2)))
    _choose_kernel(domain_key(seed, CHOICE_DOMAIN), revisions, sizes, counts, *chosen)
    return chosen


def draw(
    seed: int, domain: int, revisions: np.ndarray, events: np.ndarray, positives: np.ndarray,
    item_counts: np.ndarray, width: int,
) -> np.ndarray:  # fmt: skip
    """`width` item rows uint32[n, width] for each event, none of them its positive: those of `random.draw_negative`.

    domain: `NEGATIVE_DOMAIN` for what the model learns from, or `CANDIDATE_DOMAIN`. revisions, item_counts uint64[n], events
    int64[n], positives uint32[n]. With one item there is no other: the positive's own row is returned.
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
    "draw",
    "judged_records",
]
