"""The part of a spec that keeps rows small and robust: norms, L2 by frequency, dropout, attacks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Regularization:
    """Regularisation in addition to `l2` and `bias_l2`. The value 0 switches a part off.

    `optimizers/__init__.py` has the order and the formulas. Rule SOFTMAX supports only the two
    norms.

    Attributes:
        gradient_norm_max: maximum Euclidean norm of a row's gradient, and maximum magnitude of its
            bias's gradient.
        row_norm_max: maximum Euclidean norm of a row's factors after a step.
        l2_frequency: exponent p of the L2 weight l2 / n**p, where n is the number of the row's past
            events. It is 0, 0.5 or 1, and needs history.users.
        dropout: probability with which dropout zeroes a column for an event, up to 0.9.
        adversarial_weight: the weight of the errors at perturbed rows, up to 10
            (`sgd/adversarial.py`).
        adversarial_share: how far a row is moved, as a share of a norm of its pair, up to 10.
    """

    gradient_norm_max: float = 0.0
    row_norm_max: float = 0.0
    l2_frequency: float = 0.0
    dropout: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_share: float = 0.0
