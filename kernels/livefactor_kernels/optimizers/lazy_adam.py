"""Lazy Adam (Kingma, Ba: Adam, ICLR 2015, algorithm 1; lazy: only rows that have a gradient step, each with its own number
of steps):

    p1 *= beta1;  p2 *= beta2                       once a step of the row
    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) (g g)
    x -= ((lr / (1 - p1)) m) / (sqrt(v / (1 - p2)) + eps)

m (`factor_m`, `bias_m`) and v (`factor_v`, `bias_v`) begin at 0, p1 and p2 (`powers`) at 1. The step uses m and v after
their limit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.lanes import clamp, inlined, root
from livefactor_kernels.optimizers.formula import F1, Formula, RowStep, initial_one, initial_zero

_POWER_MIN = np.float32(2.0**-26)


@inlined
def decayed_power(power: Any, beta: Any) -> Any:
    """beta**(t + 1) from beta**t; from 2**-26 on, where 1 - beta**t is 1, it stays (and so never is a subnormal)."""
    return beta * power if power > _POWER_MIN else power


@inlined
def step_row(first: Any, second: Any, squares: Any, rates: Any) -> Any:
    """`formula`'s `step_row`; `first` and `second` are p1 and p2."""
    p1, p2 = decayed_power(first, rates.beta1), decayed_power(second, rates.beta2)
    rest = F1 - p1
    return p1, p2, RowStep(rates.rate / rest, rates.bias_rate / rest, F1, F1 - p2)


@inlined
def step(x: Any, g: Any, first: Any, second: Any, rate: Any, l1: Any, row: Any, rates: Any) -> Any:
    """`formula`'s `step`; `first` and `second` are m and v, `rate` is divided by 1 - p1."""
    m = clamp(rates.beta1 * first + rates.rest1 * g, rates.g_max)
    v = clamp(rates.beta2 * second + rates.rest2 * (g * g), rates.g_max)
    return clamp(x - (rate * m) / (root(v / row.rest) + rates.eps), rates.factor_max), m, v


LAZY_ADAM = Formula(
    {
        "factor_m": initial_zero,
        "factor_v": initial_zero,
        "bias_m": initial_zero,
        "bias_v": initial_zero,
        "powers": initial_one,
    },
    step_row,
    step,
    step,
)
