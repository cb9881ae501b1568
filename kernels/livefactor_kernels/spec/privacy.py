"""Differential privacy of a model: its budget, and what releases cost.

A release is a sum of contributions, of which a user has one with a norm of at most `clip`. Gaussian
noise with the standard deviation noise * clip is added to every number. So n releases are
(epsilon, delta)-private for every epsilon with

    delta_of(n, noise, epsilon) = Phi(m/2 - epsilon/m) - e^epsilon Phi(-m/2 - epsilon/m)

at most delta, where m = sqrt(n) / noise. It is exact (Balle, Wang, ICML 2018), also if a release
depends on the earlier ones, and for neighbours that differ by one user more or less. No gain by
sampling is claimed, because the users of a stream are not a random sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

EPSILON_MAX = 500.0
"""Above it `epsilon_of` gives infinity, because e^epsilon is too large for float64."""

RELEASES_MAX = 1 << 30
_LIMITS = {
    "epsilon": (0.0, 100.0),
    "delta": (1e-15, 1e-3),
    "window_seconds": (0, 1 << 40),
    "clip": (1e-6, 1e6),
    "noise": (1e-3, 1e4),
}


@dataclass(frozen=True, slots=True)
class Privacy:
    """Differential privacy of users towards whoever sees rows of items and scores of others.

    Attributes:
        epsilon: what a user may have in a window, up to 100. With 0 the model has no privacy.
        delta: the delta of it.
        window_seconds: length of a window. 0 means one window without an end.
        clip: maximum Euclidean norm of what a user contributes to a release.
        noise: standard deviation of the noise, divided by `clip`.
    """

    epsilon: float = 0.0
    delta: float = 0.0
    window_seconds: int = 0
    clip: float = 0.0
    noise: float = 0.0

    @property
    def releases_max(self) -> int:
        """The most releases of a window: as many as epsilon allows."""
        if not self._allows(1):
            return 0
        most = 1
        while most < RELEASES_MAX and self._allows(2 * most):
            most *= 2
        step = most
        while step := step // 2:
            if self._allows(most + step):
                most += step
        return most

    def _allows(self, releases: int) -> bool:
        return delta_of(releases, self.noise, self.epsilon) <= self.delta

    def spent(self, releases: int) -> float:
        """The epsilon of so many releases."""
        return epsilon_of(releases, self.noise, self.delta) if releases else 0.0

    def problems(self, merges: bool) -> Iterator[tuple[str, str, object]]:
        """What is wrong with it: (field, what is expected, what is there). `merges` says whether
        the model takes deltas.
        """
        if self == Privacy():
            return
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                yield f"privacy.{name}", f"{low:g}..{high:g}", value
        if not self.epsilon:
            yield "privacy.epsilon", "above 0 with another field of privacy", self.epsilon
        elif not merges:
            yield "privacy.epsilon", "0 without merge.learning_rate", self.epsilon
        elif not self._allows(1):
            yield "privacy.noise", "enough noise for one release within privacy.epsilon", self.noise


def delta_of(releases: int, noise: float, epsilon: float) -> float:
    """The least delta with which so many releases are (epsilon, delta)-private."""
    m = math.sqrt(releases) / noise
    upper, lower = _normal(m / 2 - epsilon / m), _normal(-m / 2 - epsilon / m)
    # The product is below 1 where it is not rounded to 0.
    return max(0.0, upper - (math.exp(epsilon) * lower if lower else 0.0))


def epsilon_of(releases: int, noise: float, delta: float) -> float:
    """The least epsilon with which so many releases are (epsilon, delta)-private, rounded up."""
    low, high = 0.0, EPSILON_MAX
    if delta_of(releases, noise, high) > delta:
        return math.inf
    if delta_of(releases, noise, 0.0) <= delta:
        return 0.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(releases, noise, middle) > delta else (low, middle)
    return high


def _normal(x: float) -> float:
    """The distribution function of the normal distribution."""
    return math.erfc(-x / math.sqrt(2)) / 2
