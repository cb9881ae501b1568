"""Learns the weights of a mix, and counts popularity (semantics: `reading/__init__.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from livefactor_kernels.numbers.random import MIX_DOMAIN, domain_key
from livefactor_kernels.reading import (
    FOLDS,
    GROUPS,
    MIX,
    ONE_TIME,
    POPULARITY,
    POPULARITY_MIN,
    RETURN_SHARE,
    RETURNS,
    RUNS,
    SINCE,
    SQUARES,
    SUM,
    WEIGHT_START,
    initial,
    kinds_of,
    predicted_share,
    rate_after,
    weights_of,
)
from livefactor_kernels.reading.newcomers import Newcomers
from livefactor_kernels.reading.remembered import Source
from livefactor_kernels.simd.memory import reserve_shared
from livefactor_kernels.solve import GRAM
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.update import Update, UpdateRun


class Arithmetic(Protocol):
    """The parts of the semantics that a backend computes (`reference.py`, `cpu.py`)."""

    def predicted(self, key: np.uint64, run: UpdateRun, shares: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Which events of records are predicted, bool[n].

        `shares` uint64[m] is c of each record. `items` int64[m] is the number of items before it.
        """
        ...

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
        """Predicts those events of a record that `events` bool[n] selects, and steps the weights.

        `bias` float32[any] is that of the items before the record, and `rate` that of the steps.
        """
        ...

    def add_events(self, rows: np.ndarray, weights: np.ndarray, popularity: np.ndarray, bias: np.ndarray,
                   mix: np.ndarray) -> None:  # fmt: skip
        """Adds the events of items uint32[n] with weights float32[n] to the counts.

        `popularity` float32[any, kinds] has the counts of all items.
        """
        ...

    def decay(self, popularity: np.ndarray, bias: np.ndarray, mix: np.ndarray) -> None:
        """Decays the counts float32[n, kinds] of all items."""
        ...


