"""The step of a row by its whole gradient in plain NumPy, which the backends are judged by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.optimizers import StepRates
from livefactor_kernels.optimizers.choice import FORMULAS
from livefactor_kernels.optimizers.formula import Element, Shared
from livefactor_kernels.spec.model import ModelSpec, OptimizerKind

_F0 = np.float32(0.0)


class RowsOfReference(Protocol):
    """What a step takes of a table (`tables.reference.ReferenceTable`).

    A table also has the optimizer's state by section name.
    """

    bias: np.ndarray

    def read(self, row: int) -> np.ndarray:
        """A row's factors as float32[k_padded]."""


def step_row(
    spec: ModelSpec, rates: StepRates, table: RowsOfReference, row: int, gradient: np.ndarray,
    bias: np.float32 | None,
) -> np.ndarray:  # fmt: skip
    """The float32[k_padded] that a step of a row by its gradient leaves of its factors.

    The bias and the state are stepped in the table. bias: the gradient of the bias, None where it
    stays.
    """
    limits, formula = spec.regularization, FORMULAS[OptimizerKind(spec.optimizer.kind)]
    if limits.gradient_norm_max > 0:
        gradient = gradient * scalar.norm_scale(dot(gradient, gradient), rates.gradient_norm_max)
        bias = None if bias is None else clamp(bias, rates.gradient_norm_max)
    squares = dot(gradient, gradient) if formula.needs_squares else _F0
    *words, of_factors, of_bias = formula.step_row(*_values(table, row, formula.words), squares, rates)
    _set_values(table, row, formula.words, words)
    names = formula.accumulators("factor")
    factors: np.ndarray = _step(
        formula.factor, table, row, names, table.read(row), gradient, of_factors, rates
    )
    if bias is not None:
        names, old = formula.accumulators("bias"), table.bias[row]
        table.bias[row] = _step(formula.bias, table, row, names, old, bias, of_bias, rates)
    if limits.row_norm_max > 0:
        factors = factors * scalar.norm_scale(dot(factors, factors), rates.row_norm_max)
    return factors


def _step(
    element: Element, table: RowsOfReference, row: int, names: list[str], x: Any, g: Any, shared: Shared,
    rates: StepRates,
) -> Any:  # fmt: skip
    """What a step by g leaves of x, a row's factors or its bias; sections `names` are stepped."""
    first, second, total = element.accumulate(x, g, *_values(table, row, names), shared, rates)
    _set_values(table, row, names, [first, second])
    return element.step(x, g, first, total, shared, rates)


def _values(table: RowsOfReference, row: int, names: Iterable[str]) -> list[Any]:
    """The two values that sections hold of a row; a missing one is 0."""
    values: list[Any] = []
    for name in names:
        held = getattr(table, name)[row]
        values += [*held] if name == "powers" else [held]
    return [*values, _F0, _F0][:2]


def _set_values(table: RowsOfReference, row: int, names: Iterable[str], values: list[Any]) -> None:
    for place, name in enumerate(names):
        getattr(table, name)[row] = values if name == "powers" else values[place]
