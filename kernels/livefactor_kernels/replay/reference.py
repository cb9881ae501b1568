"""The reservoir in plain Python, the reference for `replay/cpu.py`.

The semantics are in `replay/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from livefactor_kernels.numbers.random import REPLAY_DOMAIN, domain_key, draw_below
from livefactor_kernels.replay import COLUMNS, KEEP, REPLAY, replay_count
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.update import Update


class Reservoir:
    """The reservoir of past events."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec, self._key = spec, domain_key(spec.seed, REPLAY_DOMAIN)
        self.events = 0
        self.columns = {name: np.zeros(spec.replay.size, dtype) for name, dtype in COLUMNS.items()}

    def _draw(self, purpose: int, number: int, count: int) -> int:
        numbers = (np.uint64(each) for each in (number, purpose, 0, count))
        return int(draw_below(self._key, *numbers))

    def extend(self, update: Update) -> Update:
        """Returns the update with its replayed events."""
        count = min(self.events, self._spec.replay.size)
        first, last = (replay_count(self._spec, n) for n in (self.events, self.events + update.fresh))
        places = [self._draw(REPLAY, number, count) for number in range(first, last) if count]
        columns: dict[str, Any] = {
            name: np.append(_column(update, name), self.columns[name][places]) for name in COLUMNS
        }
        times = None if update.times is None else np.append(update.times, np.zeros(len(places), np.int64))
        return replace(update, times=times, replayed=len(places), **columns)

    def keep(self, update: Update) -> None:
        """Writes the fresh events of an update to their places."""
        size = self._spec.replay.size
        for t in range(update.fresh):
            number = self.events + t
            place = number if number < size else self._draw(KEEP, number, number + 1)
            for name in COLUMNS if place < size else ():
                self.columns[name][place] = _column(update, name)[t]
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
    return np.ones(update.user_rows.size, np.float32) if column is None else column
