"""The scalar mathematics, written once: errors of the losses, our own exp and sigmoid.

Every function runs as plain Python on NumPy float32 (the reference), and compiles with Numba for float32;
those without a branch (all but the mean's, `hot_scale`, `norm_scale` and `frequent_l2`) also compile for
`lanes.Vec16` and run on whole NumPy arrays. Every operation is one float32 rounding, in the order written: never rewrite an expression here
without bumping `spec.KERNEL_SEMANTICS`. libm, SVML and NumPy differ between machines in exp, so it is a
polynomial of ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.lanes import clamp, inlined, real_of, root, whole

_F = np.float32
ONE = _F(1.0)
_EXP_LIMIT = _F(87.0)  # exp(-87) and exp(87) are normal float32 numbers
_LOG2_E = _F(1.4426950408889634)
_ROUNDER = _F(
    12582912.0
)  # 1.5 * 2**23: adding it rounds a small float32 to the nearest integer, ties to even
_LN2_HIGH = _F(0.693359375)  # 9 significant bits: n * _LN2_HIGH is exact for |n| < 2**15
_LN2_LOW = _F(-2.12194440e-4)
# Minimax polynomial of (exp(r) - 1 - r) / r**2 on |r| <= ln(2)/2 (Cephes, expf).
_P0, _P1, _P2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_P3, _P4, _P5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_EXPONENT_BIAS, _EXPONENT_SHIFT = _F(127.0), np.uint64(23)  # of a float32

FIXED_ONE = np.float64(1 << 20)
_ROUNDER64 = np.float64(6755399441055744.0)  # 1.5 * 2**52


@inlined
def exp(x: Any) -> Any:
    """e**x as float32 for a float32 x, which is first limited to [-87, 87]; error below 2 units in the last
    place."""
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
    """1 / (1 + e**-x) as float32 for a float32 x: in (0, 1], never a subnormal."""
    return ONE / (ONE + exp(-x))


@inlined
def score(mean: Any, user_bias: Any, item_bias: Any, dot: Any) -> Any:
    """s = ((mu + b_u) + b_i) + dot, all float32."""
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
    """-w * sigmoid(s_n - s_p), limited to +-limit: the derivative of -w * log sigmoid(s_p - s_n) in s_p."""
    return clamp(-(weight * sigmoid(s_negative - s_positive)), limit)


@inlined
def pull(error: Any, other: Any, l2: Any, own: Any) -> Any:
    """An occurrence's contribution to a row's gradient: (e * other) + (lambda * own)."""
    return (error * other) + (l2 * own)


@inlined
def bias_pull(error: Any, l2: Any, own: Any) -> Any:
    """An occurrence's contribution to a bias's gradient: e + (lambda_b * own)."""
    return error + (l2 * own)


@inlined
def frequent_l2(l2: Any, events: Any, power: Any) -> Any:
    """l2 / n**p as float32, n at least 1 and twice p the int `power`: l2 / sqrt(n) for 1, l2 / n for 2."""
    count = _F(events)
    count = count if count > ONE else ONE
    return l2 / (root(count) if power == 1 else count)


@inlined
def norm_scale(squares: Any, limit: Any) -> Any:
    """The float32 that scales a row, whose squares sum to `squares`, to a Euclidean norm of at most `limit`."""
    norm = root(squares)
    return limit / norm if norm > limit else ONE


@inlined
def fixed_point(value: Any) -> Any:
    """round-half-even(float64(value) * 2**20) as int64, for |value| <= 1e6: what the global mean sums."""
    return np.int64((np.float64(value) * FIXED_ONE + _ROUNDER64) - _ROUNDER64)


@inlined
def mean_of(total: Any, count: Any) -> Any:
    """Global mean as float32 from the fixed-point sum and the number of events (int64 both); 0 without
    events."""
    if count == 0:
        return _F(0.0)
    return _F(np.float64(total) / (np.float64(count) * FIXED_ONE))


@inlined
def hot_scale(limit: Any, events: Any) -> Any:
    """min(1, h / events) as float32: the scale of a row's gradient that `events` events of a micro-batch
    name."""
    count = _F(events)
    return limit / count if count > limit else ONE
