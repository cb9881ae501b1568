"""FTRL-Proximal: a step with an exact L1 penalty.

    N = n + g g;  z += lr g - (sqrt(N) - sqrt(n)) x;  n = N
    x = 0 if |z| <= lr l1, else -(z - sign(z) lr l1) / (beta + sqrt(n))

z is lr times the paper's, so that lr may be 0. g contains L2, as with all optimisers. An l1 of 0 is
taken as the smallest normal float32. n (`factor_n`, `bias_n`) begins at `initial_g`. z (`factor_z`,
`bias_z`) begins at the value that gives the initial factors: -((beta + sqrt(n)) x + sign(x) lr l1).
The step uses N before its limit, and z after it.

McMahan et al.: Ad click prediction: a view from the trenches, KDD 2013, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.lanes import clamp, root
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.formula import (
    Element,
    Formula,
    initial_squares,
    initial_zero,
    keep_row,
)


@inlined
def accumulate(x: Any, g: Any, first: Any, second: Any, shared: Any, rates: Any) -> Any:
    """See `accumulate` in `formula`. `first` and `second` are z and n."""
    total = second + g * g
    z = clamp(first + (shared.rate * g - (root(total) - root(second)) * x), rates.g_max)
    return z, clamp(total, rates.g_max), total


@inlined
def step(x: Any, g: Any, first: Any, total: Any, shared: Any, rates: Any) -> Any:
    """See `step` in `formula`. `first` is z. The old x is not used."""
    shrunk = clamp(first, shared.l1) - first
    return clamp(shrunk / (rates.beta + root(total)), rates.factor_max)


def initial_z(initial_g: np.float32, rates: Any, factors: np.ndarray) -> np.ndarray:
    """The z float32[n, k] that gives the initial factors float32[n, k]."""
    z: np.ndarray = -(factors * (rates.beta + root(initial_g)) + np.sign(factors) * rates.l1)
    return z


_ELEMENT = Element(accumulate, step)
FTRL = Formula(
    {
        "factor_z": initial_z,
        "factor_n": initial_squares,
        "bias_z": initial_zero,
        "bias_n": initial_squares,
    },
    keep_row,
    _ELEMENT,
    _ELEMENT,
)
