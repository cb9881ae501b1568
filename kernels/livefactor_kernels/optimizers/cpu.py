"""The step of a row by its whole gradient in compiled code, with every optimiser (semantics: `optimizers/__init__.py`).

Kernels of micro-batches take these. `method` is a constant of the kernel that calls: after inlining nothing of the other
optimisers is left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import (
    VECTOR_BYTES,
    clamp,
    inlined,
    load1,
    load16,
    prefetch,
    store1,
    store16,
    tree_sum,
)
from livefactor_kernels.numbers.narrow import Factors, factors_of, load_factors, store_factors
from livefactor_kernels.optimizers import adagrad as adagrad_formula
from livefactor_kernels.optimizers import choice, state_slots
from livefactor_kernels.optimizers import sgd as sgd_formula
from livefactor_kernels.optimizers.choice import (
    bias_accumulators,
    factor_accumulators,
    needs_squares,
    row_words,
)
from livefactor_kernels.optimizers.formula import Shared
from livefactor_kernels.simd.gradients import scale_vectors
from livefactor_kernels.simd.steps import (
    ONE,
    WORD_BYTES,
    RowArrays,
    prefetch_row,
    real,
    row_bytes,
    row_word,
    word,
)

_F1 = np.float32(1.0)


class StepRows(NamedTuple):
    """A table's arrays by address (uint64), 0 where a spec has none. side: `USERS` or `ITEMS`.

    factor_g, bias_g: the first accumulators of factors and biases (AdaGrad's G, Adam's m, FTRL's z). factor_h, bias_h: the
    second (Adam's v, FTRL's n). row_state: a row's own (row-wise AdaGrad's G, Adam's two powers). seen: uint32, events so far.
    """

    factors: Factors
    bias: np.uint64
    factor_g: np.uint64
    bias_g: np.uint64
    factor_h: np.uint64
    bias_h: np.uint64
    row_state: np.uint64
    seen: np.uint64
    side: np.uint64

    @staticmethod
    def of(table: RowArrays) -> StepRows:
        """Addresses of a table's arrays (which never move)."""

        slots = state_slots(table.spec)

        def address(slot: str) -> np.uint64:
            return np.uint64(table.state[slots[slot]].ctypes.data if slot in slots else 0)

        seen = table.history.get("seen_count")
        return StepRows(
            factors_of(table.factors),
            np.uint64(table.bias.ctypes.data),
            address("factor_g"),
            address("bias_g"),
            address("factor_h"),
            address("bias_h"),
            address("row_state"),
            np.uint64(seen.ctypes.data if seen is not None else 0),
            np.uint64(table.side),
        )


@inlined
def squares(gradient: Any, blocks: Any) -> Any:
    """Sum of squares (float32) of the row at an address, in the order of a dot product."""
    lanes = load16(gradient) * load16(gradient)
    for c in range(ONE, blocks):
        vector = load16(gradient, c * VECTOR_BYTES)
        lanes = lanes + vector * vector
    return tree_sum(lanes)


@inlined
def _step_words(rows: Any, row: Any, gradient: Any, blocks: Any, method: Any, rates: Any) -> Any:
    """Step a row's own words by its gradient, and return what its factors and its bias share."""
    count = row_words(method.optimizer)
    at = row * np.uint64(count)
    first = real(rows.row_state, at) if count > 0 else _F1
    second = real(rows.row_state, at + ONE) if count > 1 else _F1
    total = squares(gradient, blocks) if needs_squares(method.optimizer) else _F1
    first, second, of_factors, of_bias = choice.step_row(method.optimizer, first, second, total, rates)
    if count > 0:
        store1(rows.row_state, first, at * WORD_BYTES)
    if count > 1:
        store1(rows.row_state, second, (at + ONE) * WORD_BYTES)
    return of_factors, of_bias


@inlined
def step_factors(rows: Any, offset: Any, x: Any, g: Any, optimizer: Any, rates: Any, shared: Any) -> Any:
    """What a step by g leaves of 16 factors x, `offset` bytes into the table; their accumulators are stepped."""
    count = factor_accumulators(optimizer)
    first = load16(rows.factor_g, offset) if count > 0 else x
    second = load16(rows.factor_h, offset) if count > 1 else x
    first, second, total = choice.accumulate_factor(optimizer, x, g, first, second, shared, rates)
    if count > 0:
        store16(rows.factor_g, first, offset)
    if count > 1:
        store16(rows.factor_h, second, offset)
    return choice.step_factor(optimizer, x, g, first, total, shared, rates)


@inlined
def step_bias(rows: Any, row: Any, g: Any, optimizer: Any, rates: Any, shared: Any) -> None:
    """Step a row's bias by gradient g, as `step_factors`."""
    at, x, count = row * WORD_BYTES, real(rows.bias, row), bias_accumulators(optimizer)
    first = load1(rows.bias_g, at) if count > 0 else x
    second = load1(rows.bias_h, at) if count > 1 else x
    first, second, total = choice.accumulate_bias(optimizer, x, g, first, second, shared, rates)
    if count > 0:
        store1(rows.bias_g, first, at)
    if count > 1:
        store1(rows.bias_h, second, at)
    store1(rows.bias, choice.step_bias(optimizer, x, g, first, total, shared, rates), at)


@inlined
def step_row(
    rows: Any, row: Any, gradient: Any, with_bias: Any, blocks: Any, method: Any, rates: Any, rounding: Any,
    step: Any,
) -> None:  # fmt: skip
    """Step one row by its gradient row, which is spent, in micro-batch number `step` of the record."""
    start, random_word = row * row_bytes(blocks), row_word(rows, row, rounding, step)
    if method.clips:
        scale_vectors(gradient, scalar.norm_scale(squares(gradient, blocks), rates.gradient_norm_max), blocks)
    of_factors, of_bias = _step_words(rows, row, gradient, blocks, method, rates)
    for c in range(blocks):
        at = c * VECTOR_BYTES
        x, g = load_factors(rows.factors, start + at), load16(gradient, at)
        stepped = step_factors(rows, start + at, x, g, method.optimizer, rates, of_factors)
        if method.norms:
            store16(gradient, stepped, at)
        else:
            store_factors(rows.factors, start + at, stepped, at // WORD_BYTES, random_word)
    if method.norms:  # the gradient's place holds the new factors by now
        scale_vectors(gradient, scalar.norm_scale(squares(gradient, blocks), rates.row_norm_max), blocks)
        for c in range(blocks):
            at = c * VECTOR_BYTES
            store_factors(rows.factors, start + at, load16(gradient, at), at // WORD_BYTES, random_word)
    if with_bias:
        g = load1(gradient, row_bytes(blocks))
        g = clamp(g, rates.gradient_norm_max) if method.clips else g
        step_bias(rows, row, g, method.optimizer, rates, of_bias)


@inlined
def l2_of(rows: Any, row: Any, l2: Any, method: Any) -> Any:
    """A row's weight of an occurrence's L2 (float32)."""
    return scalar.frequent_l2(l2, word(rows.seen, row), method.frequency) if method.frequency else l2


@inlined
def prefetch_state(rows: Any, row: Any, blocks: Any, method: Any) -> None:
    """Ask for all cache lines of a row: factors, bias, accumulators."""
    accumulators, words = factor_accumulators(method.optimizer), row_words(method.optimizer)
    prefetch_row(rows, row, blocks, accumulators > 0)
    if words > 0:
        prefetch(rows.row_state, row * np.uint64(words) * WORD_BYTES)
    if bias_accumulators(method.optimizer) > 0:
        prefetch(rows.bias_g, row * WORD_BYTES)
    if accumulators > 1:
        for c in range(blocks):
            prefetch(rows.factor_h, row * row_bytes(blocks) + c * VECTOR_BYTES)
    if bias_accumulators(method.optimizer) > 1:
        prefetch(rows.bias_h, row * WORD_BYTES)


@inlined
def step_plain_factors(
    rows: Any, start: Any, at: Any, x: Any, g: Any, adagrad: Any, rates: Any, word: Any
) -> None:
    """Step 16 factors from their old value x by gradient g with AdaGrad or SGD, and store them.

    They lie `at` bytes into the row that begins `start` bytes into the table; word: the row's (`row_word`). rows: `Rows`.
    rates: `Rates`.
    """
    offset, column = start + at, at // WORD_BYTES
    if adagrad:
        shared = Shared(rates.rate, _F1, _F1, _F1)
        first, _, total = adagrad_formula.accumulate(x, g, load16(rows.factor_g, offset), x, shared, rates)
        stepped = adagrad_formula.step(x, g, first, total, shared, rates)
        store_factors(rows.factors, offset, stepped, column, word)
        store16(rows.factor_g, first, offset)
    else:
        store_factors(rows.factors, offset, sgd_formula.stepped(x, g, rates.rate, rates), column, word)


@inlined
def step_plain_bias(rows: Any, row: Any, x: Any, g: Any, adagrad: Any, rates: Any) -> None:
    """Step a row's bias from its old value x by gradient g, as `step_plain_factors`, and store it."""
    offset = row * WORD_BYTES
    if adagrad:
        shared = Shared(rates.bias_rate, _F1, _F1, _F1)
        first, _, total = adagrad_formula.accumulate(x, g, load1(rows.bias_g, offset), x, shared, rates)
        store1(rows.bias, adagrad_formula.step(x, g, first, total, shared, rates), offset)
        store1(rows.bias_g, first, offset)
    else:
        store1(rows.bias, sgd_formula.stepped(x, g, rates.bias_rate, rates), offset)
