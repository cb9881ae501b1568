"""The presets while they learn: sessions of a shop, and `auto` beside most-popular all along.

Each prediction uses what was learned before it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.quality.auto.sets import Sessions
from benchmarks.quality.data import Events
from benchmarks.quality.streamed import RECORD_EVENTS, Learner
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW

FIRST_JUDGED, JUDGED_A_TENTH, TOP = 2000, 2000, 10
SMALL_RECORD_EVENTS = 32
"""Events per record beside most-popular. An event is predicted from nearly all events before it."""
DECAY_EVENTS = 10_000
"""Half-life of decayed most-popular."""
SESSIONS_A_PERIOD, PREDICTIONS_MAX, SESSION_TOP = 200, 20, 20
COUNTED_SPAN = 5


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


def session_recall(name: str, clicks: Sessions) -> float:
    """Recall@20 of a preset for the next clicks of sessions, whose clicks come with the call.

    It is the mean over the periods from the second on. A session is learned when it is over.
    """
    events = Events(
        clicks.sessions.astype(np.int32),
        clicks.items.astype(np.int32),
        np.ones(len(clicks.items), np.float32),
        int(clicks.sessions.max()) + 1,
        int(clicks.items.max()) + 1,
    )
    learner, hits = Learner(preset(name), events), _Hits(clicks)
    reader = PersonReader(learner.model.spec)
    for revision, part in enumerate(_records(clicks), 1):
        count = learner.model.published[ITEMS]
        asked = [each for each in hits.asked(part) if count]
        if asked:
            factors, bias = learner.model.gather(ITEMS, np.arange(count, dtype=np.uint32))
            known = [learner.model.items.find(items.astype(np.uint64), count) for _, items in asked]
        for (period, _), rows in zip(asked, known if asked else [], strict=True):
            target, before = rows[-1], rows[:-1][rows[:-1] < count]
            if target >= count:
                continue
            own = [reader.events_of(before)]
            person = reader.read(learner.model, np.array([NO_ROW], np.uint32), count, own)
            scores = factors @ person.factors[0] + bias + person.gains(0, np.arange(count, dtype=np.uint32))
            hits.add(period, np.count_nonzero(scores > scores[target]) < SESSION_TOP)
        learner.learn_part(revision, part)
    return hits.recall()


def counted_recall(clicks: Sessions) -> float:
    """`session_recall` of co-occurrence with the last five clicks, nearer ones first."""
    hits, counts = _Hits(clicks), np.zeros(int(clicks.items.max()) + 1, np.int64)
    follow: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for part in _records(clicks):
        for period, items in hits.asked(part):
            target, scores = int(items[-1]), Counter[int]()
            if not counts[target]:
                continue
            for age, item in enumerate(items[-2 : -2 - COUNTED_SPAN : -1].tolist(), 1):
                for other, number in follow[item].items():
                    scores[other] += number / age
            best = [item for item, _ in scores.most_common(SESSION_TOP)]
            hits.add(period, target in best)
        sessions, items = clicks.sessions[part], clicks.items[part].tolist()
        np.add.at(counts, clicks.items[part], 1)
        for at in range(len(items)):
            for before in range(max(0, at - COUNTED_SPAN), at):
                if sessions[before] == sessions[at] and items[before] != items[at]:
                    follow[items[before]][items[at]] += 1
                    follow[items[at]][items[before]] += 1
    return hits.recall()


class _Hits:
    """Which predictions are asked for, and which were right."""

    def __init__(self, clicks: Sessions) -> None:
        self._clicks = clicks
        generator = np.random.default_rng(4)
        self._drawn: set[int] = set()
        for period in range(1, int(clicks.periods.max()) + 1):
            names = np.unique(clicks.sessions[clicks.periods == period])
            self._drawn |= set(generator.choice(names, min(SESSIONS_A_PERIOD, names.size), False).tolist())
        self._sums = np.zeros((int(clicks.periods.max()) + 1, 2))

    def asked(self, part: slice) -> Iterator[tuple[int, np.ndarray]]:
        """The periods and items of the sessions of a record, up to each predicted click."""
        sessions = self._clicks.sessions[part]
        starts = np.flatnonzero(np.append(True, sessions[1:] != sessions[:-1]))
        for start, stop in zip(starts, np.append(starts[1:], len(sessions)), strict=True):
            if int(sessions[start]) in self._drawn:
                items = self._clicks.items[part][start:stop]
                for length in range(2, min(len(items), PREDICTIONS_MAX + 1) + 1):
                    yield int(self._clicks.periods[part][start]), items[:length]

    def add(self, period: int, is_hit: bool) -> None:
        self._sums[period] += (is_hit, 1)

    def recall(self) -> float:
        judged = self._sums[self._sums[:, 1] > 0]
        return float((judged[:, 0] / judged[:, 1]).mean())


def _records(clicks: Sessions) -> Iterator[slice]:
    """Records of whole sessions, of about `RECORD_EVENTS` events."""
    ends = np.append(np.flatnonzero(clicks.sessions[1:] != clicks.sessions[:-1]) + 1, len(clicks.items))
    start = 0
    for end in ends.tolist():
        if end - start >= RECORD_EVENTS or end == len(clicks.items):
            yield slice(start, end)
            start = end
