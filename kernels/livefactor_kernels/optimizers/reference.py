"""The step of a row by its gradient in plain NumPy: the reference for `cpu.py` and `cuda.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

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
    """The part of a table (`tables.reference.ReferenceTable`) that a step needs.

    A table also has an attribute for each section of the optimizer's state.
    """

    bias: np.ndarray

    def read(self, row: int) -> np.ndarray:
        """A row's factors as float32[k_padded]."""


def step_row(
    spec: ModelSpec, rates: StepRates, table: RowsOfReference, row: int, gradient: np.ndarray,
    bias: np.float32 | None,
) -> np.ndarray:  # fmt: skip
    """Steps a row by its gradient. Returns its new factors, float32[k_padded].

    The step changes the bias and the state in the table. `bias` is the gradient of the bias, or
    None if the bias does not change.
    """
    limits, formula = spec.regularization, FORMULAS[OptimizerKind(spec.optimizer.kind)]
    if limits.gradient_norm_max > 0:
        gradient = gradient * scalar.norm_scale(dot(gradient, gradient), rates.gradient_norm_max)
        bias = None if bias is None else clamp(bias, rates.gradient_norm_max)
    squares = dot(gradient, gradient) if formula.needs_squares else _F0
    *words, of_factors, of_bias = formula.step_row(*_values(table, row, formula.words), squares, rates)
    _set_values(table, row, formula.words, words)
    names = formula.accumulators("factor")
    place = Place(table, row, names)
    factors: np.ndarray = _step(formula.factor, place, table.read(row), gradient, of_factors, rates)
    if bias is not None:
        place = Place(table, row, formula.accumulators("bias"))
        table.bias[row] = _step(formula.bias, place, table.bias[row], bias, of_bias, rates)
    if limits.row_norm_max > 0:
        factors = factors * scalar.norm_scale(dot(factors, factors), rates.row_norm_max)
    return factors


class Place(NamedTuple):
    """The accumulators of a row's factors or of its bias: sections `names` of a table."""

    table: RowsOfReference
    row: int
    names: list[str]


def _step(element: Element, place: Place, x: Any, g: Any, shared: Shared, rates: StepRates) -> Any:
    """Steps the accumulators of x by its gradient g. Returns the new x.

    x are the factors of a row, or its bias.
    """
    first, second, total = element.accumulate(x, g, *_values(*place), shared, rates)
    _set_values(*place, [first, second])
    return element.step(x, g, first, total, shared, rates)


def _values(table: RowsOfReference, row: int, names: Iterable[str]) -> list[Any]:
    """The two values of a row in the sections `names`. A missing value is 0."""
    values: list[Any] = []
    for name in names:
        value = getattr(table, name)[row]
        values += [*value] if name == "powers" else [value]
    return [*values, _F0, _F0][:2]


def _set_values(table: RowsOfReference, row: int, names: Iterable[str], values: list[Any]) -> None:
    for place, name in enumerate(names):
        getattr(table, name)[row] = values if name == "powers" else values[place]
