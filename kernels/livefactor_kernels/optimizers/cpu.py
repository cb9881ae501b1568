"""The steps of rows in CPU kernels, with every optimiser (semantics: `optimizers/__init__.py`).

Kernels of micro-batches step a row by its whole gradient (`step_row`). `method` is a constant of
the calling kernel, so the code of the other optimisers is gone after inlining. Sequential kernels
step 16 factors at a time with SGD or AdaGrad (`step_plain_factors`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import (
    VECTOR_BYTES,
    clamp,
    load1,
    load16,
    prefetch,
    store1,
    store16,
    tree_sum,
)
from livefactor_kernels.numbers.narrow import Factors, factors_of, load_factors, store_factors
from livefactor_kernels.numbers.parts import inlined
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
    """The addresses of a table's arrays. An address is 0 if the spec does not need the array.

    Attributes:
        factors, bias: the factors, and the biases float32[cap].
        factor_g, bias_g: the first accumulators (G of AdaGrad, m of Adam, z of FTRL).
        factor_h, bias_h: the second accumulators (v of Adam, n of FTRL).
        row_state: the words of each row (G of row-wise AdaGrad, two powers of Adam).
        seen: numbers of events so far, uint32[cap].
        side: `USERS` or `ITEMS`.
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
        """The addresses of a table's arrays, which never move."""
        slots = state_slots(table.spec)

        def address(slot: str) -> np.uint64:
            return np.uint64(table.state[slots[slot]].ctypes.data if slot in slots else 0)

        seen = table.history.get("seen_count")
        return StepRows(
            factors=factors_of(table.factors),
            bias=np.uint64(table.bias.ctypes.data),
            factor_g=address("factor_g"),
            bias_g=address("bias_g"),
            factor_h=address("factor_h"),
            bias_h=address("bias_h"),
            row_state=address("row_state"),
            seen=np.uint64(seen.ctypes.data if seen is not None else 0),
            side=np.uint64(table.side),
        )


class Model(NamedTuple):
    """The parts of a model that a kernel of micro-batches needs.

    Attributes:
        users, items: `StepRows`.
        blocks: vectors of a row, a constant of the kernel.
        method: `Method`, a constant of the kernel.
        rates: `StepRates`.
    """

    users: Any
    items: Any
    blocks: Any
    method: Any
    rates: Any


class Block(NamedTuple):
    """The place of 16 factors of a row, in bytes.

    Attributes:
        row: place of the row in the table.
        column: place of the factors in the row.
    """

    row: Any
    column: Any


@inlined
def squares(gradient: Any, blocks: Any) -> Any:
    """Sum of squares (float32) of the gradient row at an address, in the order of a dot product."""
    lanes = load16(gradient) * load16(gradient)
    for c in range(ONE, blocks):
        vector = load16(gradient, c * VECTOR_BYTES)
        lanes = lanes + vector * vector
    return tree_sum(lanes)


@inlined
def _step_words(rows: Any, row: Any, gradient: Any, blocks: Any, method: Any, rates: Any) -> Any:
    """Steps the words of a row by its gradient. Returns the `Shared` of its factors and bias."""
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
    """Steps the accumulators of 16 factors x by their gradient g. Returns the new factors.

    They are `offset` bytes into the table.
    """
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
    """Steps the bias of a row and its accumulators by the gradient g of the bias."""
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
def step_row(model: Any, rows: Any, row: Any, gradient: Any, with_bias: Any, rounding: Any) -> None:
    """Steps a row of `rows`, the model's users or items, by its gradient row.

    The gradient row is overwritten.
    """
    blocks, method, rates = model.blocks, model.method, model.rates
    start, random_word = row * row_bytes(blocks), row_word(rows, row, rounding)
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
    if method.norms:
        # The gradient row has the new factors by now.
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
    """Weight of L2 (float32) for one occurrence of a row."""
    return scalar.frequent_l2(l2, word(rows.seen, row), method.frequency) if method.frequency else l2


@inlined
def prefetch_state(rows: Any, row: Any, blocks: Any, method: Any) -> None:
    """Prefetches all cache lines of a row: factors, bias, accumulators, words."""
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
def step_plain_factors(rows: Any, block: Any, x: Any, g: Any, adagrad: Any, rates: Any, word: Any) -> None:
    """Steps 16 factors from their old value x by gradient g with AdaGrad or SGD, and stores them.

    `block` is a `Block`, `word` the random word of the row (`row_word`), `rows` are `Rows`, and
    `rates` are `Rates`.
    """
    offset, column = block.row + block.column, block.column // WORD_BYTES
    if adagrad:
        shared = Shared(rates.rate, _F1, _F1, _F1)
        first, _, total = adagrad_formula.accumulate(x, g, load16(rows.factor_g, offset), x, shared, rates)
        stepped = adagrad_formula.step(x, g, first, total, shared, rates)
        store_factors(rows.factors, offset, stepped, column, word)
        store16(rows.factor_g, first, offset)
    else:
        store_factors(rows.factors, offset, sgd_formula.descend(x, g, rates.rate, rates), column, word)


@inlined
def step_plain_bias(rows: Any, row: Any, x: Any, g: Any, adagrad: Any, rates: Any) -> None:
    """Steps the bias of a row from its old value x by gradient g, like `step_plain_factors`."""
    offset = row * WORD_BYTES
    if adagrad:
        shared = Shared(rates.bias_rate, _F1, _F1, _F1)
        first, _, total = adagrad_formula.accumulate(x, g, load1(rows.bias_g, offset), x, shared, rates)
        store1(rows.bias, adagrad_formula.step(x, g, first, total, shared, rates), offset)
        store1(rows.bias_g, first, offset)
    else:
        store1(rows.bias, sgd_formula.descend(x, g, rates.bias_rate, rates), offset)
