"""The arithmetic of a mix in plain NumPy: the reference for `reading/cpu.py`."""

from __future__ import annotations

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.random import draw_below
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.reading import DECAY, EXPERTS, POPULARITY, POPULARITY_MIN, SQUARES, STEP_MAX, SUM
from livefactor_kernels.solve import FOLD_SWEEPS, SolveRates
from livefactor_kernels.solve.reference import System, solve_row
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.update import UpdateRun

_F0, _F1 = np.float32(0.0), np.float32(1.0)


class ReferenceArithmetic:
    """As `learning.LearningArithmetic`."""

    def __init__(self, spec: ModelSpec) -> None:
        self._rates, self._k = SolveRates.of(spec), spec.k
        self._shrinkage = np.float32(spec.counts.shrinkage)

    def folds(self, x: np.ndarray, y: np.ndarray, values: np.ndarray, weights: np.ndarray,
              everywhere: np.ndarray, unobserved: np.float32, items: int) -> np.ndarray:  # fmt: skip
        """See `experts.Arithmetic.folds`."""
        k, rates = self._k, self._rates._replace(unobserved=unobserved)
        targets = (values > 0).astype(np.float32)
        rows = np.zeros((len(weights), len(x)), np.float32)
        for row, own in zip(rows, weights, strict=True):
            system = System(y[:, :k], own, targets, everywhere, items)
            row[:k] = solve_row(x[:k], system, rates, int(FOLD_SWEEPS))
        return rows

    def followers(self, lists: dict[str, np.ndarray]) -> np.ndarray:
        """See `experts.Arithmetic.followers`."""
        return np.unique(lists["neighbor_rows"][lists["neighbor_counts"] > 0])

    def gains(self, lists: dict[str, np.ndarray], weights: np.ndarray, rows: np.ndarray,
              events: np.ndarray) -> np.ndarray:  # fmt: skip
        """See `experts.Arithmetic.gains`."""
        gains, total = np.zeros((len(weights), len(rows)), np.float32), np.zeros(len(weights), np.float32)
        for weight, followers, counts, seen in zip(
            weights.T, lists["neighbor_rows"], lists["neighbor_counts"], lists["seen_count"], strict=True
        ):
            total += weight
            for follower, count in zip(followers, counts, strict=True):
                if count > 0:
                    at = int(np.searchsorted(rows, follower))
                    norm = np.sqrt(np.float32(seen) * np.float32(events[at])) + self._shrinkage
                    gains[:, at] += (weight * count) / norm
        return gains / total[:, None]

    def row_sums(self, rows: np.ndarray, gram: np.ndarray) -> np.ndarray:
        """See `experts.Arithmetic.row_sums`."""
        # np.cumsum adds from left to right.
        sums, k = np.zeros((len(rows), 2)), self._k
        for own, wide in zip(sums, rows.astype(np.float64), strict=True):
            lines = np.cumsum(gram[:k, :k] * wide, axis=1)[:, -1]
            own[:] = np.cumsum(wide * gram[k, :k])[-1], np.cumsum(wide * lines)[-1]
        return sums

    def sums(self, gains: np.ndarray) -> np.ndarray:
        """See `experts.Arithmetic.sums`."""
        wide = np.pad(gains.astype(np.float64), ((0, 0), (1, 0)))
        return np.stack([np.cumsum(wide, axis=1)[:, -1], np.cumsum(wide * wide, axis=1)[:, -1]], axis=1)

    def draws(
        self, key: np.uint64, revision: int, event: int, first: int, size: int, count: int
    ) -> np.ndarray:
        """See `learning.LearningArithmetic.draws`."""
        draws = np.arange(first, first + size, dtype=np.uint64)
        numbers = np.uint64(revision), np.uint64(event), draws, np.uint64(count)
        return np.asarray(draw_below(key, *numbers)).astype(np.int64)

    def predicted(self, key: np.uint64, run: UpdateRun, shares: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `learning.LearningArithmetic.predicted`."""
        predicted = np.zeros(run.joined.item_rows.size, bool)
        for record, start in enumerate([0, *run.ends.tolist()][:-1]):
            update = run[record]
            for event in np.flatnonzero(update.item_rows[: update.fresh] < items[record]).tolist():
                liked = update.values is None or update.values[event] > 0
                drawn = self.draws(key, update.revision, event, 0, 1, int(shares[record]))[0]
                predicted[start + event] = liked and drawn == 0
        return predicted

    def dots(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `learning.LearningArithmetic.dots`."""
        return np.asarray(dot(x[:, None], y.T))

    def step(self, weights: np.ndarray, z: np.ndarray, odds: np.ndarray, learns: np.ndarray,
             rate: np.float64, root: bool) -> None:  # fmt: skip
        """See `learning.LearningArithmetic.step`."""
        scores = weights[0] * z[0]
        for expert in range(1, EXPERTS):
            scores = scores + weights[expert] * z[expert]
        likely = odds * scalar.exp((scores - scores.max()).astype(np.float32)).astype(np.float64)
        total, sums = np.float64(0.0), np.zeros(EXPERTS)
        for candidate, q in enumerate(likely):
            total += q
            sums = sums + q * z[:, candidate]
        factor = np.sqrt(likely[0] / total) if root else np.float64(1.0)
        for expert in np.flatnonzero(learns).tolist():
            step = min(max((sums[expert] / total - z[expert, 0]) * factor, -STEP_MAX), STEP_MAX)
            least = POPULARITY_MIN if expert == POPULARITY else 0.0
            weights[expert] = max(weights[expert] - rate * step, least)

    def add_events(self, rows: np.ndarray, weights: np.ndarray, popularity: np.ndarray, bias: np.ndarray,
                   mix: np.ndarray) -> None:  # fmt: skip
        """See `learning.LearningArithmetic.add_events`."""
        for row, weight in zip(rows, weights, strict=True):
            popularity[row] += weight
            old, new = np.float64(bias[row]), _log(popularity[row])
            bias[row] = new
            mix[SUM] = (mix[SUM] + np.float64(new)) - old
            mix[SQUARES] = (mix[SQUARES] + np.float64(new) * np.float64(new)) - old * old

    def decay(self, popularity: np.ndarray, bias: np.ndarray, mix: np.ndarray) -> None:
        """See `learning.LearningArithmetic.decay`."""
        mix[SUM] = mix[SQUARES] = 0.0
        for row in range(len(bias)):
            popularity[row] *= DECAY
            bias[row] = _log(popularity[row])
            mix[SUM] += np.float64(bias[row])
            mix[SQUARES] += np.float64(bias[row]) * np.float64(bias[row])


def _log(count: np.float32) -> np.float32:
    """log(1 + count) of the semantics."""
    mantissa, exponent = np.frexp(_F1 + count)
    return np.float32(np.float32(exponent - 1) + (np.float32(2.0) * mantissa - _F1))
