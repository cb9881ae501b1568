"""The reservoir of the CPU and GPU backends, in host memory.

The semantics are in `replay/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.random import REPLAY_DOMAIN, domain_key, draw_below
from livefactor_kernels.replay import COLUMNS, KEEP, REPLAY, replay_count
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.update import Update, writable

_0, _1 = np.uint64(0), np.uint64(1)
_KEEP, _REPLAY = np.uint64(KEEP), np.uint64(REPLAY)
_NO_ROWS = np.empty(0, np.uint32)


@compiled
def livefactor_keep_kernel(key: Any, first: Any, events: Any, n: Any, reservoir: Any) -> None:
    """Writes the first n events of a record, from number `first` on, to `reservoir`.

    Columns are `COLUMNS`.
    """
    size = np.uint64(reservoir[0].size)
    for t in range(n):
        number = first + t
        place = number if number < size else draw_below(key, number, _KEEP, _0, number + _1)
        if place < size:
            reservoir[0][place] = events[0][t]
            reservoir[1][place] = events[1][t]
            reservoir[2][place] = events[2][t]
            reservoir[3][place] = events[3][t]


@compiled
def livefactor_replay_kernel(key: Any, first: Any, count: Any, places: Any) -> None:
    """Writes the places uint32[n] of the replayed events, from replay number `first` on."""
    for t in range(np.uint64(places.size)):
        places[t] = draw_below(key, first + t, _REPLAY, _0, count)


class Reservoir:
    """The reservoir.

    `columns` are arrays of `size` elements, which callers must not change; `events` is the number
    of past events.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Makes an empty reservoir, and compiles the kernels or loads them from Numba's cache."""
        self._spec, self._key = spec, domain_key(spec.seed, REPLAY_DOMAIN)
        self.events = 0
        self.columns = {name: np.zeros(spec.replay.size, dtype) for name, dtype in COLUMNS.items()}
        self.keep(Update(0, _NO_ROWS, _NO_ROWS, None, None, 0, 0))
        livefactor_replay_kernel(self._key, _0, _1, _NO_ROWS)

    def extend(self, update: Update) -> Update:
        """Returns the update with its replayed events.

        It changes nothing. Call `keep` after they are learned.
        """
        count = min(self.events, self._spec.replay.size)
        first, last = (replay_count(self._spec, n) for n in (self.events, self.events + update.fresh))
        if not count or first == last:
            return update
        places = np.empty(last - first, np.uint32)
        livefactor_replay_kernel(self._key, np.uint64(first), np.uint64(count), places)
        columns: dict[str, Any] = {
            name: np.concatenate((_column(update, name), self.columns[name][places])) for name in COLUMNS
        }
        times = update.times
        if times is not None:
            times = np.concatenate((times, np.zeros(places.size, np.int64)))
        return replace(update, times=times, replayed=places.size, **columns)

    def keep(self, update: Update) -> None:
        """Writes the fresh events of an update to their places."""
        events, reservoir = tuple(_column(update, name) for name in COLUMNS), tuple(self.columns.values())
        numbers = np.uint64(self.events), events, np.uint64(update.fresh)
        livefactor_keep_kernel(self._key, *numbers, reservoir)
        self.events += update.fresh

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        return {f"replay.{name}": column for name, column in self.columns.items()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        for name, column in self.columns.items():
            column[:] = sections[f"replay.{name}"]
        self.events = int(sections["events"][0])


def _column(update: Update, name: str) -> np.ndarray:
    column: np.ndarray | None = getattr(update, name)
    return np.ones(update.user_rows.size, np.float32) if column is None else writable(column)
