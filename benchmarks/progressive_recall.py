"""Progressive recall@10: is an event's item in its user's top 10 of what was learned before its batch?

A batch is scored as a whole, then learned as one record, as by a producer that asks before it pushes. An
event is a hit if its item is among the 10 best of all items known before the batch (score descending, then
item key ascending): an item that is new in the batch is a miss. A user who is new in it has the list that
`Score` gives: by the item biases.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np

from benchmarks.progressive_data import Stream
from livefactor_kernels.backend import Backend, Update, create_backend
from livefactor_kernels.spec import ModelSpec
from livefactor_kernels.tables import NO_ROW, USERS

TOP = 10
BATCH_EVENTS = 512
HALF_LIFE_EVENTS = 20_000


def batches(events: int, size: int) -> list[slice]:
    """Consecutive slices of `size` events, the last one shorter."""
    return [slice(start, min(start + size, events)) for start in range(0, events, size)]


def model_hits(spec: ModelSpec, stream: Stream, batch_events: int = BATCH_EVENTS) -> np.ndarray:
    """Whether each event is a hit (bool[n]) of a model that learns every event as a positive one."""
    model = create_backend("cpu", spec)
    hits = np.zeros(len(stream), bool)
    for revision, part in enumerate(batches(len(stream), batch_events), 1):
        known_users, known_items = model.published
        user_rows = model.users.allocate(stream.user_keys[part])
        item_rows = model.items.allocate(stream.item_keys[part])
        asking, place = np.unique(np.where(user_rows < known_users, user_rows, NO_ROW), return_inverse=True)
        if known_items:
            hits[part] = (_lists(model, asking.astype(np.uint32))[place] == item_rows[:, None]).any(axis=1)
        ones, counts = np.ones(user_rows.size, np.float32), (model.users.allocated, model.items.allocated)
        model.apply(Update(revision, user_rows, item_rows, ones, None, *counts))
    return hits


def _lists(model: Backend, user_rows: np.ndarray) -> np.ndarray:
    """The users' best item rows, uint32[users, TOP]; NO_ROW where there are fewer."""
    with model.pin() as pin:
        rows, _, offsets = pin.top_k(*pin.gather(USERS, user_rows), TOP)
    lists = np.full((user_rows.size, TOP), NO_ROW, np.uint32)
    for user, (start, stop) in enumerate(pairwise(offsets.tolist())):
        lists[user, : stop - start] = rows[start:stop]
    return lists


def popular_hits(
    stream: Stream, half_life_events: float = HALF_LIFE_EVENTS, batch_events: int = BATCH_EVENTS
) -> np.ndarray:
    """The same (bool[n]) of one list for everybody: items by their events so far.

    An event counts half after `half_life_events` more; infinity counts all alike.
    """
    keys, item_rows = np.unique(stream.item_keys, return_inverse=True)
    counts, hits = np.zeros(keys.size), np.zeros(len(stream), bool)
    for part in batches(len(stream), batch_events):
        hits[part] = np.isin(item_rows[part], _most_popular(counts))
        counts = _count(counts, item_rows[part], half_life_events)
    return hits


def own_first_hits(
    stream: Stream, half_life_events: float = HALF_LIFE_EVENTS, batch_events: int = BATCH_EVENTS
) -> np.ndarray:
    """The same (bool[n]) of a list of the user's own most frequent items, filled up as in `popular_hits`.

    It names nothing new to a user who has bought 10 items: what there is to win by remembering repeats alone.
    """
    keys, item_rows = np.unique(stream.item_keys, return_inverse=True)
    counts, hits = np.zeros(keys.size), np.zeros(len(stream), bool)
    own: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for part in batches(len(stream), batch_events):
        rows, users, popular = item_rows[part], stream.user_keys[part], _most_popular(counts).tolist()
        for user in np.unique(users).tolist():
            mine, chosen = own[user], users == user
            best = np.array(sorted(mine), np.int64)
            best = best[np.lexsort((-counts[best], [-mine[item] for item in best.tolist()]))][:TOP].tolist()
            hits[part][chosen] = np.isin(rows[chosen], list(dict.fromkeys(best + popular))[:TOP])
            mine.update(rows[chosen].tolist())
        counts = _count(counts, rows, half_life_events)
    return hits


def _most_popular(counts: np.ndarray) -> np.ndarray:
    """At most `TOP` items that were seen, best first; rows ascend by key, so ties break as in `Score`."""
    best = np.argsort(-counts, kind="stable")[:TOP]
    return best[counts[best] > 0]


def _count(counts: np.ndarray, rows: np.ndarray, half_life_events: float) -> np.ndarray:
    """The decayed counts after a batch's events."""
    ages = np.arange(rows.size - 1, -1, -1)
    aged = counts * 0.5 ** (rows.size / half_life_events)
    return aged + np.bincount(rows, 0.5 ** (ages / half_life_events), counts.size)
