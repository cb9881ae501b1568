"""The steps of rows in GPU kernels (semantics: `optimizers/__init__.py`).

A half-warp steps a row by its whole gradient with any optimiser (`step_row`), like the function of
the same name in `optimizers/cpu.py`. A thread steps a single factor or bias with SGD or AdaGrad
(`step_one`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.device.factors import load_factor, store_factor
from livefactor_kernels.device.warp import half_of, half_sum, lane
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.parts import inlined
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


class Gradient(NamedTuple):
    """The gradient of a row, in a half-warp.

    Attributes:
        factors: factors[c] is the gradient of column c * 16 + lane.
        bias: gradient of the bias, in all lanes.
        has_bias: whether the bias steps.
    """

    factors: Any
    bias: Any
    has_bias: Any


class Element(NamedTuple):
    """A factor or bias: number `at` of `values`, with its accumulator of AdaGrad."""

    values: Any
    accumulators: Any
    at: Any


@inlined
def _squares(row: Any, blocks: Any) -> Any:
    """Sum of squares (float32, in all lanes) of a row, in the order of a dot product.

    row[c] is column c * 16 + lane.
    """
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
    """Steps the accumulators of factor x, number `at` of the table, by g. Returns the new x."""
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
    """Steps the bias of a row and its accumulators by g."""
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
    """Steps the words of a row by its gradient g. Returns the `Shared` of its factors and its bias.

    All lanes have the result.
    """
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
def step_row(rows: Any, row: Any, gradient: Any, word: Any, blocks: Any, method: Any, rates: Any) -> None:
    """Steps a row by its `Gradient`, by all lanes of a half-warp. It overwrites the gradient.

    `word` is the random word of the row. `method` is a `Method`, a constant of the kernel.
    """
    optimizer, g, g_bias = method.optimizer, gradient.factors, gradient.bias
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
    if method.norms:
        # The gradient has the new factors by now.
        _scale(g, scalar.norm_scale(_squares(g, blocks), rates.row_norm_max), blocks)
        for c in range(blocks):
            column = c * LANES + lane()
            store_factor(rows.factors, start + column, g[c], word, column)
    if gradient.has_bias and lane() == 0:
        _step_bias(rows, row, g_bias, optimizer, rates, of_bias)


@inlined
def step_one(element: Any, g: Any, rate: Any, adagrad: Any, rates: Any, word: Any, column: Any) -> None:
    """Steps one factor or bias by its gradient with AdaGrad or SGD.

    `word` and `column` are those of `store_factor`.
    """
    values, accumulators, at = element
    x = load_factor(values, at)
    if adagrad:
        shared = Shared(rate, _F1, _F1, _F1)
        first, _, total = adagrad_formula.accumulate(x, g, accumulators[at], x, shared, rates)
        store_factor(values, at, adagrad_formula.step(x, g, first, total, shared, rates), word, column)
        accumulators[at] = first
    else:
        store_factor(values, at, sgd_formula.descend(x, g, rate, rates), word, column)
