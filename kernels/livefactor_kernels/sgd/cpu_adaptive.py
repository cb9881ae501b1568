"""The adaptive learning rate on the CPU (semantics: `sgd/adaptive.py`).

It runs rule SGD twice, for the model and for its probe.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers import PROBE
from livefactor_kernels.sgd.adaptive import (
    EVENTS,
    MOVES,
    RATES,
    SQUARES,
    STATE_SIZE,
    STEP,
    SUM,
    at_step,
    end_window,
)
from livefactor_kernels.sgd.cpu import Sgd
from livefactor_kernels.sgd.cpu_sequential import Sides
from livefactor_kernels.simd.steps import WORD_BYTES, Rows, score, word
from livefactor_kernels.spec.model import LANES, Loss, ModelSpec
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.update import Update, writable

_SQUARED, _LOGISTIC, _BPR = (int(loss) for loss in (Loss.SQUARED, Loss.LOGISTIC, Loss.BPR))
_F0, _F1 = np.float32(0.0), np.float32(1.0)
_NO_FLOATS = np.empty(0, np.float32)
_NOTHING = np.empty(0, np.uint32)


@compiled
def livefactor_begin_kernel(
    rows: Any, moves: Any, factors: Any, bias: Any, factor_probe: Any, bias_probe: Any, row_probe: Any
) -> None:
    """Starts those of the probe's rows uint32[n] again that did not start after change `moves`."""
    for t in range(np.uint64(rows.size)):
        row = np.uint64(rows[t])
        if row_probe[row] != moves:
            for j in range(np.uint64(factors.shape[1])):
                factor_probe[row, j] = factors[row, j]
            bias_probe[row] = bias[row]
            row_probe[row] = moves


class Event(NamedTuple):
    """An event.

    Attributes:
        user, item: rows.
        value, weight: float32.
        negatives: address of item rows, uint32[count].
        count: number of its negatives.
    """

    user: Any
    item: Any
    value: Any
    weight: Any
    negatives: Any
    count: Any


@inlined
def _loss(sides: Any, event: Any, mean: Any, limit: Any, blocks: Any, loss: Any) -> Any:
    """Sum of an event's squared errors, float64."""
    (users, items), (user, item, value, weight, negatives, count) = sides, event
    s, total = score(mean, users, items, user, item, blocks), 0.0
    if loss == _SQUARED:
        e = np.float64(scalar.squared_error(s, value, weight, limit))
        return e * e
    if loss == _LOGISTIC:
        e = np.float64(scalar.logistic_error(s, value, weight, limit))
        total = e * e
    if loss == _BPR or value != _F0:
        for d in range(count):
            s_negative = score(mean, users, items, user, word(negatives, d), blocks)
            if loss == _BPR:
                e = np.float64(scalar.bpr_error(s, s_negative, weight, limit))
            else:
                e = np.float64(scalar.logistic_error(s_negative, _F0, weight, limit))
            total += e * e
    return total


@cache
def evidence_kernel(blocks: int, loss: int) -> Any:
    """A kernel for rows of `blocks` vectors that adds the evidence of events to the state.

    Its arguments `probe_users` and `probe_items` are the rows of the probe. `negatives` is
    uint32[n, width], and `limit` is error_max. The first `fresh` events count.
    """
    BLOCKS, LOSS = np.uint64(blocks), int(loss)

    @compiled
    def livefactor_evidence_kernel(
        users: Any,
        items: Any,
        probe_users: Any,
        probe_items: Any,
        user_rows: Any,
        item_rows: Any,
        values: Any,
        weights: Any,
        negatives: Any,
        mean: Any,
        limit: Any,
        fresh: Any,
        state: Any,
    ) -> None:
        first, width = address_of(negatives), np.uint64(negatives.shape[1])
        for t in range(fresh):
            user, item = np.uint64(user_rows[t]), np.uint64(item_rows[t])
            value = values[t] if values.size else _F1
            weight = weights[t] if weights.size else _F1
            event = Event(user, item, value, weight, first + t * width * WORD_BYTES, width)
            probe = _loss(Sides(probe_users, probe_items), event, mean, limit, BLOCKS, LOSS)
            d = probe - _loss(Sides(users, items), event, mean, limit, BLOCKS, LOSS)
            state[SUM] += d
            state[SQUARES] += d * d
        state[EVENTS] += np.float64(fresh)

    return livefactor_evidence_kernel


def _probe_of(table: Table) -> Table:
    """The rows of the probe as a table for rule SGD. Keys and histories are those of the model."""
    probe = copy.copy(table)
    probe.factors, probe.bias = table.state["factor_probe"], table.state["bias_probe"]
    return probe


class AdaptiveSgd:
    """Learns from records.

    Attributes:
        state: float64[5] (`sgd/adaptive.py`).
    """

    records = False

    def __init__(self, spec: ModelSpec, users: Table, items: Table, mean_state: np.ndarray) -> None:
        """Compiles the kernels, or loads them from Numba's cache."""
        self._spec, self._mean_state = spec, mean_state
        self._probe_mean_state = mean_state.copy()
        probes = _probe_of(users), _probe_of(items)
        self._model = Sgd(at_step(spec, 0), users, items, mean_state)
        self._probe = Sgd(at_step(spec, 1), *probes, self._probe_mean_state)
        self._tables = [
            (table.factors, table.bias, *(table.state[name] for name in PROBE)) for table in (users, items)
        ]
        self._rows = tuple(Rows.of(table) for table in (users, items, *probes))
        self._kernel = evidence_kernel(spec.k_padded // LANES, int(spec.loss))
        self.state = np.zeros(STATE_SIZE)
        nothing = Update(0, _NOTHING, _NOTHING, None, None, 0, 0)
        self._begin(nothing)
        self._add_evidence(nothing)

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        return {RATES: self.state}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        self.state[:] = sections[RATES]
        self._take_rates()

    def _take_rates(self) -> None:
        step = int(self.state[STEP])
        self._model.take_rates(at_step(self._spec, step))
        self._probe.take_rates(at_step(self._spec, step + 1))

    def groups(self, updates: Sequence[Update]) -> Sequence[Sequence[Update]]:
        """One record each, because evidence is computed before a record, and a window ends after
        one.
        """
        return [[update] for update in updates]

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """See `Sgd.prepare`."""
        draws = self._model.prepare(updates)
        self._probe.negatives = self._model.negatives
        return draws

    def learn(self, update: Update) -> None:
        """Learns from the prepared record. The kernels release the GIL."""
        self._begin(update)
        self._add_evidence(update)
        self._probe_mean_state[:] = self._mean_state
        self._probe.learn(update)
        self._model.learn(update)
        if self.state[EVENTS] >= self._spec.adaptive_rate.window:
            end_window(self.state)
            self._take_rates()

    def _begin(self, update: Update) -> None:
        moves, (users, items) = np.float32(self.state[MOVES]), self._tables
        livefactor_begin_kernel(writable(update.user_rows), moves, *users)
        livefactor_begin_kernel(writable(update.item_rows), moves, *items)
        livefactor_begin_kernel(self._model.negatives.ravel(), moves, *items)

    def _add_evidence(self, update: Update) -> None:
        values, weights = (
            _NO_FLOATS if column is None else writable(column) for column in (update.values, update.weights)
        )
        mean = np.float32(scalar.mean_of(*self._mean_state))
        columns = writable(update.user_rows), writable(update.item_rows), values, weights
        limit = np.float32(self._spec.limits.error_max)
        numbers = mean, limit, np.uint64(update.fresh), self.state
        self._kernel(*self._rows, *columns, self._model.negatives, *numbers)
