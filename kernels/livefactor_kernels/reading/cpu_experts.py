"""What the experts of a mix say of a user, in compiled code (semantics: `reading/__init__.py`).

The functions are parts of the kernels of reads (`cpu_readers.py`) and of learning
(`cpu_learning.py`). Each of their threads has a `Desk`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.history import DECAY_STEPS, decays
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, address_of, load16, store1, tree_sum
from livefactor_kernels.numbers.parts import inlined, part
from livefactor_kernels.reading import (
    COUNT_HALF_LIVES,
    COUNTS,
    EXPERTS,
    FOLDS,
    GROUP_STARTS,
    GROUPS,
    HALF_LIVES,
    NEIGHBOR_WEIGHTS,
    NEIGHBORS,
    POPULARITY,
    REPEATS,
    SQUARES,
    SUM,
    VARIANCE_MIN,
    WALK,
    WALK_WEIGHTS,
)
from livefactor_kernels.reading.cpu_neighbors import Hood, gaining_items, walked_items
from livefactor_kernels.reading.cpu_rows import Rows, sort_rows
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import real, word
from livefactor_kernels.solve import FOLD_SWEEPS, SolveRates
from livefactor_kernels.solve.cpu_system import (
    Events,
    Problem,
    Scratch,
    has_start,
    livefactor_sweep_kernel,
    livefactor_system_kernel,
)
from livefactor_kernels.spec.model import ModelSpec

KINDS = len(COUNT_HALF_LIVES)
"""Number of experts with gains from counts."""
NEAR_LANE, WALK_LANE = np.uint64(KINDS), np.uint64(KINDS + 1)
"""Lanes of the gains from similar users and from walks."""
_0, _1, _4, _32 = np.uint64(0), np.uint64(1), np.uint64(4), np.uint64(32)
_STEPS = np.uint64(DECAY_STEPS)
_FOLDS, _KINDS, _LEARNED = np.uint64(FOLDS), np.uint64(KINDS), np.uint64(NEIGHBORS)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_F0, _F1, _D0, _D1 = np.float32(0.0), np.float32(1.0), np.float64(0.0), np.float64(1.0)


class Decays(NamedTuple):
    """The decays of the experts, by age: float32[any, DECAY_STEPS], and float32[DECAY_STEPS]."""

    folds: np.ndarray
    counts: np.ndarray
    repeats: np.ndarray

    @staticmethod
    def of(spec: ModelSpec) -> Decays:
        """The decays of a spec."""
        folds, counts = (
            np.stack([decays(half_life) for half_life in half_lives])
            for half_lives in (HALF_LIVES, COUNT_HALF_LIVES)
        )
        return Decays(folds, counts, decays(spec.counts.half_life))


class Desk(NamedTuple):
    """Working memory for one user. H is `history.users`, and L is `gaining_items`.

    Attributes:
        systems: of the folded-in rows. They are in systems.x.
        fold_weights: weights of events, float32[FOLDS, H].
        count_weights: float32[KINDS, span].
        followers: `KINDS` gains of the followers of items, and with similar users and walks the
            gains from them, for L rows.
        repeats: gains of the user's own items, for H rows.
        norms, quotients: float32[M] and float32[M, KINDS].
        lines: float64[FOLDS, k].
        means, scales, weights: the moments and the weights of the experts, float64[EXPERTS].
        hood, walk: for the similar users, and for walks.
        walked: the items at the ends of walks.
    """

    systems: Scratch
    fold_weights: np.ndarray
    count_weights: np.ndarray
    followers: Rows
    repeats: Rows
    norms: np.ndarray
    lines: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    weights: np.ndarray
    hood: Hood
    walk: Hood
    walked: Rows

    @staticmethod
    def of(spec: ModelSpec) -> Desk:
        """For the users of a model."""
        counts, length = spec.counts, spec.history.users
        span = min(counts.span, length)
        return Desk(
            Scratch.of(spec),
            reserve((FOLDS, length), np.float32),
            np.empty((KINDS, span), np.float32),
            Rows.of(gaining_items(spec), KINDS + bool(spec.mix.neighbors) + bool(spec.mix.walk_users)),
            Rows.of(length, 1),
            np.empty((KINDS + 1, counts.neighbors), np.float32),
            np.zeros((FOLDS, spec.k)),
            np.zeros(EXPERTS),
            np.zeros(EXPERTS),
            np.zeros(EXPERTS),
            Hood.similar_users(spec, gaining_items(spec)),
            Hood.walks(spec),
            Rows.of(walked_items(spec), 1),
        )


@part
def find_followers(
    neighbor_rows: Any, neighbor_counts: Any, row: Any, table: Any, found: Any, size: Any, slots: Any
) -> Any:
    """Finds the followers of the item of row `row` of both arrays, uint32 and float32[any, M].

    `found[:size]` are the distinct followers so far. New ones are appended. slots uint32[M] gets
    the place of each follower in `found`. `table` is a hash map of these places, plus 1.

    Returns the number of distinct followers, and that of the item.
    """
    last, used = np.uint64(table.size) - _1, _0
    for place in range(np.uint64(neighbor_rows.shape[1])):
        # Places fill from the front.
        if neighbor_counts[row, place] <= _F0:
            break
        follower = neighbor_rows[row, place]
        at = ((np.uint64(follower) * _GOLDEN) >> _32) & last
        while table[at] != 0 and found[np.uint64(table[at]) - _1] != follower:
            at = (at + _1) & last
        if table[at] == 0:
            found[size] = follower
            size += _1
            table[at] = np.uint32(size)
        slots[place] = table[at] - np.uint32(1)
        used += _1
    return size, used


@part
def fold_user(own: Any, row: Any, mean_row: Any, others: Any, other_count: Any, rates: Any, person: Any,
              decay: Any, desk: Any) -> None:  # fmt: skip
    """Writes the folded-in rows to desk.systems.x, `FOLDS` of them.

    The present row is that of `own`. A user without events gets the mean of all users from
    `mean_row` float64[k + 1], which has their sum and their number.
    """
    scratch, kp = desk.systems, np.uint64(others.factors.shape[1])
    m, x = np.uint64(scratch.y.shape[1]), address_of(scratch.x)
    if person.count == _0:
        present, users = address_of(own.factors) + row * kp * _4, mean_row[rates.k]
        for fold in range(_FOLDS):
            for p in range(kp):
                value = real(present, p)
                if users and p < rates.k and not has_start(own, row):
                    value = np.float32(mean_row[p] / users)
                store1(x, value, (fold * m + p) * _4)
        return
    problem, weights = Problem(_F0, np.float32(other_count), rates), desk.fold_weights
    for fold in range(_FOLDS):
        for event in range(person.count):
            weights[fold, event] = real(person.weights, event) * decay[fold, word(person.ages, event)]
        start = address_of(weights) + fold * np.uint64(weights.shape[1]) * _4
        events = Events(person.places, person.values, start, person.count)
        livefactor_system_kernel(fold, own, row, others, problem, events, _0, scratch)
    livefactor_sweep_kernel(scratch, _FOLDS, kp, rates, FOLD_SWEEPS)


@inlined
def set_moments(desk: Any, expert: Any, total: Any, squares: Any, count: Any) -> None:
    """Sets the moments of an expert, given the sums of its `count` scores and of their squares."""
    mean = total / count
    variance = squares / count - mean * mean
    desk.means[expert] = mean
    desk.scales[expert] = _D1 / np.sqrt(variance) if variance > VARIANCE_MIN else _D0


@part
def fold_moments(gram: Any, k: Any, count: Any, desk: Any) -> None:
    """Sets the moments of the folded-in rows. `gram` float64[k + 1, k + 1] is that of items."""
    x, m, lines = desk.systems.x, np.uint64(desk.systems.y.shape[1]), desk.lines
    for fold in range(_FOLDS):
        own, line = x[fold * m : fold * m + k], lines[fold]
        line[:] = _D0
        # The matrix is symmetric. Each element of a line is a sum in the order of q.
        for q in range(k):
            column, value = gram[q], np.float64(own[q])
            for p in range(k):
                line[p] += column[p] * value
        total, squares, sums = _D0, _D0, gram[k]
        for p in range(k):
            value = np.float64(own[p])
            total += value * sums[p]
            squares += value * line[p]
        set_moments(desk, fold, total, squares, count)


@part
def add_gains(counts: Any, row: Any, slots: Any, used: Any, own: Any, seen: Any, weights: Any, shrinkage: Any,
              norms: Any, gains: Any) -> None:  # fmt: skip
    """Adds the gains of the first `used` followers of an item.

    The item is row `row` of counts float32[any, M], and has `own` events. slots uint32[M] are the
    places of the followers, and seen uint32[any] has the numbers of their events. weights
    float32[KINDS] are those of the event, and gains float32[any, KINDS] are by place.
    """
    for place in range(used):
        norms[_0, place] = own * np.float32(seen[slots[place]])
    line, w0, w1, w2 = norms[_0], weights[0], weights[1], weights[2]
    g0, g1, g2, count = norms[1], norms[2], norms[3], counts[row]
    for place in range(used):
        norm = np.sqrt(line[place]) + shrinkage
        g0[place] = (w0 * count[place]) / norm
        g1[place] = (w1 * count[place]) / norm
        g2[place] = (w2 * count[place]) / norm
    for place in range(used):
        slot = np.uint64(slots[place])
        gains[slot, 0] += g0[place]
        gains[slot, 1] += g1[place]
        gains[slot, 2] += g2[place]


@part
def sort_gains(followers: Any, size: Any, weights: Any, events: Any, count: Any, desk: Any) -> None:
    """Sorts the loose gains of `size` followers by row and divides them by the sum of the weights.

    `weights` float32[KINDS, any] are those of the `events` events. Gains from similar users and
    walks are not divided. Those from similar users may become square roots. It sets the moments.
    """
    sort_rows(followers, size)
    rows, gains, order = followers.rows, followers.gains, followers.order
    for kind in range(_KINDS):
        weight = _F0
        for event in range(events):
            weight += weights[kind, event]
        total, squares = _D0, _D0
        for n in range(size):
            gain = followers.loose[order[n], kind] / weight
            gains[n, kind] = gain
            total += np.float64(gain)
            squares += np.float64(gain) * np.float64(gain)
        set_moments(desk, COUNTS + kind, total, squares, count)
    for lane in range(_KINDS, np.uint64(gains.shape[1])):
        total, squares, has_roots = _D0, _D0, lane == _KINDS and desk.hood.roots
        for n in range(size):
            gain = followers.loose[order[n], lane]
            if has_roots:
                gain = np.sqrt(gain)
            gains[n, lane] = gain
            total += np.float64(gain)
            squares += np.float64(gain) * np.float64(gain)
        set_moments(desk, NEIGHBORS + (lane - _KINDS), total, squares, count)
    for n in range(size):
        rows[n] = followers.loose_rows[order[n]]


@part
def find_repeats(person: Any, decay: Any, count: Any, desk: Any) -> Any:
    """Writes the gains of the user's own items to desk.repeats. Returns the number of items."""
    repeats, size = desk.repeats, person.count
    keys, gains, rows, order = repeats.loose_rows, repeats.gains, repeats.rows, repeats.order
    for event in range(size):
        keys[event] = np.uint32(word(person.rows, event))
    sort_rows(repeats, size)
    found = _0
    for n in range(size):
        at = np.uint64(order[n])
        if n == _0 or keys[at] != rows[found - _1]:
            rows[found], gains[found, 0] = keys[at], _F0
            found += _1
        liked = real(person.weights, at) * (_F1 if real(person.values, at) > _F0 else _F0)
        gains[found - _1, 0] += liked * decay[word(person.ages, at)]
    total, squares = _D0, _D0
    for n in range(found):
        gain = np.float64(gains[n, 0])
        total += gain
        squares += gain * gain
    set_moments(desk, REPEATS, total, squares, count)
    return found


