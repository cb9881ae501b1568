"""Adversarial training with rule SGD: errors at perturbed rows (APR; He et al., SIGIR 2018).

The spec's `regularization` has the weight z (`adversarial_weight`) and the share r
(`adversarial_share`). Each pair of an event is learned as it is, and a second time, with weight z,
at the rows that are worst for it: each row of the pair is moved in the direction of its gradient.
The move is a constant when the gradient of the moved pair is taken. Its length is r times a norm of
the pair, unlike in the paper, where it is r itself and training begins from a finished model. In a
stream rows begin small, and a move that is longer than the rows keeps them small.

Dots and norms are those of 16 lanes (`sums.dot`), and a ratio is 0 if its divisor is below 1e-15.

    logistic  A pair is a user x and an item y with q = x . y. d is r if e > 0, else -r. x moves by
              d |x| / |y| y, and y by d |y| / |x| x. So the moved score is
              s' = s + ((2 d) (|x| |y|) + (r r) q), and e' = z error(s'). The pair adds
              ((e + e') y) + ((l2 + (d e') (|y| / |x|)) x) to x, and
              ((e + e') x) + ((l2 + (d e') (|x| / |y|)) y) to y. Biases get e + e'.
    BPR       A pair is a user x and v = y_p - y_n with q = x . v. x moves by -r |x| / |v| v, y_p by
              -r/2 |v| / |x| x, and y_n by as much in the other direction. So
              e' = z error(s_p + t, s_n) with t = (r r) q - (2 r) (|x| |v|). The pair adds
              ((e + e') v) + ((l2 + m (|v| / |x|)) x) to x with m = -(r e'),
              (((e + e') x) + (l2 y_p)) + ((m (|x| / |v|)) (y_p - y_n)) to y_p, and
              ((-(e + e') x) + (l2 y_n)) + ((m (|x| / |v|)) (y_n - y_p)) to y_n.

An event with several negatives has a pair for each, and with logistic loss one for its positive
item. All rows of a micro-batch step after all its sums.
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
def ratio(other: Any, own: Any) -> Any:
    """other / own as float32, and 0 for a norm below `NORM_MIN`."""
    return _F0 if own < NORM_MIN else other / own


@inlined
def logistic_pair(
    s: Any, e: Any, q: Any, x2: Any, y2: Any, value: Any, weight: Any, limit: Any, attack: Any
) -> Any:
    """(e + e', the term of x, the term of y) of a user x and an item y.

    s: the score. e: the error. q, x2, y2: the dots of x and y, x and x, y and y. attack: (z, r).
    """
    z, r = attack
    x_norm, y_norm = root(x2), root(y2)
    signed = r if e > _F0 else -r
    moved = s + ((_F2 * signed) * (x_norm * y_norm) + (r * r) * q)
    other = z * scalar.logistic_error(moved, value, weight, limit)
    pulled = signed * other
    return e + other, pulled * ratio(y_norm, x_norm), pulled * ratio(x_norm, y_norm)


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
    moved = (r * r) * q - (_F2 * r) * (x_norm * v_norm)
    other = z * scalar.bpr_error(s + moved, s_negative, weight, limit)
    pulled = -(r * other)
    return e + other, pulled * ratio(v_norm, x_norm), pulled * ratio(x_norm, v_norm)
