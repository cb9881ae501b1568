"""Losses, ranks and ranking metrics, as pure functions of arrays.

Ranks count from 0. An event has one relevant item. A figure over no events is NaN.
"""

from __future__ import annotations

import numpy as np


def squared_loss(scores: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The squared loss w (s - v)^2 / 2 of each event, float64[n]. All arguments are [n]."""
    errors = scores.astype(np.float64) - values
    return np.asarray(0.5 * weights * errors * errors)


def logistic_loss(
    scores: np.ndarray, labels: np.ndarray, negatives: np.ndarray, drawn: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The log loss of each event and its negatives, float64[n].

    It is w (log(1 + e^-s) + sum log(1 + e^s_n)) for label 1, and w log(1 + e^s) for label 0.

    Args:
        scores: scores of the events, [n].
        labels: 0 or 1, [n].
        negatives: scores of the sampled negatives, [n, d].
        drawn: whether the event has negatives, bool[n]. An event with label 0 never uses them.
        weights: weights of the events, [n].
    """
    positive = labels > 0
    own = np.logaddexp(0.0, np.where(positive, -1.0, 1.0) * scores.astype(np.float64))
    others = np.logaddexp(0.0, negatives.astype(np.float64)).sum(axis=1)
    return np.asarray(weights * (own + np.where(positive & drawn, others, 0.0)))


def bpr_loss(scores: np.ndarray, negatives: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The BPR loss w sum log(1 + e^(s_n - s)) of each event, float64[n].

    Source: Rendle et al., BPR, UAI 2009. `scores` and `weights` are [n], `negatives` are [n, d].
    """
    margins = negatives.astype(np.float64) - scores.astype(np.float64)[:, None]
    return np.asarray(weights * np.logaddexp(0.0, margins).sum(axis=1))


def ranks(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The rank of each own score [n] among the scores of other items [n, m], int64[n].

    It is the number of higher scores, and half of the number of equal ones.
    """
    higher = (others > own[:, None]).sum(axis=1)
    equal = (others == own[:, None]).sum(axis=1)
    return np.asarray(higher + equal // 2, np.int64)


def recall_at(k: int, ranked: np.ndarray) -> np.ndarray:
    """Recall@k of ranks [n], float64[n]: 1 if the rank is below k, else 0.

    It equals the hit rate, since there is one relevant item.
    """
    return (ranked < k).astype(np.float64)


def ndcg_at(k: int, ranked: np.ndarray) -> np.ndarray:
    """NDCG@k of ranks [n], float64[n]: 1 / log2(rank + 2) if the rank is below k, else 0."""
    return np.where(ranked < k, 1.0 / np.log2(np.asarray(ranked, np.float64) + 2.0), 0.0)


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean of values [n] without NaN."""
    there = ~np.isnan(values)
    total = float(weights[there].sum())
    return float(weights[there] @ values[there]) / total if total > 0 else float("nan")


def rmse(squared_errors: np.ndarray, weights: np.ndarray) -> float:
    """The root of the weighted mean of squared errors [n]."""
    return float(np.sqrt(mean(squared_errors, weights)))


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """The area under the ROC curve.

    It is the weighted share of (positive, negative) pairs in the right order; ties count half.
    `scores` and `weights` are [n], `positive` is bool[n]. Without a pair it is NaN.
    """
    order = np.argsort(scores, kind="stable")
    ordered, up = scores[order], positive[order]
    gain, loss = np.where(up, weights[order], 0.0), np.where(up, 0.0, weights[order])
    total = float(gain.sum() * loss.sum())
    if total <= 0:
        return float("nan")
    # Equal scores form one group.
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    gains, losses = np.add.reduceat(gain, starts), np.add.reduceat(loss, starts)
    below = np.cumsum(losses) - losses
    return float((gains * (below + 0.5 * losses)).sum()) / total


def half_life_weights(count: int, half_life: float) -> np.ndarray:
    """The weights 2^(-age / half-life) of `count` events, float64[count].

    The last event has age 0.
    """
    return np.exp2(-np.arange(count - 1, -1, -1) / half_life)
