"""Drift of a series of losses or hits, told by ADWIN (Bifet and Gavaldà, Learning from Time-Changing Data with Adaptive
Windowing, 2007) of the river package. Without river there is none of it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

LOSSES_TO_SCALE = 256
"""Losses that are looked at before the first is handed to ADWIN: their median sets the scale."""

CHECKED_EVERY = 32
"""River's ADWIN looks for a change after so many values."""


class Drift(NamedTuple):
    """The mean of a series before and after a change; scaled, for losses (`LossDrift`)."""

    before: float
    after: float


def available() -> bool:
    """Whether river is installed."""
    return find_spec("river") is not None


class HitDrift:
    """ADWIN over a series in [0, 1]. ImportError without river."""

    def __init__(self) -> None:
        from river.drift import ADWIN

        self._adwin = ADWIN()

    def push(self, values: np.ndarray) -> Drift | None:
        """Take float64[n] in; the last change found in them, if there was one."""
        found = None
        adwin = self._adwin
        for start in range(0, len(values), CHECKED_EVERY):
            before = adwin.estimation
            for value in values[start : start + CHECKED_EVERY].tolist():
                adwin.update(value)
                if adwin.drift_detected:
                    found = Drift(before, adwin.estimation)
        return found


class LossDrift:
    """ADWIN over losses l >= 0, as l / (l + c) in [0, 1), since its bound is one for such values; c is the median of the first
    `LOSSES_TO_SCALE` losses. Before and after are given as losses again. ImportError without river."""

    def __init__(self) -> None:
        self._hits = HitDrift()
        self._first: list[float] = []
        self._scale = 0.0

    def push(self, losses: np.ndarray) -> Drift | None:
        """Take float64[n] in; the last change found in them, if there was one."""
        losses = losses[np.isfinite(losses)]
        if not self._scale:
            self._first += losses.tolist()
            if len(self._first) < LOSSES_TO_SCALE:
                return None
            losses = np.array(self._first)
            self._first = []
            self._scale = max(float(np.median(losses)), 1e-9)
        found = self._hits.push(losses / (losses + self._scale))
        return None if found is None else Drift(*(self._scale * x / max(1.0 - x, 1e-9) for x in found))
