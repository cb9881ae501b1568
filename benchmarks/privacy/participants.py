"""Many participants in one process: each learns its own events from the same item rows, with the
kernels of a server.

MovieLens-1M, timed half: a user is a participant, and the last 20 % of each user's events are
judged (`benchmarks.quality.data`). A participant has the rows of all items, so it draws its
negatives from all of them. Its user row stays with it from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.progressive.data import read_ratings
from benchmarks.quality.data import Events, Judgement, in_time, numbered
from benchmarks.quality.metrics import PRIMARY, Judge
from livefactor_kernels.backend import Update
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import USERS

Given = tuple[int, np.ndarray, int]
"""What a participant gives: its number, what changed in the item rows float32[items, k + 1], and
its events.
"""


def judgement(ratings: Path) -> Judgement:
    """The set in its two divisions: one to choose settings, and one for the figures."""
    return in_time(numbered(read_ratings(ratings), once=False).untimed(), by_user=True)


class Participants:
    """The participants of a set, and the item rows that they have in common."""

    def __init__(self, spec: ModelSpec, events: Events) -> None:
        self.spec, self.events = spec, events
        self._model = CpuModel(spec)
        users, items = np.arange(events.user_count), np.arange(events.item_count)
        # A row has the number of its key.
        self._model.users.allocate(users.astype(np.uint64))
        self._model.items.allocate(items.astype(np.uint64))
        self._counts = events.user_count, events.item_count
        self._model.advance(1, *self._counts)
        self._order = np.argsort(events.users, kind="stable")
        self._starts = np.searchsorted(events.users[self._order], np.arange(events.user_count + 1))
        views = self._model.items.plain(0, events.item_count)
        self._factors, self._bias = views["factors"], views["bias"]
        self.rows = self._own()
        self._revision = 1

    def learn(self, chosen: np.ndarray) -> Iterator[Given]:
        """Each of the chosen participants learns all of its events from the common rows."""
        for user in chosen.tolist():
            mine = self._events_of(user)
            self._take(self.rows)
            self._apply(mine)
            yield user, self._own() - self.rows, len(mine)
        self._take(self.rows)

    def add(self, deltas: np.ndarray) -> None:
        """Add a merged record to the common rows, within the limits of a factor."""
        limit = np.float32(self.spec.limits.factor_max)
        self.rows = np.clip(self.rows + deltas.astype(np.float32), -limit, limit)
        self._take(self.rows)

    def learn_in_one_place(self, chosen: np.ndarray, mixing: np.random.Generator | None = None) -> None:
        """The same events of the same participants, in one model without rounds.

        mixing: puts the events in a random order. None: participant by participant.
        """
        events = np.concatenate([self._events_of(user) for user in chosen.tolist()])
        self._apply(events if mixing is None else mixing.permutation(events))
        self.rows = self._own()

    def scores(self, users: np.ndarray) -> np.ndarray:
        """Scores float32[n, items], as each participant computes them at home."""
        factors, bias = self._model.gather(USERS, users.astype(np.uint32))
        return (
            self._model.mean
            + bias[:, None]
            + factors[:, : self.spec.k] @ self.rows[:, :-1].T
            + self.rows[:, -1]
        )

    def _events_of(self, user: int) -> np.ndarray:
        return self._order[self._starts[user] : self._starts[user + 1]]

    def _apply(self, events: np.ndarray) -> None:
        self._revision += 1
        users, items = (
            np.ascontiguousarray(column[events].astype(np.uint32))
            for column in (self.events.users, self.events.items)
        )
        self._model.apply(Update(self._revision, users, items, None, None, *self._counts))

    def _own(self) -> np.ndarray:
        return np.column_stack([self._factors, self._bias])

    def _take(self, rows: np.ndarray) -> None:
        self._factors[:], self._bias[:] = rows[:, :-1], rows[:, -1]


def rounds(users: np.ndarray, passes: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """The participants of each round: all of them once in a pass, in a random order."""
    rng = np.random.default_rng(seed)
    for _ in range(passes):
        order = rng.permutation(users)
        for start in range(0, len(order), size):
            yield order[start : start + size]


def people(events: Events) -> np.ndarray:
    """The users with an event."""
    return np.unique(events.users)


def judged(judge: Judge, scores: Callable[[np.ndarray], np.ndarray]) -> float:
    """NDCG@10."""
    return judge.figures(scores)[PRIMARY]
