"""The step of a row by its whole gradient in plain NumPy: the judge of `optimizers/cpu.py` (semantics: `optimizers/__init__.py`)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.optimizers import StepRates
from livefactor_kernels.spec.model import ModelSpec, OptimizerKind

_F1 = np.float32(1.0)


class RowsOfReference(Protocol):
    """What a step takes of a table (`tables.reference.ReferenceTable`), which has the optimizer's state by section name, too."""

    bias: np.ndarray

    def read(self, row: int) -> np.ndarray:
        """A row's factors as float32[k_padded]."""


def step_row(
    spec: ModelSpec, rates: StepRates, table: RowsOfReference, row: int, gradient: np.ndarray,
    bias: np.float32 | None,
) -> np.ndarray:  # fmt: skip
    """The float32[k_padded] that a step of a row by its gradient leaves of its factors. Its bias (None: it stays) and its
    state are stepped in the table."""
    limits, kind = spec.regularization, spec.optimizer.kind
    if limits.gradient_norm_max > 0:
        gradient = gradient * scalar.norm_scale(dot(gradient, gradient), rates.gradient_norm_max)
        bias = None if bias is None else clamp(bias, rates.gradient_norm_max)
    step = {
        OptimizerKind.SGD: _sgd,
        OptimizerKind.ADAGRAD: _adagrad,
        OptimizerKind.ROWWISE_ADAGRAD: _rowwise_adagrad,
        OptimizerKind.LAZY_ADAM: _lazy_adam,
        OptimizerKind.FTRL: _ftrl,
    }[kind]
    state = _State(table, row, rates.g_max)
    factors: np.ndarray
    factors, table.bias[row] = step(rates, state, table.read(row), gradient, table.bias[row], bias)
    if limits.row_norm_max > 0:
        factors = factors * scalar.norm_scale(dot(factors, factors), rates.row_norm_max)
    return factors


class _State:
    """A row's state by section name: reads as it is stored, writes limited but for powers."""

    def __init__(self, table: RowsOfReference, row: int, limit: np.float32) -> None:
        self._table, self._row, self._limit = table, row, limit

    def __getitem__(self, name: str) -> Any:
        return getattr(self._table, name)[self._row]

    def __setitem__(self, name: str, value: Any) -> None:
        limited = value if name == "powers" else clamp(value, self._limit)
        getattr(self._table, name)[self._row] = limited


def _sgd(r: StepRates, _: _State, x: Any, g: Any, b: Any, g_bias: Any) -> tuple[Any, Any]:
    bias = b if g_bias is None else scalar.sgd_step(b, g_bias, r.bias_rate, r.factor_max)
    return scalar.sgd_step(x, g, r.rate, r.factor_max), bias


def _adagrad(r: StepRates, state: _State, x: Any, g: Any, b: Any, g_bias: Any) -> tuple[Any, Any]:
    total = scalar.adagrad_sum(state["factor_g"], g)
    state["factor_g"] = total
    return (
        scalar.adagrad_step(x, g, total, r.rate, r.eps, r.factor_max),
        _adagrad_bias(r, state, b, g_bias),
    )


def _adagrad_bias(r: StepRates, state: _State, b: Any, g: Any) -> Any:
    if g is None:
        return b
    total = scalar.adagrad_sum(state["bias_g"], g)
    state["bias_g"] = total
    return scalar.adagrad_step(b, g, total, r.bias_rate, r.eps, r.factor_max)


def _rowwise_adagrad(r: StepRates, state: _State, x: Any, g: Any, b: Any, g_bias: Any) -> tuple[Any, Any]:
    total = state["row_g"] + dot(g, g) / r.k
    state["row_g"] = total
    return (
        scalar.adagrad_step(x, g, total, r.rate, r.eps, r.factor_max),
        _adagrad_bias(r, state, b, g_bias),
    )


def _lazy_adam(r: StepRates, state: _State, x: Any, g: Any, b: Any, g_bias: Any) -> tuple[Any, Any]:
    p1, p2 = (
        scalar.decayed_power(p, beta) for p, beta in zip(state["powers"], (r.beta1, r.beta2), strict=True)
    )
    state["powers"] = np.array([p1, p2], np.float32)

    def stepped(part: str, x: Any, g: Any, rate: np.float32) -> Any:
        state[f"{part}_m"] = scalar.decayed_mean(state[f"{part}_m"], g, r.beta1, r.rest1)
        state[f"{part}_v"] = scalar.decayed_mean(state[f"{part}_v"], g * g, r.beta2, r.rest2)
        m, v = state[f"{part}_m"], state[f"{part}_v"]
        return scalar.adam_step(x, m, v, rate / (_F1 - p1), _F1 - p2, r.eps, r.factor_max)

    factors = stepped("factor", x, g, r.rate)
    return factors, b if g_bias is None else stepped("bias", b, g_bias, r.bias_rate)


def _ftrl(r: StepRates, state: _State, x: Any, g: Any, b: Any, g_bias: Any) -> tuple[Any, Any]:
    def stepped(part: str, x: Any, g: Any, rate: np.float32, l1: np.float32) -> Any:
        n = state[f"{part}_n"]
        total = scalar.adagrad_sum(n, g)
        state[f"{part}_z"] = scalar.ftrl_sum(state[f"{part}_z"], x, g, n, total, rate)
        state[f"{part}_n"] = total
        return scalar.ftrl_weight(state[f"{part}_z"], total, l1, r.beta, r.factor_max)

    factors = stepped("factor", x, g, r.rate, r.l1)
    return factors, b if g_bias is None else stepped("bias", b, g_bias, r.bias_rate, r.bias_l1)
