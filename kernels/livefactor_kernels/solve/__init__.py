"""Rule SOLVE: the rows that an event names are solved again, in one pass, as the events come. Its semantics.

The objective is that of implicit ALS (Hu, Koren, Volinsky, ICDM 2008; regularisation scaled by frequency as Rendle et
al., RecSys 2022), over what histories remember: a row x has n remembered events with other rows y_j, weights w_j and
targets t_j, in the order of their places in its ring, and minimises

    sum_j w_j (x . y_j - t_j)^2 + a0 sum_{all others y} (x . y)^2 + ridge |x|^2,   ridge = l2 (sum_j w_j + a0 N)

a0 is `solve.unobserved`, N the number of other rows after the record's allocation. Implicit loss: t_j is 1 if the value
is above 0, else 0; no biases. Squared loss: a0 = 0 and t_j = (value - mean) - (y_j's bias); the row's bias is one more
coordinate of x after the k factors, with y_j = 1 and the ridge bias_l2 (sum_j w_j). `mean` is the one before the record's
micro-batch; values join it after.

A micro-batch:
1. Its events are recorded, in order (`history/__init__.py`).
2. Every user named in it is solved for the items as they are; then the sum of y y' over users (the Gram matrix) takes the
   changes, user by user in order of first appearance.
3. Every item named in it that is due is solved for the users as they are now; Gram alike. Due: with c events before the
   micro-batch and d after it, c < item_events, or floor(c / item_events) < floor(d / item_events), or c = d.

Replayed events (`replay/__init__.py`) are recorded nowhere and join no mean. They only name rows, which are solved again for
what they remember, their changes in the Gram matrix as any other's; c = d is of the items that they alone name. What value and
weight a replayed event has is all the same.

Arithmetic: float32, one rounding each, in this order.
    A  lower triangle: A[p, q] = float32(a0 G[p, q]), + ridge on the diagonal, then + (w_j y_jp) y_jq for each j; A[q, p] is A[p, q]
    b  from 0: + (w_j y_jp) t_j for each j
    r  = b, then r - x_p A[p, :] for each coordinate p of the row as it is
    each sweep, each p: new = clamp(x_p + r_p / A[p, p]); r = r - (new - x_p) A[p, :]; x_p = new
    sum_j w_j, from 0, in order; ridge = max(l2 (sum + a0 N), 1e-9), with bias_l2 alike for a bias
G is float64 and of (x, 1), so that its last row is the sum of x and the number of rows that have had an event; G[p, q] + new_p
new_q - old_p old_q, left to right (the products are exact); a row is 0 in it before its first event.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor_kernels.spec.model import LANES, Loss, ModelSpec

RIDGE_MIN = np.float32(1e-9)


GRAM = "gram"
"""Section of the Gram matrices G, users' and then items': float64[2 (k + 1)^2]."""


class SolveRates(NamedTuple):
    """The spec's numbers as the arithmetic uses them. has_bias: squared loss."""

    unobserved: np.float32
    l2: np.float32
    bias_l2: np.float32
    factor_max: np.float32
    sweeps: np.uint64
    item_events: np.uint64
    k: np.uint64
    has_bias: bool

    @staticmethod
    def of(spec: ModelSpec) -> SolveRates:
        """Rates of a spec."""
        return SolveRates(
            np.float32(spec.solve.unobserved),
            np.float32(spec.l2),
            np.float32(spec.bias_l2),
            np.float32(spec.limits.factor_max),
            np.uint64(spec.solve.sweeps),
            np.uint64(spec.solve.item_events),
            np.uint64(spec.k),
            spec.loss == Loss.SQUARED,
        )


def width(spec: ModelSpec) -> int:
    """Coordinates of a system in memory: k_padded, and one vector more for a bias."""
    return spec.k_padded + (LANES if spec.loss == Loss.SQUARED else 0)
