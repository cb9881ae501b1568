"""What the experts of a mix say of a user, in plain NumPy: the reference for `cpu_experts.py`.

The semantics are in `reading/__init__.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor_kernels.history import decays
from livefactor_kernels.reading import (
    COUNT_HALF_LIVES,
    COUNTS,
    EXPERTS,
    FOLDS,
    HALF_LIVES,
    MIX,
    NEIGHBOR_DISTANCE,
    NEIGHBOR_WEIGHTS,
    NEIGHBORS,
    POPULARITY,
    REPEATS,
    SIMILAR,
    SQUARES,
    SUM,
    WALK,
    WALK_ITEMS,
    WALK_UNIT,
    WALK_WEIGHTS,
    WALKS,
    Moments,
    Reach,
    group_of,
    moments,
    weights_of,
)
from livefactor_kernels.reading.remembered import Remembered, Source, distinct
from livefactor_kernels.solve import FOLD_SWEEPS, GRAM, UNOBSERVED, SolveRates
from livefactor_kernels.solve.reference import System, solve_row
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, STARTS, USERS, has_starts
from livefactor_kernels.tables.recent import Recent

_COUNT_DECAYS = np.stack([decays(half_life) for half_life in COUNT_HALF_LIVES])
_F1 = np.float32(1.0)
_FOLD_DECAYS = np.stack([decays(half_life) for half_life in HALF_LIVES])


class Gains(NamedTuple):
    """The gains of a few items: rows uint32[m], ascending, and gains float32[m]. Others gain 0."""

    rows: np.ndarray
    gains: np.ndarray

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The gains of rows uint32[c], float64[c]."""
        if not self.rows.size:
            return np.zeros(len(rows))
        place = np.minimum(np.searchsorted(self.rows, rows), self.rows.size - 1)
        return np.where(self.rows[place] == rows, self.gains[place], np.float32(0.0)).astype(np.float64)


NO_GAINS = Gains(np.empty(0, np.uint32), np.empty(0, np.float32))


class Experts(NamedTuple):
    """What the experts say of a user.

    Attributes:
        folds: the folded-in rows, float32[FOLDS, k_padded].
        counts: gains of items for each of `COUNT_HALF_LIVES`. Their rows are the same.
        repeats, neighbors, walks: gains of items.
        moments: the moments of the experts' scores, by expert.
        group: the user's group.
        weights: the weights of the group, float64[EXPERTS].
    """

    folds: np.ndarray
    counts: list[Gains]
    repeats: Gains
    neighbors: Gains
    walks: Gains
    moments: list[Moments]
    group: int
    weights: np.ndarray

    def gaining(self) -> np.ndarray:
        """The rows of the items that gain from counts, from similar users or from walks."""
        return distinct(np.concatenate([self.counts[0].rows, self.neighbors.rows, self.walks.rows]))

    def combined(self) -> tuple[np.ndarray, np.float32, Gains]:
        """The row float32[k_padded], the bias and the gains of the user, as scores use them."""
        scaled = [weight * moment.scale for weight, moment in zip(self.weights, self.moments, strict=True)]
        unit = scaled[POPULARITY] or 1.0
        row = np.zeros(self.folds.shape[1])
        shift = 0.0
        for expert in range(EXPERTS):
            shift -= scaled[expert] / unit * self.moments[expert].mean
            if expert < FOLDS:
                row += (scaled[expert] / unit) * self.folds[expert]
        parts = self.counts[0].rows, self.repeats.rows, self.neighbors.rows, self.walks.rows
        rows = distinct(np.concatenate(parts))
        gains = np.zeros(len(rows))
        gains[np.searchsorted(rows, self.repeats.rows)] = (
            scaled[REPEATS] / unit
        ) * self.repeats.gains.astype(np.float64)
        places = np.searchsorted(rows, self.counts[0].rows)
        follow = gains[places]
        for expert, counts in enumerate(self.counts, COUNTS):
            follow += (scaled[expert] / unit) * counts.gains.astype(np.float64)
        gains[places] = follow
        for expert, found in ((NEIGHBORS, self.neighbors), (WALK, self.walks)):
            part = (scaled[expert] / unit) * found.gains.astype(np.float64)
            gains[np.searchsorted(rows, found.rows)] += part
        return row.astype(np.float32), np.float32(shift), Gains(rows, gains.astype(np.float32))


