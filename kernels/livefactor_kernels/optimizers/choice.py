"""The table of optimisers, and the choice among them in compiled code.

The functions at the end are those of `formula`, with the number of an `OptimizerKind` before their
arguments. The number is a constant of the kernel that calls: after inlining nothing of the other
optimisers is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.adagrad import ADAGRAD
from livefactor_kernels.optimizers.formula import Formula
from livefactor_kernels.optimizers.ftrl import FTRL
from livefactor_kernels.optimizers.lazy_adam import LAZY_ADAM
from livefactor_kernels.optimizers.rowwise_adagrad import ROWWISE_ADAGRAD
from livefactor_kernels.optimizers.sgd import SGD
from livefactor_kernels.spec.model import OptimizerKind

FORMULAS: dict[OptimizerKind, Formula] = {
    OptimizerKind.SGD: SGD,
    OptimizerKind.ADAGRAD: ADAGRAD,
    OptimizerKind.ROWWISE_ADAGRAD: ROWWISE_ADAGRAD,
    OptimizerKind.LAZY_ADAM: LAZY_ADAM,
    OptimizerKind.FTRL: FTRL,
}


def _choice(functions: dict[OptimizerKind, Callable[..., Any]]) -> Callable[..., Any]:
    """A function that takes an optimiser's number and calls its function.

    The last function is called for any other number. Numba compiles each called function by itself,
    which takes about a tenth of a second. So one function makes the choice, rather than a chain of
    functions that choose between two.
    """
    (a, of_a), (b, of_b), (c, of_c), (d, of_d), (_, of_e) = (
        (int(kind), of) for kind, of in functions.items()
    )

    @inlined
    def choose(optimizer: Any, *arguments: Any) -> Any:
        if optimizer == a:
            return of_a(*arguments)
        if optimizer == b:
            return of_b(*arguments)
        if optimizer == c:
            return of_c(*arguments)
        if optimizer == d:
            return of_d(*arguments)
        return of_e(*arguments)

    return choose


def _number_of(values: dict[OptimizerKind, int]) -> Callable[..., Any]:
    """A function that takes an optimiser's number and returns its value, as `_choice` does."""
    (a, of_a), (b, of_b), (c, of_c), (d, of_d), (_, of_e) = ((int(kind), of) for kind, of in values.items())

    @inlined
    def number(optimizer: Any) -> Any:
        if optimizer == a:
            return of_a
        if optimizer == b:
            return of_b
        if optimizer == c:
            return of_c
        if optimizer == d:
            return of_d
        return of_e

    return number


step_row = _choice({kind: each.step_row for kind, each in FORMULAS.items()})
accumulate_factor = _choice({kind: each.factor.accumulate for kind, each in FORMULAS.items()})
step_factor = _choice({kind: each.factor.step for kind, each in FORMULAS.items()})
accumulate_bias = _choice({kind: each.bias.accumulate for kind, each in FORMULAS.items()})
step_bias = _choice({kind: each.bias.step for kind, each in FORMULAS.items()})

# How many sections an optimiser keeps for each factor and bias, and how many words for a row.
factor_accumulators = _number_of({kind: len(each.accumulators("factor")) for kind, each in FORMULAS.items()})
bias_accumulators = _number_of({kind: len(each.accumulators("bias")) for kind, each in FORMULAS.items()})
row_words = _number_of({kind: sum(each.words.values()) for kind, each in FORMULAS.items()})
needs_squares = _number_of({kind: int(each.needs_squares) for kind, each in FORMULAS.items()})
