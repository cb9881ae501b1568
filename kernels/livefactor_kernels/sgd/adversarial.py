"""Adversarial training with rule SGD: errors at perturbed rows (APR; He et al., SIGIR 2018).

The spec's `regularization` has the weight z (`adversarial_weight`) and the norm r
(`adversarial_norm`). Each pair of an event is learned as it is, and a second time, with weight z,
at the rows that are worst for it: each row of the pair is moved by r in the direction of its
gradient. (The move is a constant when the gradient of the moved pair is taken.) So a row that has
to hold against the move needs factors that are large beside r.

1/|a| is written i_a, and it is 0 if |a| < 1e-15. Dots and norms are those of 16 lanes (`sums.dot`).

    logistic  A pair is a user x and an item y, with q = x . y and d = 1 if e > 0, else -1.
              x moves by d r i_y y, and y by d r i_x x. So the moved score is
              s' = s + ((d r) (|x| + |y|) + ((r r) (q i_x)) i_y), and e' = z error(s').
              The pair adds ((e + e') y) + ((l2 + (d r) (e' i_x)) x) to x,
              and ((e + e') x) + ((l2 + (d r) (e' i_y)) y) to y. Biases get e + e'.
    BPR       A pair is a user x and v = y_p - y_n, with q = x . v. x moves by -r i_v v, y_p by
              -r i_x x, and y_n by r i_x x. So the moved difference of scores is that of s_p + t
              and s_n with t = ((2 (r r)) (q i_x)) i_v - r (2 |x| + |v|), and
              e' = z error(s_p + t, s_n).
              The pair adds ((e + e') v) + ((l2 - (2 r) (e' i_x)) x) to x,
              (((e + e') x) + (l2 y_p)) + (m (y_p - y_n)) to y_p, and
              ((-(e + e') x) + (l2 y_n)) + (m (y_n - y_p)) to y_n, with m = -(r (e' i_v)).

The terms with i_x shrink a row by what it moved. An event with several negatives has a pair for
each (logistic: and one for its positive item). All rows of a micro-batch step after all its sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import root
from livefactor_kernels.numbers.parts import inlined

_F = np.float32
_F0, _F1, _F2 = _F(0.0), _F(1.0), _F(2.0)
NORM_MIN = _F(1e-15)


@inlined
def inverse(norm: Any) -> Any:
    """1 / norm as float32, and 0 for a norm below `NORM_MIN`."""
    return _F0 if norm < NORM_MIN else _F1 / norm


@inlined
def logistic_pair(
    s: Any, e: Any, q: Any, x2: Any, y2: Any, value: Any, weight: Any, limit: Any, attack: Any
) -> Any:
    """(e + e', the term of x, the term of y) of a user x and an item y.

    s: the score. e: the error. q, x2, y2: the dots of x and y, x and x, y and y. attack: (z, r).
    """
    z, r = attack
    x_norm, y_norm = root(x2), root(y2)
    x_inverse, y_inverse = inverse(x_norm), inverse(y_norm)
    signed = r if e > _F0 else -r
    moved = s + (signed * (x_norm + y_norm) + ((r * r) * (q * x_inverse)) * y_inverse)
    other = z * scalar.logistic_error(moved, value, weight, limit)
    return e + other, signed * (other * x_inverse), signed * (other * y_inverse)


@inlined
def bpr_pair(
    s: Any, s_negative: Any, e: Any, q: Any, x2: Any, v2: Any, weight: Any, limit: Any, attack: Any
) -> Any:
    """(e + e', the term of x, m) of a user x and the difference v of two items.

    s, s_negative: the scores. e: the error. q, x2, v2: the dots of x and v, x and x, v and v.
    attack: (z, r).
    """
    z, r = attack
    x_norm, v_norm = root(x2), root(v2)
    x_inverse, v_inverse = inverse(x_norm), inverse(v_norm)
    moved = ((_F2 * (r * r)) * (q * x_inverse)) * v_inverse - r * (_F2 * x_norm + v_norm)
    other = z * scalar.bpr_error(s + moved, s_negative, weight, limit)
    return e + other, -((_F2 * r) * (other * x_inverse)), -(r * (other * v_inverse))
