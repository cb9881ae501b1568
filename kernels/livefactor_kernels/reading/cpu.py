"""The arithmetic of a mix in compiled code. The semantics are in `reading/__init__.py`."""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, address_of, load16, tree_sum
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
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.solve import FOLD_SWEEPS, SolveRates
from livefactor_kernels.solve.cpu_records import Side
from livefactor_kernels.solve.cpu_system import Events, Problem, Scratch, livefactor_fold_kernel
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.update import Update, UpdateRun, writable

_0, _1, _4, _32 = np.uint64(0), np.uint64(1), np.uint64(4), np.uint64(32)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
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
        # The learned weights of a mix replace the weight of counts.
        self._factor = _F1 if spec.mix.learning_rate else np.float32(spec.counts.weight)
        self._memory = threading.local()

    def compile_kernels(self) -> None:
        """Compiles the kernels, or loads them from the cache."""
        word, one, zero = np.zeros(1, np.uint32), np.ones(1, np.float32), np.zeros(1, np.float32)
        rows, counts = np.zeros((1, LANES), np.uint32), np.zeros((1, LANES), np.float32)
        x, y = np.zeros(self._spec.k_padded, np.float32), reserve((1, self._spec.k_padded), np.float32)
        k = self._spec.k
        self.folds(x, y, one, one[None], np.zeros((k, k), np.float32), _F0, 1)
        lists = {"neighbor_rows": rows, "neighbor_counts": counts, "seen_count": word}
        self.followers(lists)
        self.gains(lists, one[None], word, word)
        self.row_sums(np.zeros((1, k), np.float32), np.zeros((k + 1, k + 1)))
        self.sums(one[None])
        self.draws(_0, 0, 0, 0, 1, 1)
        self.dots(y[0], y)
        one_event = Update(0, np.zeros(1, np.uint32), np.zeros(1, np.uint32), None, None, 0, 0)
        self.predicted(_0, UpdateRun.of([one_event]), np.ones(1, np.uint64), np.zeros(1, np.int64))
        z, mix = np.zeros((EXPERTS, 1)), np.zeros(SIZE)
        self.step(mix[:EXPERTS], z, np.ones(1), np.ones(EXPERTS, bool), np.float64(0.0), True)
        self.add_events(word, one, zero, zero.copy(), mix)
        self.decay(zero, zero.copy(), mix)

    def folds(self, x: np.ndarray, y: np.ndarray, values: np.ndarray, weights: np.ndarray,
              everywhere: np.ndarray, unobserved: np.float32, items: int) -> np.ndarray:  # fmt: skip
        """See `experts.Arithmetic.folds`."""
        scratch, k = self._scratch(), self._spec.k
        scratch.everywhere[:k, :k] = everywhere
        no_bias = np.zeros(max(len(y), 1), np.float32)
        user, others = Side(x[None], no_bias), Side(y, no_bias)
        problem = Problem(_F0, np.float32(items), self._rates._replace(unobserved=unobserved))
        folds = np.empty((len(weights), x.size), np.float32)
        places = np.arange(len(y), dtype=np.uint32)
        values, weights = np.ascontiguousarray(values), np.ascontiguousarray(weights)
        livefactor_folds_kernel(user, others, problem, places, values, weights, scratch, folds)
        return folds

    def _scratch(self) -> Scratch:
        scratch: Scratch | None = getattr(self._memory, "scratch", None)
        if scratch is None:
            scratch = self._memory.scratch = Scratch.of(self._spec)
        return scratch

    def followers(self, lists: dict[str, np.ndarray]) -> np.ndarray:
        """See `experts.Arithmetic.followers`."""
        found = np.empty(lists["neighbor_rows"].size, np.uint32)
        size = livefactor_followers_kernel(Lists(**lists), _empty_map(found.size), found)
        return np.sort(found[:size])

    def gains(self, lists: dict[str, np.ndarray], weights: np.ndarray, rows: np.ndarray,
              events: np.ndarray) -> np.ndarray:  # fmt: skip
        """See `experts.Arithmetic.gains`."""
        gains = np.zeros((len(weights), len(rows)), np.float32)
        found = Lists(**lists), weights, rows, events, _empty_map(rows.size)
        livefactor_gain_kernel(*found, self._shrinkage, self._factor, gains)
        return gains

    def row_sums(self, rows: np.ndarray, gram: np.ndarray) -> np.ndarray:
        """See `experts.Arithmetic.row_sums`."""
        sums = np.empty((len(rows), 2))
        livefactor_row_sums_kernel(rows, gram, self._k, sums)
        return sums

    def sums(self, gains: np.ndarray) -> np.ndarray:
        """See `experts.Arithmetic.sums`."""
        sums = np.empty((len(gains), 2))
        livefactor_sums_kernel(gains, sums)
        return sums

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
        dots, row = np.empty(len(y), np.float32), self._scratch().x[: x.size]
        row[:] = x
        livefactor_dots_kernel(row, y, dots)
        return dots

    def step(self, weights: np.ndarray, z: np.ndarray, odds: np.ndarray, learns: np.ndarray,
             rate: np.float64, root: bool) -> None:  # fmt: skip
        """See `learning.LearningArithmetic.step`."""
        livefactor_step_weights_kernel(weights, z, odds, learns, rate, root)

    def add_events(self, rows: np.ndarray, weights: np.ndarray, popularity: np.ndarray, bias: np.ndarray,
                   mix: np.ndarray) -> None:  # fmt: skip
        """See `learning.LearningArithmetic.add_events`."""
        livefactor_popularity_kernel(rows, weights, popularity, bias, mix)

    def decay(self, popularity: np.ndarray, bias: np.ndarray, mix: np.ndarray) -> None:
        """See `learning.LearningArithmetic.decay`."""
        livefactor_decay_kernel(popularity, bias, mix)


