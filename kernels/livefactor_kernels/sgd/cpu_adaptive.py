"""An adapted learning rate in compiled code (semantics: `sgd/adaptive.py`), one event after the other."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .. import scalar
from ..lanes import VECTOR_BYTES, address_of, inlined, load16, prefetch, store1, store16, tree_sum
from ..spec import LANES, Loss
from ..spec_parts import MAX_ADAPTIVE_NEGATIVES
from ..steps import ONE, WORD_BYTES, ZERO, real, row_bytes
from ..tables import Table
from ..update import Update, writable
from .adaptive import (
    EVENTS,
    ITEMS_FAST,
    ITEMS_STEP,
    ROWS,
    STATE_SIZE,
    STEPS_MAX,
    TWIN_STEPS,
    USERS_FAST,
    USERS_STEP,
    multiples,
)
from .cpu import Sgd

_SQUARED = int(Loss.SQUARED)
_F0, _F1 = np.float32(0.0), np.float32(1.0)
_AHEAD = np.uint64(4)
_FIRST = STEPS_MAX + TWIN_STEPS  # where the multiple of step 0 is
_NO_FLOATS = np.empty(0, np.float32)


class Trio(NamedTuple):
    """Addresses of a side's rows, of their faster and their slower twins: factors float32[cap, kp], bias float32[cap]."""

    factors: tuple[np.uint64, np.uint64, np.uint64]
    bias: tuple[np.uint64, np.uint64, np.uint64]

    @staticmethod
    def of(table: Table) -> Trio:
        """A table's (its arrays never move)."""
        twins = table.history
        factors = table.factors, twins["fast_factors"], twins["slow_factors"]
        biases = table.bias, twins["fast_bias"], twins["slow_bias"]
        return Trio(
            tuple(address_of(array) for array in factors),  # type: ignore[arg-type]
            tuple(address_of(array) for array in biases),  # type: ignore[arg-type]
        )


@inlined
def _prefetch(side: Any, row: Any, blocks: Any) -> None:
    for kind in range(3):
        for c in range(blocks):
            prefetch(side.factors[kind], row * row_bytes(blocks) + c * VECTOR_BYTES)
        prefetch(side.bias[kind], row * WORD_BYTES)


@inlined
def _score(mean: Any, users: Any, items: Any, kinds: Any, user: Any, item: Any, blocks: Any) -> Any:
    """Score (float32) of a user's row or twin and an item's; kinds: of both."""
    own, other = kinds
    x, y = users.factors[own] + user * row_bytes(blocks), items.factors[other] + item * row_bytes(blocks)
    lanes = load16(x, ZERO) * load16(y, ZERO)
    for c in range(ONE, blocks):
        at = c * VECTOR_BYTES
        lanes = lanes + load16(x, at) * load16(y, at)
    return scalar.score(mean, real(users.bias[own], user), real(items.bias[other], item), tree_sum(lanes))


@inlined
def _take_errors(
    users: Any, items: Any, user: Any, slots: Any, size: Any, value: Any, weight: Any, mean: Any, errors: Any,
    blocks: Any, loss: Any, rates: Any,
) -> None:  # fmt: skip
    """Write errors float32[5, slots]: of rows, users' faster and slower twins, items' faster and slower ones."""
    for s in range(size):
        target = value if s == ZERO else _F0
        for line in range(5):
            kinds = (line, 0) if line < 3 else (0, line - 2)
            score = _score(mean, users, items, kinds, user, np.uint64(slots[s]), blocks)
            if loss == _SQUARED:
                errors[line, s] = scalar.squared_error(score, target, weight, rates.error_max)
            else:
                errors[line, s] = scalar.logistic_error(score, target, weight, rates.error_max)


@inlined
def _is_repeat(slots: Any, s: Any) -> Any:
    """Whether an earlier slot has the same item."""
    found = False
    for before in range(s):
        found = found or slots[before] == slots[s]
    return found


