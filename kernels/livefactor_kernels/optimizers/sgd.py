"""Plain stochastic gradient descent: x -= lr g (Robbins, Monro: A stochastic approximation method, Annals of Mathematical
Statistics 22, 1951). It keeps no state."""

from __future__ import annotations

from typing import Any

from livefactor_kernels.numbers.lanes import clamp, inlined
from livefactor_kernels.optimizers.formula import Formula, keep_row


@inlined
def step(x: Any, g: Any, first: Any, second: Any, rate: Any, l1: Any, row: Any, rates: Any) -> Any:
    """`formula`'s `step`: x - rate * g, limited to +-factor_max."""
    return clamp(x - rate * g, rates.factor_max), first, second


SGD = Formula({}, keep_row, step, step)
