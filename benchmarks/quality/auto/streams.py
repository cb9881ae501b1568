"""`auto` beside most-popular, all along a stream.

Each prediction uses what was learned before it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from benchmarks.quality.data import Events
from benchmarks.quality.streamed import Learner
from livefactor_kernels.spec.presets import preset

FIRST_JUDGED, JUDGED_A_TENTH, TOP = 2000, 2000, 10
SMALL_RECORD_EVENTS = 32
"""Events per record beside most-popular. An event is predicted from nearly all events before it."""
DECAY_EVENTS = 10_000
"""Half-life of decayed most-popular."""


class ToPopular(NamedTuple):
    """`auto` beside the better of most-popular and decayed most-popular, in the worst tenth.

    Attributes:
        quotient: the NDCG@10 of `auto` by that of the better of both.
        error: the standard error of the quotient. Events of a user are one cluster.
    """

    quotient: float
    error: float


def to_popular(learned: Events) -> ToPopular:
    """The worst tenth of the stream after its first `FIRST_JUDGED` events.

    The next events are predicted before their record is learned, among the items that the user has
    not had.
    """
    learner = Learner(preset("auto"), learned, SMALL_RECORD_EVENTS)
    drawn = np.random.default_rng(2).random(len(learned)) * len(learned) < 10 * JUDGED_A_TENTH
    drawn[:FIRST_JUDGED] = False
    counts, decayed = np.zeros((2, learned.item_count))
    had: defaultdict[int, list[int]] = defaultdict(list)
    judged, gains = [], []
    for start in learner.learn_before():
        part = slice(start, min(start + SMALL_RECORD_EVENTS, len(learned)))
        users, items = learned.users[part], learned.items[part]
        places = np.flatnonzero(drawn[part] & (counts[items] > 0))
        every = learner.scores(users[places]) if places.size else []
        for place, scores in zip(places.tolist(), every, strict=True):
            left_out = counts == 0
            left_out[had[users[place]]] = True
            judged.append(start + place)
            gains.append([gain(each, items[place], left_out) for each in (scores, counts, decayed)])
        decayed *= 0.5 ** (len(items) / DECAY_EVENTS)
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            counts[item] += 1
            decayed[item] += 1
            had[user].append(item)
    tenths = np.array(judged) * 10 // len(learned)
    found = [
        _quotient(np.array(gains)[tenths == tenth], learned.users[judged][tenths == tenth])
        for tenth in range(10)
    ]
    return min(each for each in found if each is not None)


def _quotient(gains: np.ndarray, users: np.ndarray) -> ToPopular | None:
    """The quotient of a tenth, given the gains float64[n, 3] and users int[n] of its events.

    It is None if neither of both gains anything.
    """
    if not gains[:, 1:].any():
        return None
    sums = gains.sum(axis=0)
    best = 1 + int(np.argmax(sums[1:]))
    quotient = sums[0] / sums[best]
    # The linearisation of a quotient (Cochran, Sampling Techniques, 1977, section 6.4).
    residuals = np.bincount(users, gains[:, 0] - quotient * gains[:, best])
    return ToPopular(float(quotient), float(np.sqrt((residuals**2).sum()) / sums[best]))


def gain(scores: np.ndarray, item: int, left_out: np.ndarray) -> float:
    """NDCG@10 of a list with one relevant item."""
    above = (scores > scores[item]) | ((scores == scores[item]) & (np.arange(scores.size) < item))
    rank = int(np.count_nonzero(above & ~left_out))
    return float(1 / np.log2(rank + 2)) if rank < TOP else 0.0
