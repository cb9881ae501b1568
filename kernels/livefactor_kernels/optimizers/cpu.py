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
from livefactor_kernels.optimizers import state_slots
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
from livefactor_kernels.spec.model import OptimizerKind

_SGD, _ADAGRAD = int(OptimizerKind.SGD), int(OptimizerKind.ADAGRAD)
_ROWWISE_ADAGRAD, _LAZY_ADAM, _FTRL = (
    int(kind) for kind in (OptimizerKind.ROWWISE_ADAGRAD, OptimizerKind.LAZY_ADAM, OptimizerKind.FTRL)
)
_F1 = np.float32(1.0)
_TWO = np.uint64(2)


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


class RowState(NamedTuple):
    """What the elements of a row's step share, float32: of row-wise AdaGrad its G; of Adam both learning rates divided by
    1 - beta1**t, and 1 - beta2**t."""

    total: Any
    rate: Any
    bias_rate: Any
    rest: Any


@inlined
def squares(gradient: Any, blocks: Any) -> Any:
    """Sum of squares (float32) of the row at an address, in the order of a dot product."""
    lanes = load16(gradient) * load16(gradient)
    for c in range(ONE, blocks):
        vector = load16(gradient, c * VECTOR_BYTES)
        lanes = lanes + vector * vector
    return tree_sum(lanes)


@inlined
def _step_state(rows: Any, row: Any, gradient: Any, blocks: Any, method: Any, rates: Any) -> Any:
    """Step what is a row's own by its gradient, and return its `RowState`."""
    if method.optimizer == _ROWWISE_ADAGRAD:
        total = real(rows.row_state, row) + squares(gradient, blocks) / rates.k
        store1(rows.row_state, clamp(total, rates.g_max), row * WORD_BYTES)
        return RowState(total, _F1, _F1, _F1)
    if method.optimizer == _LAZY_ADAM:
        p1 = scalar.decayed_power(real(rows.row_state, _TWO * row), rates.beta1)
        p2 = scalar.decayed_power(real(rows.row_state, _TWO * row + ONE), rates.beta2)
        store1(rows.row_state, p1, _TWO * row * WORD_BYTES)
        store1(rows.row_state, p2, (_TWO * row + ONE) * WORD_BYTES)
        rest = _F1 - p1
        return RowState(_F1, rates.rate / rest, rates.bias_rate / rest, _F1 - p2)
    return RowState(_F1, _F1, _F1, _F1)


@inlined
def _step_factors(rows: Any, offset: Any, x: Any, g: Any, method: Any, rates: Any, state: Any) -> Any:
    """What a step by g leaves of 16 factors x, `offset` bytes into the table; their accumulators are stepped."""
    limit = rates.factor_max
    if method.optimizer == _ADAGRAD:
        total = scalar.adagrad_sum(load16(rows.factor_g, offset), g)
        store16(rows.factor_g, clamp(total, rates.g_max), offset)
        return scalar.adagrad_step(x, g, total, rates.rate, rates.eps, limit)
    if method.optimizer == _ROWWISE_ADAGRAD:
        return scalar.adagrad_step(x, g, state.total, rates.rate, rates.eps, limit)
    if method.optimizer == _LAZY_ADAM:
        m = scalar.decayed_mean(load16(rows.factor_g, offset), g, rates.beta1, rates.rest1)
        v = scalar.decayed_mean(load16(rows.factor_h, offset), g * g, rates.beta2, rates.rest2)
        m, v = clamp(m, rates.g_max), clamp(v, rates.g_max)
        store16(rows.factor_g, m, offset)
        store16(rows.factor_h, v, offset)
        return scalar.adam_step(x, m, v, state.rate, state.rest, rates.eps, limit)
    if method.optimizer == _FTRL:
        n = load16(rows.factor_h, offset)
        total = scalar.adagrad_sum(n, g)
        z = clamp(scalar.ftrl_sum(load16(rows.factor_g, offset), x, g, n, total, rates.rate), rates.g_max)
        store16(rows.factor_g, z, offset)
        store16(rows.factor_h, clamp(total, rates.g_max), offset)
        return scalar.ftrl_weight(z, total, rates.l1, rates.beta, limit)
    return scalar.sgd_step(x, g, rates.rate, limit)


