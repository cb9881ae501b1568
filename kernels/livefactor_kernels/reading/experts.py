"""What the experts of a mix say of a user. The semantics are in `reading/__init__.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from livefactor_kernels.history import DECAY_STEPS, decays
from livefactor_kernels.reading import (
    COUNT_HALF_LIVES,
    COUNTS,
    EXPERTS,
    FOLDS,
    HALF_LIVES,
    MIX,
    POPULARITY,
    REPEATS,
    SQUARES,
    SUM,
    Moments,
    moments,
    weights_of,
)
from livefactor_kernels.solve import GRAM, UNOBSERVED
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS

_COUNT_DECAYS = np.stack([decays(half_life) for half_life in COUNT_HALF_LIVES])
_FOLD_DECAYS = np.stack([decays(half_life) for half_life in HALF_LIVES])


def distinct(rows: np.ndarray) -> np.ndarray:
    """The distinct rows of uint32[n], ascending. numpy.unique is slower for few rows."""
    rows = np.sort(rows)
    is_first = np.ones(len(rows), bool)
    np.not_equal(rows[1:], rows[:-1], out=is_first[1:])
    return rows[is_first]


class Remembered(NamedTuple):
    """The remembered events of a user, oldest first.

    Attributes, in order: item rows uint32[n], values float32[n], weights float32[n], and ages
    int64[n] in visits, below `DECAY_STEPS`.
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    ages: np.ndarray


