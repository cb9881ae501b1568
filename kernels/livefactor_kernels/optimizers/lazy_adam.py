"""Lazy Adam: only rows with a gradient step, and each row counts its own steps.

    p1 *= beta1;  p2 *= beta2                       once a step of the row
    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) (g g)
    x -= ((lr / (1 - p1)) m) / (sqrt(v / (1 - p2)) + eps)

m (`factor_m`, `bias_m`) and v (`factor_v`, `bias_v`) begin at 0, p1 and p2 (`powers`) at 1. The
step uses m and v after their limit.

Kingma, Ba: Adam, ICLR 2015, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.lanes import clamp, root
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.formula import (
    F1,
    Element,
    Formula,
    Shared,
    initial_one,
    initial_zero,
)

_POWER_MIN = np.float32(2.0**-26)


@inlined
def decayed_power(power: Any, beta: Any) -> Any:
    """beta**(t + 1) from beta**t.

    At 2**-26 it stays constant, since 1 - beta**t is 1 there. It is never subnormal.
    """
    return beta * power if power > _POWER_MIN else power


@inlined
def step_row(first: Any, second: Any, squares: Any, rates: Any) -> Any:
    """See `step_row` in `formula`. `first` and `second` are p1 and p2."""
    p1, p2 = decayed_power(first, rates.beta1), decayed_power(second, rates.beta2)
    rest, rest_of_v = F1 - p1, F1 - p2
    of_factors = Shared(rates.rate / rest, F1, F1, rest_of_v)
    return p1, p2, of_factors, Shared(rates.bias_rate / rest, F1, F1, rest_of_v)


@inlined
def accumulate(x: Any, g: Any, first: Any, second: Any, shared: Any, rates: Any) -> Any:
    """See `accumulate` in `formula`. `first` and `second` are m and v."""
    m = clamp(rates.beta1 * first + rates.rest1 * g, rates.g_max)
    v = clamp(rates.beta2 * second + rates.rest2 * (g * g), rates.g_max)
    return m, v, v


@inlined
def step(x: Any, g: Any, first: Any, total: Any, shared: Any, rates: Any) -> Any:
    """See `step` in `formula`. `first` is m, `total` is v, and the rate is divided by 1 - p1."""
    divisor = root(total / shared.rest) + rates.eps
    return clamp(x - (shared.rate * first) / divisor, rates.factor_max)


_ELEMENT = Element(accumulate, step)
LAZY_ADAM = Formula(
    {
        "factor_m": initial_zero,
        "factor_v": initial_zero,
        "bias_m": initial_zero,
        "bias_v": initial_zero,
        "powers": initial_one,
    },
    step_row,
    _ELEMENT,
    _ELEMENT,
)
