"""The gains from similar users and from walks in NumPy, with the bits of the server.

`livefactor_kernels.reading` explains who is similar, where walks go, and the order of each sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from livefactor.snapshots.decays import decays
from livefactor.snapshots.mixing import Gains
from livefactor.snapshots.sections import Spec, remembered_offsets


class Reach(NamedTuple):
    """How far similar users, or walks, are followed.

    span: number of the user's last events. users: number of last events of each of their items.
    events: number of last events of each user who stays. half_life: of the user's own events.
    """

    span: int
    users: int
    events: int
    half_life: float


SIMILAR, WALKS = Reach(8, 64, 32, 1.5), Reach(32, 32, 64, 0.0)
NEIGHBOR_DISTANCE = 6.0
WALK_ITEMS, WALK_UNIT = 256, np.float32(2.0**20)


class History(NamedTuple):
    """Events: rows of the other side int64[n], values float32[n] and weights float32[n]."""

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray


class SimilarUsers:
    """The similar users of a snapshot, and the walks.

    spec: of the model. tensors: every section by name.
    """

    def __init__(self, spec: Spec, tensors: Mapping[str, np.ndarray]) -> None:
        self._spec, self._tensors = spec, tensors
        self._offsets = {
            side: remembered_offsets(spec, side, tensors[f"{side}.seen_count"]) for side in ("users", "items")
        }

    def gains(self, user: int, events: History) -> Gains:
        """The gains for a user with these events, oldest first.

        user: the user's row.
        """
        rows, values, weights = (column[::-1][: SIMILAR.span] for column in events)
        own = weights * decays(SIMILAR.half_life)[: len(rows)] * (values > 0)
        shared, gains = rows[own > 0], dict[int, np.float32]()
        for other, similarity in self._users_of(user, rows, own, SIMILAR.users, self._spec.mix.neighbors):
            self._add(self._newest("users", other, SIMILAR.events), similarity, shared, gains)
        found, summed = _sorted(gains)
        return Gains(found, np.sqrt(summed) if self._spec.mix.neighbor_roots else summed)

    def walked(self, user: int, events: History) -> Gains:
        """The gains of the items at the ends of walks. The arguments are those of `gains`."""
        rows, values, weights = (column[::-1][: WALKS.span] for column in events)
        seen = self._tensors["items.seen_count"][rows].astype(np.float32)
        own = (weights * (values > 0) * WALK_UNIT) / np.sqrt(seen + np.float32(1.0))
        gains = dict[int, np.float32]()
        for other, similarity in self._users_of(user, rows, own, WALKS.users, self._spec.mix.walk_users):
            share = similarity / (np.float32(self._tensors["users.seen_count"][other]) + np.float32(1.0))
            had, added = self._newest("users", other, WALKS.events), set[int]()
            for place in np.flatnonzero(had.values > 0).tolist():
                row = int(had.rows[place])
                if row not in added:
                    added.add(row)
                    gains[row] = gains.get(row, np.float32(0.0)) + share * had.weights[place]
        found, summed = np.array(list(gains), np.int64), np.array(list(gains.values()), np.float32)
        seen = self._tensors["items.seen_count"][found].astype(np.float32)
        divided = summed / np.sqrt(seen + np.float32(1.0))
        # A stable sort keeps the order of equals.
        best = np.argsort(-divided, kind="stable")[:WALK_ITEMS]
        return Gains(*_sorted(dict(zip(found[best].tolist(), divided[best], strict=True))))

    def _users_of(
        self, user: int, rows: np.ndarray, own: np.ndarray, newest: int, most: int
    ) -> list[tuple[int, np.float32]]:
        """The most similar users and how similar they are, given the user's items and weights."""
        similar: dict[int, np.float32] = {}
        for row, weight in zip(rows.tolist(), own, strict=True):
            if weight > 0:
                taken = self._newest("items", row, newest)
                # dict.fromkeys keeps the order.
                for other in dict.fromkeys(taken.rows[taken.values > 0].tolist()):
                    if other != user:
                        similar[other] = similar.get(other, np.float32(0.0)) + weight
        # sorted keeps the order of equals.
        return sorted(similar.items(), key=lambda each: -each[1])[:most]

    def _add(
        self, had: History, similarity: np.float32, shared: np.ndarray, gains: dict[int, np.float32]
    ) -> None:
        """Adds what a neighbour had, newest first, to the gains by item row."""
        liked = had.values > 0
        places = np.flatnonzero(liked & np.isin(had.rows, shared))
        if not places.size:
            return
        decay, added = decays(NEIGHBOR_DISTANCE), set[int]()
        for place in np.flatnonzero(liked).tolist():
            row = int(had.rows[place])
            if row not in added:
                added.add(row)
                gain = (similarity * had.weights[place]) * decay[abs(place - int(places[0]))]
                gains[row] = gains.get(row, np.float32(0.0)) + gain

    def _newest(self, side: str, row: int, most: int) -> History:
        """The last events of a row, newest first."""
        seen = int(self._tensors[f"{side}.seen_count"][row])
        length = self._spec.history.users if side == "users" else self._spec.history.items
        places = np.arange(seen - 1, max(seen - min(length, most), 0) - 1, -1) % length
        columns = (self._tensors[f"{side}.{name}"] for name in ("seen_rows", "seen_values", "seen_weights"))
        if self._spec.history.paged:
            places = places + int(self._offsets[side][row])
            rows, values, weights = (column[places] for column in columns)
        else:
            rows, values, weights = (column[row, places] for column in columns)
        return History(rows.astype(np.int64), values, weights)


def _sorted(gains: dict[int, np.float32]) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64[n], ascending, and their gains float32[n]."""
    rows = np.array(sorted(gains), np.int64)
    return rows, np.array([gains[row] for row in rows.tolist()], np.float32)
