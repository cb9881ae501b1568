"""Yardsticks: sequential SGD in plain Numba, without lanes and without prefetch.

They do the same work as livefactor's kernel with B = 1: squared loss with L2, both biases and a
running mean. `plain_fast` may reassociate and contract (fast-math); `plain_strict` may not. Neither
is part of livefactor, and neither gives its bits.
"""

from __future__ import annotations

from numba import njit


def _plain_sgd(
    x, y, user_bias, item_bias, user_rows, item_rows, values, total, count, rate, bias_rate, l2, bias_l2
):  # type: ignore[no-untyped-def]
    """Learns the events once, in order, and returns the new sum and count of the mean."""
    k = x.shape[1]
    for t in range(user_rows.size):
        u, i, value = user_rows[t], item_rows[t], values[t]
        mean = total / count if count > 0 else total
        s = mean + user_bias[u] + item_bias[i]
        for j in range(k):
            s += x[u, j] * y[i, j]
        e = s - value
        for j in range(k):
            xj, yj = x[u, j], y[i, j]
            x[u, j] = xj - rate * (e * yj + l2 * xj)
            y[i, j] = yj - rate * (e * xj + l2 * yj)
        user_bias[u] -= bias_rate * (e + bias_l2 * user_bias[u])
        item_bias[i] -= bias_rate * (e + bias_l2 * item_bias[i])
        total += value
        count += 1.0
    return total, count


plain_fast = njit(nogil=True, fastmath=True, error_model="numpy")(_plain_sgd)
plain_strict = njit(nogil=True, error_model="numpy")(_plain_sgd)
