"""Opponents without gradients: most-popular, item-kNN with exact counts, and EASE.

All see each pair once.
"""

from __future__ import annotations

import numpy as np

from benchmarks.quality.data import Events, places
from benchmarks.quality.metrics import Scores


def popular(events: Events, half_life: float = np.inf) -> Scores:
    """One list for all users, ordered by the number of events.

    The weight of an event halves every `half_life` events.
    """
    ages = np.arange(len(events) - 1, -1, -1)
    counts = np.bincount(events.items, 0.5 ** (ages / half_life), events.item_count)
    return lambda users: np.broadcast_to(counts, (users.size, counts.size))


def counted_together(matrix: np.ndarray) -> np.ndarray:
    """Co-occurrence counts, float32[items, items], of a matrix float32[users, items].

    An entry is the number of users with both items. On the diagonal it is the number of users with
    the item.
    """
    return matrix.T @ matrix


def similarity(counts: np.ndarray, kind: str, shrinkage: float, neighbours: int) -> np.ndarray:
    """Item similarities, float32[items, items]. Row j says how much item j recommends each item; it
    is 0 for j itself.

    Args:
        counts: the result of `counted_together`.
        kind: "cosine" is n_ij / (sqrt(n_i n_j) + shrinkage). "conditional" is n_ij / (n_j +
            shrinkage), the share of the users of j who also have i.
        shrinkage: see `kind`.
        neighbours: number of largest entries per row to keep; 0 keeps all.
    """
    alone = np.diag(counts).astype(np.float32)
    if kind == "cosine":
        below = np.sqrt(np.outer(alone, alone)) + np.float32(shrinkage)
    elif kind == "conditional":
        below = np.broadcast_to((alone + np.float32(shrinkage))[:, None], counts.shape)
    else:
        raise ValueError(f"kind: expected cosine or conditional, got {kind!r}")
    similar = np.divide(counts, below, out=np.zeros(counts.shape, np.float32), where=below > 0)
    np.fill_diagonal(similar, 0.0)
    if 0 < neighbours < similar.shape[1]:
        least = -np.partition(-similar, neighbours - 1, axis=1)[:, neighbours - 1]
        similar[similar < least[:, None]] = 0.0
    return similar


def item_knn(matrix: np.ndarray, counts: np.ndarray, kind: str, shrinkage: float, neighbours: int) -> Scores:
    """Sums the similarities to the items of a user.

    `matrix` is float32[users, items], `counts` its co-occurrences.
    """
    similar = similarity(counts, kind, shrinkage, neighbours)
    return lambda users: matrix[users] @ similar


def ease_weights(counts: np.ndarray, l2: float) -> np.ndarray:
    """The item weights of EASE, float32[items, items] (Steck, WWW 2019).

    EASE is least squares from all other items, with a zero diagonal: B = I - P / diag(P) by
    columns, with P = (X'X + l2 I)^-1 and X'X = `counted_together`.
    """
    regularised = counts.astype(np.float64)
    regularised[np.diag_indices_from(regularised)] += l2
    inverse = np.linalg.inv(regularised)
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0.0)
    return weights


def recency(events: Events, half_life: float) -> np.ndarray:
    """Weights of the events, float[n].

    The weight halves with every `half_life` later events of the same user.
    """
    place, count = places(events, by_user=True)
    return 0.5 ** ((count - 1 - place) / half_life)


def linear(history: np.ndarray, weights: np.ndarray) -> Scores:
    """Scores of a history float32[users, items] (all ones, or by `recency`) with item weights."""
    return lambda users: history[users] @ weights
