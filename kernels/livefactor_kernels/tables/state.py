"""The state of a model beside its rows. A part of the model declares and restores each section.

    mean      int64[2]: fixed-point sum and number of the values so far (`GlobalMean`)
    context.*  sums about features of events (`reading/context/__init__.py`)
    features.*  the rows of features, their keys and progress (`solve/features/__init__.py`)
    gram      float64[2 (k + 1)^2]: Gram matrices of users and items (`solve/__init__.py`)
    mix       float64[35]: weights of experts, and sums of popularity (`reading/__init__.py`), and
              float64[37] with the blend of recent popularity, float64[41] with similar users
    prior.*   the map of embeddings and its sums (`solve/prior/__init__.py`)
    rates     float64[5]: an adaptive learning rate (`sgd/adaptive.py`)
    replay.*  [replay.size] each: events for replay (`replay/__init__.py`)
    started   float64[1]: number of users that began with factors of another model (`start.py`)
    unobserved  float64[1]: a weight of the unobserved that follows the data (`solve/__init__.py`)

Root hashes and snapshots use the sections in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.simd.memory import reserve_shared

ANSWERING = ("gram", "mean", "mix", "unobserved")
"""Sections from which scores and folded-in users are computed. A pin keeps them."""


class Part(Protocol):
    """A part of a model that may have state beside the rows: a rule, the global mean, a
    reservoir.
    """

    def sections(self) -> dict[str, np.ndarray]:
        """The state by section name, one-dimensional. Do not write to the arrays."""

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """Restores the state after the rows.

        `sections` has the sections of all parts, and events uint64[1], the number of events that
        the model has learned from.
        """


class Stateless:
    """A part without state beside the rows."""

    def sections(self) -> dict[str, np.ndarray]:
        """No sections."""
        return {}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """Does nothing."""


class GlobalMean:
    """The exact mean of the values so far, for squared loss.

    `sums` int64[2] has their fixed-point sum and their number.
    """

    def __init__(self) -> None:
        self.sums = reserve_shared((2,), np.int64)

    @property
    def value(self) -> np.float32:
        """The mean, 0 before the first value."""
        return mean_of(self.sums)

    def add(self, values: np.ndarray) -> None:
        """Adds values float32[n]."""
        self.sums += int(scalar.fixed_point(values).sum()), len(values)

    def sections(self) -> dict[str, np.ndarray]:
        """See `Part.sections`."""
        return {"mean": self.sums}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `Part.load`."""
        self.sums[:] = sections["mean"]


def mean_of(sums: np.ndarray) -> np.float32:
    """The mean float32 from a section `mean`."""
    return np.float32(scalar.mean_of(int(sums[0]), int(sums[1])))


def state_of(parts: Iterable[Part]) -> dict[str, np.ndarray]:
    """The sections of all parts, in the order of the root hash."""
    return dict(sorted((name, array) for part in parts for name, array in part.sections().items()))
