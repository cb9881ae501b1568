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
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.numbers.sums import dot
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
    """Adds a record to the arrays of its side, which `array_of` gives by name."""
    rows, limit, stored = deltas.rows, np.float32(spec.limits.factor_max), array_of("factors")
    rate = step(spec, deltas)
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


def step(spec: ModelSpec, deltas: Deltas) -> np.float32:
    """The number a of a record: what its deltas are multiplied by."""
    numbers = deltas.factors.ravel()
    if deltas.bias is not None:
        numbers = np.append(numbers, deltas.bias)
    squares = numbers.astype(np.float64) ** 2
    # NumPy's sum has an order of its own, and a running sum goes from left to right.
    norm = float(np.sqrt(np.add.accumulate(squares)[-1]))
    rate, most = (float(np.float32(each)) for each in (spec.merge.learning_rate, spec.merge.norm_max))
    scale = most / norm if norm > most else 1.0
    return np.float32(rate * float(np.float32(deltas.weight)) * scale)
