"""What an optimiser is made of: the sections of its state, and its formula.

A formula consists of pure functions of values. They run in Python on NumPy arrays, and they are
inlined in CPU kernels for sixteen lanes and in GPU kernels for one element. The reference and both
backends therefore share them.

    step_row(first, second, squares, rates) -> (first, second, of_factors, of_bias)
        steps what a row keeps as a whole. It is called once a step of the row.
    accumulate(x, g, first, second, shared, rates) -> (first, second, total)
        steps the accumulators of an element, which is a factor or a bias.
    step(x, g, first, total, shared, rates) -> x
        steps the element itself. It takes the results of `accumulate`.

first, second: in `step_row` the row's own words (float32), else the accumulators of the element.
total: the sum of squares that the step divides by. It may be above the limit that applies to the
stored accumulator.
squares: the sum of squares of the row's gradient. It is any value unless `needs_squares`.
x, g: the element and its gradient.
shared, of_factors, of_bias: a `Shared`, for the factors and for the bias of a row.
rates: `StepRates`.

An optimiser may keep fewer than two words or accumulators. The others are any value then, and
nobody stores them. `accumulate` stands apart from `step`, because a kernel stores the accumulators
between the two calls. Otherwise the accumulators would occupy registers of a GPU through a
division.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.parts import inlined

F1 = np.float32(1.0)


class Shared(NamedTuple):
    """What the factors, or the bias, of a row share in a step, float32.

    rate: the learning rate. l1: the L1 weight times the learning rate (FTRL). total: G of row-wise
    AdaGrad. rest: 1 - beta2**t of Adam.
    """

    rate: Any
    l1: Any
    total: Any
    rest: Any


@inlined
def keep_row(first: Any, second: Any, squares: Any, rates: Any) -> Any:
    """The `step_row` of an optimiser that keeps no words of a row."""
    of_factors = Shared(rates.rate, rates.l1, F1, F1)
    return first, second, of_factors, Shared(rates.bias_rate, rates.bias_l1, F1, F1)


Initial = Callable[[np.float32, Any, np.ndarray], "np.ndarray | np.float32"]
"""Gives what new rows hold in a section, float32: one value for all, or [n, k].

It takes the spec's `initial_g`, the `StepRates`, and the initial factors float32[n, k] as they are
stored.
"""


def initial_zero(initial_g: np.float32, rates: Any, factors: np.ndarray) -> np.float32:
    """Sections that begin at 0."""
    return np.float32(0.0)


def initial_one(initial_g: np.float32, rates: Any, factors: np.ndarray) -> np.float32:
    """Sections that begin at 1."""
    return F1


def initial_squares(initial_g: np.float32, rates: Any, factors: np.ndarray) -> np.float32:
    """Sums of squares, which begin at `initial_g`."""
    return initial_g


class Element(NamedTuple):
    """The step of one factor or bias."""

    accumulate: Callable[..., Any]
    step: Callable[..., Any]


class Formula(NamedTuple):
    """An optimiser.

    sections: the sections of its state in the order of the root hash, with what new rows hold.
    factor, bias: the steps of a factor and of a bias. needs_squares: whether `step_row` uses the
    squares.
    """

    sections: dict[str, Initial]
    step_row: Callable[..., Any]
    factor: Element
    bias: Element
    needs_squares: bool = False

    def accumulators(self, part: str) -> list[str]:
        """The sections with a value for each element of a part, "factor" or "bias": at most two."""
        return [name for name in self.sections if name.startswith(f"{part}_")]

    @property
    def words(self) -> dict[str, int]:
        """The sections that keep something for a row as a whole, with their words a row."""
        counts = {"row": 1, "powers": 2}
        parts = {name: name.partition("_")[0] for name in self.sections}
        return {name: counts[part] for name, part in parts.items() if part in counts}
