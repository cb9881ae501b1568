"""Optimisers of gradient rules: what each does with a row's gradient g, and the state that a row keeps for it.

All of it is float32, one rounding an operation, in the order written; every accumulator is limited to `g_max`, every
factor and bias to `factor_max`. lr is `learning_rate`, for biases `bias_learning_rate`; "squares" is a dot product of 16
lanes of a vector with itself. A row that no event names is not touched.

Each optimiser is a file with its formula and its state: `sgd`, `adagrad`, `rowwise_adagrad`, `lazy_adam`, `ftrl`. A new one
is one more file, a line in `choice.py` and an entry of `OptimizerKind`. `formula.py` says what a formula is; `reference`, `cpu`
and `cuda` step rows with any of them.

Before a step the gradient of a row that more than `hot_row_events` events name is scaled down (`scalar.hot_scale`). Then
come, where the spec's `regularization` has them:

    gradient_norm_max  g is scaled by min(1, c / sqrt(squares(g))), a bias's gradient limited to +-c
    row_norm_max       the factors that the step leaves, limited to `factor_max`, are scaled by min(1, c / sqrt(squares(x)))
                       (max-norm: Srebro, Rennie, Jaakkola, NIPS 2004); then narrow ones are rounded. FTRL's z stays, so
                       that x is the scaled solution for it.

Two more are of rule SGD alone (`sgd/__init__.py`): l2_frequency, dropout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.numbers.random import DROPOUT_DOMAIN, domain_key
from livefactor_kernels.optimizers.choice import FORMULAS
from livefactor_kernels.optimizers.formula import Formula
from livefactor_kernels.spec.model import ModelSpec, OptimizerKind
from livefactor_kernels.update import Rates

_TINY = np.float32(np.finfo(np.float32).tiny)
PROBE = ("factor_probe", "bias_probe", "row_probe")
"""With an adaptive rate: the probe's factors and biases, and when its rows began (`sgd/adaptive.py`)."""


def optimizer_sections(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of a row in every section of the optimizer's state, float32, in the order of the root hash; rows of
    `factor_*` are padded as factors are."""
    shapes = {"factor": (spec.k_padded,), "bias": (), "row": (), "powers": (2,)}
    names = [*_formula(spec).sections, *(PROBE if spec.adaptive_rate.window else ())]
    return {name: shapes[name.partition("_")[0]] for name in names}


def state_slots(spec: ModelSpec) -> dict[str, str]:
    """The section that each place of a kernel's rows holds (`optimizers.cpu.StepRows`): factor_g and
    bias_g are the first accumulators of factors and biases, factor_h and bias_h the second, row_state is a row's own."""
    places = {
        "factor": ("factor_g", "factor_h"),
        "bias": ("bias_g", "bias_h"),
        "row": ("row_state",),
        "powers": ("row_state",),
    }
    slots: dict[str, str] = {}
    for name in _formula(spec).sections:
        slots[next(place for place in places[name.partition("_")[0]] if place not in slots)] = name
    return slots


def initial_state(spec: ModelSpec, name: str, factors: np.ndarray) -> np.ndarray | np.float32:
    """What new rows hold in section `name`: one value for all, or float32[n, k] from their initial factors [n, k], as they
    are stored."""
    if name in PROBE:
        return factors if name == "factor_probe" else np.float32(0.0)
    initial = _formula(spec).sections[name]
    return initial(np.float32(spec.optimizer.initial_g), StepRates.of(spec), widened(factors))


def _formula(spec: ModelSpec) -> Formula:
    return FORMULAS[OptimizerKind(spec.optimizer.kind)]


class Method(NamedTuple):
    """What a step's code is made for. optimizer: number of `OptimizerKind`. clips, norms, drops: 1 where gradients are
    clipped, rows held to a norm, columns dropped. frequency: twice the power p of l2 / n**p."""

    optimizer: int
    clips: int
    norms: int
    drops: int
    frequency: int

    @property
    def is_plain(self) -> bool:
        """Whether it is SGD or AdaGrad and nothing else: then a step needs no more than `Rates`, nor a row's whole gradient."""
        return self.optimizer in (OptimizerKind.SGD, OptimizerKind.ADAGRAD) and not any(self[1:])

    @staticmethod
    def of(spec: ModelSpec) -> Method:
        """The method of a spec."""
        of = spec.regularization
        return Method(
            int(spec.optimizer.kind),
            int(of.gradient_norm_max > 0),
            int(of.row_norm_max > 0),
            int(of.dropout > 0),
            int(2 * of.l2_frequency),
        )


class StepRates(NamedTuple):
    """`Rates` and what steps of micro-batches take beside them, each rounded once to float32.

    rest1, rest2: 1 - beta1, 1 - beta2. l1, bias_l1: the learning rates times l1, at least the smallest normal float32. k:
    factors a row. keep_scale: 1 / (1 - dropout). keep_below: (1 - dropout) * 2**32, which the 32 bits of a column that is
    kept are below; dropout_key: Philox's.
    """

    rate: np.float32
    bias_rate: np.float32
    l2: np.float32
    bias_l2: np.float32
    eps: np.float32
    error_max: np.float32
    factor_max: np.float32
    g_max: np.float32
    hot_events: np.float32
    beta1: np.float32
    rest1: np.float32
    beta2: np.float32
    rest2: np.float32
    l1: np.float32
    bias_l1: np.float32
    beta: np.float32
    k: np.float32
    gradient_norm_max: np.float32
    row_norm_max: np.float32
    keep_scale: np.float32
    keep_below: np.uint64
    dropout_key: np.uint64

    @staticmethod
    def of(spec: ModelSpec) -> StepRates:
        """Rates of a spec."""
        one, rates, optimizer = np.float32(1.0), Rates.of(spec), spec.optimizer
        dropout = np.float32(spec.regularization.dropout)
        beta1, beta2, l1 = np.float32(optimizer.beta1), np.float32(optimizer.beta2), np.float32(optimizer.l1)
        return StepRates(
            *rates,
            beta1,
            one - beta1,
            beta2,
            one - beta2,
            max(rates.rate * l1, _TINY),
            max(rates.bias_rate * l1, _TINY),
            np.float32(optimizer.beta),
            np.float32(spec.k),
            np.float32(spec.regularization.gradient_norm_max),
            np.float32(spec.regularization.row_norm_max),
            one / (one - dropout),
            np.uint64(min((1.0 - float(dropout)) * 2.0**32, 2.0**32 - 1.0)),
            domain_key(spec.seed, DROPOUT_DOMAIN),
        )