def _empty_map(rows: int) -> np.ndarray:
    """A hash map of up to `rows` item rows: places uint32[n] of rows, plus 1; 0 if empty."""
    return np.zeros(1 << max(2 * rows - 1, 1).bit_length(), np.uint32)


@compiled
def _place(table: Any, rows: Any, row: Any) -> Any:
    """The place in `table` that has `row`, or the empty place for it (linear probing)."""
    last = np.uint64(table.size) - _1
    place = ((np.uint64(row) * _GOLDEN) >> _32) & last
    while table[place] != 0 and rows[table[place] - 1] != row:
        place = (place + _1) & last
    return place


@compiled
def livefactor_followers_kernel(lists: Any, table: Any, found: Any) -> Any:
    """Writes the distinct followers to `found`. Returns their number."""
    size: Any = _0
    for j in range(np.uint64(lists.neighbor_rows.shape[0])):
        for place in range(np.uint64(lists.neighbor_rows.shape[1])):
            if lists.neighbor_counts[j, place] > _F0:
                row = lists.neighbor_rows[j, place]
                at = _place(table, found, row)
                if table[at] == 0:
                    found[size] = row
                    size += _1
                    table[at] = np.uint32(size)
    return size


@compiled
def livefactor_gain_kernel(
    lists: Any,
    weights: Any,
    followers: Any,
    event_counts: Any,
    table: Any,
    shrinkage: Any,
    factor: Any,
    gains: Any,
) -> None:
    """Adds the gains of the rows `followers` (uint32[m], ascending) to gains, float32[d, m] zeros.

    `lists` are those of the user's events, and `weights` float32[d, n] are their weights.
    `event_counts` uint32[m] are the numbers of the followers' events. `table` is an empty map.
    """
    counts, kinds = lists.neighbor_counts, np.uint64(weights.shape[0])
    for at in range(np.uint64(followers.size)):
        table[_place(table, followers, followers[at])] = np.uint32(at + _1)
    for j in range(np.uint64(weights.shape[1])):
        own = np.float32(lists.seen_count[j])
        for place in range(np.uint64(counts.shape[1])):
            if counts[j, place] > _F0:
                slot = np.uint64(table[_place(table, followers, lists.neighbor_rows[j, place])]) - _1
                norm = np.sqrt(own * np.float32(event_counts[slot])) + shrinkage
                for kind in range(kinds):
                    gains[kind, slot] += (weights[kind, j] * counts[j, place]) / norm
    for kind in range(kinds):
        total = _F0
        for j in range(np.uint64(weights.shape[1])):
            total += weights[kind, j]
        for at in range(np.uint64(followers.size)):
            gains[kind, at] = (factor * gains[kind, at]) / total


