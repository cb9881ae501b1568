"""The CPU backend: tables, the choice of the kernel that a spec needs, and the public verbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from livefactor_kernels.history.cpu import Recorder
from livefactor_kernels.pins import PinnedState
from livefactor_kernels.pins.cpu import Pin, PinBoard
from livefactor_kernels.replay import most_events
from livefactor_kernels.replay.cpu import Reservoir
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.sgd.cpu import Sgd
from livefactor_kernels.sgd.cpu_adaptive import AdaptiveSgd
from livefactor_kernels.softmax.cpu import Softmax
from livefactor_kernels.solve.cpu import Solver
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import FactorDtype, ModelSpec, Rule
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.state import ANSWERING, GlobalMean, Part, state_of
from livefactor_kernels.update import Update, joined


class LearningRule(Part, Protocol):
    """How a model learns from its records (`sgd/cpu.py`, `solve/cpu.py`, `softmax/cpu.py`)."""

    records: bool
    """Whether `learn` puts events in the histories: else they are recorded after it."""

    def joins(self, updates: Sequence[Update]) -> bool:
        """Whether one call of `prepare` and `learn` may take these consecutive records."""

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """What must be known before `learn`; item rows uint32[any] that it will change beside the records' own."""

    def learn(self, update: Update) -> None:
        """Learn from what was prepared, joined to one record."""


class CpuModel:
    """A model of the CPU backend: `users` and `items` tables and what an update does to them.

    One thread may call `apply`, `advance`, `load_sections` and `load_state`; reads of rows that are not being
    written, and the tables' `allocate` and `find`, follow the rules of `tables.cpu.Table`. `revision` and
    `published` (rows of users and items visible at it) change after the kernel has returned.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Reserve the tables of a spec and compile its kernel (or load it from Numba's cache); SpecError if
        it is refused."""
        self.spec = check(spec)
        self.users, self.items = Table(spec, USERS), Table(spec, ITEMS)
        self.revision = 0
        self.published = (0, 0)
        self._mean = GlobalMean()
        self._recorder = Recorder(spec, self.users, self.items) if spec.history.users else None
        self._reservoir = Reservoir(spec) if spec.replay.size else None
        self._rule = self._rule_of(spec)
        self._parts = [self._mean, self._rule, *([self._reservoir] if self._reservoir else [])]
        self.pins = PinBoard(spec, (self.users, self.items))
        if spec.factor_dtype != FactorDtype.FLOAT32:
            scoring.compile_kernels(spec.factor_dtype)  # those of float32 are for whoever reads

    def _rule_of(self, spec: ModelSpec) -> LearningRule:
        tables = self.users, self.items
        if spec.rule == Rule.SOLVE:
            assert self._recorder is not None  # `spec.checks.check`
            return Solver(spec, *tables, self._mean.sums, self._recorder)
        if spec.rule == Rule.SOFTMAX:
            return Softmax(spec, *tables)
        kind = AdaptiveSgd if spec.adaptive_rate.window else Sgd
        return kind(spec, *tables, self._mean.sums)

    @property
    def mean(self) -> np.float32:
        """Global mean of the values seen (squared loss), else 0."""
        return self._mean.value

    def state(self) -> dict[str, np.ndarray]:
        """State beside the rows by section name (`backend.Backend.state`): views. Do not write to them."""
        return state_of(self._parts)

    def load_state(self, sections: Mapping[str, np.ndarray]) -> None:
        """Restore what `state` gives, after the rows (`backend.Backend.load_state`)."""
        for part in self._parts:
            part.load(sections)

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """Restore an empty table of `count` rows (`Table.load_sections`: shapes, errors); publish it with
        `advance`."""
        (self.users, self.items)[side].load_sections(sections, count)

    def apply(self, update: Update) -> None:
        """Learn from one interactions record, then set `revision` and `published`. ValueError if a column is
        malformed.

        Rows must be below the update's counts. The GIL is released in the kernel. With pins alive, the rows
        the record will change are copied first.
        """
        self.apply_all([update])

    def apply_all(self, updates: Sequence[Update]) -> None:
        """Learn from consecutive interactions records: the same bits as `apply` on one after the other.

        Nothing between the first and the last revision becomes visible. ValueError, with nothing learned, if a
        column is malformed.
        """
        for update in updates:
            update.check()
        if self._reservoir is not None:
            for update in updates:
                self._learn([self._reservoir.extended(update)])
                self._reservoir.keep(update)
            return
        for group in [updates] if self._rule.joins(updates) else [[update] for update in updates]:
            self._learn(group)

    def _learn(self, updates: Sequence[Update]) -> None:
        rows, update = self._rule.prepare(updates), joined(updates)
        if self.pins.active:
            followed = () if self._recorder is None else (self._recorder.followed(update),)
            self.pins.protect(update, rows, *followed)
        self._rule.learn(update)
        if self._recorder is not None and not self._rule.records:
            self._recorder.record(update, 0, update.fresh)
        self.advance(update.revision, update.user_count, update.item_count)

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """Set the revision after a record that changes no rows; counts, if given, become the published
        ones."""
        users, items = self.published
        self.published = (
            users if user_count is None else user_count,
            items if item_count is None else item_count,
        )
        self.revision = revision

    def reserve(self, user_rows: int, item_rows: int) -> bool:
        """True: address space for every row that the spec allows is held, and pages come when written."""
        return True

    def wait_for_room(self, update_rows: int) -> None:
        """Block while pins hold too many copies for `update_rows` more, and what they replay (`PinBoard.wait_for_room`)."""
        self.pins.wait_for_room(most_events(self.spec, update_rows))

    def sections(self, side: int, count: int) -> dict[str, np.ndarray]:
        """Views of a side's first `count` rows (`Table.sections`: names and shapes)."""
        return (self.users, self.items)[side].sections(count)

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(factors float32[n, kp], bias float32[n]) of rows uint32[n] as they are now (`scoring.gather`)."""
        return scoring.gather((self.users, self.items)[side], rows)

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Copies of sections of rows as they are now (`Table.read`)."""
        return (self.users, self.items)[side].read(rows, names)

    def pin(self) -> Pin:
        """Keep the current revision readable; no `apply` may be running."""
        state = {name: array.copy() for name, array in self.state().items() if name in ANSWERING}
        return self.pins.pin(PinnedState(self.revision, self.published, state))
