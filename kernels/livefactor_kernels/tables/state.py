"""State of a model beside its rows. Each section belongs to one part of the model, which declares it, gives it and restores it.

    mean      int64[2]: fixed-point sum and number of the values seen (`GlobalMean`)
    gram      float64[2 (k + 1)^2]: Gram matrices of users and items (rule SOLVE: `solve/__init__.py`)
    rates     float64[5]: an adapted learning rate (`sgd/adaptive.py`)
    replay.*  [replay.size] each: events kept for replay (`replay/__init__.py`)

Root hashes and snapshots take the sections by name, in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from livefactor_kernels.numbers import scalar

ANSWERING = ("gram", "mean")
"""Sections that scores and folded-in users are computed from: those that a pin keeps."""


class Part(Protocol):
    """A part of a model that may have state beside the rows: a rule, the global mean, a reservoir."""

    def sections(self) -> dict[str, np.ndarray]:
        """Its state by section name, one-dimensional. Do not write to the arrays."""

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """Restore its state, after the rows were restored. sections: of all parts, and events uint64[1], the number of events
        that the model has learned from."""


class Stateless:
    """A part whose state is all in the rows."""

    def sections(self) -> dict[str, np.ndarray]:
        """As `Part.sections`: nothing."""
        return {}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """As `Part.load`: nothing to do."""


class GlobalMean:
    """The mean of the values seen (squared loss), exact: `sums` int64[2] holds their fixed-point sum and their number."""

    def __init__(self) -> None:
        self.sums = np.zeros(2, np.int64)

    @property
    def value(self) -> np.float32:
        """The mean, 0 before the first value."""
        return mean_of(self.sums)

    def add(self, values: np.ndarray) -> None:
        """Take values float32[n] in."""
        self.sums += int(scalar.fixed_point(values).sum()), len(values)

    def sections(self) -> dict[str, np.ndarray]:
        """As `Part.sections`."""
        return {"mean": self.sums}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """As `Part.load`."""
        self.sums[:] = sections["mean"]


def mean_of(sums: np.ndarray) -> np.float32:
    """The mean float32 of a section `mean`."""
    return np.float32(scalar.mean_of(int(sums[0]), int(sums[1])))


def state_of(parts: Iterable[Part]) -> dict[str, np.ndarray]:
    """The sections of all parts, in the order of the root hash."""
    return dict(sorted((name, array) for part in parts for name, array in part.sections().items()))
