"""The scalar formulas, written once: errors of the losses, exp and sigmoid.

Every function runs as plain Python on NumPy float32 (the reference), and compiles with Numba for
float32. Functions without a branch also compile for `lanes.Vec16` and run on NumPy arrays; these
are all but the mean's, `hot_scale`, `norm_scale` and `frequent_l2`. Every operation is one float32
rounding in the written order. A change of an expression needs a new `spec.KERNEL_SEMANTICS`. exp is
a polynomial of its own, since libm, SVML and NumPy differ between machines.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.lanes import clamp, real_of, root, whole
from livefactor_kernels.numbers.parts import inlined

_F = np.float32
ONE = _F(1.0)
# exp(-87) and exp(87) are normal float32 numbers.
_EXP_LIMIT = _F(87.0)
_LOG2_E = _F(1.4426950408889634)
# 1.5 * 2**23. Adding it rounds a small float32 to the nearest integer, ties to even.
_ROUNDER = _F(12582912.0)
# It has 9 significant bits, so that n * _LN2_HIGH is exact for |n| < 2**15.
_LN2_HIGH = _F(0.693359375)
_LN2_LOW = _F(-2.12194440e-4)
# Minimax polynomial of (exp(r) - 1 - r) / r**2 on |r| <= ln(2)/2 (Cephes, expf).
_P0, _P1, _P2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_P3, _P4, _P5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
# The bias and the position of the exponent of a float32.
_EXPONENT_BIAS, _EXPONENT_SHIFT = _F(127.0), np.uint64(23)

FIXED_ONE = np.float64(1 << 20)
# 1.5 * 2**52 rounds a float64 to the nearest integer.
_ROUNDER64 = np.float64(6755399441055744.0)


@inlined
def exp(x: Any) -> Any:
    """e**x as float32, with x limited to [-87, 87] first.

    The error is below 2 units in the last place.
    """
    x = clamp(x, _EXP_LIMIT)
    n = (x * _LOG2_E + _ROUNDER) - _ROUNDER
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _P0 * r + _P1
    p = p * r + _P2
    p = p * r + _P3
    p = p * r + _P4
    p = p * r + _P5
    p = (p * (r * r) + r) + ONE
    return p * real_of(whole(n + _EXPONENT_BIAS) << _EXPONENT_SHIFT)


@inlined
def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x) as float32, in (0, 1] and never subnormal."""
    return ONE / (ONE + exp(-x))


@inlined
def score(mean: Any, user_bias: Any, item_bias: Any, dot: Any) -> Any:
    """The score s = ((mu + b_u) + b_i) + dot in float32."""
    return ((mean + user_bias) + item_bias) + dot


@inlined
def squared_error(s: Any, value: Any, weight: Any, limit: Any) -> Any:
    """w * (s - v), limited to +-limit: the derivative of w/2 * (s - v)**2 with respect to s."""
    return clamp(weight * (s - value), limit)


@inlined
def logistic_error(s: Any, value: Any, weight: Any, limit: Any) -> Any:
    """w * (sigmoid(s) - v), limited to +-limit, for a label v of 0 or 1."""
    return clamp(weight * (sigmoid(s) - value), limit)


@inlined
def bpr_error(s_positive: Any, s_negative: Any, weight: Any, limit: Any) -> Any:
    """-w * sigmoid(s_n - s_p), limited to +-limit.

    It is the derivative of -w * log sigmoid(s_p - s_n) with respect to s_p.
    """
    return clamp(-(weight * sigmoid(s_negative - s_positive)), limit)


@inlined
def pull(error: Any, other: Any, l2: Any, own: Any) -> Any:
    """The gradient contribution of one occurrence of a row: (e * other) + (lambda * own)."""
    return (error * other) + (l2 * own)


@inlined
def bias_pull(error: Any, l2: Any, own: Any) -> Any:
    """The gradient contribution of one occurrence of a bias: e + (lambda_b * own)."""
    return error + (l2 * own)


@inlined
def frequent_l2(l2: Any, events: Any, power: Any) -> Any:
    """l2 / n**p as float32, for n >= 1 events.

    The int `power` is 2 p: 1 gives l2 / sqrt(n), and 2 gives l2 / n.
    """
    count = _F(events)
    count = count if count > ONE else ONE
    return l2 / (root(count) if power == 1 else count)


@inlined
def norm_scale(squares: Any, limit: Any) -> Any:
    """The float32 factor that scales a row to a Euclidean norm of at most `limit`.

    Its squares sum to `squares`.
    """
    norm = root(squares)
    return limit / norm if norm > limit else ONE


@inlined
def fixed_point(value: Any) -> Any:
    """round-half-even(float64(value) * 2**20) as int64, for |value| <= 1e6.

    The global mean sums these numbers.
    """
    return np.int64((np.float64(value) * FIXED_ONE + _ROUNDER64) - _ROUNDER64)


@inlined
def mean_of(total: Any, count: Any) -> Any:
    """The global mean as float32, from the fixed-point sum and the number of events (int64)."""
    if count == 0:
        return _F(0.0)
    return _F(np.float64(total) / (np.float64(count) * FIXED_ONE))


@inlined
def hot_scale(limit: Any, events: Any) -> Any:
    """The scale of a row's gradient, min(1, h / events), as float32.

    `events` is the number of events in the micro-batch that contain the row.
    """
    count = _F(events)
    return limit / count if count > limit else ONE
