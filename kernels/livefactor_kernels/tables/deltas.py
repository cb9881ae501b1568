"""Deltas of rows: what someone else learned is added to the rows of one side.

A record of deltas is one contribution. It has n distinct rows, a delta d of k factors for each,
perhaps a delta of each bias, and a weight w. Let lr be `merge.learning_rate`, and c the Euclidean
norm of all numbers of the record, biases included:

    c        root of the sum of the squares, float64, row by row and from left to right, the biases
             after the factors
    scale    min(1, merge.norm_max / c), float64
    a        lr * w * scale, from left to right in float64, rounded to float32
    factors  x + a * d, rounded after the product and after the sum, limited to +-factor_max, and
             then to `regularization.row_norm_max` as after a step (`optimizers`)
    bias     b + a * d, limited to +-factor_max

Narrow factors are rounded like those of a step of micro-batch 0 of the record (`ModelSpec`). The
state of the optimiser, histories and counts do not change, because nobody here has seen the events.
So a contribution moves the rows of a side by at most lr * w * norm_max, whatever is in it
(McMahan, Ramage, Talwar, Zhang, ICLR 2018, clip a user's update alike).

With `merge.optimizer_step` a contribution is a pseudo-gradient (Reddi, Charles, Zaheer, Garrett,
Rush, Konecny, Kumar, McMahan, Adaptive Federated Optimization, ICLR 2021, algorithm 2: FedAdagrad
and FedAdam). Each row steps by the model's optimiser, with lr for factors and biases and with the
gradient

    g = -(a d),  a = w * scale, rounded to float32

and its state changes as after an event. The bound above does not hold then, because the optimiser
divides a gradient by the size of the former ones. A contribution without biases steps no bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.optimizers import StepRates
from livefactor_kernels.optimizers.reference import step_row
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables.start import rounded_rows


class Deltas(NamedTuple):
    """A record of deltas.

    Attributes:
        side: `USERS` or `ITEMS`.
        rows: distinct rows, uint32[n].
        factors: float32[n, k], finite.
        bias: float32[n], finite, or None for zeros.
        weight: above 0.
        revision: of the record.
        user_count, item_count: sizes of the tables after it.
    """

    side: int
    rows: np.ndarray
    factors: np.ndarray
    bias: np.ndarray | None
    weight: float
    revision: int
    user_count: int
    item_count: int


def add(spec: ModelSpec, array_of: Callable[[str], np.ndarray], deltas: Deltas) -> None:
    """Adds a record to the arrays of its side, which `array_of` gives by name.

    Steps of the optimiser are slow here: `cpu_deltas` compiles them.
    """
    if spec.merge.optimizer_step:
        _step_rows(spec, array_of, deltas)
        return
    rows, limit, stored = deltas.rows, np.float32(spec.limits.factor_max), array_of("factors")
    rate = _factor(spec, deltas, float(np.float32(spec.merge.learning_rate)))
    x = widened(stored[rows])
    x[:, : spec.k] = np.clip(x[:, : spec.k] + rate * deltas.factors, -limit, limit)
    most = np.float32(spec.regularization.row_norm_max)
    if most > 0:
        norms = np.sqrt(dot(x.T, x.T))
        outside = norms > most
        x[outside] *= (most / norms[outside])[:, None]
    stored[rows] = rounded_rows(spec, deltas.side, rows, deltas.revision, x)
    if deltas.bias is not None:
        bias = array_of("bias")
        bias[rows] = np.clip(bias[rows] + rate * deltas.bias, -limit, limit)


def _step_rows(spec: ModelSpec, array_of: Callable[[str], np.ndarray], deltas: Deltas) -> None:
    """Steps the rows of a record by the optimiser."""
    stored, table, rates = array_of("factors"), _Rows(array_of), step_rates(spec)
    gradients = np.zeros((len(deltas.rows), stored.shape[1]), np.float32)
    gradients[:, : spec.k], found = pseudo_gradients(spec, deltas)
    biases = [None] * len(deltas.rows) if found is None else found
    x = np.empty_like(gradients)
    for place, (row, gradient, bias) in enumerate(zip(deltas.rows.tolist(), gradients, biases, strict=True)):
        x[place] = step_row(spec, rates, table, row, gradient, bias)
    stored[deltas.rows] = rounded_rows(spec, deltas.side, deltas.rows, deltas.revision, x)


def step_rates(spec: ModelSpec) -> StepRates:
    """The rates with which contributions step rows."""
    rate = np.float32(spec.merge.learning_rate)
    return StepRates.of(spec)._replace(rate=rate, bias_rate=rate)


def pseudo_gradients(spec: ModelSpec, deltas: Deltas) -> tuple[np.ndarray, np.ndarray | None]:
    """g of the factors, float32[n, k], and of the biases, float32[n] or None."""
    a = _factor(spec, deltas, 1.0)
    return -(a * deltas.factors), None if deltas.bias is None else -(a * deltas.bias)


class _Rows:
    """The arrays of a side as a step needs them (`optimizers.reference.RowsOfReference`)."""

    bias: np.ndarray

    def __init__(self, array_of: Callable[[str], np.ndarray]) -> None:
        self._array_of = array_of

    def read(self, row: int) -> np.ndarray:
        """A row's factors as float32[k_padded]."""
        return widened(self._array_of("factors")[row])

    def __getattr__(self, name: str) -> np.ndarray:
        return self._array_of(name)


def _factor(spec: ModelSpec, deltas: Deltas, rate: float) -> np.float32:
    """rate * w * scale of a record."""
    numbers = deltas.factors.ravel()
    if deltas.bias is not None:
        numbers = np.append(numbers, deltas.bias)
    squares = numbers.astype(np.float64) ** 2
    # NumPy's sum has an order of its own, and a running sum goes from left to right.
    norm = float(np.sqrt(np.add.accumulate(squares)[-1]))
    most = float(np.float32(spec.merge.norm_max))
    return np.float32(rate * float(np.float32(deltas.weight)) * (most / norm if norm > most else 1.0))