class Panel:
    """The experts of a model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec, self._rates, self._shrinkage = (
            spec,
            SolveRates.of(spec),
            np.float32(spec.counts.shrinkage),
        )
        self._repeat_decays = decays(spec.counts.half_life)

    def of(self, source: Source, user_row: np.ndarray, events: Remembered, items: int) -> Experts:
        """What the experts say of the user of row uint32[1], with these remembered events.

        `items` is the number of items, n.
        """
        state, k = source.state(), self._spec.k
        gram = state[GRAM].reshape(2, k + 1, k + 1)[ITEMS]
        folds = self._folds(source, user_row, events, state, items)
        counts, repeats = self._counts(source, events), self._repeats(events)
        mix, asked = self._spec.mix, (source, user_row, events, self._spec)
        neighbors = similar_users(*asked) if mix.neighbors else NO_GAINS
        walks = walked_items(*asked) if mix.walk_users else NO_GAINS
        sums = [_row_sums(fold[:k], gram) for fold in folds]
        sums += [_sums(each.gains) for each in (*counts, repeats)]
        sums += [
            (float(state[MIX][SUM]), float(state[MIX][SQUARES])),
            _sums(neighbors.gains),
            _sums(walks.gains),
        ]
        count = max(float(gram[k, k]), 1.0)
        found = [moments(total, squares, count) for total, squares in sums]
        has_start = self._spec.solve.start_events > 0 and self._start(source, user_row) is not None
        group = group_of(len(events.rows), has_start)
        similar = state[MIX][NEIGHBOR_WEIGHTS + group] if mix.neighbors else 0.0
        walked = state[MIX][WALK_WEIGHTS + group] if mix.walk_users else 0.0
        weights = np.append(weights_of(state[MIX], group), [similar, walked])
        return Experts(folds, counts, repeats, neighbors, walks, found, group, weights)

    def _start(self, source: Source, user_row: np.ndarray) -> tuple[np.ndarray, np.float32] | None:
        if not has_starts(self._spec, USERS):
            return None
        factors, events = (part[0] for part in source.read(USERS, user_row, STARTS).values())
        return (factors, np.abs(events)) if events else None

    def _folds(
        self,
        source: Source,
        user_row: np.ndarray,
        events: Remembered,
        state: dict[str, np.ndarray],
        items: int,
    ) -> np.ndarray:
        k = self._spec.k
        users, gram = state[GRAM].reshape(2, k + 1, k + 1)
        x, start = source.gather(USERS, user_row)[0][0], self._start(source, user_row)
        if not len(events.rows):
            told = self._spec.features.size and source.read(USERS, user_row, ("bagged",))["bagged"][0]
            if users[k, k] and start is None and not told:
                x[:k] = users[k, :k] / users[k, k]
            return np.repeat(x[None], FOLDS, axis=0)
        unobserved = np.float32(state[UNOBSERVED][0] if UNOBSERVED in state else self._spec.solve.unobserved)
        everywhere = (np.float64(unobserved) * gram[:k, :k]).astype(np.float32)
        rates = self._rates._replace(unobserved=unobserved)
        folds, y = np.zeros((FOLDS, len(x)), np.float32), source.gather(ITEMS, events.rows)[0][:, :k]
        targets = (events.values > 0).astype(np.float32)
        for fold, decay in zip(folds, _FOLD_DECAYS[:, events.ages], strict=True):
            system = System(y, events.weights * decay, targets, everywhere, items, start=start)
            fold[:k] = solve_row(x[:k], system, rates, int(FOLD_SWEEPS))
        return folds

    def _counts(self, source: Source, events: Remembered) -> list[Gains]:
        last = slice(max(0, len(events.rows) - self._spec.counts.span), None)
        rows = np.ascontiguousarray(events.rows[last][::-1])
        lists = source.read(ITEMS, rows, ("neighbor_rows", "neighbor_counts", "seen_count"))
        followers = np.unique(lists["neighbor_rows"][lists["neighbor_counts"] > 0])
        if not followers.size:
            return [NO_GAINS] * len(COUNT_HALF_LIVES)
        seen = source.read(ITEMS, followers, ("seen_count",))["seen_count"]
        weights = (events.weights[last] * _COUNT_DECAYS[:, events.ages[last]])[:, ::-1]
        gains, total = (
            np.zeros((len(weights), len(followers)), np.float32),
            np.zeros(len(weights), np.float32),
        )
        for weight, others, counts, own in zip(
            weights.T, lists["neighbor_rows"], lists["neighbor_counts"], lists["seen_count"], strict=True
        ):
            total += weight
            for other, count in zip(others, counts, strict=True):
                if count > 0:
                    at = int(np.searchsorted(followers, other))
                    norm = np.sqrt(np.float32(own) * np.float32(seen[at])) + self._shrinkage
                    gains[:, at] += (weight * count) / norm
        return [Gains(followers, each) for each in gains / total[:, None]]

    def _repeats(self, events: Remembered) -> Gains:
        rows = distinct(events.rows)
        gains, places = np.zeros(len(rows), np.float32), np.searchsorted(rows, events.rows)
        np.add.at(gains, places, events.weights * (events.values > 0) * self._repeat_decays[events.ages])
        return Gains(rows, gains)


def _row_sums(row: np.ndarray, gram: np.ndarray) -> tuple[float, float]:
    """x . g and x' G x of a row float32[k], given the Gram matrix float64[k + 1, k + 1]."""
    # np.cumsum adds from left to right.
    wide, k = row.astype(np.float64), len(row)
    lines = np.cumsum(gram[:k, :k] * wide, axis=1)[:, -1]
    return float(np.cumsum(wide * gram[k, :k])[-1]), float(np.cumsum(wide * lines)[-1])


