"""The arithmetic of a mix in compiled code. The semantics are in `reading/__init__.py`.

`cpu_learning.py` has the predictions, `cpu_experts.py` what the experts say of a user, and
`cpu_readers.py` the reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.history.cpu import Columns
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import draw_below
from livefactor_kernels.reading import (
    BLEND,
    DECAY,
    LEARNED_BLEND,
    SQUARES,
    SUM,
    initial,
    kinds_of,
    recent_decay,
)
from livefactor_kernels.reading.cpu_experts import Decays, Desk
from livefactor_kernels.reading.cpu_learning import Candidates, Tables, livefactor_predict_kernel
from livefactor_kernels.reading.cpu_steps import logarithm
from livefactor_kernels.reading.remembered import Source
from livefactor_kernels.solve import GRAM, UNOBSERVED, SolveRates
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.update import Update, UpdateRun, writable

_0 = np.uint64(0)
_NO_VALUES = np.empty(0, np.float32)
_F0, _D0 = np.float32(0.0), np.float64(0.0)


class CpuArithmetic:
    """As `learning.Arithmetic`, for the tables of a model. One thread may call it."""

    def __init__(self, spec: ModelSpec, users: Table, items: Table) -> None:
        """Compiles the kernels, or loads them from the cache."""
        self._spec, self._rates, self._tables = spec, SolveRates.of(spec), Tables.of(users, items)
        self._shrinkage, self._span = np.float32(spec.counts.shrinkage), np.uint64(spec.counts.span)
        self._recent_decay = recent_decay(spec)
        self._room = Decays.of(spec), Candidates.of(spec), Desk.of(spec)
        self._compile_kernels()

    def _compile_kernels(self) -> None:
        k, no_rows = self._spec.k, np.empty(0, np.uint32)
        word, one, zero = np.zeros(1, np.uint32), np.ones(1, np.float32), np.zeros(1, np.float32)
        update, mix = Update(0, word, word, None, None, 0, 0), initial(self._spec)
        counts = np.zeros((1, kinds_of(self._spec)), np.float32)
        self.predicted(_0, UpdateRun.of([update]), np.ones(1, np.uint64), np.zeros(1, np.int64))
        nothing = Update(0, no_rows, no_rows, None, None, 0, 0)
        self._predict(
            _0, nothing, np.empty(0, np.bool_), 0, np.zeros((2, k + 1, k + 1)), np.float32(0.0), mix, _D0
        )
        self.add_events(word, one, counts, zero, mix)
        self.decay(counts, zero, mix)

    def predicted(self, key: np.uint64, run: UpdateRun, shares: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `learning.Arithmetic.predicted`."""
        update = run.joined
        values = _NO_VALUES if update.values is None else writable(update.values)
        predicted = np.zeros(update.item_rows.size, np.bool_)
        columns = update.item_rows, values, np.int64(update.fresh), run.ends, shares, items
        livefactor_predicted_kernel(key, np.uint64(run.revision), *columns, predicted)
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
        """See `learning.Arithmetic.predict`. The source is the model of the tables."""
        state, k = source.state(), self._spec.k
        unobserved = np.float32(state[UNOBSERVED][0]) if UNOBSERVED in state else self._rates.unobserved
        gram = state[GRAM].reshape(2, k + 1, k + 1)
        self._predict(key, update, events, len(bias), gram, unobserved, mix, rate)

    def _predict(
        self, key: np.uint64, update: Update, events: np.ndarray, items: int, gram: np.ndarray,
        unobserved: np.float32, mix: np.ndarray, rate: np.float64,
    ) -> None:  # fmt: skip
        counts = np.int64(items), np.int64(update.item_count)
        livefactor_predict_kernel(
            self._tables, *self._room, *Columns.of(update), events, key, np.uint64(update.revision), *counts,
            self._rates, unobserved, self._shrinkage, self._span, gram, mix, rate,
        )  # fmt: skip

    def add_events(self, rows: np.ndarray, weights: np.ndarray, popularity: np.ndarray, bias: np.ndarray,
                   mix: np.ndarray) -> None:  # fmt: skip
        """See `learning.Arithmetic.add_events`."""
        livefactor_popularity_kernel(rows, weights, popularity, bias, mix)

    def decay(self, popularity: np.ndarray, bias: np.ndarray, mix: np.ndarray) -> None:
        """See `learning.Arithmetic.decay`."""
        livefactor_decay_kernel(popularity, self._recent_decay, bias, mix)


@compiled
def livefactor_predicted_kernel(
    key: Any,
    first: Any,
    rows: Any,
    values: Any,
    fresh: Any,
    ends: Any,
    shares: Any,
    items: Any,
    predicted: Any,
) -> None:
    """Sets predicted bool[n] where an event is predicted; all are False before.

    `first` is the revision of the first record. Events from `fresh` on are replayed.
    """
    start = np.int64(0)
    for record in range(ends.size):
        revision, end = first + np.uint64(record), min(ends[record], fresh)
        for t in range(start, end):
            liked = values[t] > _F0 if values.size else True
            if liked and np.int64(rows[t]) < items[record]:
                event = np.uint64(t - start)
                predicted[t] = draw_below(key, revision, event, _0, shares[record]) == _0
        start = ends[record]


@inlined
def _popularity_of(counts: Any, row: Any, mix: Any) -> Any:
    """p of an item."""
    p = logarithm(counts[row, 0])
    if counts.shape[1] > 1:
        p += np.float32(mix[BLEND]) * logarithm(counts[row, 1])
    return p


@compiled
def livefactor_popularity_kernel(rows: Any, weights: Any, popularity: Any, bias: Any, mix: Any) -> None:
    """Adds events of items to the counts."""
    for t in range(np.uint64(rows.size)):
        row = np.uint64(rows[t])
        for kind in range(popularity.shape[1]):
            popularity[row, kind] += weights[t]
        old, new = np.float64(bias[row]), np.float64(_popularity_of(popularity, row, mix))
        bias[row] = np.float32(new)
        mix[SUM] = (mix[SUM] + new) - old
        mix[SQUARES] = (mix[SQUARES] + new * new) - old * old


@compiled
def livefactor_decay_kernel(popularity: Any, recent_decay: Any, bias: Any, mix: Any) -> None:
    """Decays the counts of all items."""
    total, squares = _D0, _D0
    if popularity.shape[1] > 1:
        mix[BLEND] = np.float64(np.float32(mix[LEARNED_BLEND]))
    for row in range(np.uint64(bias.size)):
        popularity[row, 0] *= DECAY
        if popularity.shape[1] > 1:
            popularity[row, 1] *= recent_decay
        bias[row] = _popularity_of(popularity, row, mix)
        p = np.float64(bias[row])
        total += p
        squares += p * p
    mix[SUM], mix[SQUARES] = total, squares
