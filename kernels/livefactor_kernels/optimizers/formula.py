"""What an optimiser is made of: the sections of its state, and its formula.

A formula is a pair of functions of values, which run in Python on NumPy arrays, and are inlined in the CPU's kernels for
sixteen lanes and in the GPU's for one element. So the reference and both backends share them.

    step_row(first, second, squares, rates) -> (first, second, RowStep)
        once a step of a row. first, second: the row's own words (float32), before and after. squares: the sum of squares of
        the row's gradient, 0 unless `needs_squares`.
    step(x, g, first, second, rate, l1, row, rates) -> (x, first, second)
        for each element, a factor or a bias. g: its gradient. first, second: its accumulators, before and after. rate: the
        learning rate. l1: the L1 weight times the learning rate. row: the `RowStep`.

A word or an accumulator that an optimiser does not keep is any value, and is not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.lanes import inlined

F1 = np.float32(1.0)


class RowStep(NamedTuple):
    """What the elements of a row's step share, float32. rate, bias_rate: the learning rates. total: row-wise AdaGrad's G.
    rest: Adam's 1 - beta2**t."""

    rate: Any
    bias_rate: Any
    total: Any
    rest: Any


@inlined
def keep_row(first: Any, second: Any, squares: Any, rates: Any) -> Any:
    """`step_row` of an optimiser that keeps no words of a row."""
    return first, second, RowStep(rates.rate, rates.bias_rate, F1, F1)


Initial = Callable[[np.float32, Any, np.ndarray], "np.ndarray | np.float32"]
"""What new rows hold in a section, float32: one value for all, or [n, k], from the spec's `initial_g`, the `StepRates` and
the initial factors float32[n, k] as they are stored."""


def initial_zero(initial_g: np.float32, rates: Any, factors: np.ndarray) -> np.float32:
    """0."""
    return np.float32(0.0)


def initial_one(initial_g: np.float32, rates: Any, factors: np.ndarray) -> np.float32:
    """1."""
    return F1


def initial_squares(initial_g: np.float32, rates: Any, factors: np.ndarray) -> np.float32:
    """`initial_g`: what a sum of squares begins at."""
    return initial_g


class Formula(NamedTuple):
    """An optimiser. sections: of its state, in the order of the root hash, with what new rows hold. step_factor, step_bias:
    `step` of factors and of biases. needs_squares: whether `step_row` uses the squares."""

    sections: dict[str, Initial]
    step_row: Callable[..., Any]
    step_factor: Callable[..., Any]
    step_bias: Callable[..., Any]
    needs_squares: bool = False

    def accumulators(self, part: str) -> list[str]:
        """The sections that hold a value for each element of a part, "factor" or "bias": none, one or two."""
        return [name for name in self.sections if name.startswith(f"{part}_")]

    @property
    def words(self) -> dict[str, int]:
        """How many words of a row each section holds that keeps something for a row as a whole."""
        counts = {"row": 1, "powers": 2}
        parts = {name: name.partition("_")[0] for name in self.sections}
        return {name: counts[part] for name, part in parts.items() if part in counts}
