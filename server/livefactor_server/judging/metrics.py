"""What predictions and rankings are worth. Pure functions of arrays: no server, no model, no clock.

Ranks count from 0, and an event has one relevant item. Figures over nothing are NaN.
"""

from __future__ import annotations

import numpy as np


def squared_loss(scores: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """w (s - v)^2 / 2 of each event: float64[n] of scores, values, weights [n]."""
    errors = scores.astype(np.float64) - values
    return np.asarray(0.5 * weights * errors * errors)


def logistic_loss(
    scores: np.ndarray, labels: np.ndarray, negatives: np.ndarray, drawn: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Log loss of each event and its negatives: w (log(1 + e^-s) + sum log(1 + e^s_n)) for label 1, w log(1 + e^s) for 0.

    scores, labels (0 or 1), weights [n]; negatives [n, d]: scores of the drawn items; drawn bool[n]: whether
    the event took them (an event of label 0 never does). float64[n].
    """
    positive = labels > 0
    own = np.logaddexp(0.0, np.where(positive, -1.0, 1.0) * scores.astype(np.float64))
    others = np.logaddexp(0.0, negatives.astype(np.float64)).sum(axis=1)
    return np.asarray(weights * (own + np.where(positive & drawn, others, 0.0)))


def bpr_loss(scores: np.ndarray, negatives: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """w sum log(1 + e^(s_n - s)) of each event (Rendle et al. 2009): float64[n] of scores, weights [n], negatives [n, d]."""
    margins = negatives.astype(np.float64) - scores.astype(np.float64)[:, None]
    return np.asarray(weights * np.logaddexp(0.0, margins).sum(axis=1))


def ranks(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rank int64[n] of each own score [n] among the scores of other items [n, m]: how many are higher; of equal ones, half."""
    higher = (others > own[:, None]).sum(axis=1)
    equal = (others == own[:, None]).sum(axis=1)
    return np.asarray(higher + equal // 2, np.int64)


def recall_at(k: int, ranked: np.ndarray) -> np.ndarray:
    """1 where the relevant item is among the k best, else 0: float64[n] of ranks [n]. With one relevant item, also the hit rate."""
    return (ranked < k).astype(np.float64)


def ndcg_at(k: int, ranked: np.ndarray) -> np.ndarray:
    """1 / log2(rank + 2) where the relevant item is among the k best, else 0: float64[n] of ranks [n]."""
    return np.where(ranked < k, 1.0 / np.log2(np.asarray(ranked, np.float64) + 2.0), 0.0)


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of [n]; entries of NaN are left out."""
    there = ~np.isnan(values)
    total = float(weights[there].sum())
    return float(weights[there] @ values[there]) / total if total > 0 else float("nan")


def rmse(squared_errors: np.ndarray, weights: np.ndarray) -> float:
    """Root of the weighted mean of [n] squared errors."""
    return float(np.sqrt(mean(squared_errors, weights)))


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Area under the ROC curve: the weighted share of (positive, negative) pairs in the right order, equal ones counted half.

    scores, weights [n], positive bool[n]. NaN without a pair.
    """
    order = np.argsort(scores, kind="stable")
    ordered, up = scores[order], positive[order]
    gain, loss = np.where(up, weights[order], 0.0), np.where(up, 0.0, weights[order])
    total = float(gain.sum() * loss.sum())
    if total <= 0:
        return float("nan")
    below = np.cumsum(loss) - loss
    first = np.searchsorted(ordered, ordered, "left")
    last = np.searchsorted(ordered, ordered, "right")
    sums = np.concatenate(([0.0], np.cumsum(loss)))
    tied = sums[last] - sums[first]
    return float((gain * (below[first] + 0.5 * tied)).sum()) / total


def half_life_weights(count: int, half_life: float) -> np.ndarray:
    """2^(-age / half-life) float64[count], the last of `count` events having age 0."""
    return np.exp2(-np.arange(count - 1, -1, -1) / half_life)
