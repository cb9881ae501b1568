"""Row-wise AdaGrad (Naumov et al.: Deep learning recommendation model, arXiv:1906.00091, 2019; Mudigere et al.: Software-
hardware co-design for fast and scalable training of deep learning recommendation models, ISCA 2022):

    G += squares(g) / k;  x -= (lr g) / (sqrt(G) + eps)

All factors of a row share one G (`row_g`), which begins at `initial_g`; the step uses it before its limit. A bias has
AdaGrad's own G (`bias_g`).
"""

from __future__ import annotations

from typing import Any

from livefactor_kernels.numbers.lanes import clamp, inlined
from livefactor_kernels.optimizers import adagrad
from livefactor_kernels.optimizers.formula import F1, Formula, RowStep, initial_squares


@inlined
def step_row(first: Any, second: Any, squares: Any, rates: Any) -> Any:
    """`formula`'s `step_row`; `first` is G."""
    total = first + squares / rates.k
    return clamp(total, rates.g_max), second, RowStep(rates.rate, rates.bias_rate, total, F1)


@inlined
def step(x: Any, g: Any, first: Any, second: Any, rate: Any, l1: Any, row: Any, rates: Any) -> Any:
    """`formula`'s `step`."""
    return adagrad.scaled_step(x, g, row.total, rate, rates), first, second


ROWWISE_ADAGRAD = Formula(
    {"row_g": initial_squares, "bias_g": initial_squares}, step_row, step, adagrad.step, needs_squares=True
)
