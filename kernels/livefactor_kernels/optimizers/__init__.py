"""The semantics of the optimisers: the step of a row by its gradient g, and the state of a row.

All arithmetic is float32 with one rounding per operation, in the order of the formulas. Every
accumulator is limited to `g_max`, and every factor and bias to `factor_max`. lr is `learning_rate`,
and for biases `bias_learning_rate`. "squares" is the dot product of a vector with itself, in 16
lanes. A row without events in a micro-batch does not change.

Each optimiser is a file with its formula and its state: `sgd`, `adagrad`, `rowwise_adagrad`,
`lazy_adam`, `ftrl`. A new one needs one more file, a line in `choice.py` and an entry of
`OptimizerKind`. `formula.py` defines what a formula is. `reference`, `cpu` and `cuda` step rows
with any of them.

Before the step, the gradient of a row with more than `hot_row_events` events is scaled down
(`scalar.hot_scale`). A spec's `regularization` adds:

    gradient_norm_max  g is scaled by min(1, c / sqrt(squares(g))). The gradient of a bias is
                       limited to +-c.
    row_norm_max       After the step and the limit `factor_max`, the factors are scaled by
                       min(1, c / sqrt(squares(x))) (max-norm: Srebro, Rennie, Jaakkola, NIPS
                       2004). Then narrow factors are rounded. The z of FTRL does not change, so
                       x is the scaled solution for it.

`l2_frequency` and `dropout` exist only for rule SGD (`sgd/__init__.py`).
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
"""The sections of the probe of an adaptive rate: factors, biases, starts of rows
(`sgd/adaptive.py`).
"""


def optimizer_sections(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of a row in every section of the optimizer's state, in the order of the root hash.

    The sections are float32. Rows of `factor_*` are padded like factors.
    """
    shapes = {"factor": (spec.k_padded,), "bias": (), "row": (), "powers": (2,)}
    names = [*_formula(spec).sections, *(PROBE if spec.adaptive_rate.window else ())]
    return {name: shapes[name.partition("_")[0]] for name in names}


def state_slots(spec: ModelSpec) -> dict[str, str]:
    """The section for each field of a kernel's rows (`optimizers.cpu.StepRows`)."""
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
    """The values of new rows in section `name`: one value for all, or float32[n, k].

    `factors` [n, k] are the initial factors of the rows as they are stored.
    """
    if name in PROBE:
        return factors if name == "factor_probe" else np.float32(0.0)
    initial = _formula(spec).sections[name]
    return initial(np.float32(spec.optimizer.initial_g), StepRates.of(spec), widened(factors))


def _formula(spec: ModelSpec) -> Formula:
    return FORMULAS[OptimizerKind(spec.optimizer.kind)]


class Method(NamedTuple):
    """The parts of a spec that select the code of a step.

    Attributes:
        optimizer: number of an `OptimizerKind`.
        clips: 1 if the norm of gradients is limited, else 0.
        norms: 1 if the norm of rows is limited, else 0.
        drops: 1 if columns are dropped, else 0.
        frequency: twice the power p of l2 / n**p.
    """

    optimizer: int
    clips: int
    norms: int
    drops: int
    frequency: int

    @property
    def is_plain(self) -> bool:
        """Whether the method is SGD or AdaGrad without regularisation of this kind.

        Then a step needs only `Rates`, and it can be taken before the whole gradient of the row is
        known.
        """
        return self.optimizer in (OptimizerKind.SGD, OptimizerKind.ADAGRAD) and not any(self[1:])

    @staticmethod
    def of(spec: ModelSpec) -> Method:
        """The method of a spec."""
        limits = spec.regularization
        return Method(
            int(spec.optimizer.kind),
            int(limits.gradient_norm_max > 0),
            int(limits.row_norm_max > 0),
            int(limits.dropout > 0),
            int(2 * limits.l2_frequency),
        )


class StepRates(NamedTuple):
    """`Rates` and further numbers for steps of micro-batches, each rounded once to float32.

    Attributes:
        rest1, rest2: 1 - beta1, 1 - beta2.
        l1, bias_l1: the learning rates times l1, at least the smallest normal float32.
        k: number of factors of a row.
        keep_scale: 1 / (1 - dropout).
        keep_below: (1 - dropout) * 2**32. A column is dropped unless its 32 random bits are below.
        dropout_key: the key of Philox for dropout.
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
            beta1=beta1,
            rest1=one - beta1,
            beta2=beta2,
            rest2=one - beta2,
            l1=max(rates.rate * l1, _TINY),
            bias_l1=max(rates.bias_rate * l1, _TINY),
            beta=np.float32(optimizer.beta),
            k=np.float32(spec.k),
            gradient_norm_max=np.float32(spec.regularization.gradient_norm_max),
            row_norm_max=np.float32(spec.regularization.row_norm_max),
            keep_scale=one / (one - dropout),
            keep_below=np.uint64(min((1.0 - float(dropout)) * 2.0**32, 2.0**32 - 1.0)),
            dropout_key=domain_key(spec.seed, DROPOUT_DOMAIN),
        )
