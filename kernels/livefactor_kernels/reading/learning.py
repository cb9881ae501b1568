"""Learns the weights of a mix, and counts popularity (semantics: `reading/__init__.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Protocol

import numpy as np

from livefactor_kernels.history import DECAY_STEPS
from livefactor_kernels.numbers.random import MIX_DOMAIN, domain_key
from livefactor_kernels.reading import (
    CANDIDATES,
    COUNTS,
    EXPERTS,
    FOLDS,
    MIX,
    OWN_MAX,
    POPULARITY,
    REPEATS,
    REPEATS_RATE,
    SINCE,
    initial,
    predicted_share,
)
from livefactor_kernels.reading.experts import (
    Arithmetic,
    Experts,
    Panel,
    Remembered,
    Source,
    distinct,
    remembered,
)
from livefactor_kernels.reading.newcomers import Newcomers
from livefactor_kernels.solve import GRAM
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.update import Update, UpdateRun

_NEW_ITEM = np.array([expert != REPEATS for expert in range(EXPERTS)])
"""The experts that learn from an event whose item is new to the user."""
_PERSON = ("seen_rows", "seen_values", "seen_weights", "seen_visits", "seen_count", "visits", "last_time")


class LearningArithmetic(Arithmetic, Protocol):
    """The further parts of the semantics that a backend computes for learning."""

    def draws(
        self, key: np.uint64, revision: int, event: int, first: int, size: int, count: int
    ) -> np.ndarray:
        """draw(event, first + j, count) for j below `size`, int64[size]."""
        ...

    def predicted(self, key: np.uint64, run: UpdateRun, shares: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Which events of records are predicted, bool[n].

        `shares` uint64[m] is c of each record. `items` int64[m] is the number of items before it.
        """
        ...

    def dots(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The dot products float32[c] of x float32[k_padded] and y float32[c, k_padded].

        y begins at a multiple of 64 bytes.
        """
        ...

    def step(self, weights: np.ndarray, z: np.ndarray, odds: np.ndarray, learns: np.ndarray,
             rate: np.float64, root: bool) -> None:  # fmt: skip
        """One step of the weights float64[EXPERTS] that `learns` bool[EXPERTS] selects.

        z float64[EXPERTS, c] are the standardised scores, of the event's item first, and odds
        float64[c] those of the candidates. `root` is False for 1 in place of sqrt(P).
        """
        ...

    def add_events(self, rows: np.ndarray, weights: np.ndarray, popularity: np.ndarray, bias: np.ndarray,
                   mix: np.ndarray) -> None:  # fmt: skip
        """Adds the events of items uint32[n] with weights float32[n] to the popularity."""
        ...

    def decay(self, popularity: np.ndarray, bias: np.ndarray, mix: np.ndarray) -> None:
        """Decays the popularity float32[n] of all items."""
        ...


class Mixer:
    """Learns from records. A part of a model (`tables.state.Part`)."""

    def __init__(self, spec: ModelSpec, arithmetic: LearningArithmetic) -> None:
        self._spec, self._arithmetic, self._panel = spec, arithmetic, Panel(spec, arithmetic)
        self._rate = np.float64(np.float32(spec.mix.learning_rate))
        self._key = domain_key(spec.seed, MIX_DOMAIN)
        self._mix, self._events = initial(), 0
        self._newcomers = Newcomers(arithmetic) if spec.embeddings.dimension else None

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        return {MIX: self._mix}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        self._mix[:] = sections[MIX]
        self._events = int(sections["events"][0])

    def is_decay_due(self, items: int) -> bool:
        """Whether the popularity of all items decays before the next record."""
        return bool(items) and self._mix[SINCE] >= items

    def groups(self, run: UpdateRun, items: int) -> list[UpdateRun]:
        """Divides records into groups that the model can learn in one call.

        Only the first record of a group has predictions, or a decay before it. `items` is the
        number of items before the records.
        """
        if len(run) == 1:
            return [run]
        starts = np.concatenate([[0], run.ends[:-1]])
        before = np.concatenate([[items], run.item_counts[:-1]])
        # reduceat would take the next record's first event for a record without events.
        places = np.concatenate([[0], np.cumsum(self._predicted(run, before))])
        is_first = places[run.ends] > places[starts]
        since = int(self._mix[SINCE]) + starts
        while (due := (since >= before) & (before > 0)).any():
            record = int(np.argmax(due))
            is_first[record], since[record:] = True, since[record:] - since[record]
        cuts = np.flatnonzero(is_first).tolist()
        return [run[first:last] for first, last in pairwise([0, *(cut for cut in cuts if cut), len(run)])]

    def learn(self, run: UpdateRun, source: Source, popularity: np.ndarray, bias: np.ndarray) -> None:
        """Learns from a group of records (`groups`), before the model does.

        `popularity` and `bias` float32[n] are those of the items that had rows before the records.
        """
        items = len(bias)
        if self.is_decay_due(items):
            self._arithmetic.decay(popularity, bias, self._mix)
            self._mix[SINCE] = 0
            if self._newcomers is not None:
                self._newcomers.leave_out(source, bias, self._mix)
        if self._newcomers is not None:
            self._newcomers.begin(run[0], source, items)
        if items > 1:
            first = run[0]
            is_predicted = self._predicted(UpdateRun.of([first]), np.array([items]))
            for event in np.flatnonzero(is_predicted).tolist():
                self._predict(first, event, source, bias)
        self._events += run.joined.fresh

    def count(self, update: Update, popularity: np.ndarray, bias: np.ndarray) -> None:
        """Counts a record, after the model has learned from it.

        `popularity` and `bias` are those of all items.
        """
        rows, weights = update.item_rows[: update.fresh], np.ones(update.fresh, np.float32)
        if update.weights is not None:
            weights = update.weights[: update.fresh]
        if update.values is not None:
            liked = update.values[: update.fresh] > 0
            rows, weights = rows[liked], weights[liked]
        rows, weights = np.ascontiguousarray(rows), np.ascontiguousarray(weights)
        if self._newcomers is not None:
            self._newcomers.join(bias, self._mix)
        self._arithmetic.add_events(rows, weights, popularity, bias, self._mix)
        self._mix[SINCE] += update.fresh

    def describe(self, source: Source, rows: np.ndarray, had_vector: np.ndarray,
                 popularity: np.ndarray, bias: np.ndarray) -> None:  # fmt: skip
        """Follows a record of embeddings of item rows uint32[n].

        `had_vector` bool[n] tells which rows had a vector before. `popularity` and `bias` are those
        of all items.
        """
        assert self._newcomers is not None
        items = source.state()[GRAM].reshape(2, self._spec.k + 1, self._spec.k + 1)[ITEMS]
        self._newcomers.describe(source, rows, had_vector, popularity, bias, self._mix, items[-1, -1])

    def _predicted(self, run: UpdateRun, items: np.ndarray) -> np.ndarray:
        """Which events of records are predicted, given the numbers of items before them."""
        events = self._events + np.concatenate([[0], run.ends[:-1]])
        return self._arithmetic.predicted(self._key, run, predicted_share(events), items)

    def _draws(self, update: Update, event: int, first: int, size: int, count: int) -> np.ndarray:
        return self._arithmetic.draws(self._key, update.revision, event, first, size, count)

    def _predict(self, update: Update, event: int, source: Source, bias: np.ndarray) -> None:
        row = update.item_rows[event]
        events = self._remembered(update, event, source)
        known = Remembered(*(column[events.rows < len(bias)] for column in events))
        experts = self._panel.of(source, update.user_rows[event : event + 1], known, update.item_count)
        candidates, odds = self._candidates(update, event, row, known.rows, experts.counts[0].rows, len(bias))
        own = distinct(known.rows[-OWN_MAX:])
        own = own[own != row]
        z = self._standardised(experts, source, np.concatenate([candidates, own]).astype(np.uint32))
        weights, step = experts.weights, self._arithmetic.step
        if row not in known.rows:
            new = np.ascontiguousarray(z[:, : len(candidates)])
            step(weights, new, odds, _NEW_ITEM, self._rate, True)
        step(weights, z, np.append(odds, np.ones(len(own))), ~_NEW_ITEM, self._rate * REPEATS_RATE, False)

    def _candidates(
        self, update: Update, event: int, row: int, own: np.ndarray, followers: np.ndarray, items: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The candidates' rows int64[c] and odds float64[c], of the event's item first."""
        near = np.setdiff1d(followers, own)
        near = np.concatenate([[row], near[near != row]]).astype(np.int64)
        is_further = np.ones(items, bool)
        is_further[near] = is_further[own] = False
        if items <= CANDIDATES:
            further, odds = np.flatnonzero(is_further), 1.0
        else:
            further = self._draws(update, event, 1, CANDIDATES, items)
            further = further[is_further[further]]
            odds = float(np.count_nonzero(is_further)) / max(len(further), 1)
        return np.concatenate([near, further]), np.append(np.ones(len(near)), np.full(len(further), odds))

    def _standardised(self, experts: Experts, source: Source, rows: np.ndarray) -> np.ndarray:
        """The standardised scores of items uint32[c], float64[EXPERTS, c]."""
        factors, bias = source.gather(ITEMS, rows)
        scores = np.empty((EXPERTS, len(rows)))
        for fold in range(FOLDS):
            scores[fold] = self._arithmetic.dots(experts.folds[fold], factors)
        for expert, gains in enumerate((*experts.counts, experts.repeats), COUNTS):
            scores[expert] = gains.at(rows)
        scores[POPULARITY] = bias
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
