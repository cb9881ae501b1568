"""A lower bound of epsilon from one run: the audit of Steinke, Nasr and Jagielski (NeurIPS 2023).

Each of m canaries is in the data or not, by a coin. Who sees the output guesses of some of them
whether they were in. Under (epsilon, delta)-privacy the number of correct guesses W of r is hardly
larger than that of coins which are right with probability q = e^epsilon / (1 + e^epsilon):

    P(W >= v) <= P(B >= v) + 2 m delta max_i P(v - i <= B < v) / i,   B binomial of (r, q)

An epsilon for which the observed number is less likely than 1 - confidence is refuted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
EPSILON_MAX = 50.0


class Found(NamedTuple):
    """What an audit found: guesses, how many were right, and the lower bound of epsilon."""

    guesses: int
    right: int
    epsilon: float


def likelihood(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The bound on the probability of so many right guesses, or more."""
    # The import takes two seconds of a processor.
    from scipy.stats import binom

    q = 1.0 / (1.0 + np.exp(-epsilon))
    steps = np.arange(1, right + 1)
    below = binom.cdf(right - 1, guesses, q) - binom.cdf(right - steps - 1, guesses, q)
    slack = float(np.max(below / steps, initial=0.0)) * 2.0 * canaries * delta
    return min(1.0, float(binom.sf(right - 1, guesses, q)) + slack)


def lower_bound(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that the guesses refute, 0 if they refute none."""
    low, high = 0.0, EPSILON_MAX
    if likelihood(canaries, guesses, right, low, delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        refuted = likelihood(canaries, guesses, right, middle, delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def audit(scores: np.ndarray, present: np.ndarray, share: float, delta: float) -> Found:
    """Guesses that the highest scores are of present canaries, and the lowest of absent ones.

    scores: float64[m], one a canary. present: bool[m], the truth. share: of the canaries, fixed
    before the run; half of the guesses are of each kind.
    """
    order, each = np.argsort(scores), int(len(scores) * share / 2)
    right = int(present[order[-each:]].sum() + (~present[order[:each]]).sum())
    return Found(2 * each, right, lower_bound(len(scores), 2 * each, right, delta))
