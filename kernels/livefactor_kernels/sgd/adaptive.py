"""A learning rate that evaluation adapts, of users and of items apart, in rule SGD. Its semantics. Spec: `spec.AdaptiveRate`.

Every row has two twins, one that learns faster and one that learns slower by a factor of sqrt(2); they begin as the row does.
Each event is met by the row and by its twins alike, the other side being as it is: so three rates are compared on the same
events, as common random numbers compare two systems (Glasserman, Yao, Manage. Sci. 38(6), 1992), and after every window of
events a side's rate moves a step of 2^(1/4) towards the best one (a coordinate search in the logarithm of the rate). A plain
gradient of the loss in the rate looks one step ahead and prefers small ones; a twin has lived by its rate for as long as its row.

Micro-batches have one event. An event of user x has slots s = 0 (its item, target v, weight w), 1 .. m (negatives as drawn, target 0;
none with squared loss, or where v = 0), y_s their items. All is taken from the state before the event:
    errors    e_s of (x, y_s), as in `sgd/__init__.py`; of users' twins e'_s of (x', y_s), of items' twins e'_s of (x, y_s')
    gradients row x: e_s y_s + l2 x, summed over the slots from the first; a twin x': e'_s y_s + l2 x'. An item's row and its twins
              alike: e_s x + l2 y over the slots that name it, e'_s x + l2 y'. Biases alike, e + bias_l2 b
    steps     of a row by the side's rate, of its twins by theirs. rate of a side at step q: float32(rate) * m(q), a twin's at
              q + 2 and q - 2; m(q) = float32(2^(q/4)), q in -24 .. 24

`State`: of each fresh event (not of replayed ones) e_s^2, float64, is added slot by slot to the sum of rows (the same for both
sides), e'_s^2 to that of each side's faster and slower twins. When `window` events are in it a side moves: q + 1 if its faster
twins' sum is below the rows' and at most its slower twins'; else q - 1 if its slower twins' sum is below the rows'. All sums
and the count begin again at 0, and the next event takes the new rates.
"""

from __future__ import annotations

import math

import numpy as np

STEPS_MAX = 24
"""The rate is at most 2 ** 6 times the spec's, and at least as far below."""
TWIN_STEPS = 2
USERS_STEP, ITEMS_STEP, EVENTS, ROWS, USERS_FAST, USERS_SLOW, ITEMS_FAST, ITEMS_SLOW = range(8)
"""Places in the state, float64[8]: each side's q, events in the window, sums of squared errors."""
STATE_SIZE = 8
_ROOTS = (
    1.0,
    1.189207115002721,
    1.4142135623730951,
    1.681792830507429,
)  # 2 ** (n / 4): pow differs between machines


def multiple(step: int) -> np.float32:
    """m(q)."""
    return np.float32(math.ldexp(_ROOTS[step % 4], step // 4))


def multiples() -> np.ndarray:
    """m(q) float32, of a step of -STEPS_MAX at place TWIN_STEPS."""
    most = STEPS_MAX + TWIN_STEPS
    return np.array([multiple(step) for step in range(-most, most + 1)], np.float32)


def moved(step: int, rows: float, fast: float, slow: float) -> int:
    """A side's q after a window with these sums."""
    if fast < rows and fast <= slow:
        return min(step + 1, STEPS_MAX)
    return max(step - 1, -STEPS_MAX) if slow < rows else step
