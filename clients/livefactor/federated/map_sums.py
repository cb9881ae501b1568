"""Sums over users at home, from which a model learns what a user's vector says of the user.

    rows = rows_at_home(snapshot, items)           of users who are at home alone
    given = map_sums(vectors, rows)
    producer.push_map_sums(given.gram, given.rows)

The sums of several participants are added, so the model learns the regression over all their users
as if it had them. It gets neither a vector nor a row of a user. Secure aggregation takes the
`numbers` of each participant, and `MapSums.of` makes sums of their total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.snapshots.loaded import LoadedSnapshot
from livefactor.v1 import models_pb2
from livefactor.wire.ids import Ids, as_keys

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MapSums:
    """With e for a user's vector of d numbers and a 1 at its end, and y for the user's row.

    gram: the sum of e e', float64[d + 1, d + 1]. rows: the sum of e y', float64[d + 1, k].
    """

    gram: Doubles
    rows: Doubles

    @property
    def users(self) -> float:
        """Number of users in the sums."""
        return float(self.gram[-1, -1])

    @property
    def numbers(self) -> Doubles:
        """All numbers once, float64[(d + 1)(d + 2) / 2 + (d + 1) k]."""
        return np.append(self.gram[np.triu_indices(len(self.gram))], self.rows.ravel())

    @classmethod
    def of(cls, numbers: npt.ArrayLike, dimension: int) -> Self:
        """Sums from their numbers, and d. Raises ColumnError for another number of numbers."""
        found, n = np.asarray(numbers, np.float64), dimension + 1
        upper = n * (n + 1) // 2
        if found.ndim != 1 or found.size <= upper or (found.size - upper) % n:
            raise ColumnError(f"numbers: expected those of dimension {dimension}, got shape {found.shape}")
        square: Doubles = np.zeros((n, n))
        square[np.triu_indices(n)] = found[:upper]
        return cls(square + np.triu(square, 1).T, found[upper:].reshape(n, -1))

    def minus(self, earlier: Self) -> Self:
        """What came since earlier sums, such as those that the model has already."""
        return type(self)(self.gram - earlier.gram, self.rows - earlier.rows)


def map_sums(vectors: Any, rows: Any) -> MapSums:
    """The sums of n users.

    vectors: numbers [n, d], rounded to float16 as the model does. rows: the users' factors, numbers
    [n, k], learned with the item rows of the model. Raises ColumnError for other shapes, and for a
    number that is not finite.
    """
    with np.errstate(over="ignore"):
        e = np.asarray(vectors, np.float16).astype(np.float64)
    y = np.asarray(rows, np.float64)
    if e.ndim != 2 or y.ndim != 2 or len(e) != len(y):
        raise ColumnError(f"map sums: expected shapes (n, d) and (n, k), got {e.shape} and {y.shape}")
    for name, numbers in (("vectors", e), ("rows", y)):
        bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
        if bad.size:
            raise ColumnError.at(name, int(bad[0]), "a number is NaN, infinite or too large")
    e = np.column_stack([e, np.ones(len(e))])
    gram = e.T @ e
    return MapSums(np.triu(gram) + np.triu(gram, 1).T, e.T @ y)


def rows_at_home(snapshot: LoadedSnapshot, items: Sequence[Ids]) -> Doubles:
    """The rows of n users of a model with rule solve and implicit loss, float64[n, k].

    items: the items of each user's events. Those that the model does not know are left out. A row
    is the least-squares solution for the events, each of weight 1, with the item rows of the
    snapshot. Users without events have rows of zeros. Raises ValueError for a model of another
    rule or loss.
    """
    spec, tensors = snapshot.spec, snapshot.tensors
    if spec.loss != models_pb2.LOSS_IMPLICIT:
        raise ValueError("snapshot: expected a model with rule solve and implicit loss")
    k, factors = spec.k, snapshot.item_factors.astype(np.float64)
    gram = np.asarray(tensors["gram"], np.float64).reshape(2, k + 1, k + 1)[1, :k, :k]
    unobserved = float(tensors["unobserved"][0]) if "unobserved" in tensors else spec.solve.unobserved
    places = {key: place for place, key in enumerate(snapshot.item_ids.tolist())}
    rows: Doubles = np.zeros((len(items), k))
    for row, ids in zip(rows, items, strict=True):
        known = [places[key] for key in as_keys("items", ids).tolist() if key in places]
        y = factors[known]
        ridge = spec.l2 * (len(known) + spec.solve.ridge_events + unobserved * len(factors))
        system = unobserved * gram + max(ridge, 1e-9) * np.eye(k) + y.T @ y
        row[:] = np.linalg.solve(system, y.sum(axis=0))
    return rows


def map_sums_of(snapshot: LoadedSnapshot) -> MapSums:
    """The sums that a model has, from its snapshot. Raises ValueError if it has none."""
    if (gram := snapshot.tensors.get("user_prior.gram")) is None:
        raise ValueError("snapshot: the model has no vectors of users (embeddings.user_dimension is 0)")
    n = round(len(gram) ** 0.5)
    square = np.asarray(gram, np.float64).reshape(n, n)
    rows = np.asarray(snapshot.tensors["user_prior.rows"], np.float64).reshape(n, -1)
    return MapSums(square, rows)
