"""What a row remembers of its events: the semantics of histories, visits and counts, and how they lie in tables.

Beside factors and biases a table has these sections, of which a spec chooses (`tables.history_sections`):

    users  seen_rows [H] u32, seen_values [H] f32, seen_weights [H] f32, seen_visits [H] u32   a ring of events
           seen_count u32, visits u32, last_time i64
    items  seen_count u32; with history.items also seen_rows, seen_values, seen_weights [H]
           with counts neighbor_rows [M] u32, neighbor_counts [M] f32

An event (user u, item i, value, weight, time) is recorded, in the order of the log, thus:

1. If time is 0 or not u's last_time, a visit begins: visits + 1. last_time = time.
2. Counts. For each of u's last `span` events j, the newest first: w = weight * decay(visits - j's visit);
   count(j's item -> i) += w, and if j is of the same visit and another item, count(i -> j's item) += w too.
3. The event goes to place seen_count mod H of u's ring and of i's; seen_count + 1.

decay(a) = d ** a by repeated multiplication in float32, d the float32 nearest to 2 ** (-1 / half-life).

count(j -> i) += w, with j's M places: if a place has i, add w there; else if places are empty (count 0), take the
first of them; else let c be the smallest count, at the first place that has it: c - w if that is above 0, else i
takes the place with w - c or, if that is 0, with the smallest float32 above 0 that is normal. So a newcomer wears the
weakest follower down before it replaces it (after Misra, Gries, Sci. Comput. Program. 2, 1982), and no count is more than what was added.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np

RING = ("seen_rows", "seen_values", "seen_weights")
COUNT_MIN = np.float32(np.finfo(np.float32).tiny)
DECAY_STEPS = 4096
"""Visits past which an event's weight stays what it is then."""


@cache
def decays(half_life: float) -> np.ndarray:
    """float32[DECAY_STEPS]: what is left after so many visits; ones for a half-life of 0.

    Each is the one before times the float32 nearest to 2 ** (-1 / half_life), rounded to float32. That number is
    computed in decimal: pow differs between machines.
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
