"""The negatives of many consecutive records. With B = 1 rule SGD learns them in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.random import NEGATIVE_DOMAIN, domain_key, draw_negative
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.update import Update, UpdateRun, draw_negatives

_U = np.uint64
_MASK = np.uint64(0xFFFF_FFFF)


@compiled
def draw_runs(key: Any, first: Any, ends: Any, positives: Any, items: Any, out: Any) -> None:
    """Writes the negatives of consecutive records to `out`, uint32[n, d].

    `first` is the revision of the first record. The events of record r end before `ends[r]`,
    int64[m], and it draws from `items[r]` items, int64[m], each >= 2. `positives` are uint32[n].
    """
    start = 0
    for record in range(ends.size):
        revision, count = first + _U(record), _U(items[record]) & _MASK
        for i in range(start, ends[record]):
            positive = _U(positives[i])
            for d in range(_U(out.shape[1])):
                out[i, d] = np.uint32(draw_negative(key, revision, _U(i - start), d, positive, count))
        start = ends[record]


def draw_all_negatives(spec: ModelSpec, updates: Sequence[Update], out: np.ndarray) -> np.ndarray:
    """Draws the negatives of consecutive records: item rows uint32[n, negatives or 0].

    n is the number of events of all records. Either each record has two items or more, or none has.
    `out` is memory for the result, uint32[n * negatives or more].
    """
    if not isinstance(updates, UpdateRun):
        start, width, events = 0, 0, 0
        for update in updates:
            drawn = draw_negatives(spec, update, out[start:])
            start, width, events = start + drawn.size, drawn.shape[1], events + drawn.shape[0]
        return out[:start].reshape(events, width)
    rows, counts = updates.joined.item_rows, updates.item_counts
    width = spec.negatives if int(counts[-1]) > 1 else 0
    negatives = out[: rows.size * width].reshape(rows.size, width)
    if negatives.size:
        key, first = domain_key(spec.seed, NEGATIVE_DOMAIN), np.uint64(updates.revision)
        draw_runs(key, first, updates.ends, rows, counts, negatives)
    return negatives


def compile_kernels() -> None:
    """Compiles the kernel, or loads it from Numba's cache."""
    nothing, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    draw_runs(_U(0), _U(0), nothing, np.empty(0, np.uint32), counts, np.empty((0, 1), np.uint32))
