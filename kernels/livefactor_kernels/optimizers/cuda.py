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
from livefactor_kernels.spec.model import LANES, OptimizerKind

_ADAGRAD, _ROWWISE_ADAGRAD = int(OptimizerKind.ADAGRAD), int(OptimizerKind.ROWWISE_ADAGRAD)
_LAZY_ADAM, _FTRL = int(OptimizerKind.LAZY_ADAM), int(OptimizerKind.FTRL)
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
def _stepped(
    first: Any, second: Any, at: Any, x: Any, g: Any, rate: Any, l1: Any, total: Any, rest: Any, optimizer: Any,
    rates: Any,
) -> Any:  # fmt: skip
    """What a step by g leaves of x, whose accumulators, element `at` of `first` and `second`, are stepped. total: of
    row-wise AdaGrad; rest: 1 - beta2**t of Adam, whose `rate` is divided by 1 - beta1**t; l1: of FTRL."""
    limit = rates.factor_max
    if optimizer == _ADAGRAD:
        total = scalar.adagrad_sum(first[at], g)
        first[at] = clamp(total, rates.g_max)
        return scalar.adagrad_step(x, g, total, rate, rates.eps, limit)
    if optimizer == _ROWWISE_ADAGRAD:
        return scalar.adagrad_step(x, g, total, rate, rates.eps, limit)
    if optimizer == _LAZY_ADAM:
        m = clamp(scalar.decayed_mean(first[at], g, rates.beta1, rates.rest1), rates.g_max)
        v = clamp(scalar.decayed_mean(second[at], g * g, rates.beta2, rates.rest2), rates.g_max)
        first[at], second[at] = m, v
        return scalar.adam_step(x, m, v, rate, rest, rates.eps, limit)
    if optimizer == _FTRL:
        n = second[at]
        total = scalar.adagrad_sum(n, g)
        z = clamp(scalar.ftrl_sum(first[at], x, g, n, total, rate), rates.g_max)
        first[at], second[at] = z, clamp(total, rates.g_max)
        return scalar.ftrl_weight(z, total, l1, rates.beta, limit)
    return scalar.sgd_step(x, g, rate, limit)


@inlined
def step_row(
    rows: Any, row: Any, g: Any, g_bias: Any, with_bias: Any, word: Any, blocks: Any, method: Any, rates: Any
) -> None:  # fmt: skip
    """Step a row by its gradient, by all lanes of a half-warp. g[c]: of column c * 16 + lane, spent by the step; word: of
    the row's rounding; method: an `optimizers.Method`, a constant of the kernel."""
    optimizer, total, rate, bias_rate, rest = method.optimizer, _F1, rates.rate, rates.bias_rate, _F1
    if method.clips:
        _scale(g, scalar.norm_scale(_squares(g, blocks), rates.gradient_norm_max), blocks)
        g_bias = clamp(g_bias, rates.gradient_norm_max)
    if optimizer == _ROWWISE_ADAGRAD:
        total = half_of(rows.row_state[row], 0) + _squares(g, blocks) / rates.k
        if lane() == 0:
            rows.row_state[row] = clamp(total, rates.g_max)
    if optimizer == _LAZY_ADAM:
        p1 = scalar.decayed_power(half_of(rows.row_state[2 * row], 0), rates.beta1)
        p2 = scalar.decayed_power(half_of(rows.row_state[2 * row + 1], 0), rates.beta2)
        if lane() == 0:
            rows.row_state[2 * row], rows.row_state[2 * row + 1] = p1, p2
        rate, bias_rate, rest = rate / (_F1 - p1), bias_rate / (_F1 - p1), _F1 - p2
    start = row * (blocks * LANES)
    for c in range(blocks):
        column = c * LANES + lane()
        at = start + column
        x = load_factor(rows.factors, at)
        x = _stepped(rows.factor_g, rows.factor_h, at, x, g[c], rate, rates.l1, total, rest, optimizer, rates)
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
        of_bias = _ADAGRAD if optimizer == _ROWWISE_ADAGRAD else optimizer
        rows.bias[row] = _stepped(
            rows.bias_g, rows.bias_h, row, rows.bias[row], g_bias, bias_rate, rates.bias_l1, total, rest, of_bias, rates
        )  # fmt: skip
