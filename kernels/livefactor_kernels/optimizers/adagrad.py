"""AdaGrad: every element has its own sum of squares G.

    G += g g;  x -= (lr g) / (sqrt(G) + eps)

G (`factor_g`, `bias_g`) begins at `initial_g`. The step uses G before its limit.

Duchi, Hazan, Singer: Adaptive subgradient methods, JMLR 12, 2011; the diagonal form of section 1.1.
"""

from __future__ import annotations

from typing import Any

from livefactor_kernels.numbers.lanes import clamp, root
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.formula import Element, Formula, initial_squares, keep_row


@inlined
def accumulate(x: Any, g: Any, first: Any, second: Any, shared: Any, rates: Any) -> Any:
    """See `accumulate` in `formula`. `first` is G."""
    total = first + g * g
    return clamp(total, rates.g_max), second, total


@inlined
def step(x: Any, g: Any, first: Any, total: Any, shared: Any, rates: Any) -> Any:
    """See `step` in `formula`."""
    return clamp(x - (shared.rate * g) / (root(total) + rates.eps), rates.factor_max)


ELEMENT = Element(accumulate, step)
ADAGRAD = Formula({"factor_g": initial_squares, "bias_g": initial_squares}, keep_row, ELEMENT, ELEMENT)