class Gains(NamedTuple):
    """The gains of a few items: rows uint32[m], ascending, and gains float32[m]. Others gain 0."""

    rows: np.ndarray
    gains: np.ndarray

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The gains of rows uint32[c], float64[c]."""
        if not self.rows.size:
            return np.zeros(len(rows))
        place = np.minimum(np.searchsorted(self.rows, rows), self.rows.size - 1)
        return np.where(self.rows[place] == rows, self.gains[place], np.float32(0.0)).astype(np.float64)


NO_GAINS = Gains(np.empty(0, np.uint32), np.empty(0, np.float32))


class Source(Protocol):
    """The source of a read: a pin, or a backend whose gate is held."""

    def state(self) -> dict[str, np.ndarray]:
        """See `backend.Backend.state`."""
        ...

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `backend.Backend.gather`."""
        ...

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`."""
        ...


class Arithmetic(Protocol):
    """The parts of the semantics that a backend computes (`reference.py`, `cpu.py`)."""

    def folds(self, x: np.ndarray, y: np.ndarray, values: np.ndarray, weights: np.ndarray,
              everywhere: np.ndarray, unobserved: np.float32, items: int) -> np.ndarray:  # fmt: skip
        """The row x float32[k_padded], folded in with each line of weights, float32[d, k_padded].

        The events have the rows y float32[n, k_padded], which begin at a multiple of 64 bytes,
        the values float32[n] and the weights float32[d, n]. `everywhere` float32[k, k] is a0 G.
        """
        ...

    def followers(self, lists: dict[str, np.ndarray]) -> np.ndarray:
        """The distinct rows uint32[m] of followers, ascending."""
        ...

    def gains(self, lists: dict[str, np.ndarray], weights: np.ndarray, rows: np.ndarray,
              events: np.ndarray) -> np.ndarray:  # fmt: skip
        """The gains float32[d, m] from counts of `rows` uint32[m], ascending, with `events` events.

        `lists` are the followers of the remembered items, newest first. `weights` float32[d, n] are
        those of the items, for each of d half-lives.
        """
        ...

    def row_sums(self, rows: np.ndarray, gram: np.ndarray) -> np.ndarray:
        """x . g and x' G x of each x, float64[d, 2].

        rows are float32[d, k], and gram is float64[k + 1, k + 1].
        """
        ...

    def sums(self, gains: np.ndarray) -> np.ndarray:
        """The sums of gains float32[d, m] and of their squares, float64[d, 2].

        They run from left to right.
        """
        ...


class Experts(NamedTuple):
    """What the experts say of a user.

    Attributes:
        folds: the folded-in rows, float32[FOLDS, k_padded].
        counts: gains of items for each of `COUNT_HALF_LIVES`. Their rows are the same.
        repeats: gains of items.
        moments: the moments of the experts' scores, by expert.
        weights: the weights of the user's group, float64[EXPERTS]; a view of the state.
    """

    folds: np.ndarray
    counts: list[Gains]
    repeats: Gains
    moments: list[Moments]
    weights: np.ndarray

    def combined(self) -> tuple[np.ndarray, np.float32, Gains]:
        """The row float32[k_padded], the bias and the gains of the user, as scores use them."""
        scaled = [weight * moment.scale for weight, moment in zip(self.weights, self.moments, strict=True)]
        unit = scaled[POPULARITY] or 1.0
        row = np.zeros(self.folds.shape[1])
        shift = 0.0
        for expert in range(EXPERTS):
            shift -= scaled[expert] / unit * self.moments[expert].mean
            if expert < FOLDS:
                row += (scaled[expert] / unit) * self.folds[expert]
        rows = distinct(np.concatenate([self.counts[0].rows, self.repeats.rows]))
        gains = np.zeros(len(rows))
        gains[np.searchsorted(rows, self.repeats.rows)] = (
            scaled[REPEATS] / unit
        ) * self.repeats.gains.astype(np.float64)
        places = np.searchsorted(rows, self.counts[0].rows)
        follow = gains[places]
        for expert, counts in enumerate(self.counts, COUNTS):
            follow += (scaled[expert] / unit) * counts.gains.astype(np.float64)
        gains[places] = follow
        return row.astype(np.float32), np.float32(shift), Gains(rows, gains.astype(np.float32))


class Panel:
    """The experts of a model, for reads and for learning."""

    def __init__(self, spec: ModelSpec, arithmetic: Arithmetic) -> None:
        self._spec, self._arithmetic = spec, arithmetic
        self._repeat_decays = decays(spec.counts.half_life)

    def of(self, source: Source, user_row: np.ndarray, events: Remembered, items: int) -> Experts:
        """What the experts say of the user of row uint32[1], with these remembered events.

        `items` is the number of items, n.
        """
        state, k = source.state(), self._spec.k
        gram = state[GRAM].reshape(2, k + 1, k + 1)[ITEMS]
        folds = self._folds(source, user_row, events, state, items)
        count = max(float(gram[k, k]), 1.0)
        found = [
            moments(total, squares, count)
            for total, squares in self._arithmetic.row_sums(np.ascontiguousarray(folds[:, :k]), gram).tolist()
        ]
        counts, repeats = self._counts(source, events), self._repeats(events)
        for gains in (np.stack([each.gains for each in counts]), repeats.gains[None]):
            found += [
                moments(total, squares, count) for total, squares in self._arithmetic.sums(gains).tolist()
            ]
        mix = state[MIX]
        found.append(moments(float(mix[SUM]), float(mix[SQUARES]), count))
        return Experts(folds, counts, repeats, found, weights_of(mix, len(events.rows)))

    def _folds(
        self,
        source: Source,
        user_row: np.ndarray,
        events: Remembered,
        state: dict[str, np.ndarray],
        items: int,
    ) -> np.ndarray:
        k = self._spec.k
        users, gram = state[GRAM].reshape(2, k + 1, k + 1)
        x = source.gather(USERS, user_row)[0][0]
        if not len(events.rows):
            if users[k, k]:
                x[:k] = users[k, :k] / users[k, k]
            return np.repeat(x[None], FOLDS, axis=0)
        unobserved = np.float32(state[UNOBSERVED][0] if UNOBSERVED in state else self._spec.solve.unobserved)
        everywhere = (np.float64(unobserved) * gram[:k, :k]).astype(np.float32)
        y = source.gather(ITEMS, events.rows)[0]
        weights = events.weights * _FOLD_DECAYS[:, events.ages]
        return self._arithmetic.folds(x, y, events.values, weights, everywhere, unobserved, items)

    def _counts(self, source: Source, events: Remembered) -> list[Gains]:
        last = slice(max(0, len(events.rows) - self._spec.counts.span), None)
        rows = np.ascontiguousarray(events.rows[last][::-1])
        if not rows.size:
            return [NO_GAINS] * len(COUNT_HALF_LIVES)
        weights = np.ascontiguousarray((events.weights[last] * _COUNT_DECAYS[:, events.ages[last]])[:, ::-1])
        lists = source.read(ITEMS, rows, ("neighbor_rows", "neighbor_counts", "seen_count"))
        followers = self._arithmetic.followers(lists)
        if not followers.size:
            return [NO_GAINS] * len(COUNT_HALF_LIVES)
        seen = source.read(ITEMS, followers, ("seen_count",))["seen_count"]
        gains = self._arithmetic.gains(lists, weights, followers, seen)
        return [Gains(followers, each) for each in gains]

    def _repeats(self, events: Remembered) -> Gains:
        rows = distinct(events.rows)
        gains, places = np.zeros(len(rows), np.float32), np.searchsorted(rows, events.rows)
        np.add.at(gains, places, events.weights * (events.values > 0) * self._repeat_decays[events.ages])
        return Gains(rows, gains)


def remembered(user: dict[str, np.ndarray]) -> Remembered:
    """The events of a user, given the sections of the user's row (`tables.history_sections`)."""
    count, length = int(user["seen_count"]), len(user["seen_rows"])
    order = np.arange(max(0, count - length), count) % length
    ages = int(user["visits"]) - user["seen_visits"][order].astype(np.int64)
    return Remembered(
        user["seen_rows"][order],
        user["seen_values"][order],
        user["seen_weights"][order],
        np.clip(ages, 0, DECAY_STEPS - 1),
    )