def _sums(gains: np.ndarray) -> tuple[float, float]:
    """The sums of gains and of their squares, from left to right."""
    wide = np.append(0.0, gains.astype(np.float64))
    return float(np.cumsum(wide)[-1]), float(np.cumsum(wide * wide)[-1])


def similar_users(source: Source, user_row: np.ndarray, events: Remembered, spec: ModelSpec) -> Gains:
    """The gains of the last items of similar users."""
    own, weights = _last_events(events, SIMILAR)
    weights = weights * decays(SIMILAR.half_life)[: len(own)]
    similar = _users_of(source.recent(ITEMS, own, SIMILAR.users), user_row, weights)
    neighbors = _most_similar(similar, spec.mix.neighbors)
    had = source.recent(USERS, np.array(neighbors, np.uint32), SIMILAR.events)
    gains, shared = dict[int, np.float32](), set(own[weights > 0].tolist())
    for user, rows, values, worth, count in zip(neighbors, *had[:4], strict=True):
        places = [place for place in range(int(count)) if values[place] > 0]
        nearest = next((place for place in places if int(rows[place]) in shared), None)
        for row, place in _first_places(rows, places).items() if nearest is not None else ():
            assert nearest is not None
            gain = (similar[user] * worth[place]) * decays(NEIGHBOR_DISTANCE)[abs(place - nearest)]
            gains[row] = gains.get(row, np.float32(0.0)) + gain
    found = _gains_of(gains)
    return found._replace(gains=np.sqrt(found.gains)) if spec.mix.neighbor_roots else found


def walked_items(source: Source, user_row: np.ndarray, events: Remembered, spec: ModelSpec) -> Gains:
    """The gains of the items at the ends of walks."""
    own, weights = _last_events(events, WALKS)
    taken = source.recent(ITEMS, own, WALKS.users)
    weights = (weights * WALK_UNIT) / np.sqrt(taken.seen.astype(np.float32) + _F1)
    similar = _users_of(taken, user_row, weights)
    neighbors = _most_similar(similar, spec.mix.walk_users)
    had, gains = source.recent(USERS, np.array(neighbors, np.uint32), WALKS.events), dict[int, np.float32]()
    for user, rows, values, worth, count, seen in zip(neighbors, *had, strict=True):
        share = similar[user] / (np.float32(seen) + _F1)
        places = [place for place in range(int(count)) if values[place] > 0]
        for row, place in _first_places(rows, places).items():
            gains[row] = gains.get(row, np.float32(0.0)) + share * worth[place]
    rows = np.array(list(gains), np.uint32)
    seen = source.read(ITEMS, rows, ("seen_count",))["seen_count"].astype(np.float32)
    divided = np.array(list(gains.values()), np.float32) / np.sqrt(seen + _F1)
    # A stable sort keeps the order of equals.
    best = np.argsort(-divided, kind="stable")[:WALK_ITEMS]
    return _gains_of(dict(zip(rows[best].tolist(), divided[best], strict=True)))


def _last_events(events: Remembered, reach: Reach) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the user's last events, newest first, and their weights: 0 for dislikes."""
    last = slice(-1, -reach.span - 1, -1)
    liked = events.values[last] > 0
    return np.ascontiguousarray(events.rows[last]), events.weights[last] * liked


def _users_of(taken: Recent, user_row: np.ndarray, weights: np.ndarray) -> dict[int, np.float32]:
    """s of the users who had the user's items, in the order in which they are found."""
    similar = dict[int, np.float32]()
    for j, weight in enumerate(weights):
        count = int(taken.counts[j])
        others = taken.rows[j, :count][taken.values[j, :count] > 0]
        # dict.fromkeys keeps the order.
        for other in dict.fromkeys(others.tolist()) if weight > 0 else ():
            if other != user_row[0]:
                similar[other] = similar.get(other, np.float32(0.0)) + weight
    return similar


def _most_similar(similar: dict[int, np.float32], most: int) -> list[int]:
    # sorted keeps the order of equals.
    return sorted(similar, key=lambda user: -similar[user])[:most]


def _first_places(rows: np.ndarray, places: list[int]) -> dict[int, int]:
    """The first of the places of each item."""
    first = dict[int, int]()
    for place in places:
        first.setdefault(int(rows[place]), place)
    return first


def _gains_of(gains: dict[int, np.float32]) -> Gains:
    rows = np.array(sorted(gains), np.uint32)
    return Gains(rows, np.array([gains[row] for row in rows.tolist()], np.float32))