@inlined
def _step_block(
    users: Any, items: Any, user: Any, slots: Any, size: Any, errors: Any, user_rates: Any, item_rates: Any, at: Any,
    blocks: Any, rates: Any,
) -> None:  # fmt: skip
    """Step 16 factors of the user, of the slots' items and of all their twins, `at` bytes into their rows."""
    own = user * row_bytes(blocks) + at
    x = load16(users.factors[0], own)
    x_fast, x_slow = load16(users.factors[1], own), load16(users.factors[2], own)
    first = load16(items.factors[0], np.uint64(slots[ZERO]) * row_bytes(blocks) + at)
    g = scalar.pull(errors[0, ZERO], first, rates.l2, x)
    g_fast = scalar.pull(errors[1, ZERO], first, rates.l2, x_fast)
    g_slow = scalar.pull(errors[2, ZERO], first, rates.l2, x_slow)
    for s in range(ONE, size):
        y = load16(items.factors[0], np.uint64(slots[s]) * row_bytes(blocks) + at)
        g = g + scalar.pull(errors[0, s], y, rates.l2, x)
        g_fast = g_fast + scalar.pull(errors[1, s], y, rates.l2, x_fast)
        g_slow = g_slow + scalar.pull(errors[2, s], y, rates.l2, x_slow)
    for s in range(size):
        if _is_repeat(slots, s):
            continue
        for kind in range(3):
            line, place = kind if kind == 0 else kind + 2, np.uint64(slots[s]) * row_bytes(blocks) + at
            y = load16(items.factors[kind], place)
            pull = scalar.pull(errors[line, s], x, rates.l2, y)
            for other in range(s + ONE, size):
                if slots[other] == slots[s]:
                    pull = pull + scalar.pull(errors[line, other], x, rates.l2, y)
            store16(items.factors[kind], scalar.sgd_step(y, pull, item_rates[kind], rates.factor_max), place)
    store16(users.factors[0], scalar.sgd_step(x, g, user_rates[0], rates.factor_max), own)
    store16(users.factors[1], scalar.sgd_step(x_fast, g_fast, user_rates[1], rates.factor_max), own)
    store16(users.factors[2], scalar.sgd_step(x_slow, g_slow, user_rates[2], rates.factor_max), own)


@inlined
def _step_biases(
    side: Any, row: Any, slots: Any, first: Any, size: Any, errors: Any, shift: Any, one_item: Any, bias_rates: Any,
    rates: Any,
) -> None:  # fmt: skip
    """Step a row's bias and its twins' by the errors of its slots from `first` on: all, or (one_item) those of its item."""
    for kind in range(3):
        line = kind if kind == 0 else kind + shift
        bias = real(side.bias[kind], row)
        g = scalar.bias_pull(errors[line, first], rates.bias_l2, bias)
        for s in range(first + ONE, size):
            if not one_item or slots[s] == slots[first]:
                g = g + scalar.bias_pull(errors[line, s], rates.bias_l2, bias)
        store1(
            side.bias[kind], scalar.sgd_step(bias, g, bias_rates[kind], rates.factor_max), row * WORD_BYTES
        )


@inlined
def _rates_of(table: Any, state: Any, side: Any, rate: Any) -> Any:
    """Rates float32 of a side's rows, faster and slower twins."""
    at = np.int64(state[side]) + _FIRST
    return rate * table[at], rate * table[at + TWIN_STEPS], rate * table[at - TWIN_STEPS]


@inlined
def _moved(state: Any, side: Any, fast: Any) -> Any:
    step, rows = state[side], state[ROWS]
    if state[fast] < rows and state[fast] <= state[fast + 1]:
        return min(step + 1.0, np.float64(STEPS_MAX))
    if state[fast + 1] < rows:
        return max(step - 1.0, -np.float64(STEPS_MAX))
    return step


@inlined
def _evaluate(errors: Any, size: Any, state: Any, window: Any) -> None:
    """Add an event's squared errors; at the end of a window move the rates."""
    for line in range(5):
        for s in range(size):
            state[ROWS + line] += np.float64(errors[line, s]) * np.float64(errors[line, s])
    state[EVENTS] += 1.0
    if state[EVENTS] >= window:
        state[USERS_STEP] = _moved(state, USERS_STEP, USERS_FAST)
        state[ITEMS_STEP] = _moved(state, ITEMS_STEP, ITEMS_FAST)
        for place in range(EVENTS, STATE_SIZE):
            state[place] = 0.0