class Mixer:
    """Learns from records. A part of a model (`tables.state.Part`)."""

    def __init__(self, spec: ModelSpec, arithmetic: Arithmetic) -> None:
        self._spec, self._arithmetic = spec, arithmetic
        self._key = domain_key(spec.seed, MIX_DOMAIN)
        first = initial(spec)
        self._mix, self._events, self._kinds = reserve_shared(first.shape, first.dtype), 0, kinds_of(spec)
        self._mix[:] = first
        self._newcomers = Newcomers(arithmetic) if spec.embeddings.dimension or spec.features.size else None

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

    def learn(
        self, run: UpdateRun, source: Source, users: int, popularity: np.ndarray, bias: np.ndarray
    ) -> None:
        """Learns from a group of records (`groups`), before the model does.

        `users` is the number of users that had rows before the records. `popularity` (the section)
        and `bias` float32[n] are those of the items that had rows before the records.
        """
        items = len(bias)
        if self.is_decay_due(items):
            self._arithmetic.decay(self._counts(popularity), bias, self._mix)
            self._mix[SINCE] = 0
            if self._newcomers is not None:
                self._newcomers.leave_out(source, bias, self._mix)
        if self._newcomers is not None:
            self._newcomers.begin(run[0], source, items)
        if items > 1:
            first = run[0]
            is_predicted = self._predicted(UpdateRun.of([first]), np.array([items]))
            if is_predicted.any():
                rate = rate_after(self._events, self._spec.mix)
                self._arithmetic.predict(
                    self._key, self._in_baskets(first), is_predicted, source, bias, self._mix, rate
                )
        if self._spec.mix.baskets:
            self._observe(run, users)
        self._events += run.joined.fresh

    def begin(self, source: Source, popularity: np.ndarray, bias: np.ndarray) -> None:
        """Follows a record of factors. `popularity` and `bias` are those of all items."""
        if self._events:
            return
        weights_of(self._mix, GROUPS - 1)[POPULARITY] = POPULARITY_MIN
        weights_of(self._mix, 0)[:FOLDS] = WEIGHT_START
        rows, k = np.arange(len(bias), dtype=np.uint32), self._spec.k
        rows = rows[source.read(ITEMS, rows, ("start_events",))["start_events"] > 0]
        factors, users = source.gather(ITEMS, rows)[0], source.state()[GRAM].reshape(2, k + 1, k + 1)[USERS]
        expected = np.zeros(len(rows))
        for p in range(k):
            expected += factors[:, p] * users[k, p]
        kinds = self._counts(popularity)
        kinds[rows], bias[rows] = np.float32(0.0), np.float32(0.0)
        self._mix[SUM] = self._mix[SQUARES] = 0.0
        expected = np.maximum(expected, 0.0)
        total = np.cumsum(np.append(0.0, expected))[-1]
        counts = expected * (len(rows) / total) if total > 0.0 else expected
        self._arithmetic.add_events(rows, counts.astype(np.float32), kinds, bias, self._mix)

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
        self._arithmetic.add_events(rows, weights, self._counts(popularity), bias, self._mix)
        self._mix[SINCE] += update.fresh

    def describe(self, source: Source, rows: np.ndarray, had_prior: np.ndarray, has_prior: np.ndarray,
                 popularity: np.ndarray, bias: np.ndarray) -> None:  # fmt: skip
        """Follows a record of embeddings or features of item rows uint32[n].

        `had_prior` and `has_prior` bool[n] tell which rows had a vector or a bag before, and which
        have one. `popularity` and `bias` are those of all items.
        """
        assert self._newcomers is not None
        items = source.state()[GRAM].reshape(2, self._spec.k + 1, self._spec.k + 1)[ITEMS]
        counts = self._counts(popularity)
        self._newcomers.describe(source, rows, had_prior, has_prior, counts, bias, self._mix, items[-1, -1])

    def _in_baskets(self, update: Update) -> Update:
        """The record with the times that predictions use: all events of a run have one."""
        if not self._spec.mix.baskets:
            return update
        rows, times = update.user_rows, self._times(update)
        runs, returns = self._mix[RUNS], self._mix[RETURNS]
        if returns and returns * RETURN_SHARE >= runs:
            # No event has a negative time.
            numbers = -1 - np.cumsum(np.append(False, rows[1:] != rows[:-1]))
            times = np.where(times == 0, numbers, times)
        return replace(update, times=times)

    def _times(self, update: Update) -> np.ndarray:
        """The times int64[n] of a record. They are 0 while all times of the log are one."""
        if update.times is None:
            return np.zeros(update.user_rows.size, np.int64)
        times: np.ndarray = np.where(update.times == self._mix[ONE_TIME], 0, update.times)
        return times

    def _observe(self, run: UpdateRun, users: int) -> None:
        """Looks at the times of records and counts their runs, given the number of users before."""
        update = run.joined
        rows = update.user_rows[: update.fresh]
        if not rows.size:
            return
        if update.times is not None and self._mix[ONE_TIME] >= 0:
            given = update.times[: update.fresh]
            given = given[given != 0]
            if given.size:
                one = self._mix[ONE_TIME] or given[0]
                self._mix[ONE_TIME] = one if (given == one).all() else -1
        is_timed = self._times(update)[: update.fresh] != 0
        starts = np.append(False, (rows[1:] != rows[:-1]) | is_timed[:-1]) & ~is_timed
        # Whether a run at the start of a record goes on from the record before is not known.
        firsts = run.ends[:-1]
        starts[firsts[firsts < rows.size]] = False
        places = np.flatnonzero(starts)
        records = np.searchsorted(run.ends, places, side="right")
        known = np.concatenate([[users], run.user_counts[:-1]])
        self._mix[RUNS] += places.size
        self._mix[RETURNS] += np.count_nonzero(rows[places] < known[records])

    def _counts(self, popularity: np.ndarray) -> np.ndarray:
        """The section as counts by item and kind, float32[n, kinds]. It is a view."""
        return popularity.reshape(len(popularity), self._kinds)

    def _predicted(self, run: UpdateRun, items: np.ndarray) -> np.ndarray:
        """Which events of records are predicted, given the numbers of items before them."""
        events = self._events + np.concatenate([[0], run.ends[:-1]])
        shares = predicted_share(events, self._spec.mix)
        return self._arithmetic.predicted(self._key, run, shares, items)
