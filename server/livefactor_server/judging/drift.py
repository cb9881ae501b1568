"""Detects drift in a series of losses or hits with ADWIN, as implemented in the package river.

Source: Bifet and Gavaldà, Learning from Time-Changing Data with Adaptive Windowing, SDM 2007.
    Without river, drift detection is off.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any, NamedTuple

import numpy as np

LOSSES_TO_SCALE = 256
"""Number of losses that are collected before ADWIN gets the first one.

Their median sets the scale.
"""

CHECKED_EVERY = 32
"""Number of values between two checks of river's ADWIN."""


class Drift(NamedTuple):
    """The mean of a series before and after a change."""

    before: float
    after: float


def available() -> bool:
    """Whether river is installed."""
    return find_spec("river") is not None


@cache
def _adwin() -> Any:
    """The class `river.drift.ADWIN`.

    Its module is loaded without the package around it. The package also loads SciPy and SQLAlchemy
    for other detectors, which would delay the start of a server by a second.

    Raises:
        ImportError: river is not installed.
    """
    import river

    name = "river.drift.adwin"
    spec = PathFinder.find_spec(name, [os.path.join(folder, "drift") for folder in river.__path__])
    if spec is None or spec.loader is None:
        raise ImportError(f"river has no module {name}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ADWIN


class HitDrift:
    """ADWIN on a series in [0, 1]. Raises ImportError without river."""

    def __init__(self) -> None:
        self._adwin = _adwin()()

    def push(self, values: np.ndarray) -> Drift | None:
        """Adds float64[n]. Returns the last change found in them, or None."""
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
    """ADWIN on losses l >= 0. Raises ImportError without river.

    The bound of ADWIN holds for values in [0, 1], so that it gets l / (l + c). The constant c is
    the median of the first `LOSSES_TO_SCALE` losses. A drift is reported in losses again.
    """

    def __init__(self) -> None:
        self._hits = HitDrift()
        self._first: list[float] = []
        self._scale = 0.0

    def push(self, losses: np.ndarray) -> Drift | None:
        """Adds float64[n]. Returns the last change found in them, or None."""
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
