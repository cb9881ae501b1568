"""Rule SOLVE on the CPU (semantics: `solve/__init__.py`).

`cpu_system.py` builds and solves systems of equations, and `cpu_records.py` has the micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from livefactor_kernels.history.cpu import Columns, Recorder
from livefactor_kernels.simd.helper import Helper
from livefactor_kernels.simd.memory import reserve_shared
from livefactor_kernels.solve import GRAM, SolveRates, Unobserved, begin_rows
from livefactor_kernels.solve.cpu_records import (
    AT_FOUND,
    AT_RECORD,
    AT_STEP,
    SOLVE_ITEMS,
    Gram,
    Side,
    Touched,
    livefactor_learn_kernel,
    livefactor_store_gram_kernel,
)
from livefactor_kernels.solve.cpu_system import Scratch
from livefactor_kernels.solve.prior.rows import PriorRows
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables.clearing import clear_gram
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.pages import Room
from livefactor_kernels.tables.start import Begun, Start
from livefactor_kernels.update import Update, UpdateRun

HELPER_ADDITIONS = 512
"""Minimum number of additions to counts for the second thread.

Fewer additions take less time than the thread needs to wake.
"""


class Solver:
    """Learns from records.

    Attributes:
        gram: Gram matrices of users and items, float64[2, k + 1, k + 1].
    """

    records = True

    def __init__(
        self, spec: ModelSpec, users: Table, items: Table, mean_state: np.ndarray, recorder: Recorder,
        prior: PriorRows | None = None,
    ) -> None:  # fmt: skip
        """Compiles the kernels, or loads them from Numba's cache."""
        self._prior = prior
        self._recorder, self._unobserved, self._helper = recorder, Unobserved(spec), Helper("counts")
        self._gram, self.gram = Gram.of(spec), reserve_shared((2, spec.k + 1, spec.k + 1), np.float64)
        self._touched_items = Touched.of(spec, items, prior is not None)
        self._state = (
            Side.of(users),
            Side.of(items),
            *recorder.state,
            self._gram,
            mean_state,
            Touched.of(spec, users, False),
            self._touched_items,
            Scratch.of(spec),
            Room.of(max(spec.history.users, spec.history.items)),
            SolveRates.of(spec),
        )
        self._k, self._micro_batch = np.uint64(spec.k), np.uint64(spec.micro_batch)
        empty = np.empty(0, np.uint32)
        nothing = Update(0, empty, empty, None, None, 0, 0)
        self.prepare([nothing])
        self.learn(nothing)

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        return {GRAM: self.gram.reshape(-1), **self._unobserved.sections()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        self.gram[:] = np.reshape(sections[GRAM], self.gram.shape)
        self._take_gram()
        self._unobserved.load(sections)

    def _take_gram(self) -> None:
        k = int(self._k)
        self._gram.matrix[:, :k, :k] = self.gram[:, :k, :k]
        self._gram.sums[:, :k], self._gram.rows[:] = self.gram[:, k, :k], self.gram[:, k, k]

    def begin(self, begun: Begun, start: Start) -> None:
        """Follows a record of factors."""
        begin_rows(self.gram, self._unobserved, begun, start)
        self._take_gram()

    def clear(self, side: int, removed: np.ndarray) -> None:
        """Follows a removal of rows (`tables/clearing.py`)."""
        if self._unobserved.weighs:
            clear_gram(self.gram, side, removed)
            self._take_gram()

    def groups(self, updates: Sequence[Update]) -> Sequence[Sequence[Update]]:
        """All records, but one each with a prior, which may change between records."""
        return [updates] if self._prior is None else [[update] for update in updates]

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """Takes the bounds of the records for the next `learn`.

        Returns the items without events that the prior will change.
        """
        self._run = UpdateRun.of(updates)
        if self._prior is None:
            return np.empty(0, np.uint32)
        return self._prior.begin(self._run.joined.user_rows.size, self._run.joined.item_count)

    def learn(self, update: Update) -> None:
        """Learns from the prepared records, joined to one.

        If a micro-batch has many additions to counts, another thread adds them while the rows are
        solved. No solve reads the counts.
        """
        run, place = self._run, np.zeros(4, np.int64)
        self._recorder.check_room(update.fresh)
        if self._prior is not None:
            self._prior.map_cold()
        bounds = run.ends, run.user_counts, run.item_counts, self._unobserved.of(run)
        limits = self._micro_batch, np.uint64(HELPER_ADDITIONS)
        record = *Columns.of(update), np.uint64(update.fresh), *bounds, *limits, place
        while place[AT_RECORD] < len(run):
            additions = livefactor_learn_kernel(*self._state, *record)
            if additions:
                with self._helper.running(self._recorder.count, additions):
                    livefactor_learn_kernel(*self._state, *record)
            if place[AT_STEP] == SOLVE_ITEMS:
                self._solve_items(record, int(place[AT_FOUND]))
        livefactor_store_gram_kernel(self._gram, self._k, self.gram)

    def _solve_items(self, record: tuple[Any, ...], found: int) -> None:
        """Solves the touched items of a micro-batch towards their prior."""
        assert self._prior is not None
        k, touched = int(self._k), self._touched_items
        rows = touched.rows[:found]
        touched.towards[:found, :k] = self._prior.towards(rows)
        livefactor_learn_kernel(*self._state, *record)
        self._prior.solved(rows, touched.old[:found, :k])
