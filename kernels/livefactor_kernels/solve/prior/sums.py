"""Sums of the map of users that others computed (semantics of the map: `solve/prior/__init__.py`).

A record of sums is one contribution. It has the sums A' and B' over users who are not here, and a
weight w. Let lr be `merge.learning_rate`, and c the Euclidean norm of the numbers on and above the
diagonal of A', row by row, and then of those of B':

    c        root of the sum of the squares, float64, from left to right
    a        (lr * w) * min(1, merge.norm_max / c), float64; lr, w and norm_max are float32
    A        A + a A', rounded after the product and after the sum; the same for B

Then W is computed again. It stays as it was if a number of the new one is not finite. The next
`VISITED` rows are visited, as in a record of so many events. The users elsewhere are not counted in
`prior.progress`.

With lr = w = 1 and a norm below the limit, A and B are the sums over the users of this model and of
all who contribute. So W is the ridge regression over all of them, and nobody has their vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor_kernels.spec.model import ModelSpec

VISITED = 4096


class MapSums(NamedTuple):
    """A record of sums.

    Attributes:
        gram: A', float64[d + 1, d + 1], symmetric, finite.
        rows: B', float64[d + 1, k], finite.
        weight: above 0.
        revision: of the record.
    """

    gram: np.ndarray
    rows: np.ndarray
    weight: float
    revision: int


def factor_of(spec: ModelSpec, sums: MapSums) -> float:
    """a of a record."""
    numbers = np.append(sums.gram[np.triu_indices(len(sums.gram))], sums.rows.ravel())
    # NumPy's sum has an order of its own, and a running sum goes from left to right.
    norm = float(np.sqrt(np.add.accumulate(numbers * numbers)[-1]))
    most = float(np.float32(spec.merge.norm_max))
    rate = float(np.float32(spec.merge.learning_rate)) * float(np.float32(sums.weight))
    return rate * (most / norm if norm > most else 1.0)
