"""A mix of experts in NumPy, with the bits of the server.

`livefactor_kernels.reading` explains the experts, how their scores are standardised, and the order
of each sum.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

HALF_LIVES = (0.0, 6.0, 1.5)
FOLDS = len(HALF_LIVES)
COUNT_HALF_LIVES = (0.0, 6.0, 0.5)
COUNTS = FOLDS
REPEATS = COUNTS + len(COUNT_HALF_LIVES)
POPULARITY = REPEATS + 1
NEIGHBORS = POPULARITY + 1
WALK = NEIGHBORS + 1
EXPERTS = WALK + 1
GROUP_STARTS = (1, 5, 20)
SUM, SQUARES = (len(GROUP_STARTS) + 1) * NEIGHBORS + 1, (len(GROUP_STARTS) + 1) * NEIGHBORS + 2
NEIGHBOR_WEIGHTS = SQUARES + 3
WALK_WEIGHTS = NEIGHBOR_WEIGHTS + len(GROUP_STARTS) + 1 + 3
VARIANCE_MIN = 1e-12


class Gains(NamedTuple):
    """The gains of a few items: rows int64[m], ascending, and gains float32[m]."""

    rows: np.ndarray
    gains: np.ndarray

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The gains of item rows int64[n], float64[n]; 0 for other rows."""
        if not self.rows.size:
            return np.zeros(len(rows))
        place = np.minimum(np.searchsorted(self.rows, rows), self.rows.size - 1)
        return np.where(self.rows[place] == rows, self.gains[place], np.float32(0.0)).astype(np.float64)


def combined(
    mix: np.ndarray,
    gram: np.ndarray,
    folds: np.ndarray,
    counts: list[Gains],
    repeats: Gains,
    neighbors: Gains,
    walks: Gains,
    events: int,
) -> tuple[np.ndarray, np.float32, Gains]:
    """The factors float32[kp], the bias and the gains of a user.

    mix: float64[35, 37, 41, 44 or 48], the section. gram: float64[k + 1, k + 1], of the items.
    folds: float32[FOLDS, kp], the user's rows with each half-life. counts: the gains with each
    of `COUNT_HALF_LIVES`, of the same rows. neighbors and walks: the gains from similar users
    and from walks. events: the number of remembered events.
    """
    k, count = len(gram) - 1, max(float(gram[-1, -1]), 1.0)
    sums = [_row_sums(row[:k], gram) for row in folds]
    sums += [_sums(each.gains.astype(np.float64)) for each in (*counts, repeats)]
    sums += [
        (float(mix[SUM]), float(mix[SQUARES])),
        *(_sums(each.gains.astype(np.float64)) for each in (neighbors, walks)),
    ]
    moments = [_moments(total, squares, count) for total, squares in sums]
    group = bisect_right(GROUP_STARTS, events)
    similar = mix[NEIGHBOR_WEIGHTS + group] if len(mix) > NEIGHBOR_WEIGHTS else 0.0
    walked = mix[WALK_WEIGHTS + group] if len(mix) > WALK_WEIGHTS else 0.0
    weights = np.append(mix[group * NEIGHBORS : (group + 1) * NEIGHBORS], [similar, walked])
    scaled = [weight * scale for weight, (_, scale) in zip(weights, moments, strict=True)]
    unit = scaled[POPULARITY] or 1.0
    row, shift = np.zeros(folds.shape[1]), 0.0
    for expert in range(EXPERTS):
        shift -= scaled[expert] / unit * moments[expert][0]
        if expert < FOLDS:
            row += (scaled[expert] / unit) * folds[expert]
    rows = np.unique(np.concatenate([each.rows for each in (counts[0], repeats, neighbors, walks)]))
    gains = (scaled[REPEATS] / unit) * repeats.at(rows)
    for expert, each in enumerate(counts, COUNTS):
        gains += (scaled[expert] / unit) * each.at(rows)
    gains += (scaled[NEIGHBORS] / unit) * neighbors.at(rows)
    gains += (scaled[WALK] / unit) * walks.at(rows)
    return row.astype(np.float32), np.float32(shift), Gains(rows, gains.astype(np.float32))


def _moments(total: float, squares: float, count: float) -> tuple[float, float]:
    """The mean of scores, and 1 / (their standard deviation) or 0."""
    mean = total / count
    variance = squares / count - mean * mean
    return mean, 1.0 / float(np.sqrt(variance)) if variance > VARIANCE_MIN else 0.0


def _row_sums(x: np.ndarray, gram: np.ndarray) -> tuple[float, float]:
    """x . g and x' G x, each summed from left to right."""
    wide, k = x.astype(np.float64), len(x)
    lines = np.cumsum(gram[:k, :k] * wide, axis=1)[:, -1]
    return float(np.cumsum(wide * gram[k, :k])[-1]), float(np.cumsum(wide * lines)[-1])


def _sums(gains: np.ndarray) -> tuple[float, float]:
    """The sums of gains and of their squares, from left to right."""
    if not gains.size:
        return 0.0, 0.0
    return float(np.cumsum(gains)[-1]), float(np.cumsum(gains * gains)[-1])