@compiled
def livefactor_folds_kernel(
    own: Any, others: Any, problem: Any, places: Any, values: Any, weights: Any, scratch: Any, folds: Any
) -> None:
    """Solves the row 0 of `own` with each line of weights float32[d, n]. Writes float32[d, kp]."""
    for fold in range(np.uint64(weights.shape[0])):
        rows, count = address_of(places), np.uint64(places.size)
        events = Events(rows, address_of(values), address_of(weights) + fold * count * _4, count)
        livefactor_fold_kernel(own, _0, others, problem, events, scratch, FOLD_SWEEPS)
        for p in range(np.uint64(folds.shape[1])):
            folds[fold, p] = scratch.x[p]


@compiled
def livefactor_row_sums_kernel(rows: Any, gram: Any, k: Any, sums: Any) -> None:
    """Writes x . g and x' G x of each x."""
    for row in range(np.uint64(rows.shape[0])):
        x, total, squares = rows[row], _D0, _D0
        for p in range(k):
            line = _D0
            for q in range(k):
                line += gram[p, q] * np.float64(x[q])
            total += np.float64(x[p]) * gram[k, p]
            squares += np.float64(x[p]) * line
        sums[row, 0], sums[row, 1] = total, squares


@compiled
def livefactor_sums_kernel(gains: Any, sums: Any) -> None:
    """Writes the sums of each line of gains and of their squares."""
    for row in range(np.uint64(gains.shape[0])):
        total, squares = _D0, _D0
        for at in range(np.uint64(gains.shape[1])):
            gain = np.float64(gains[row, at])
            total += gain
            squares += gain * gain
        sums[row, 0], sums[row, 1] = total, squares


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
def livefactor_dots_kernel(x: Any, y: Any, dots: Any) -> None:
    """Writes the dot products of x with the rows of y."""
    row = np.uint64(x.size) * _4
    own, others = address_of(x), address_of(y)
    for c in range(np.uint64(dots.size)):
        lanes = load16(own, _0) * load16(others, c * row)
        for at in range(VECTOR_BYTES, row, VECTOR_BYTES):
            lanes = lanes + load16(own, at) * load16(others, c * row + at)
        dots[c] = tree_sum(lanes)


@compiled
def livefactor_step_weights_kernel(
    weights: Any, z: Any, odds: Any, learns: Any, rate: Any, root: Any
) -> None:
    """Steps the weights that `learns` selects."""
    size = np.uint64(z.shape[1])
    scores, sums, total, first = np.empty(size), np.zeros(EXPERTS), _D0, _D0
    for c in range(size):
        score = weights[0] * z[0, c]
        for expert in range(1, EXPERTS):
            score += weights[expert] * z[expert, c]
        scores[c] = score
    highest = scores.max()
    for c in range(size):
        q = odds[c] * np.float64(scalar.exp(np.float32(scores[c] - highest)))
        if c == _0:
            first = q
        total += q
        for expert in range(EXPERTS):
            sums[expert] += q * z[expert, c]
    factor = np.sqrt(first / total) if root else np.float64(1.0)
    for expert in range(EXPERTS):
        if learns[expert]:
            step = min(max((sums[expert] / total - z[expert, 0]) * factor, -STEP_MAX), STEP_MAX)
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
