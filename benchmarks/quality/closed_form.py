"""Opponents without gradients: most-popular, item-kNN with exact counts, EASE. All see each pair once."""

from __future__ import annotations

import numpy as np

from benchmarks.quality.data import Events, places
from benchmarks.quality.metrics import Scores


def popular(events: Events, half_life: float = np.inf) -> Scores:
    """One list for everybody: items by their events; an event counts half after `half_life` more."""
    ages = np.arange(len(events) - 1, -1, -1)
    counts = np.bincount(events.items, 0.5 ** (ages / half_life), events.item_count)
    return lambda users: np.broadcast_to(counts, (users.size, counts.size))


def counted_together(matrix: np.ndarray) -> np.ndarray:
    """float32[items, items] of float32[users, items]: users who have both; on the diagonal, who have the one."""
    return matrix.T @ matrix


def similarity(counts: np.ndarray, kind: str, shrinkage: float, neighbours: int) -> np.ndarray:
    """float32[items, items]: row j, how much having j says for each item; 0 for itself.

    counts: `counted_together`. cosine: n_ij / (sqrt(n_i n_j) + shrinkage). conditional: the share of those who
    have j that have i too, n_ij / (n_j + shrinkage). Only a row's `neighbours` largest stay (0: all).
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
    """Sums the similarities to what a user has had. matrix float32[users, items], counts of its."""
    similar = similarity(counts, kind, shrinkage, neighbours)
    return lambda users: matrix[users] @ similar


def ease_weights(counts: np.ndarray, l2: float) -> np.ndarray:
    """float32[items, items] of Steck's EASE (WWW 2019): least squares from all other items, zero diagonal.

    B = I - P / diag(P) by columns, P = (X'X + l2 I)^-1, X'X = `counted_together`.
    """
    regularised = counts.astype(np.float64)
    regularised[np.diag_indices_from(regularised)] += l2
    inverse = np.linalg.inv(regularised)
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0.0)
    return weights


def recency(events: Events, half_life: float) -> np.ndarray:
    """float[n]: an event counts half after `half_life` later ones of its user."""
    place, count = places(events, by_user=True)
    return 0.5 ** ((count - 1 - place) / half_life)


def linear(history: np.ndarray, weights: np.ndarray) -> Scores:
    """Scores of a history float32[users, items] (all ones, or by `recency`) through item weights."""
    return lambda users: history[users] @ weights
