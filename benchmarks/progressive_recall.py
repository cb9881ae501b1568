"""Progressive recall@N: is the item of the next event in the user's top N of what has been learned before its batch?

A batch is scored as a whole, then learned as one record, as a producer would do that asks before it pushes. An event counts 1 if
its item is among the N best of all items known before the batch (order: score descending, then item key ascending), else 0; so an
item that is new in the batch is a miss. A user who is new in the batch has the list that `Score` would give: the item biases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from livefactor_kernels.backend import Update, create_backend
from livefactor_kernels.spec import LANES, ModelSpec
from livefactor_kernels.steps import FLOAT_BYTES, Rows, load1, score
from numba import njit

from benchmarks.progressive_data import Stream

TOP = 10
BATCH_EVENTS = 512
HALF_LIFE_EVENTS = 20_000


@njit(cache=True, error_model="numpy")
def _in_top(scores: Any, keys: Any, item: Any, top: Any) -> bool:
    """Whether fewer than `top` of all items come before `item`."""
    own, better, equal = scores[item], np.int32(0), np.int32(0)
    for other in range(scores.size):  # no branch, so that it becomes vector code
        better += np.int32(scores[other] > own)
        equal += np.int32(scores[other] == own)
    if better < top and equal > 1:
        for other in range(scores.size):
            better += np.int32(scores[other] == own and keys[other] < keys[item])
    return better < top


@njit(cache=True, error_model="numpy")
def _model_hits(users: Any, items: Any, keys: Any, known_users: Any, user_rows: Any, item_rows: Any, blocks: Any,
                top: Any) -> int:  # fmt: skip
    """Hits of a batch; keys: those of the published items; rows at or past the published counts are unknown."""
    scores, scored, hits, zero = np.empty(keys.size, np.float32), -1, 0, np.float32(0.0)
    for i in range(user_rows.size):
        user = min(np.int64(user_rows[i]), np.int64(known_users))
        if user != scored:
            for item in range(np.uint64(keys.size)):
                if user < known_users:
                    scores[item] = score(zero, users, items, np.uint64(user), item, blocks)
                else:
                    scores[item] = load1(items.bias + item * FLOAT_BYTES)
            scored = user
        if item_rows[i] < keys.size:
            hits += _in_top(scores, keys, item_rows[i], top)
    return hits


@njit(cache=True, error_model="numpy")
def _popular_hits(counts: Any, keys: Any, known: Any, item_rows: Any, top: Any) -> int:
    hits = 0
    for i in range(item_rows.size):
        if item_rows[i] < known:
            hits += _in_top(counts[:known], keys[:known], item_rows[i], top)
    return hits


def batches(events: int, size: int) -> list[slice]:
    """Consecutive slices of `size` events, the last one shorter."""
    return [slice(start, min(start + size, events)) for start in range(0, events, size)]


def model_recall(spec: ModelSpec, stream: Stream, batch_events: int = BATCH_EVENTS) -> float:
    """Progressive recall@10 of a spec without global mean (logistic, BPR): a share of all events, in 0..1."""
    model = create_backend("cpu", spec)
    users, items, blocks = Rows.of(model.users), Rows.of(model.items), np.uint64(spec.k_padded // LANES)
    hits = 0
    for revision, part in enumerate(batches(len(stream), batch_events), 1):
        known_users, known_items = model.published
        user_rows, item_rows = model.users.allocate(stream.user_keys[part]), model.items.allocate(stream.item_keys[part])
        hits += _model_hits(users, items, model.items.keys[:known_items], known_users, user_rows, item_rows, blocks, TOP)
        values = np.ones(user_rows.size, np.float32)
        model.apply(Update(revision, user_rows, item_rows, values, None, model.users.allocated, model.items.allocated))
    return hits / len(stream)


def popular_recall(stream: Stream, half_life_events: float = HALF_LIFE_EVENTS, batch_events: int = BATCH_EVENTS) -> float:
    """The same of one list for everybody: items by purchases so far, each worth half after `half_life_events` more."""
    keys, first, item_rows = np.unique(stream.item_keys, return_index=True, return_inverse=True)
    # Rows in order of first appearance, so that the known items are a prefix.
    order = np.argsort(first)
    keys, item_rows = keys[order], np.argsort(order)[item_rows]
    counts, known, hits = np.zeros(keys.size), 0, 0
    for part in batches(len(stream), batch_events):
        rows = item_rows[part]
        hits += _popular_hits(counts, keys, known, rows, TOP)
        ages = np.arange(rows.size - 1, -1, -1)
        counts = counts * 0.5 ** (rows.size / half_life_events)
        counts += np.bincount(rows, 0.5 ** (ages / half_life_events), keys.size)
        known = max(known, int(rows.max()) + 1)
    return hits / len(stream)
