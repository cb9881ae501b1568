"""Plain stochastic gradient descent: x -= lr g. It keeps no state.

Robbins, Monro: A stochastic approximation method, Annals of Mathematical Statistics 22, 1951.
"""

from __future__ import annotations

from typing import Any

from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.formula import Element, Formula, keep_row


@inlined
def descend(x: Any, g: Any, rate: Any, rates: Any) -> Any:
    """x - rate * g, limited to +-factor_max."""
    return clamp(x - rate * g, rates.factor_max)


@inlined
def accumulate(x: Any, g: Any, first: Any, second: Any, shared: Any, rates: Any) -> Any:
    """See `accumulate` in `formula`. Nothing changes."""
    return first, second, first


@inlined
def step(x: Any, g: Any, first: Any, total: Any, shared: Any, rates: Any) -> Any:
    """See `step` in `formula`."""
    return descend(x, g, shared.rate, rates)


_ELEMENT = Element(accumulate, step)
SGD = Formula({}, keep_row, _ELEMENT, _ELEMENT)
