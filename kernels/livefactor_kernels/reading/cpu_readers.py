"""Users for scores of a model with a mix, in compiled code (semantics: `reading/__init__.py`).

Two calls compute a block of users. Between them the caller reads how many events the followers
have, since a pin may have copies of these numbers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.reading import COUNTS, EXPERTS, FOLDS, NEIGHBORS, POPULARITY, REPEATS, WALK
from livefactor_kernels.reading.cpu_experts import (
    KINDS,
    NEAR_LANE,
    WALK_LANE,
    Decays,
    Desk,
    add_gains,
    find_followers,
    find_repeats,
    fold_moments,
    fold_user,
    group_of,
    load_weights,
    popularity_moments,
    sort_gains,
    weigh_everywhere,
    weigh_last,
    with_unobserved,
)
from livefactor_kernels.reading.cpu_neighbors import add_gained, add_neighbors, weigh_own
from livefactor_kernels.reading.cpu_people import Histories, Person
from livefactor_kernels.reading.neighborhoods import Neighborhood, NeighborReader, WalkReader, Walks
from livefactor_kernels.solve import SolveRates
from livefactor_kernels.solve.cpu_records import Side
from livefactor_kernels.spec.model import ModelSpec

_0, _1, _4 = np.uint64(0), np.uint64(1), np.uint64(4)
_F0, _D0, _D1 = np.float32(0.0), np.float64(0.0), np.float64(1.0)


class Followers(NamedTuple):
    """The followers of the last items of users.

    Attributes:
        rows: distinct rows, uint32[f].
        slots: places of the followers of each list, uint32[lists, M].
        used: number of followers of each list, uint64[lists].
    """

    rows: np.ndarray
    slots: np.ndarray
    used: np.ndarray


def followers_of(lists: dict[str, np.ndarray]) -> Followers:
    """The followers, given the sections of the items."""
    rows, counts = lists["neighbor_rows"], lists["neighbor_counts"]
    found, slots = np.empty(rows.size, np.uint32), np.empty(rows.shape, np.uint32)
    used = np.zeros(len(rows), np.uint64)
    table = np.zeros(1 << max(2 * rows.size - 1, 1).bit_length(), np.uint32)
    size = livefactor_lists_kernel(rows, counts, table, found, slots, used)
    return Followers(found[:size], slots, used)


@compiled
def livefactor_lists_kernel(
    neighbor_rows: Any, neighbor_counts: Any, table: Any, found: Any, slots: Any, used: Any
) -> Any:
    """Finds the followers of all lists. Returns the number of distinct ones."""
    size = _0
    for n in range(np.uint64(used.size)):
        size, used[n] = find_followers(neighbor_rows, neighbor_counts, n, table, found, size, slots[n])
    return size


class MixReader:
    """The experts of users. One thread may use it at a time.

    Attributes:
        span: number of last events whose followers count.
        neighbors: finds similar users.
        walks: follows walks.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.span, self.neighbors, self.walks = spec.counts.span, NeighborReader(spec), WalkReader(spec)
        self._decays, self._desk = Decays.of(spec), Desk.of(spec)
        self._k, self._rates = spec.k, SolveRates.of(spec)
        self._shrinkage = np.float32(spec.counts.shrinkage)

    def combine(
        self, users: Side, items: np.ndarray, histories: Histories, lists: dict[str, np.ndarray],
        followers: Followers, seen: np.ndarray, neighbors: Neighborhood, walks: Walks, gram: np.ndarray,
        unobserved: np.float32, mix: np.ndarray, item_count: int,
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:  # fmt: skip
        """Replaces the factors and biases of users by those with which scores are computed.

        Args:
            users: factors float32[n, k_padded], biases and starts.
            items: factors float32[m, k_padded] of the events' items.
            histories: the events.
            lists: the sections of the items of `histories.last_rows`.
            followers: the followers of these items.
            seen: numbers of events of the followers, uint32[f].
            neighbors: the similar users.
            walks: the items at the ends of walks.
            gram: float64[2, k + 1, k + 1].
            unobserved: weight of pairs without an event.
            mix: the section.
            item_count: number of items.

        Returns:
            The gains of items for each user (rows and gains), and the rows of the user's items.
        """
        n = len(histories.ends) - 1
        size = histories.rows.size + followers.slots.size + neighbors.events.rows.size + walks.rows.size
        rows, gains, own = np.empty(size, np.uint32), np.empty(size, np.float32), histories.rows.copy()
        ends = np.zeros((2, n + 1), np.int64)
        places, room = (
            np.arange(histories.rows.size, dtype=np.uint32),
            np.zeros(followers.rows.size, np.uint32),
        )
        livefactor_combine_kernel(
            users, Side(items, np.empty(0, np.float32)), *histories, places, lists["neighbor_counts"],
            lists["seen_count"], *followers, seen, room, neighbors, walks, gram, unobserved, mix, np.float32(item_count), self._rates,
            self._shrinkage, np.uint64(self.span), self._decays, self._desk, rows, gains, own, ends,
        )  # fmt: skip
        follow, kept = ends.tolist()
        return (
            [(rows[a:b], gains[a:b]) for a, b in pairwise(follow)],
            [own[a:b] for a, b in pairwise(kept)],
        )


@inlined
def _place_followers(
    first: Any, last: Any, found: Any, slots: Any, used: Any, seen: Any, room: Any, followers: Any
) -> Any:
    """Numbers the followers of the lists [first, last) of one user from 0 on, in `slots`.

    followers.other gets the numbers of their events. `room` uint32[f] has zeros before and
    afterwards. Returns the number of followers.
    """
    rows, gains, own_seen, touched = followers.loose_rows, followers.loose, followers.other, followers.rows
    size = _0
    for n in range(first, last):
        line = slots[n]
        for place in range(used[n]):
            slot = np.uint64(line[place])
            if room[slot] == 0:
                rows[size], own_seen[size], touched[size] = found[slot], seen[slot], np.uint32(slot)
                for kind in range(np.uint64(gains.shape[1])):
                    gains[size, kind] = _F0
                size += _1
                room[slot] = np.uint32(size)
            line[place] = room[slot] - np.uint32(1)
    for n in range(size):
        room[np.uint64(touched[n])] = np.uint32(0)
    return size


@inlined
def _combine(users: Any, user: Any, weights: Any, desk: Any) -> Any:
    """Writes the row and the bias of a user. Returns the factor of each expert's scores."""
    factors, x, m = users.factors[user], desk.systems.x, np.uint64(desk.systems.y.shape[1])
    unit = weights[POPULARITY] * desk.scales[POPULARITY]
    if unit == _D0:
        unit = _D1
    parts, shift = np.empty(EXPERTS), _D0
    for expert in range(EXPERTS):
        parts[expert] = (weights[expert] * desk.scales[expert]) / unit
        shift -= parts[expert] * desk.means[expert]
    for p in range(np.uint64(factors.size)):
        total = _D0
        for fold in range(FOLDS):
            total += parts[fold] * np.float64(x[np.uint64(fold) * m + p])
        factors[p] = np.float32(total)
    users.bias[user] = np.float32(shift)
    return parts


@inlined
def _merge(parts: Any, found: Any, kept: Any, desk: Any, rows: Any, gains: Any, at: Any) -> Any:
    """Appends the gains of all items that have any, after `at` others. Returns the new number."""
    followers, repeats, counts = desk.followers.rows, desk.repeats.rows, desk.followers.gains
    first, second = _0, _0
    while first < found or second < kept:
        is_own = second < kept and (first == found or repeats[second] <= followers[first])
        row = repeats[second] if is_own else followers[first]
        gain = _D0
        if is_own:
            gain = parts[REPEATS] * np.float64(desk.repeats.gains[second, 0])
            second += _1
        if first < found and followers[first] == row:
            for kind in range(KINDS):
                gain += parts[COUNTS + kind] * np.float64(counts[first, kind])
            if counts.shape[1] > NEAR_LANE:
                gain += parts[NEIGHBORS] * np.float64(counts[first, NEAR_LANE])
            if counts.shape[1] > WALK_LANE:
                gain += parts[WALK] * np.float64(counts[first, WALK_LANE])
            first += _1
        rows[at], gains[at] = row, np.float32(gain)
        at += _1
    return at


@compiled
def livefactor_combine_kernel(
    users: Any, items: Any, rows: Any, values: Any, weights: Any, ages: Any, ends: Any, places: Any, counts: Any,
    owns: Any, found: Any, slots: Any, used: Any, seen: Any, room: Any, neighbors: Any, walks: Any, gram: Any,
    unobserved: Any, mix: Any, item_count: Any, rates: Any, shrinkage: Any, span: Any, decays: Any, desk: Any,
    out_rows: Any, out_gains: Any, own_rows: Any, out_ends: Any,
) -> None:  # fmt: skip
    """See `MixReader.combine`."""
    rates, user_gram, item_gram = with_unobserved(rates, unobserved), gram[0], gram[1]
    count = max(item_gram[rates.k, rates.k], _D1)
    weigh_everywhere(item_gram, rates.k, unobserved, desk.systems.everywhere)
    first, at, own_at = _0, _0, _0
    for user in range(np.uint64(users.bias.size)):
        start, skip = np.uint64(ends[user]), np.uint64(ends[user]) * _4
        person = Person(
            address_of(rows) + skip, address_of(places) + skip, address_of(values) + skip, address_of(weights) + skip,
            address_of(ages) + skip, np.uint64(ends[user + _1]) - start,
        )  # fmt: skip
        fold_user(users, user, user_gram[rates.k], items, item_count, rates, person, decays.folds, desk)
        fold_moments(item_gram, rates.k, count, desk)
        last = weigh_last(person, span, decays.counts, desk.count_weights)
        size = _place_followers(first, first + last, found, slots, used, seen, room, desk.followers)
        for n in range(last):
            add_gains(
                counts, first + n, slots[first + n], used[first + n], np.float32(owns[first + n]),
                desk.followers.other, desk.count_weights[:, n], shrinkage, desk.norms, desk.followers.loose,
            )  # fmt: skip
        if neighbors.ends.size:
            near, end = np.uint64(neighbors.ends[user]), np.uint64(neighbors.ends[user + _1])
            own, similar = weigh_own(person, desk.hood), neighbors.similarities[near:end]
            size = add_neighbors(
                neighbors.events, near, similar, own, desk.hood, desk.followers, size, NEAR_LANE
            )
        if walks.ends.size:
            begin, end = np.uint64(walks.ends[user]), np.uint64(walks.ends[user + _1])
            walked, worth = walks.rows[begin:end], walks.gains[begin:end]
            size = add_gained(walked, worth, desk.hood, desk.followers, size, WALK_LANE)
        sort_gains(desk.followers, size, desk.count_weights, last, count, desk)
        kept = find_repeats(person, decays.repeats, count, desk)
        popularity_moments(mix, count, desk)
        load_weights(mix, group_of(users, user, person.count), desk.weights)
        parts = _combine(users, user, desk.weights, desk)
        at = _merge(parts, size, kept, desk, out_rows, out_gains, at)
        for n in range(kept):
            own_rows[own_at + n] = desk.repeats.rows[n]
        first, own_at = first + last, own_at + kept
        out_ends[0, user + _1], out_ends[1, user + _1] = np.int64(at), np.int64(own_at)
