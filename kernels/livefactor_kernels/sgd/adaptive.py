"""A learning rate that evaluation adapts, in rule SGD (spec: `spec.model.AdaptiveRate`). Its semantics.

Beside the model a *probe* learns: a second model of the same spec whose learning rates are higher by a factor of 2^(1/4).
It begins as the model does and meets the same events with the same negatives, so that two rates are compared as common
random numbers compare two systems (Glasserman, Yao, Manage. Sci. 38(6), 1992). After a window of events both rates move
by that factor: up if the probe has predicted better, down if worse, where the difference is beyond noise. Then the probe
begins again as the model is, since what it learned at its old rate would speak against every new one. Where no difference
is beyond noise it lives on, and differences grow with its age.

    rate      of a model at step q: float32(learning rate) * m(q), biases' alike; m(q) = float32(2^(q/4)). The model's is at
              q, -24 <= q <= 24, 0 to begin with, the probe's at q + 1. The model's rows stay where they are when rates move.
    begin     a row of the probe has the number of moves (modulo 2^24) after which it began, 0 to begin with. Before a record
              all rows that it names, also as negatives, whose number is not that of now become the model's and get it.
    evidence  of an event (not of a replayed one), before its record is learned: d = sum of e'^2 - sum of e^2, both float64,
              left to right over the event's errors e as `sgd/__init__.py` has them, of the probe (e') and of the model, all
              from the state before the record, without dropout. S += d, V += d d.
    move      after a record with which the window has `window` events or more: if S S > 9 V (the mean of d is three of its
              standard errors from 0), q + 1 where S < 0, else q - 1, which is a move also where q has come to its end. Then
              the window begins again, S = V = 0.

The derivative of an event's loss in the rate (Baydin et al., ICLR 2018) looks one step ahead and so prefers what is good
for the next event (Wu et al., ICLR 2018): with sampled negatives it leads astray. The probe has lived by its rate.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from livefactor_kernels.spec.model import RATE_STEPS_MAX, AdaptiveRate, ModelSpec

STEP, MOVES, EVENTS, SUM, SQUARES = range(5)
"""Places in the state, float64[5]: q, moves modulo 2^24, events in the window, S, V."""
STATE_SIZE = 5
RATES = "rates"
"""The state's section."""
MOVES_MAX = 1 << 24
_ROOTS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
"""2^(n/4): pow differs between machines."""


def multiple(step: int) -> np.float32:
    """m(q)."""
    return np.float32(math.ldexp(_ROOTS[step % 4], step // 4))


def at_step(spec: ModelSpec, step: int) -> ModelSpec:
    """The spec without an adaptive rate, its learning rates those of a step."""
    optimizer, m = spec.optimizer, multiple(step)
    rates = (np.float32(rate) * m for rate in (optimizer.learning_rate, optimizer.bias_learning_rate))
    rate, bias_rate = map(float, rates)
    optimizer = replace(optimizer, learning_rate=rate, bias_learning_rate=bias_rate)
    return replace(spec, optimizer=optimizer, adaptive_rate=AdaptiveRate())


def end_window(state: np.ndarray) -> None:
    """Move the step of a state whose window is full, and begin the next window."""
    step, moves, _, total, squares = (float(number) for number in state)
    if total * total > 9.0 * squares:
        step += 1.0 if total < 0 else -1.0
        state[STEP] = max(-RATE_STEPS_MAX, min(RATE_STEPS_MAX, step))
        state[MOVES] = (moves + 1.0) % MOVES_MAX
    state[EVENTS:] = 0.0
