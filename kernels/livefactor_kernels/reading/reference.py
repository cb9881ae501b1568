"""The learning of a mix in plain NumPy: the reference for `reading/cpu_learning.py`."""

from __future__ import annotations

import numpy as np

from livefactor_kernels.history import DECAY_STEPS
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.random import draw_below
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.reading import (
    BLEND,
    BLEND_MAX,
    BLEND_RATE,
    CANDIDATES,
    COUNTS,
    DECAY,
    EXPERTS,
    FOLDS,
    LEARNED_BLEND,
    NEIGHBOR_WEIGHTS,
    NEIGHBORS,
    OWN_MAX,
    POPULARITY,
    POPULARITY_MIN,
    REPEATS,
    REPEATS_RATE,
    SQUARES,
    STEP_MAX,
    SUM,
    WALK,
    WALK_WEIGHTS,
    kinds_of,
    recent_decay,
    weights_of,
)
from livefactor_kernels.reading.reference_experts import Experts, Panel
from livefactor_kernels.reading.remembered import Remembered, Source, distinct, remembered
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.update import Update, UpdateRun

_F1 = np.float32(1.0)
_NEW_ITEM = np.array([expert != REPEATS for expert in range(EXPERTS)])
"""The experts that learn from an event whose item is new to the user."""
_PERSON = ("seen_rows", "seen_values", "seen_weights", "seen_visits", "seen_count", "visits", "last_time")


