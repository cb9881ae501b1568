"""The decay of an event's weight by its age."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np

DECAY_STEPS = 4096


@cache
def decays(half_life: float) -> np.ndarray:
    """The decay after each number of visits, float32[DECAY_STEPS]; ones for a half-life of 0.

    Each value is the one before times the float32 nearest to 2 ** (-1 / half_life), rounded to
    float32. That number is computed in decimal arithmetic, because pow differs between machines.
    """
    steps = np.ones(DECAY_STEPS, np.float32)
    if half_life:
        with localcontext() as context:
            context.prec = 40
            factor = np.float32(float(Decimal(2) ** (Decimal(-1) / Decimal(float(np.float32(half_life))))))
        for age in range(1, DECAY_STEPS):
            steps[age] = steps[age - 1] * factor
    return steps
