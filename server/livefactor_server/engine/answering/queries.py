"""What a call adds to scores: a search query, and context.

A query gives an item weight * cosine(query, embedding of the item). An item without an embedding
gets 0. Each dot product has the fixed order of sums of scores, so an item's part does not depend on
what else a call asks for. Context moves the factors of the users (`reading/context/__init__.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from livefactor.wire.scoring import ScoreQuery
from livefactor_kernels.pins import View
from livefactor_kernels.reading.context import Statistics
from livefactor_kernels.reading.context.learning import factors_of
from livefactor_kernels.reading.persons import Persons
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.tables import ITEMS
from livefactor_server.changes.content.bags import check_context, context_bags
from livefactor_server.engine.answering.similar import BLOCK_ROWS, Best, joined
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid

WEIGHT_MAX = 1e6
_F0 = np.float32(0.0)


class QueryPart:
    """The query of a call, checked."""

    def __init__(self, spec: ModelSpec, query: ScoreQuery) -> None:
        """Takes the vectors of a call that has a query.

        Raises:
            Refused: INVALID_ARGUMENT if the model has no embeddings, or the query is not valid.
        """
        dimension, users, vectors = spec.embeddings.dimension, len(query.user_ids), query.query
        assert vectors is not None
        if not dimension:
            raise invalid("query: this model has no embeddings (spec: embeddings.dimension)")
        if vectors.size not in (dimension, users * dimension):
            expected = f"{dimension} numbers, or {dimension} for each of {users} users"
            raise invalid(f"query.vectors: expected {expected}, got {vectors.size}")
        table = vectors.reshape(-1, dimension)
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1) | ~table.any(axis=1))
        if bad.size:
            raise invalid(f"query.vectors: vector {bad[0]} is 0, or has a number that is NaN or infinite")
        if not 0.0 < query.query_weight <= WEIGHT_MAX:
            raise invalid(
                f"query.weight: expected above 0 and at most {WEIGHT_MAX:g}, got {query.query_weight}"
            )
        self._vectors, self._weight = _units(table), np.float32(query.query_weight)

    def embeddings(self, pin: View, rows: np.ndarray) -> np.ndarray:
        """The embeddings of item rows uint32[m], each divided by its norm; float32[m, d padded]."""
        return _units(pin.read(ITEMS, rows, ("embedding",))["embedding"])

    def of(self, user: int, embeddings: np.ndarray) -> np.ndarray:
        """The part float32[m] for a user of the call and the result of `embeddings`."""
        one = self._vectors[user if len(self._vectors) > 1 else 0][None]
        zeros, ends = np.zeros(len(embeddings), np.float32), np.array([0, len(embeddings)])
        cosines = scoring.score_candidates(_F0, one, np.zeros(1, np.float32), embeddings, zeros, ends)
        return np.asarray(self._weight * cosines)

    def best(
        self, pin: View, read: Persons, first: int, keys: np.ndarray, k: int, common: np.ndarray,
        own: np.ndarray, ends: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """The exact k best items of the users of `read`, as `pins.Pin.top_k` returns them.

        `first` is the number of the first of them in the call. `common`, `own` and `ends` are the
        exclusions that `Persons.top_k` takes. All items are scored, in blocks.
        """
        best = [Best(keys, k) for _ in read.bias]
        count = pin.counts[ITEMS]
        for start in range(0, count, BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, count), dtype=np.uint32)
            factors, bias = pin.gather(ITEMS, rows)
            embeddings, span = self.embeddings(pin, rows), np.array([0, len(rows)])
            for user, found in enumerate(best):
                one = read.factors[user : user + 1], read.bias[user : user + 1]
                scores = scoring.score_candidates(pin.mean, *one, factors, bias, span)
                scores = scores + read.gains(user, rows) + self.of(first + user, embeddings)
                excluded = np.concatenate((common, own[int(ends[user]) : int(ends[user + 1])]))
                is_left = ~np.isin(rows, excluded)
                found.add(rows[is_left], scores[is_left])
        return joined(best)


@dataclass(frozen=True)
class Shift:
    """What is added to the factors of users.

    Attributes:
        bags: one for all users, or one a user. None adds nothing.
        statistics: of the features of the bags.
        weight: multiplies what the bags say.
    """

    bags: Bags | None = None
    statistics: Statistics | None = None
    weight: float = 1.0

    @cached_property
    def _factors(self) -> np.ndarray:
        assert self.bags is not None and self.statistics is not None
        return np.asarray(np.float32(self.weight) * factors_of(self.statistics, self.bags))

    def added(self, factors: np.ndarray, users: slice) -> np.ndarray:
        """The factors float32[n, k padded] of these users of the call with their context."""
        if self.bags is None:
            return factors
        own = self._factors if len(self._factors) == 1 else self._factors[users]
        shifted = factors.copy()
        shifted[:, : own.shape[1]] += own
        return shifted


NO_SHIFT = Shift()


def shift_of(state: ModelState, query: ScoreQuery) -> Shift:
    """What the context of a query adds at the present revision. The caller holds the gate.

    Raises:
        Refused: INVALID_ARGUMENT if the model has no context, or the context is not valid.
    """
    columns, users = query.context, len(query.user_ids)
    if columns is None:
        return NO_SHIFT
    if len(columns) not in (1, users):
        raise invalid(f"context: expected 1 bag, or one for each of {users} users, got {len(columns)}")
    check_context(columns, state.spec)
    if not 0.0 < query.context_weight <= WEIGHT_MAX:
        raise invalid(
            f"context_weight: expected above 0 and at most {WEIGHT_MAX:g}, got {query.context_weight}"
        )
    bags = context_bags(columns)
    return Shift(bags, state.backend.context(bags.keys), query.context_weight)


def _units(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, d] as float32[n, d padded to whole lanes], each divided by its norm."""
    dimension = vectors.shape[1]
    units = np.zeros((len(vectors), -(-dimension // LANES) * LANES), np.float32)
    wide = vectors.astype(np.float64)
    norms = np.sqrt(np.square(wide).sum(axis=1))
    units[:, :dimension] = wide / np.where(norms > 0, norms, 1.0)[:, None]
    return units
