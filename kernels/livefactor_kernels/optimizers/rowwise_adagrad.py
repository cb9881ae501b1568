"""Row-wise AdaGrad: all factors of a row share one sum of squares G.

    G += squares(g) / k;  x -= (lr g) / (sqrt(G) + eps)

G (`row_g`) begins at `initial_g`. The step uses G before its limit. A bias has AdaGrad's own G
(`bias_g`).

Naumov et al.: Deep learning recommendation model, arXiv:1906.00091, 2019. Mudigere et al.:
Software-hardware co-design for fast and scalable training of deep learning recommendation models,
ISCA 2022.
"""

from __future__ import annotations

from typing import Any

from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers import adagrad, sgd
from livefactor_kernels.optimizers.formula import F1, Element, Formula, Shared, initial_squares


@inlined
def step_row(first: Any, second: Any, squares: Any, rates: Any) -> Any:
    """See `step_row` in `formula`. `first` is G."""
    total = first + squares / rates.k
    of_factors = Shared(rates.rate, F1, total, F1)
    return clamp(total, rates.g_max), second, of_factors, Shared(rates.bias_rate, F1, F1, F1)


@inlined
def step(x: Any, g: Any, first: Any, total: Any, shared: Any, rates: Any) -> Any:
    """See `step` in `formula`. It divides by the G of the row."""
    return adagrad.step(x, g, first, shared.total, shared, rates)


ROWWISE_ADAGRAD = Formula(
    {"row_g": initial_squares, "bias_g": initial_squares},
    step_row,
    Element(sgd.accumulate, step),
    adagrad.ELEMENT,
    needs_squares=True,
)
