"""The arithmetic of a mix in compiled code. The semantics are in `reading/__init__.py`."""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.numbers.random import draw_below
from livefactor_kernels.reading import (
    DECAY,
    EXPERTS,
    POPULARITY,
    POPULARITY_MIN,
    SIZE,
    SQUARES,
    STEP_MAX,
    SUM,
)
from livefactor_kernels.reading.experts import Remembered
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.solve import FOLD_SWEEPS, SolveRates
from livefactor_kernels.solve.cpu_records import Side
from livefactor_kernels.solve.cpu_system import Events, Problem, Scratch, livefactor_fold_kernel
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.update import Update, UpdateRun, writable

_0 = np.uint64(0)
_NO_VALUES = np.empty(0, np.float32)
_F0, _F1, _F2, _D0 = np.float32(0.0), np.float32(1.0), np.float32(2.0), np.float64(0.0)


class Lists(NamedTuple):
    """The followers of n items, by section name (`history.cpu.Followers`).

    Attributes:
        neighbor_rows: uint32[n, M].
        neighbor_counts: float32[n, M].
        seen_count: numbers of the items' events, uint32[n].
    """

    neighbor_rows: np.ndarray
    neighbor_counts: np.ndarray
    seen_count: np.ndarray


class CpuArithmetic:
    """As `learning.LearningArithmetic`. Any thread may call it."""

    def __init__(self, spec: ModelSpec) -> None:
        """The first calls compile the kernels, or load them from the cache."""
        self._spec, self._rates, self._k = spec, SolveRates.of(spec), np.uint64(spec.k)
        self._shrinkage = np.float32(spec.counts.shrinkage)
        self._memory = threading.local()

    def compile_kernels(self) -> None:
        """Compiles the kernels, or loads them from the cache."""
        word, one, zero = np.zeros(1, np.uint32), np.ones(1, np.float32), np.zeros(1, np.float32)
        rows, counts = np.zeros((1, LANES), np.uint32), np.zeros((1, LANES), np.float32)
        x, y = np.zeros(self._spec.k_padded, np.float32), reserve((1, self._spec.k_padded), np.float32)
        events = Remembered(word, one, one, np.zeros(1, np.int64))
        k = self._spec.k
        self.fold(x, y, events, one, np.zeros((k, k), np.float32), _F0, 1)
        lists = {"neighbor_rows": rows, "neighbor_counts": counts, "seen_count": word}
        self.gains(lists, one, word, word)
        self.row_sums(x[:k], np.zeros((k + 1, k + 1)))
        self.sums(one)
        self.draws(_0, 0, 0, 0, 1, 1)
        self.dots(x[:k], y)
        one_event = Update(0, np.zeros(1, np.uint32), np.zeros(1, np.uint32), None, None, 0, 0)
        self.predicted(_0, UpdateRun.of([one_event]), np.ones(1, np.uint64), np.zeros(1, np.int64))
        z, mix = np.zeros((EXPERTS, 1)), np.zeros(SIZE)
        self.step(mix[:EXPERTS], z, np.ones(EXPERTS, bool), np.float64(0.0))
        self.add_events(word, one, zero, zero.copy(), mix)
        self.decay(zero, zero.copy(), mix)

    def fold(self, x: np.ndarray, y: np.ndarray, events: Remembered, decay: np.ndarray, everywhere: np.ndarray,
             unobserved: np.float32, items: int) -> np.ndarray:  # fmt: skip
        """See `experts.Arithmetic.fold`."""
        scratch, k = self._scratch(), self._spec.k
        scratch.everywhere[:k, :k] = everywhere
        no_bias = np.zeros(max(len(y), 1), np.float32)
        user, others = Side(x[None], no_bias), Side(y, no_bias)
        weights, places = events.weights * decay[events.ages], np.arange(len(y), dtype=np.uint32)
        values = np.ascontiguousarray(events.values)
        problem = Problem(_F0, np.float32(items), self._rates._replace(unobserved=unobserved))
        system = Events(address_of(places), address_of(values), address_of(weights), np.uint64(len(y)))
        livefactor_fold_kernel(user, _0, others, problem, system, scratch, FOLD_SWEEPS)
        return scratch.x[: x.size].copy()

    def _scratch(self) -> Scratch:
        scratch: Scratch | None = getattr(self._memory, "scratch", None)
        if scratch is None:
            scratch = self._memory.scratch = Scratch.of(self._spec)
        return scratch

    def gains(self, lists: dict[str, np.ndarray], weights: np.ndarray, rows: np.ndarray,
              events: np.ndarray) -> np.ndarray:  # fmt: skip
        """See `experts.Arithmetic.gains`."""
        gains = np.zeros(len(rows), np.float32)
        livefactor_gain_kernel(Lists(**lists), weights, rows, events, self._shrinkage, _F1, gains)
        return gains

    def row_sums(self, x: np.ndarray, gram: np.ndarray) -> tuple[float, float]:
        """See `experts.Arithmetic.row_sums`."""
        total, squares = livefactor_row_sums_kernel(x, gram, self._k)
        return float(total), float(squares)

    def sums(self, gains: np.ndarray) -> tuple[float, float]:
        """See `experts.Arithmetic.sums`."""
        total, squares = livefactor_sums_kernel(gains)
        return float(total), float(squares)

    def draws(
        self, key: np.uint64, revision: int, event: int, first: int, size: int, count: int
    ) -> np.ndarray:
        """See `learning.LearningArithmetic.draws`."""
        draws = np.empty(size, np.int64)
        livefactor_draws_kernel(
            key, np.uint64(revision), np.uint64(event), np.uint64(first), np.uint64(count), draws
        )
        return draws

    def predicted(self, key: np.uint64, run: UpdateRun, shares: np.ndarray, items: np.ndarray) -> np.ndarray:
        """See `learning.LearningArithmetic.predicted`."""
        update = run.joined
        values = _NO_VALUES if update.values is None else writable(update.values)
        predicted = np.zeros(update.item_rows.size, np.bool_)
        columns = update.item_rows, values, np.int64(update.fresh), run.ends, shares, items
        livefactor_predicted_kernel(key, np.uint64(run.revision), *columns, predicted)
        return predicted

    def dots(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `learning.LearningArithmetic.dots`."""
        dots = np.empty(len(y))
        livefactor_dots_kernel(x, y, self._k, dots)
        return dots

    def step(self, weights: np.ndarray, z: np.ndarray, learns: np.ndarray, rate: np.float64) -> None:
        """See `learning.LearningArithmetic.step`."""
        livefactor_step_weights_kernel(weights, z, learns, rate)

    def add_events(self, rows: np.ndarray, weights: np.ndarray, popularity: np.ndarray, bias: np.ndarray,
                   mix: np.ndarray) -> None:  # fmt: skip
        """See `learning.LearningArithmetic.add_events`."""
        livefactor_popularity_kernel(rows, weights, popularity, bias, mix)

    def decay(self, popularity: np.ndarray, bias: np.ndarray, mix: np.ndarray) -> None:
        """See `learning.LearningArithmetic.decay`."""
        livefactor_decay_kernel(popularity, bias, mix)


@compiled
def livefactor_gain_kernel(
    lists: Any, weights: Any, followers: Any, event_counts: Any, shrinkage: Any, weight: Any, gains: Any
) -> None:
    """Adds the gains of the rows `followers` (uint32[m], ascending) to `gains`, float32[m] zeros.

    `lists` are those of the user's events, and `weights` float32[n] are their weights.
    `event_counts` uint32[m] are the numbers of the followers' events.
    """
    total, counts = _F0, lists.neighbor_counts
    for j in range(np.uint64(weights.size)):
        total += weights[j]
        own = np.float32(lists.seen_count[j])
        for place in range(np.uint64(counts.shape[1])):
            if counts[j, place] > _F0:
                at = np.searchsorted(followers, lists.neighbor_rows[j, place])
                norm = np.sqrt(own * np.float32(event_counts[at])) + shrinkage
                gains[at] += (weights[j] * counts[j, place]) / norm
    for at in range(np.uint64(gains.size)):
        gains[at] = (weight * gains[at]) / total


@compiled
def livefactor_row_sums_kernel(x: Any, gram: Any, k: Any) -> Any:
    """x . g and x' G x."""
    total, squares = _D0, _D0
    for p in range(k):
        line = _D0
        for q in range(k):
            line += gram[p, q] * np.float64(x[q])
        total += np.float64(x[p]) * gram[k, p]
        squares += np.float64(x[p]) * line
    return total, squares


@compiled
def livefactor_sums_kernel(gains: Any) -> Any:
    """The sums of gains and of their squares."""
    total, squares = _D0, _D0
    for at in range(np.uint64(gains.size)):
        gain = np.float64(gains[at])
        total += gain
        squares += gain * gain
    return total, squares


@compiled
def livefactor_draws_kernel(key: Any, revision: Any, event: Any, first: Any, count: Any, draws: Any) -> None:
    """Writes draws int64[size]."""
    for j in range(np.uint64(draws.size)):
        draws[j] = np.int64(draw_below(key, revision, event, first + j, count))


@compiled
def livefactor_predicted_kernel(
    key: Any,
    first: Any,
    rows: Any,
    values: Any,
    fresh: Any,
    ends: Any,
    shares: Any,
    items: Any,
    predicted: Any,
) -> None:
    """Sets predicted bool[n] where an event is predicted; all are False before.

    `first` is the revision of the first record. Events from `fresh` on are replayed.
    """
    start = np.int64(0)
    for record in range(ends.size):
        revision, end = first + np.uint64(record), min(ends[record], fresh)
        for t in range(start, end):
            liked = values[t] > _F0 if values.size else True
            if liked and np.int64(rows[t]) < items[record]:
                event = np.uint64(t - start)
                predicted[t] = draw_below(key, revision, event, _0, shares[record]) == _0
        start = ends[record]


@compiled
def livefactor_dots_kernel(x: Any, y: Any, k: Any, dots: Any) -> None:
    """Writes the dot products of x with the rows of y."""
    for c in range(np.uint64(dots.size)):
        total = _D0
        for p in range(k):
            total += np.float64(x[p]) * np.float64(y[c, p])
        dots[c] = total


@compiled
def livefactor_step_weights_kernel(weights: Any, z: Any, learns: Any, rate: Any) -> None:
    """Steps the weights that `learns` selects."""
    size = np.uint64(z.shape[1])
    scores, sums, total = np.empty(size), np.zeros(EXPERTS), _D0
    for c in range(size):
        score = weights[0] * z[0, c]
        for expert in range(1, EXPERTS):
            score += weights[expert] * z[expert, c]
        scores[c] = score
    highest = scores.max()
    for c in range(size):
        q = np.float64(scalar.exp(np.float32(scores[c] - highest)))
        total += q
        for expert in range(EXPERTS):
            sums[expert] += q * z[expert, c]
    for expert in range(EXPERTS):
        if learns[expert]:
            step = min(max(sums[expert] / total - z[expert, 0], -STEP_MAX), STEP_MAX)
            least = POPULARITY_MIN if expert == POPULARITY else 0.0
            weights[expert] = max(weights[expert] - rate * step, least)


@compiled
def _log(count: Any) -> Any:
    """log(1 + count) of the semantics."""
    mantissa, exponent = math.frexp(_F1 + count)
    return np.float32(exponent - 1) + (_F2 * np.float32(mantissa) - _F1)


@compiled
def livefactor_popularity_kernel(rows: Any, weights: Any, popularity: Any, bias: Any, mix: Any) -> None:
    """Adds events of items to the popularity."""
    for t in range(np.uint64(rows.size)):
        row = np.uint64(rows[t])
        popularity[row] += weights[t]
        old, new = np.float64(bias[row]), np.float64(_log(popularity[row]))
        bias[row] = np.float32(new)
        mix[SUM] = (mix[SUM] + new) - old
        mix[SQUARES] = (mix[SQUARES] + new * new) - old * old


@compiled
def livefactor_decay_kernel(popularity: Any, bias: Any, mix: Any) -> None:
    """Decays the popularity of all items."""
    total, squares = _D0, _D0
    for row in range(np.uint64(bias.size)):
        popularity[row] *= DECAY
        bias[row] = _log(popularity[row])
        p = np.float64(bias[row])
        total += p
        squares += p * p
    mix[SUM], mix[SQUARES] = total, squares