class ReferenceArithmetic:
    """As `learning.Arithmetic`."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec, self._panel = spec, Panel(spec)
        self._recent_decay, self._kinds = recent_decay(spec), kinds_of(spec)

    def predicted(self, key: np.uint64, run: UpdateRun, shares: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `learning.Arithmetic.predicted`."""
        predicted = np.zeros(run.joined.item_rows.size, bool)
        for record, start in enumerate([0, *run.ends.tolist()][:-1]):
            update = run[record]
            for event in np.flatnonzero(update.item_rows[: update.fresh] < items[record]).tolist():
                liked = update.values is None or update.values[event] > 0
                drawn = _draws(key, update.revision, event, np.zeros(1), int(shares[record]))[0]
                predicted[start + event] = liked and drawn == 0
        return predicted

    def predict(
        self,
        key: np.uint64,
        update: Update,
        events: np.ndarray,
        source: Source,
        bias: np.ndarray,
        mix: np.ndarray,
        rate: np.float64,
    ) -> None:
        """See `learning.Arithmetic.predict`."""
        for event in np.flatnonzero(events).tolist():
            self._predict(key, update, event, source, bias, mix, rate)

    def _predict(
        self,
        key: np.uint64,
        update: Update,
        event: int,
        source: Source,
        bias: np.ndarray,
        mix: np.ndarray,
        rate: np.float64,
    ) -> None:
        row = update.item_rows[event]
        events = self._remembered(update, event, source)
        known = Remembered(*(column[events.rows < len(bias)] for column in events))
        experts = self._panel.of(source, update.user_rows[event : event + 1], known, update.item_count)
        candidates, odds = self._candidates(key, update, event, row, known.rows, experts.gaining(), len(bias))
        own = distinct(known.rows[-OWN_MAX:])
        own = own[own != row]
        z = self._standardised(experts, source, np.concatenate([candidates, own]).astype(np.uint32))
        weights = experts.weights
        if row not in known.rows:
            new = np.ascontiguousarray(z[:, : len(candidates)])
            unit = weights[POPULARITY] * experts.moments[POPULARITY].scale
            likely = step(weights, new, odds, _NEW_ITEM, rate, True)
            if self._kinds > 1:
                recent = source.read(ITEMS, candidates.astype(np.uint32), ("popularity",))["popularity"]
                step_blend(mix, recent[:, 1], likely, unit, rate)
        step(weights, z, np.append(odds, np.ones(len(own))), ~_NEW_ITEM, rate * REPEATS_RATE, False)
        weights_of(mix, experts.group)[:] = weights[:NEIGHBORS]
        if self._spec.mix.neighbors:
            mix[NEIGHBOR_WEIGHTS + experts.group] = weights[NEIGHBORS]
        if self._spec.mix.walk_users:
            mix[WALK_WEIGHTS + experts.group] = weights[WALK]

    def _candidates(
        self,
        key: np.uint64,
        update: Update,
        event: int,
        row: int,
        own: np.ndarray,
        gaining: np.ndarray,
        items: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The candidates' rows int64[c] and odds float64[c], of the event's item first."""
        near = np.setdiff1d(gaining, own)
        near = np.concatenate([[row], near[near != row]]).astype(np.int64)
        is_further = np.ones(items, bool)
        is_further[near] = is_further[own] = False
        if items <= CANDIDATES:
            further, odds = np.flatnonzero(is_further), 1.0
        else:
            further = _draws(key, update.revision, event, np.arange(1, CANDIDATES + 1), items)
            further = further[is_further[further]]
            odds = float(np.count_nonzero(is_further)) / max(len(further), 1)
        return np.concatenate([near, further]), np.append(np.ones(len(near)), np.full(len(further), odds))

    def _standardised(self, experts: Experts, source: Source, rows: np.ndarray) -> np.ndarray:
        """The standardised scores of items uint32[c], float64[EXPERTS, c]."""
        factors, bias = source.gather(ITEMS, rows)
        scores = np.empty((EXPERTS, len(rows)))
        for fold in range(FOLDS):
            scores[fold] = dot(experts.folds[fold][:, None], factors.T)
        for expert, gains in enumerate((*experts.counts, experts.repeats), COUNTS):
            scores[expert] = gains.at(rows)
        scores[POPULARITY] = bias
        scores[NEIGHBORS], scores[WALK] = experts.neighbors.at(rows), experts.walks.at(rows)
        for expert, moment in enumerate(experts.moments):
            scores[expert] = (scores[expert] - moment.mean) * moment.scale
        return scores

    def _remembered(self, update: Update, event: int, source: Source) -> Remembered:
        """The user's events before the visit of an event: the history, and those in the record."""
        user = update.user_rows[event]
        sections = source.read(USERS, update.user_rows[event : event + 1], _PERSON)
        person = {name: section[0] for name, section in sections.items()}
        history = remembered(person)
        earlier = np.flatnonzero(update.user_rows[:event] == user)
        visit, last_time, visits = 0, int(person["last_time"]), []
        for place in earlier.tolist():
            time = self._time(update, place)
            visit += time == 0 or time != last_time
            last_time = time
            visits.append(visit)
        # What came at the same time cannot be known before the event.
        now = self._time(update, event)
        known = visit - 1 if now and now == last_time else visit
        ages = known - np.concatenate([-history.ages, np.array(visits, np.int64)])
        ones = np.ones(earlier.size, np.float32)
        columns = (
            np.concatenate([history.rows, update.item_rows[earlier]]),
            np.concatenate([history.values, ones if update.values is None else update.values[earlier]]),
            np.concatenate([history.weights, ones if update.weights is None else update.weights[earlier]]),
            np.minimum(ages, DECAY_STEPS - 1),
        )
        return Remembered(*(column[ages >= 0][-self._spec.history.users :] for column in columns))

    @staticmethod
    def _time(update: Update, event: int) -> int:
        return 0 if update.times is None else int(update.times[event])

    def add_events(self, rows: np.ndarray, weights: np.ndarray, popularity: np.ndarray, bias: np.ndarray,
                   mix: np.ndarray) -> None:  # fmt: skip
        """See `learning.Arithmetic.add_events`."""
        for row, weight in zip(rows, weights, strict=True):
            popularity[row] += weight
            old, new = np.float64(bias[row]), _popularity_of(popularity[row], mix)
            bias[row] = new
            mix[SUM] = (mix[SUM] + np.float64(new)) - old
            mix[SQUARES] = (mix[SQUARES] + np.float64(new) * np.float64(new)) - old * old

    def decay(self, popularity: np.ndarray, bias: np.ndarray, mix: np.ndarray) -> None:
        """See `learning.Arithmetic.decay`."""
        mix[SUM] = mix[SQUARES] = 0.0
        if self._kinds > 1:
            mix[BLEND] = np.float32(mix[LEARNED_BLEND])
        factors = np.array([DECAY, self._recent_decay])[: popularity.shape[1]]
        for row in range(len(bias)):
            popularity[row] *= factors
            bias[row] = _popularity_of(popularity[row], mix)
            mix[SUM] += np.float64(bias[row])
            mix[SQUARES] += np.float64(bias[row]) * np.float64(bias[row])


def _log(count: np.float32) -> np.float32:
    """log(1 + count) of the semantics."""
    mantissa, exponent = np.frexp(_F1 + count)
    return np.float32(np.float32(exponent - 1) + (np.float32(2.0) * mantissa - _F1))


def _popularity_of(counts: np.ndarray, mix: np.ndarray) -> np.float32:
    """p of an item with the counts float32[kinds]."""
    p = _log(counts[0])
    return p if len(counts) == 1 else p + np.float32(mix[BLEND]) * _log(counts[1])


def _draws(key: np.uint64, revision: int, event: int, draws: np.ndarray, count: int) -> np.ndarray:
    """draw(event, d, count) for each d of `draws`, int64."""
    numbers = np.uint64(revision), np.uint64(event), draws.astype(np.uint64), np.uint64(count)
    return np.asarray(draw_below(key, *numbers)).astype(np.int64)


def step(
    weights: np.ndarray, z: np.ndarray, odds: np.ndarray, learns: np.ndarray, rate: np.float64, root: bool
) -> np.ndarray:
    """One step of the weights float64[EXPERTS] that `learns` bool[EXPERTS] selects.

    z float64[EXPERTS, c] are the standardised scores, of the event's item first, and odds
    float64[c] those of the candidates. `root` is False for 1 in place of sqrt(P). Returns q.
    """
    scores = weights[0] * z[0]
    for expert in range(1, EXPERTS):
        scores = scores + weights[expert] * z[expert]
    likely: np.ndarray = odds * scalar.exp((scores - scores.max()).astype(np.float32)).astype(np.float64)
    total, sums = np.float64(0.0), np.zeros(EXPERTS)
    for candidate, q in enumerate(likely):
        total += q
        sums = sums + q * z[:, candidate]
    factor = np.sqrt(likely[0] / total) if root else np.float64(1.0)
    for expert in np.flatnonzero(learns).tolist():
        change = min(max((sums[expert] / total - z[expert, 0]) * factor, -STEP_MAX), STEP_MAX)
        least = POPULARITY_MIN if expert == POPULARITY else 0.0
        weights[expert] = max(weights[expert] - rate * change, least)
    return likely


def step_blend(
    mix: np.ndarray, recent: np.ndarray, likely: np.ndarray, unit: np.float64, rate: np.float64
) -> None:
    """One step of the learned blend.

    `recent` float32[c] are the recent counts of the candidates, `likely` float64[c] is q, and
    `unit` is the weight of popularity before its step times its scale.
    """
    logs = np.array([_log(count) for count in recent]).astype(np.float64)
    # np.cumsum adds from left to right.
    total = np.cumsum(likely)[-1]
    away = np.cumsum(likely * logs)[-1] / total - logs[0]
    change = min(max((away * unit) * np.sqrt(likely[0] / total), -STEP_MAX), STEP_MAX)
    mix[LEARNED_BLEND] = min(max(mix[LEARNED_BLEND] - (rate * BLEND_RATE) * change, 0.0), BLEND_MAX)
