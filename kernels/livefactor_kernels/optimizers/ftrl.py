"""FTRL-Proximal (McMahan et al.: Ad click prediction, KDD 2013, algorithm 1):

    N = n + g g;  z += lr g - (sqrt(N) - sqrt(n)) x;  n = N
    x = 0 if |z| <= lr l1, else -(z - sign(z) lr l1) / (beta + sqrt(n))

z here is lr times the paper's, so that lr may be 0. L2 comes in g, as with all optimisers. An l1 of 0 is taken as the
smallest normal float32. n (`factor_n`, `bias_n`) begins at `initial_g`, z (`factor_z`, `bias_z`) at what gives the initial
factors: -((beta + sqrt(n)) x + sign(x) lr l1). The step uses N before its limit, and z after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.lanes import clamp, inlined, root
from livefactor_kernels.optimizers.formula import Formula, initial_squares, initial_zero, keep_row


@inlined
def step(x: Any, g: Any, first: Any, second: Any, rate: Any, l1: Any, row: Any, rates: Any) -> Any:
    """`formula`'s `step`; `first` and `second` are z and n."""
    total = second + g * g
    z = clamp(first + (rate * g - (root(total) - root(second)) * x), rates.g_max)
    weight = clamp((clamp(z, l1) - z) / (rates.beta + root(total)), rates.factor_max)
    return weight, z, clamp(total, rates.g_max)


def initial_z(initial_g: np.float32, rates: Any, factors: np.ndarray) -> np.ndarray:
    """The z float32[n, k] that gives the initial factors float32[n, k]."""
    z: np.ndarray = -(factors * (rates.beta + root(initial_g)) + np.sign(factors) * rates.l1)
    return z


FTRL = Formula(
    {
        "factor_z": initial_z,
        "factor_n": initial_squares,
        "bias_z": initial_zero,
        "bias_n": initial_squares,
    },
    keep_row,
    step,
    step,
)