@inlined
def weigh_last(person: Any, span: Any, decay: Any, weights: Any) -> Any:
    """Writes the weights of the last `span` events, newest first. Returns their number."""
    last = min(person.count, span)
    for n in range(last):
        event = person.count - _1 - n
        age, weight = word(person.ages, event), real(person.weights, event)
        for kind in range(_KINDS):
            weights[kind, n] = weight * decay[kind, age]
    return last


@inlined
def popularity_moments(mix: Any, count: Any, desk: Any) -> None:
    """Sets the moments of popularity."""
    set_moments(desk, POPULARITY, mix[SUM], mix[SQUARES], count)


@inlined
def group_of(own: Any, row: Any, events: Any) -> Any:
    """The group of the user of a row of `own` with so many remembered events."""
    group = _0
    for n in range(GROUPS - 1):
        if events >= np.uint64(GROUP_STARTS[n]) or has_start(own, row):
            group += _1
    return group


@inlined
def load_weights(mix: Any, group: Any, weights: Any) -> None:
    """Reads the weights float64[EXPERTS] of a group."""
    for expert in range(_LEARNED):
        weights[expert] = mix[group * _LEARNED + expert]
    place = np.uint64(NEIGHBOR_WEIGHTS) + group
    weights[NEIGHBORS] = mix[place] if place < np.uint64(mix.size) else _D0
    place = np.uint64(WALK_WEIGHTS) + group
    weights[WALK] = mix[place] if place < np.uint64(mix.size) else _D0


