"""The step of a row by its whole gradient in plain NumPy: the judge of `cpu.py` and `cuda.py` (semantics: `__init__`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.optimizers import StepRates
from livefactor_kernels.optimizers.choice import FORMULAS
from livefactor_kernels.spec.model import ModelSpec, OptimizerKind

if TYPE_CHECKING:
    from livefactor_kernels.reference import ReferenceTable

_F0 = np.float32(0.0)


def step_row(
    spec: ModelSpec, rates: StepRates, table: ReferenceTable, row: int, gradient: np.ndarray,
    bias: np.float32 | None,
) -> np.ndarray:  # fmt: skip
    """The float32[k_padded] that a step of a row by its gradient leaves of its factors. Its bias (None: it stays) and its
    state are stepped in the table."""
    limits, formula = spec.regularization, FORMULAS[OptimizerKind(spec.optimizer.kind)]
    if limits.gradient_norm_max > 0:
        gradient = gradient * scalar.norm_scale(dot(gradient, gradient), rates.gradient_norm_max)
        bias = None if bias is None else clamp(bias, rates.gradient_norm_max)
    squares = dot(gradient, gradient) if formula.needs_squares else _F0
    *words, shared = formula.step_row(*_values(table, row, formula.words), squares, rates)
    _set_values(table, row, formula.words, words)
    names = formula.accumulators("factor")
    factors: np.ndarray
    factors, *accumulators = formula.step_factor(
        table.read(row), gradient, *_values(table, row, names), shared.rate, rates.l1, shared, rates
    )
    _set_values(table, row, names, accumulators)
    if bias is not None:
        names = formula.accumulators("bias")
        table.bias[row], *accumulators = formula.step_bias(
            table.bias[row], bias, *_values(table, row, names), shared.bias_rate, rates.bias_l1, shared, rates
        )
        _set_values(table, row, names, accumulators)
    if limits.row_norm_max > 0:
        factors = factors * scalar.norm_scale(dot(factors, factors), rates.row_norm_max)
    return factors


def _values(table: ReferenceTable, row: int, names: Iterable[str]) -> list[Any]:
    """Two values of a row, which sections hold or, where there are fewer, 0."""
    values: list[Any] = []
    for name in names:
        held = getattr(table, name)[row]
        values += [*held] if name == "powers" else [held]
    return [*values, _F0, _F0][:2]


def _set_values(table: ReferenceTable, row: int, names: Iterable[str], values: list[Any]) -> None:
    for place, name in enumerate(names):
        getattr(table, name)[row] = values if name == "powers" else values[place]
