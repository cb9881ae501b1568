"""Eviction: the LOG stage writes EVICT when many rows are idle, and swaps in a state without them.

    every sixteenth of the idle events: an eighth of a side is idle? ─▶ wait for the APPLY stage ─▶
    make the tables without the idle rows ─▶ append EVICT ─▶ swap states

Readers go on with the old state until the swap, and updates wait. `changes/history/evict.py`
defines what the record means.
"""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass, field
from math import prod

from livefactor_kernels.tables import ITEMS, RINGS, USERS, row_sections
from livefactor_server.changes import EvictChange, Record
from livefactor_server.engine.admission import Admission
from livefactor_server.engine.metrics import EngineMetrics
from livefactor_server.engine.promotion import appended
from livefactor_server.judging.observer import Observer
from livefactor_server.log.store import Log
from livefactor_server.model import eviction
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import Refused, no_memory

SHARE = 8
"""An eviction takes place when one of so many rows of a side is idle."""

CHECKS = 16
"""Checks in the time of the idle events."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Evictor:
    """Decides when rows are evicted. Only the LOG stage uses it."""

    name: str
    log: Log
    metrics: EngineMetrics
    _next: int = 0

    def is_due(self, state: ModelState) -> bool:
        """Whether it is time to look for idle rows."""
        return state.touches is not None and state.events >= self._next

    def next(self, admission: Admission) -> Evicting | None:
        """The eviction that takes place now, or None. The APPLY stage is idle."""
        state, idle_events = admission.state, admission.state.spec.eviction.idle_events
        assert state.touches is not None
        self._next = state.events + max(1, idle_events // CHECKS)
        leaves = eviction.idle(state.backend, state.touches, state.events, idle_events)
        if not any(each.any() and SHARE * int(each.sum()) >= len(each) for each in leaves):
            return None
        needed = sum(_bytes_needed(state, side, int((~leaves[side]).sum())) for side in (USERS, ITEMS))
        if needed > admission.free_bytes:
            logger.warning(
                "model %s: idle rows stay, because an eviction needs %d MiB within memory_bytes_max, and "
                "%d MiB are free", self.name, needed >> 20, max(0, admission.free_bytes) >> 20,
            )  # fmt: skip
            return None
        return Evicting(self.name, state, self.log, self.metrics, idle_events)


def _bytes_needed(state: ModelState, side: int, kept: int) -> int:
    """The memory that new tables and the sections between take at most, in bytes."""
    table = (state.backend.users, state.backend.items)[side]
    rings = 0
    if not state.spec.history.paged:
        sections = row_sections(state.spec, side)
        rings = sum(
            prod(sections[name].shape) * sections[name].dtype.itemsize for name in RINGS if name in sections
        )
    made = table.row_bytes * kept + table.keymap.nbytes + table.page_bytes
    return made + rings * (kept + state.backend.published[side])


@dataclass(slots=True)
class Evicting:
    """One eviction, with the methods of a `promotion.Promotion` that the LOG stage calls."""

    name: str
    live: ModelState
    log: Log
    metrics: EngineMetrics
    idle_events: int
    made: ModelState = field(init=False)

    def complete(self) -> tuple[ModelState, Record]:
        """Makes the state without the rows, and appends the record.

        Raises:
            Refused: the memory does not suffice, or the disk is full. Nothing was logged.
            LogFailed: the log cannot be written any more.
        """
        self.made = copy(self.live)
        try:
            self.made.evict(self.log.last_revision + 1, self.idle_events)
        except MemoryError:
            raise no_memory("an eviction") from None
        return self.made, appended(self.log, EvictChange.of(self.idle_events))

    def judge(self, observer: Observer, state: ModelState) -> None:
        """The judge goes on with the rows that are left."""
        items = state.backend.items
        rows = self.live.backend.items.find(items.keys[: items.allocated], self.live.backend.published[ITEMS])
        observer.follow(state, rows)

    def refuse(self, refusal: Refused) -> None:
        """Nothing has happened. A later check tries again."""
        logger.warning("model %s: idle rows stay: %s", self.name, refusal.text)

    def finish(self, revision: int, pause_s: float) -> None:
        """Ends it. Updates have waited `pause_s`."""
        users, items = (len(ids) for ids in self.made.evicted[1])
        self.metrics.observe_eviction(users, items)
        logger.info(
            "model %s: %d users and %d items without an event for long left at revision %d; updates waited "
            "%.3f s", self.name, users, items, revision, pause_s,
        )  # fmt: skip


assert (USERS, ITEMS) == (0, 1)