@inlined
def store_weights(mix: Any, group: Any, weights: Any) -> None:
    """Writes the weights of a group."""
    for expert in range(_LEARNED):
        mix[group * _LEARNED + expert] = weights[expert]
    place = np.uint64(NEIGHBOR_WEIGHTS) + group
    if place < np.uint64(mix.size):
        mix[place] = weights[NEIGHBORS]
    place = np.uint64(WALK_WEIGHTS) + group
    if place < np.uint64(mix.size):
        mix[place] = weights[WALK]


@inlined
def place_of(rows: Any, size: Any, row: Any) -> Any:
    """The place of a row in rows[:size], uint32 and ascending. It is `size` if it is missing."""
    low, high = _0, size
    while low < high:
        middle = (low + high) >> _1
        if np.uint64(rows[middle]) < row:
            low = middle + _1
        else:
            high = middle
    return low if low < size and np.uint64(rows[low]) == row else size


@inlined
def dots_of(x: Any, m: Any, others: Any, place: Any) -> Any:
    """The dot products of the three folded-in rows at address x with row `place` of `others`."""
    line = np.uint64(others.factors.shape[1]) * _4
    row, second, third = address_of(others.factors) + place * line, x + m * _4, x + (m + m) * _4
    y = load16(row, _0)
    a, b, c = load16(x, _0) * y, load16(second, _0) * y, load16(third, _0) * y
    for at in range(VECTOR_BYTES, line, VECTOR_BYTES):
        y = load16(row, at)
        a, b, c = a + load16(x, at) * y, b + load16(second, at) * y, c + load16(third, at) * y
    return tree_sum(a), tree_sum(b), tree_sum(c)


@inlined
def weigh_everywhere(gram: Any, k: Any, unobserved: Any, everywhere: Any) -> None:
    """Sets everywhere[:k, :k] = float32(a0 G)."""
    a0 = np.float64(unobserved)
    for p in range(k):
        for q in range(k):
            everywhere[p, q] = np.float32(a0 * gram[p, q])


@inlined
def with_unobserved(rates: Any, unobserved: Any) -> Any:
    """The rates with another weight of pairs without an event."""
    return SolveRates(
        unobserved,
        rates.l2,
        rates.bias_l2,
        rates.factor_max,
        rates.sweeps,
        rates.item_events,
        rates.k,
        rates.has_bias,
        rates.ridge_events,
    )
