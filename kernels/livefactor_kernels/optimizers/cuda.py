"""A row's step on the GPU by a half-warp that has its whole gradient: what optimisers and bounds beyond AdaGrad need
(semantics: `optimizers/__init__.py`). Its twin on the CPU is `optimizers/cpu.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.device.factors import load_factor, store_factor
from livefactor_kernels.device.warp import half_of, half_sum, lane
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp, inlined
from livefactor_kernels.optimizers import adagrad as adagrad_formula
from livefactor_kernels.optimizers import choice
from livefactor_kernels.optimizers import sgd as sgd_formula
from livefactor_kernels.optimizers.choice import (
    bias_accumulators,
    factor_accumulators,
    needs_squares,
    row_words,
)
from livefactor_kernels.optimizers.formula import Shared
from livefactor_kernels.spec.model import LANES

_F1 = np.float32(1.0)


@inlined
def _squares(row: Any, blocks: Any) -> Any:
    """Sum of squares (float32, in all lanes) of a row, in the order of a dot product; row[c]: column c * 16 + lane."""
    total = row[0] * row[0]
    for c in range(1, blocks):
        total = total + row[c] * row[c]
    return half_sum(total)


@inlined
def _scale(row: Any, scale: Any, blocks: Any) -> None:
    for c in range(blocks):
        row[c] = row[c] * scale


@inlined
def _step_factor(rows: Any, at: Any, x: Any, g: Any, optimizer: Any, rates: Any, shared: Any) -> Any:
    """What a step by g leaves of factor number `at` of the table, x; its accumulators are stepped."""
    count = factor_accumulators(optimizer)
    first = rows.factor_g[at] if count > 0 else _F1
    second = rows.factor_h[at] if count > 1 else _F1
    first, second, total = choice.accumulate_factor(optimizer, x, g, first, second, shared, rates)
    if count > 0:
        rows.factor_g[at] = first
    if count > 1:
        rows.factor_h[at] = second
    return choice.step_factor(optimizer, x, g, first, total, shared, rates)


@inlined
def _step_bias(rows: Any, row: Any, g: Any, optimizer: Any, rates: Any, shared: Any) -> None:
    """Step a row's bias by g, as `_step_factor`."""
    count = bias_accumulators(optimizer)
    first = rows.bias_g[row] if count > 0 else _F1
    second = rows.bias_h[row] if count > 1 else _F1
    x = rows.bias[row]
    first, second, total = choice.accumulate_bias(optimizer, x, g, first, second, shared, rates)
    if count > 0:
        rows.bias_g[row] = first
    if count > 1:
        rows.bias_h[row] = second
    rows.bias[row] = choice.step_bias(optimizer, x, g, first, total, shared, rates)


@inlined
def _step_words(rows: Any, row: Any, g: Any, blocks: Any, optimizer: Any, rates: Any) -> Any:
    """Step a row's own words by its gradient g, and return what its factors and its bias share,
    in all lanes."""
    count = row_words(optimizer)
    first = half_of(rows.row_state[count * row], 0) if count > 0 else _F1
    second = half_of(rows.row_state[count * row + 1], 0) if count > 1 else _F1
    total = _squares(g, blocks) if needs_squares(optimizer) else _F1
    first, second, of_factors, of_bias = choice.step_row(optimizer, first, second, total, rates)
    if lane() == 0:
        if count > 0:
            rows.row_state[count * row] = first
        if count > 1:
            rows.row_state[count * row + 1] = second
    return of_factors, of_bias


@inlined
def step_row(
    rows: Any, row: Any, g: Any, g_bias: Any, with_bias: Any, word: Any, blocks: Any, method: Any, rates: Any
) -> None:  # fmt: skip
    """Step a row by its gradient, by all lanes of a half-warp. g[c]: of column c * 16 + lane, spent by the step; word: of
    the row's rounding; method: an `optimizers.Method`, a constant of the kernel."""
    optimizer = method.optimizer
    if method.clips:
        _scale(g, scalar.norm_scale(_squares(g, blocks), rates.gradient_norm_max), blocks)
        g_bias = clamp(g_bias, rates.gradient_norm_max)
    of_factors, of_bias = _step_words(rows, row, g, blocks, optimizer, rates)
    start = row * (blocks * LANES)
    for c in range(blocks):
        column = c * LANES + lane()
        at = start + column
        x = load_factor(rows.factors, at)
        x = _step_factor(rows, at, x, g[c], optimizer, rates, of_factors)
        if method.norms:
            g[c] = x
        else:
            store_factor(rows.factors, at, x, word, column)
    if method.norms:  # the gradient's place holds the new factors by now
        _scale(g, scalar.norm_scale(_squares(g, blocks), rates.row_norm_max), blocks)
        for c in range(blocks):
            column = c * LANES + lane()
            store_factor(rows.factors, start + column, g[c], word, column)
    if with_bias and lane() == 0:
        _step_bias(rows, row, g_bias, optimizer, rates, of_bias)


@inlined
def step_one(
    values: Any,
    accumulators: Any,
    at: Any,
    g: Any,
    rate: Any,
    adagrad: Any,
    rates: Any,
    word: Any,
    column: Any,
) -> None:
    """Step one factor or bias by its gradient with AdaGrad or SGD; word, column: as `store_factor`."""
    x = load_factor(values, at)
    if adagrad:
        shared = Shared(rate, _F1, _F1, _F1)
        first, _, total = adagrad_formula.accumulate(x, g, accumulators[at], x, shared, rates)
        store_factor(values, at, adagrad_formula.step(x, g, first, total, shared, rates), word, column)
        accumulators[at] = first
    else:
        store_factor(values, at, sgd_formula.stepped(x, g, rate, rates), word, column)