@cache
def adaptive_kernel(blocks: int, loss: int, stamp: int) -> Any:
    """Kernel for rows of `blocks` vectors. negatives uint32[n, width]; the first `fresh` of n events are evaluated and join
    the mean; table: `adaptive.multiples`."""
    BLOCKS, LOSS, STAMP = np.uint64(blocks), int(loss), int(stamp)

    @njit(cache=True, nogil=True, error_model="numpy")
    def livefactor_adaptive_kernel(
        users: Any,
        items: Any,
        user_rows: Any,
        item_rows: Any,
        values: Any,
        weights: Any,
        negatives: Any,
        mean_state: Any,
        state: Any,
        table: Any,
        rates: Any,
        window: Any,
        fresh: Any,
    ) -> int:
        n, width = np.uint64(user_rows.size), np.uint64(negatives.shape[1])
        errors, slots = (
            np.empty((5, MAX_ADAPTIVE_NEGATIVES + 1), np.float32),
            np.empty(MAX_ADAPTIVE_NEGATIVES + 1, np.uint32),
        )
        for t in range(n):
            ahead = min(t + _AHEAD, n - ONE)
            _prefetch(users, np.uint64(user_rows[ahead]), BLOCKS)
            _prefetch(items, np.uint64(item_rows[ahead]), BLOCKS)
            for d in range(width):
                _prefetch(items, np.uint64(negatives[ahead, d]), BLOCKS)
            user, value = np.uint64(user_rows[t]), values[t] if values.size else _F1
            weight = weights[t] if weights.size else _F1
            slots[0], size = item_rows[t], ONE
            if LOSS != _SQUARED and value != _F0:
                for d in range(width):
                    slots[size] = negatives[t, d]
                    size += ONE
            mean = scalar.mean_of(mean_state[ZERO], mean_state[ONE])
            _take_errors(users, items, user, slots, size, value, weight, mean, errors, BLOCKS, LOSS, rates)
            user_rates = _rates_of(table, state, USERS_STEP, rates.rate)
            item_rates = _rates_of(table, state, ITEMS_STEP, rates.rate)
            for c in range(BLOCKS):
                at = c * VECTOR_BYTES
                _step_block(
                    users, items, user, slots, size, errors, user_rates, item_rates, at, BLOCKS, rates
                )
            bias_rates = _rates_of(table, state, USERS_STEP, rates.bias_rate)
            _step_biases(users, user, slots, ZERO, size, errors, 0, False, bias_rates, rates)
            bias_rates = _rates_of(table, state, ITEMS_STEP, rates.bias_rate)
            for s in range(size):
                if not _is_repeat(slots, s):
                    _step_biases(
                        items, np.uint64(slots[s]), slots, s, size, errors, 2, True, bias_rates, rates
                    )
            if t < fresh:
                _evaluate(errors, size, state, window)
                if LOSS == _SQUARED:
                    mean_state[ZERO] += scalar.fixed_point(value)
                    mean_state[ONE] += 1
        return STAMP

    return livefactor_adaptive_kernel


class AdaptiveSgd(Sgd):
    """Learns from updates; `state` float64[8] is state."""

    def _choose_kernel(self, users: Table, items: Table, stamp: int) -> None:
        self._sequential = True
        self.state, self._table = np.zeros(STATE_SIZE), multiples()
        self._sides = Trio.of(users), Trio.of(items)
        self._kernel = adaptive_kernel(self._spec.k_padded // LANES, int(self._spec.loss), stamp)

    def learn(self, update: Update) -> None:
        """Learn from what was prepared, joined to one record. The GIL is released."""
        values, weights = (
            _NO_FLOATS if column is None else writable(column) for column in (update.values, update.weights)
        )
        columns = update.user_rows, update.item_rows, values, weights, self._negatives
        state: Any = self._mean_state, self.state, self._table, self._rates
        numbers = float(self._spec.adaptive_rate.window), np.uint64(update.fresh)
        self._kernel(*self._sides, *columns, *state, *numbers)
