"""Records events in plain Python. This is the reference for `history/cpu.py`."""

from __future__ import annotations

import numpy as np

from livefactor_kernels.history import COUNT_MIN, DECAY_STEPS, decays
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables.reference import ReferenceTable
from livefactor_kernels.update import Update


class Recorder:
    """Records events in the sections of the tables. The semantics are in `history/__init__.py`."""

    def __init__(self, spec: ModelSpec, users: ReferenceTable, items: ReferenceTable) -> None:
        self._spec, self._users, self._items = spec, users, items
        self._decays = decays(spec.counts.half_life) if spec.counts.neighbors else None

    def record(self, update: Update, start: int, stop: int) -> None:
        """Records the events [start, stop) of an update."""
        for t in range(start, stop):
            value = np.float32(1.0) if update.values is None else update.values[t]
            weight = np.float32(1.0) if update.weights is None else update.weights[t]
            time = 0 if update.times is None else int(update.times[t])
            self._event(int(update.user_rows[t]), int(update.item_rows[t]), value, weight, time)

    def _event(self, user: int, item: int, value: np.float32, weight: np.float32, time: int) -> None:
        users, items = self._users, self._items
        if time == 0 or time != users.last_time[user]:
            users.visits[user] += 1
        users.last_time[user] = time
        if self._decays is not None:
            self._count(user, item, weight)
        entry = {"seen_values": value, "seen_weights": weight}
        self._remember(users, user, entry | {"seen_rows": item, "seen_visits": users.visits[user]})
        self._remember(items, item, entry | {"seen_rows": user})

    @staticmethod
    def _remember(table: ReferenceTable, row: int, entry: dict[str, object]) -> None:
        for name, value in entry.items():
            if name in table.names:
                ring = getattr(table, name)[row]
                ring[int(table.seen_count[row]) % len(ring)] = value
        table.seen_count[row] += 1

    def _count(self, user: int, item: int, weight: np.float32) -> None:
        users, counts = self._users, self._spec.counts
        length, seen = self._spec.history.users, int(users.seen_count[user])
        assert self._decays is not None
        for back in range(1, min(seen, counts.span, length) + 1):
            place = (seen - back) % length
            other = int(users.seen_rows[user, place])
            age = int(users.visits[user]) - int(users.seen_visits[user, place])
            amount = weight * self._decays[min(age, DECAY_STEPS - 1)]
            if amount < COUNT_MIN:
                continue
            self._add(other, item, amount)
            if age == 0 and other != item:
                self._add(item, other, amount)

    def _add(self, row: int, follower: int, amount: np.float32) -> None:
        rows, counts = self._items.neighbor_rows[row], self._items.neighbor_counts[row]
        is_used = counts > 0
        places = np.flatnonzero(is_used & (rows == follower))
        if places.size:
            counts[places[0]] = counts[places[0]] + amount
            return
        # Empty places are 0.
        place = int(np.argmin(counts))
        left = counts[place] - amount
        if left > 0:
            counts[place] = left
            return
        rows[place] = follower
        counts[place] = np.maximum(-left, COUNT_MIN)
