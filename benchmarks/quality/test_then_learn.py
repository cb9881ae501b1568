"""Test-then-learn on Online Retail: is an item in its customer's top-10 list before its batch?

The task is that of benchmarks.progressive.recall: all 397,924 purchases in batches of 512, each
scored as a whole, then learned. Repeats count, and lists leave nothing out. livefactor is
contrasted with most-popular and with item-kNN with exact counts, updated after each batch. Settings
are tuned on the first 60 % of the stream; `later` figures use the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality.data import Events
from livefactor_kernels.numbers.compiled import compiled
from livefactor_server.tuning.progressive import BATCH_EVENTS, batches

TOP = 10
COSINE, CONDITIONAL = 0, 1
KINDS = {"cosine": COSINE, "conditional": CONDITIONAL}


@compiled(nogil=False, error_model="python")
def _learn(users: Any, items: Any, first: int, last_seen: Any, bought: Any, sizes: Any, counts: Any) -> None:
    """Counts events.

    `first` is the stream position of the first one. counts[i, j] is the number of customers with
    both items.
    """
    for t in range(users.size):
        user, item = users[t], items[t]
        if last_seen[user, item] < 0:
            bought[user, sizes[user]] = item
            sizes[user] += 1
            for place in range(sizes[user]):
                other = bought[user, place]
                counts[item, other] += 1.0
                if other != item:
                    counts[other, item] += 1.0
        last_seen[user, item] = first + t


@compiled(nogil=False, error_model="python")
def _scores(history: Any, ages: Any, counts: Any, alone: Any, numbers: Any, out: Any) -> None:
    """Writes the scores of all items for a history.

    `numbers` are kind, shrinkage, half-life and weight of repeats.
    """
    kind, shrinkage, half_life, repeats = numbers
    roots = np.sqrt(alone)
    out[:] = 0.0
    for place in range(history.size):
        mine = history[place]
        weight = np.float32(0.5 ** (ages[place] / half_life))
        row, root, shrink = counts[mine], roots[mine], np.float32(shrinkage)
        own = out[mine]
        if kind == 0.0:
            for item in range(out.size):
                out[item] += weight * row[item] / (root * roots[item] + shrink + np.float32(1e-9))
        else:
            factor = weight / (alone[mine] + shrink + np.float32(1e-9))
            for item in range(out.size):
                out[item] += factor * row[item]
        out[mine] = own + weight * np.float32(repeats)


@compiled(nogil=False, error_model="python")
def _best(scores: Any, popularity: Any, top: int) -> Any:
    """Up to `top` items that were bought, int64, by score, then by popularity, then by ascending
    number.
    """
    best = np.empty(top, np.int64)
    size = 0
    for item in range(scores.size):
        if popularity[item] <= 0:
            continue
        place = size
        while place > 0:
            other = best[place - 1]
            if scores[other] > scores[item]:
                break
            if scores[other] == scores[item] and popularity[other] >= popularity[item]:
                break
            place -= 1
        if place == top:
            continue
        size = min(size + 1, top)
        for shifted in range(size - 1, place, -1):
            best[shifted] = best[shifted - 1]
        best[place] = item
    return best[:size]


@compiled(nogil=False, error_model="python")
def _batch(
    users: Any, items: Any, first: int, last_seen: Any, bought: Any, sizes: Any, counts: Any, events: Any,
    numbers: Any, hits: Any,
) -> None:  # fmt: skip
    """Judges a batch with the counts before it.

    `events` are the numbers of events per item, float32[items].
    """
    alone = np.diag(counts).copy()
    scores = np.empty(alone.size, np.float32)
    order = np.argsort(users, kind="mergesort")
    user, best = -1, np.empty(0, np.int64)
    for place in order:
        if users[place] != user:
            user = users[place]
            history = bought[user, : sizes[user]]
            _scores(history, _ages(last_seen[user], history), counts, alone, numbers, scores)
            best = _best(scores, events, TOP)
        for listed in best:
            if listed == items[place]:
                hits[first + place] = True


@compiled(nogil=False, error_model="python")
def _ages(last_seen: Any, history: Any) -> Any:
    """The position of each item among the customer's, float32. The last purchase has 0."""
    ages = np.empty(history.size, np.float32)
    for rank, place in enumerate(np.argsort(-last_seen[history])):
        ages[place] = rank
    return ages


def knn_hits(
    events: Events,
    kind: str,
    shrinkage: float,
    half_life: float,
    repeats: float,
    batch_events: int = BATCH_EVENTS,
) -> np.ndarray:
    """Hits (bool[n]) of item-kNN with exact co-occurrence counts.

    Args:
        events: the events.
        kind, shrinkage: see `closed_form.similarity`.
        half_life: the weight of an item in the history halves with so many later items of the
            customer.
        repeats: how much an item recommends itself.
        batch_events: events per batch.

    An unknown customer gets the items with the most events.
    """
    last_seen = np.full((events.user_count, events.item_count), -1, np.int32)
    longest = int(np.bincount(np.unique(_pairs(events)) // events.item_count).max())
    bought, sizes = np.zeros((events.user_count, longest), np.int32), np.zeros(events.user_count, np.int64)
    counts = np.zeros((events.item_count, events.item_count), np.float32)
    seen, hits = np.zeros(events.item_count, np.float32), np.zeros(len(events), bool)
    numbers = np.array([KINDS[kind], shrinkage, half_life, repeats])
    for part in batches(len(events), batch_events):
        columns = events.users[part], events.items[part]
        state = last_seen, bought, sizes, counts
        _batch(*columns, part.start, *state, seen, numbers, hits)
        _learn(*columns, part.start, *state)
        seen += np.bincount(columns[1], minlength=events.item_count).astype(np.float32)
    return hits


def _pairs(events: Events) -> np.ndarray:
    return events.users.astype(np.int64) * events.item_count + events.items