@inlined
def _step_bias(rows: Any, row: Any, g: Any, method: Any, rates: Any, state: Any) -> None:
    """Step a row's bias by gradient g, as `_step_factors`."""
    at, x, limit = row * WORD_BYTES, real(rows.bias, row), rates.factor_max
    if method.optimizer == _ADAGRAD or method.optimizer == _ROWWISE_ADAGRAD:
        total = scalar.adagrad_sum(load1(rows.bias_g, at), g)
        store1(rows.bias_g, clamp(total, rates.g_max), at)
        store1(rows.bias, scalar.adagrad_step(x, g, total, rates.bias_rate, rates.eps, limit), at)
    elif method.optimizer == _LAZY_ADAM:
        m = scalar.decayed_mean(load1(rows.bias_g, at), g, rates.beta1, rates.rest1)
        v = scalar.decayed_mean(load1(rows.bias_h, at), g * g, rates.beta2, rates.rest2)
        m, v = clamp(m, rates.g_max), clamp(v, rates.g_max)
        store1(rows.bias_g, m, at)
        store1(rows.bias_h, v, at)
        store1(rows.bias, scalar.adam_step(x, m, v, state.bias_rate, state.rest, rates.eps, limit), at)
    elif method.optimizer == _FTRL:
        n = load1(rows.bias_h, at)
        total = scalar.adagrad_sum(n, g)
        z = clamp(scalar.ftrl_sum(load1(rows.bias_g, at), x, g, n, total, rates.bias_rate), rates.g_max)
        store1(rows.bias_g, z, at)
        store1(rows.bias_h, clamp(total, rates.g_max), at)
        store1(rows.bias, scalar.ftrl_weight(z, total, rates.bias_l1, rates.beta, limit), at)
    else:
        store1(rows.bias, scalar.sgd_step(x, g, rates.bias_rate, limit), at)


@inlined
def step_row(
    rows: Any, row: Any, gradient: Any, with_bias: Any, blocks: Any, method: Any, rates: Any, rounding: Any,
    step: Any,
) -> None:  # fmt: skip
    """Step one row by its gradient row, which is spent, in micro-batch number `step` of the record."""
    start, random_word = row * row_bytes(blocks), row_word(rows, row, rounding, step)
    if method.clips:
        scale_vectors(gradient, scalar.norm_scale(squares(gradient, blocks), rates.gradient_norm_max), blocks)
    state = _step_state(rows, row, gradient, blocks, method, rates)
    for c in range(blocks):
        at = c * VECTOR_BYTES
        x, g = load_factors(rows.factors, start + at), load16(gradient, at)
        stepped = _step_factors(rows, start + at, x, g, method, rates, state)
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
        _step_bias(rows, row, g, method, rates, state)


@inlined
def l2_of(rows: Any, row: Any, l2: Any, method: Any) -> Any:
    """A row's weight of an occurrence's L2 (float32)."""
    return scalar.frequent_l2(l2, word(rows.seen, row), method.frequency) if method.frequency else l2


@inlined
def prefetch_state(rows: Any, row: Any, blocks: Any, method: Any) -> None:
    """Ask for all cache lines of a row: factors, bias, accumulators."""
    prefetch_row(rows, row, blocks, method.optimizer != _SGD and method.optimizer != _ROWWISE_ADAGRAD)
    if method.optimizer == _ROWWISE_ADAGRAD:
        prefetch(rows.row_state, row * WORD_BYTES)
        prefetch(rows.bias_g, row * WORD_BYTES)
    if method.optimizer == _LAZY_ADAM:
        prefetch(rows.row_state, _TWO * row * WORD_BYTES)
    if method.optimizer == _LAZY_ADAM or method.optimizer == _FTRL:
        for c in range(blocks):
            prefetch(rows.factor_h, row * row_bytes(blocks) + c * VECTOR_BYTES)
        prefetch(rows.bias_h, row * WORD_BYTES)
