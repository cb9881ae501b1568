"""Adversarial training in plain NumPy. `sgd/adversarial.py` has the semantics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.sgd.adversarial import bpr_pair, logistic_pair
from livefactor_kernels.spec.model import Loss
from livefactor_kernels.tables import ITEMS, USERS

if TYPE_CHECKING:
    from livefactor_kernels.sgd.reference import Event, Sgd

_F0 = np.float32(0.0)


class Pull(NamedTuple):
    """What a pair adds to a row: to its factors float32[k_padded], and to its bias or None."""

    side: int
    row: int
    factors: np.ndarray
    bias: Any


def pulls(sgd: Sgd, event: Event) -> Iterator[Pull]:
    """What an event adds, in the order of its slots."""
    spec = sgd.spec
    part = spec.regularization
    attack = np.float32(part.adversarial_weight), np.float32(part.adversarial_share)
    if spec.loss == Loss.BPR:
        for item in event.negatives:
            yield from _bpr(sgd, event, item, attack)
        return
    negatives = [] if event.value == 0.0 else event.negatives
    for slot, item in enumerate([event.positive, *negatives]):
        yield from _logistic(sgd, event, item, event.value if slot == 0 else _F0, attack)


def _logistic(sgd: Sgd, event: Event, item: int, value: np.float32, attack: Any) -> Iterator[Pull]:
    limit, s = sgd.rates.error_max, sgd.score(event, item)
    x, y = sgd.tables[USERS].read(event.user), sgd.tables[ITEMS].read(item)
    e = scalar.logistic_error(s, value, event.weight, limit)
    dots = dot(x, y), dot(x, x), dot(y, y)
    e, of_x, of_y = logistic_pair(s, e, *dots, value, event.weight, limit, attack)
    for side, row, own, other, term in ((USERS, event.user, x, y, of_x), (ITEMS, item, y, x, of_y)):
        l2, bias_l2 = sgd.l2_of(side, row)
        factors = scalar.pull(e, other, l2 + term, own)
        yield Pull(side, row, factors, scalar.bias_pull(e, bias_l2, sgd.tables[side].bias[row]))


def _bpr(sgd: Sgd, event: Event, item: int, attack: Any) -> Iterator[Pull]:
    users, items, limit = *sgd.tables, sgd.rates.error_max
    s, s_negative = sgd.score(event, event.positive), sgd.score(event, item)
    x, positive, negative = users.read(event.user), items.read(event.positive), items.read(item)
    v = positive - negative
    e = scalar.bpr_error(s, s_negative, event.weight, limit)
    dots = dot(x, v), dot(x, x), dot(v, v)
    e, of_x, m = bpr_pair(s, s_negative, e, *dots, event.weight, limit, attack)
    l2, _ = sgd.l2_of(USERS, event.user)
    yield Pull(USERS, event.user, scalar.pull(e, v, l2 + of_x, x), None)
    for row, own, other, signed in ((event.positive, positive, negative, e), (item, negative, positive, -e)):
        l2, bias_l2 = sgd.l2_of(ITEMS, row)
        factors = scalar.pull(signed, x, l2, own) + m * (own - other)
        yield Pull(ITEMS, row, factors, scalar.bias_pull(signed, bias_l2, items.bias[row]))
