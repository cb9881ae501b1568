"""AdaGrad (Duchi, Hazan, Singer: Adaptive subgradient methods, JMLR 12, 2011; the diagonal form of section 1.1):

    G += g g;  x -= (lr g) / (sqrt(G) + eps)

Every element has a G of its own (`factor_g`, `bias_g`), which begins at `initial_g`. The step uses G before its limit.
"""

from __future__ import annotations

from typing import Any

from livefactor_kernels.numbers.lanes import clamp, inlined, root
from livefactor_kernels.optimizers.formula import Formula, initial_squares, keep_row


@inlined
def scaled_step(x: Any, g: Any, total: Any, rate: Any, rates: Any) -> Any:
    """x - (rate * g) / (sqrt(G) + eps), limited to +-factor_max; `total` is G with this gradient added."""
    return clamp(x - (rate * g) / (root(total) + rates.eps), rates.factor_max)


@inlined
def step(x: Any, g: Any, first: Any, second: Any, rate: Any, l1: Any, row: Any, rates: Any) -> Any:
    """`formula`'s `step`; `first` is G."""
    total = first + g * g
    return scaled_step(x, g, total, rate, rates), clamp(total, rates.g_max), second


ADAGRAD = Formula({"factor_g": initial_squares, "bias_g": initial_squares}, keep_row, step, step)
