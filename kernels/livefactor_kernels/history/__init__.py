"""The semantics of histories, visits and counts: what a row remembers of its events.

In addition to factors and biases, a table has the following sections, depending on the spec
(`tables.history_sections`):

    users  seen_rows [H] u32, seen_values [H] f32, seen_weights [H] f32, seen_visits [H] u32:
           a ring of events; seen_count u32, visits u32, last_time i64
    items  seen_count u32; with history.items also seen_rows, seen_values, seen_weights [H];
           with counts neighbor_rows [M] u32, neighbor_counts [M] f32

An event (user u, item i, value, weight, time) is recorded in the order of the log:

1. Visits. If time is 0 or differs from u's last_time, a visit starts: visits + 1. Then
   last_time = time.
2. Counts. For each of u's last `span` events j, newest first: w = weight * decay(visits - j's
   visit); count(j's item -> i) += w; if j is of the same visit and another item,
   count(i -> j's item) += w.
3. Histories. The event is written to place seen_count mod H of u's ring and of i's; seen_count + 1.

decay(a) = d ** a by repeated multiplication in float32; d is the float32 nearest to 2 ** (-1 /
half-life).

count(j -> i) += w works as follows on j's M places. If a place has i, w is added there. Otherwise,
if there are empty places (count 0), i takes the first of them. Otherwise let c be the smallest
count, at the first place that has it. If c - w is above 0, it replaces c. If not, i takes the place
with the count w - c or, if that is 0, with the smallest normal float32 above 0. A new follower
therefore reduces the weakest one to zero before it replaces it, and no count is larger than the sum
of its additions (after Misra, Gries, Sci. Comput. Program. 2, 1982).
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np

RING = ("seen_rows", "seen_values", "seen_weights")
COUNT_MIN = np.float32(np.finfo(np.float32).tiny)
DECAY_STEPS = 4096
"""Number of visits after which the weight of an event no longer changes."""


@cache
def decays(half_life: float) -> np.ndarray:
    """The decay after each number of visits, float32[DECAY_STEPS]; ones for a half-life of 0.

    Each value is the one before times the float32 nearest to 2 ** (-1 / half_life), rounded to
    float32. That number is computed in decimal arithmetic, since pow differs between machines.
    """
    if half_life == 0:
        return np.ones(DECAY_STEPS, np.float32)
    with localcontext() as context:
        context.prec = 40
        factor = np.float32(float(Decimal(2) ** (Decimal(-1) / Decimal(float(np.float32(half_life))))))
    steps = np.ones(DECAY_STEPS, np.float32)
    for age in range(1, DECAY_STEPS):
        steps[age] = steps[age - 1] * factor
    return steps
