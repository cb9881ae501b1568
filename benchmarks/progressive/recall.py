"""Progressive recall@10: is the item of an event in its user's top-10 list before the event's
batch?

A batch is scored as a whole and then learned as one record, as by a producer that asks for scores
before it pushes. An event is a hit if its item is among the 10 best of all items known before the
batch (by descending score, then ascending key). An item that is new in the batch is a miss. A user
who is new in the batch gets the list that `Score` gives to unknown users, which the item biases
order.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.judging.places import places
from livefactor_server.tuning.metrics import hits
from livefactor_server.tuning.progressive import (
    BATCH_EVENTS,
    HALF_LIFE_EVENTS,
    TOP,
    Stream,
    batches,
    decay,
    judge_then_learn,
    most_popular,
    popular_ranks,
)


def model_hits(spec: ModelSpec, stream: Stream, batch_events: int = BATCH_EVENTS) -> np.ndarray:
    """Hits (bool[n]) of a model that learns every event as positive."""

    def judge(model, users, items, values):
        return hits(places(model, users, items, TOP))

    ones = np.ones(len(stream), np.float32)
    stream = Stream(stream.user_keys, stream.item_keys, ones, times=stream.times)
    steps = judge_then_learn(spec, stream, judge, np.ones(len(stream), bool), batch_events)
    return np.concatenate([step.judged for step in steps]) > 0


def popular_hits(
    stream: Stream, half_life_events: float = HALF_LIFE_EVENTS, batch_events: int = BATCH_EVENTS
) -> np.ndarray:
    """Hits (bool[n]) of the most-popular list.

    The weight of an event halves every `half_life_events` events; infinity weights all events
    equally.
    """
    return popular_ranks(stream, half_life_events, batch_events) < TOP


def own_first_hits(
    stream: Stream, half_life_events: float = HALF_LIFE_EVENTS, batch_events: int = BATCH_EVENTS
) -> np.ndarray:
    """Hits (bool[n]) of a list with the user's own most frequent items first, completed as in
    `popular_hits`.

    A user with 10 items or more gets no new item. This shows how much can be won by remembering
    repeats.
    """
    keys, item_rows = np.unique(stream.item_keys, return_inverse=True)
    counts, found = np.zeros(keys.size), np.zeros(len(stream), bool)
    own: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for part in batches(len(stream), batch_events):
        rows, users, popular = item_rows[part], stream.user_keys[part], most_popular(counts).tolist()
        for user in np.unique(users).tolist():
            mine, chosen = own[user], users == user
            best = np.array(sorted(mine), np.int64)
            best = best[np.lexsort((-counts[best], [-mine[item] for item in best.tolist()]))][:TOP].tolist()
            found[part][chosen] = np.isin(rows[chosen], list(dict.fromkeys(best + popular))[:TOP])
            mine.update(rows[chosen].tolist())
        counts = decay(counts, rows, half_life_events)
    return found
