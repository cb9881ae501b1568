"""The semantics of the adaptive learning rate of rule SGD (spec: `spec.model.AdaptiveRate`).

In addition to the model, a *probe* learns. The probe is a second model of the same spec with
learning rates that are higher by a factor of 2^(1/4). It starts as a copy of the model and learns
the same events with the same negatives. So the two rates are compared with common random numbers
(Glasserman, Yao, Manage. Sci. 38(6), 1992). After a window of events, both rates change by that
factor if the difference exceeds the noise. They increase if the probe has predicted better, and
decrease if it has predicted worse. Then the probe starts again as a copy of the model, because its
old rate would bias the next comparison. If the difference does not exceed the noise, the probe
continues, and the difference grows with its age.

    rate      A model at step q has the learning rates float32(learning rate) * m(q), also for
              biases. m(q) = float32(2^(q/4)). The model is at q, -24 <= q <= 24, which is
              initially 0. The probe is at q + 1. A change of the rates changes no row.
    begin     A row of the probe stores the number of changes (modulo 2^24) after which it
              started, initially 0. Before a record, all rows that the record uses, also as
              negatives, are checked. A row with another number than the present one becomes
              a copy of the model's row and gets the present number.
    evidence  Before a record is learned, each event that is not replayed gives
              d = sum of e'^2 - sum of e^2. Both sums are float64, from left to right over the
              errors e of the event (`sgd/__init__.py`) of the probe (e') and of the model. All
              errors use the state before the record, without dropout. S += d, V += d d.
    move      This follows a record after which the window has `window` events or more. If
              S S > 9 V (the mean of d is three standard errors from 0), then q + 1 if S < 0,
              else q - 1. This counts as a change also if q is at its limit. Then the next
              window starts with S = V = 0.

The derivative of an event's loss with respect to the rate (Baydin et al., ICLR 2018) looks only one
step ahead. So it prefers rates that are good for the next event (Wu et al., ICLR 2018), and with
sampled negatives it is misleading. The probe has learned at its rate for many steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from livefactor_kernels.spec.model import RATE_STEPS_MAX, AdaptiveRate, ModelSpec

STEP, MOVES, EVENTS, SUM, SQUARES = range(5)
"""Places in the state float64[5]: q, number of changes modulo 2^24, events in the window, S, V."""
STATE_SIZE = 5
RATES = "rates"
"""Name of the section with this state."""
MOVES_MAX = 1 << 24
_ROOTS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
"""2^(n/4). They are constants, because pow differs between machines."""


def multiple(step: int) -> np.float32:
    """m(q)."""
    return np.float32(math.ldexp(_ROOTS[step % 4], step // 4))


def at_step(spec: ModelSpec, step: int) -> ModelSpec:
    """The spec with the learning rates of a step, and without an adaptive rate."""
    optimizer, m = spec.optimizer, multiple(step)
    rates = (np.float32(rate) * m for rate in (optimizer.learning_rate, optimizer.bias_learning_rate))
    rate, bias_rate = map(float, rates)
    optimizer = replace(optimizer, learning_rate=rate, bias_learning_rate=bias_rate)
    return replace(spec, optimizer=optimizer, adaptive_rate=AdaptiveRate())


def end_window(state: np.ndarray) -> None:
    """Changes the step of a state whose window is full, and starts the next window."""
    step, moves, _, total, squares = (float(number) for number in state)
    if total * total > 9.0 * squares:
        step += 1.0 if total < 0 else -1.0
        state[STEP] = max(-RATE_STEPS_MAX, min(RATE_STEPS_MAX, step))
        state[MOVES] = (moves + 1.0) % MOVES_MAX
    state[EVENTS:] = 0.0
