"""The CPU backend: the tables, the rule, and the methods of `backend.Backend`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from livefactor_kernels.history.cpu import Recorder
from livefactor_kernels.pins import PinnedState
from livefactor_kernels.pins.cpu import Pin, PinBoard
from livefactor_kernels.reading.context import Moves, Statistics
from livefactor_kernels.reading.context.cpu import CpuArithmetic as ContextArithmetic
from livefactor_kernels.reading.context.learning import Context
from livefactor_kernels.reading.cpu import CpuArithmetic
from livefactor_kernels.reading.learning import Mixer
from livefactor_kernels.reading.remembered import distinct
from livefactor_kernels.replay import most_events
from livefactor_kernels.replay.cpu import Reservoir
from livefactor_kernels.scoring import Candidates, cpu_candidates
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.sgd.cpu import Sgd
from livefactor_kernels.sgd.cpu_adaptive import AdaptiveSgd
from livefactor_kernels.softmax.cpu import Softmax
from livefactor_kernels.solve.cpu import Solver
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.solve.features.cpu import CpuArithmetic as FeatureArithmetic
from livefactor_kernels.solve.features.learning import FeatureRows, solved_again, width_of
from livefactor_kernels.solve.prior import dimension_of
from livefactor_kernels.solve.prior.cpu import CpuArithmetic as PriorArithmetic
from livefactor_kernels.solve.prior.learning import Prior, following
from livefactor_kernels.solve.prior.rows import PriorRows
from livefactor_kernels.solve.prior.sums import MapSums
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import FactorDtype, ModelSpec, Rule
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.clearing import rows_in_gram
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.cpu_deltas import CpuSteps
from livefactor_kernels.tables.deltas import Deltas, add
from livefactor_kernels.tables.head import Head
from livefactor_kernels.tables.recent import Recent
from livefactor_kernels.tables.shared import Places, model_places
from livefactor_kernels.tables.start import Start, begin
from livefactor_kernels.tables.state import ANSWERING, GlobalMean, Part, state_of
from livefactor_kernels.update import Update, UpdateRun, joined

_NO_ROWS = np.empty(0, np.uint32)


class LearningRule(Part, Protocol):
    """A rule on the CPU (`sgd/cpu.py`, `solve/cpu.py`, `softmax/cpu.py`)."""

    records: bool
    """Whether `learn` records events in the histories. Otherwise the model records them
    afterwards.
    """

    def groups(self, updates: Sequence[Update]) -> Sequence[Sequence[Update]]:
        """Divides consecutive records into groups that one call of `prepare` and of `learn` may
        take.
        """

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """Prepares `learn`. Returns the further item rows that it will change, uint32[any].

        They are in addition to the rows in the records.
        """

    def learn(self, update: Update) -> None:
        """Learns from the prepared records, joined to one."""


class CpuModel:
    """A model of the CPU backend (`backend.Backend`).

    One thread may call `apply`, `advance`, `load_sections` and `load_state`. Other threads may read
    rows that are not being written, and any rows by the version in `head`. `allocate` and `find`
    follow the rules of `tables.cpu.Table`. `revision` and `published` change after the kernel has
    returned.

    Attributes:
        head: its version is odd while rows or `state` change.
        candidates: reads rows by the version.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Reserves the tables, and compiles the kernels or loads them from Numba's cache.

        Raises:
            SpecError: the spec is invalid.
        """
        self.spec = check(spec)
        self.users, self.items = Table(spec, USERS), Table(spec, ITEMS)
        self.revision = 0
        self.published = (0, 0)
        self._mean = GlobalMean()
        self._recorder = Recorder(spec, self.users, self.items) if spec.history.users else None
        self._reservoir = Reservoir(spec) if spec.replay.size else None
        self._priors = tuple(
            self._prior_of(spec, side) if dimension_of(spec, side) else None for side in (USERS, ITEMS)
        )
        self._features = self._features_of(spec) if spec.features.size else ()
        # Rule SOLVE has the features of items as its prior. Here the model follows them itself.
        self._fits_features = bool(self._features) and spec.rule != Rule.SOLVE
        self._context = Context(spec, ContextArithmetic(spec.k)) if spec.context.size else None
        self._rule = self._rule_of(spec)
        self._mixer = self._mixer_of(spec) if spec.mix.learning_rate else None
        further: list[Part] = [
            part for part in (self._reservoir, self._mixer, *self._priors, self._context) if part is not None
        ]
        further += self._features
        self._parts: list[Part] = [self._mean, self._rule, *further]
        self._steps = CpuSteps(spec, self.users, self.items) if spec.merge.optimizer_step else None
        self.pins = PinBoard(spec, (self.users, self.items))
        self.head = Head()
        self.candidates = cpu_candidates.CandidateReader(self.head, self._mean.sums, self.users, self.items)
        if not spec.history.users:
            cpu_candidates.compile_kernels(self.candidates)
        if spec.factor_dtype != FactorDtype.FLOAT32:
            # The caller compiles the kernels of float32.
            scoring.compile_kernels(spec.factor_dtype)

    def _rule_of(self, spec: ModelSpec) -> LearningRule:
        tables = self.users, self.items
        if spec.rule == Rule.SOLVE:
            # `spec.checks.check` ensures it.
            assert self._recorder is not None
            return Solver(spec, *tables, self._mean.sums, self._recorder, self._told(ITEMS))
        if spec.rule == Rule.SOFTMAX:
            return Softmax(spec, *tables)
        kind = AdaptiveSgd if spec.adaptive_rate.window else Sgd
        return kind(spec, *tables, self._mean.sums)

    def _prior_of(self, spec: ModelSpec, side: int) -> Prior:
        arithmetic = PriorArithmetic(dimension_of(spec, side), spec.k)
        return Prior(spec, side, (self.users, self.items)[side].padded().__getitem__, arithmetic)

    def _told(self, side: int) -> PriorRows | None:
        """What bags and vectors say of the rows of a side, if the spec has any."""
        return self._features[side] if self._features else self._priors[side]

    def _features_of(self, spec: ModelSpec) -> tuple[FeatureRows, FeatureRows]:
        arithmetic = FeatureArithmetic(width_of(spec))
        users, items = (table.padded().__getitem__ for table in (self.users, self.items))
        return (
            FeatureRows(spec, USERS, users, arithmetic, self._priors[USERS]),
            FeatureRows(spec, ITEMS, items, arithmetic, self._priors[ITEMS]),
        )

    def _mixer_of(self, spec: ModelSpec) -> Mixer:
        return Mixer(spec, CpuArithmetic(spec, self.users, self.items))

    @property
    def mean(self) -> np.float32:
        """See `backend.Backend.mean`."""
        return self._mean.value

    def state(self) -> dict[str, np.ndarray]:
        """See `backend.Backend.state`. The arrays are views."""
        return state_of(self._parts)

    def load_state(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `backend.Backend.load_state`."""
        for part in self._parts:
            part.load(sections)

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """See `backend.Backend.load_sections`. `advance` publishes the rows."""
        (self.users, self.items)[side].load_sections(sections, count)

    def apply(self, update: Update) -> None:
        """Learns from one interactions record, then sets `revision` and `published`.

        The rows are below the counts of the update. The kernel releases the GIL. If there are pins,
        the rows that the record will change are copied first.

        Raises:
            ValueError: a column is malformed.
        """
        self.apply_all([update])

    def apply_all(self, updates: Sequence[Update]) -> None:
        """Learns from consecutive interactions records, with the bits of one `apply` per record.

        `revision` and `published` show no revision before the last one. `head` may.

        Raises:
            ValueError: a column is malformed. The model has learned from no record.
        """
        for update in [updates.joined] if isinstance(updates, UpdateRun) else updates:
            update.check()
        if self._reservoir is not None:
            for update in updates:
                self._learn([self._reservoir.extend(update)])
                self._reservoir.keep(update)
            return
        for group in self._groups(updates):
            self._learn(group)

    def _groups(self, updates: Sequence[Update]) -> Sequence[Sequence[Update]]:
        """The records that the model learns in one call."""
        if self._fits_features:
            # The rows of features may change between records.
            return [[update] for update in updates]
        groups = self._rule.groups(updates)
        if self._mixer is None or len(groups) > 1:
            return groups
        return self._mixer.groups(UpdateRun.of(updates), self.published[ITEMS])

    def _learn(self, updates: Sequence[Update]) -> None:
        rows = self._rule.prepare(updates)
        update = updates.joined if isinstance(updates, UpdateRun) else joined(updates)
        items = self.published[ITEMS]
        if self._mixer is not None and self._mixer.is_decay_due(items):
            rows = np.arange(items, dtype=np.uint32)
        cold_users, told = _NO_ROWS, self._told(USERS)
        if told is not None:
            cold_users = told.begin(update.user_rows.size, update.user_count)
        if self._fits_features:
            cold_items = self._features[ITEMS].begin(update.item_rows.size, update.item_count)
            rows = np.union1d(rows, cold_items).astype(np.uint32)
        if self.pins.active:
            recent = () if self._recorder is None else (self._recorder.recent_items(update),)
            self.pins.protect(update, rows, *recent, more_users=cold_users)
        popularity = self.items.history.get("popularity", self.items.bias)
        self.head.open()
        if self._mixer is not None:
            run, users = UpdateRun.of(updates), self.published[USERS]
            self._mixer.learn(run, self, users, popularity[:items], self.items.bias[:items])
        if told is not None:
            told.map_cold()
        if self._fits_features:
            self._features[ITEMS].map_cold()
        with following(self._priors[USERS], update.user_rows):
            self._rule.learn(update)
        if self._recorder is not None and not self._rule.records:
            self._recorder.record(update, 0, update.fresh)
        for features, touched in zip(self._features, (update.user_rows, update.item_rows), strict=False):
            features.follow(distinct(touched))
        if self._mixer is not None:
            self._mixer.count(update, popularity, self.items.bias)
        self.advance(update.revision, update.user_count, update.item_count)

    def begin(self, start: Start) -> None:
        """See `backend.Backend.begin`."""
        table = (self.users, self.items)[start.side]
        nobody, counts = np.empty(0, np.uint32), (start.user_count, start.item_count)
        users, items = (start.rows, nobody) if start.side == USERS else (nobody, start.rows)
        self.head.open()
        # A mix sets the popularity of all items.
        more = np.empty(0, np.uint32) if self._mixer is None else np.arange(counts[ITEMS], dtype=np.uint32)
        self.pins.protect(Update(start.revision, users, items, None, None, *counts), more)
        begun = begin(self.spec, table.padded().__getitem__, start)
        if begun is not None:
            assert isinstance(self._rule, Solver)
            self._rule.begin(begun, start)
        if self._mixer is not None:
            popularity, bias = self.items.history["popularity"], self.items.bias
            self._mixer.begin(self, popularity[: counts[ITEMS]], bias[: counts[ITEMS]])
        self.advance(start.revision, *counts)

    def add(self, deltas: Deltas) -> None:
        """See `backend.Backend.add`."""
        nobody, counts = np.empty(0, np.uint32), (deltas.user_count, deltas.item_count)
        users, items = (deltas.rows, nobody) if deltas.side == USERS else (nobody, deltas.rows)
        self.head.open()
        self.pins.protect(Update(deltas.revision, users, items, None, None, *counts))
        if self._steps is not None:
            self._steps.step(deltas)
        else:
            add(self.spec, (self.users, self.items)[deltas.side].padded().__getitem__, deltas)
        self.advance(deltas.revision, *counts)

    def clear(self, side: int, rows: np.ndarray, revision: int) -> None:
        """See `backend.Backend.clear`."""
        nobody, counts, table = np.empty(0, np.uint32), self.published, (self.users, self.items)[side]
        if self._priors[side] is not None:
            vectors = np.zeros((len(rows), dimension_of(self.spec, side)), np.float16)
            self.set_embeddings(side, rows, vectors, self.revision, counts[side])
        if self._features:
            self.set_features(side, rows, Bags.empty(len(rows)), self.revision, counts[side])
        users, items = (rows, nobody) if side == USERS else (nobody, rows)
        self.head.open()
        self.pins.protect(Update(revision, users, items, None, None, *counts))
        self.pins.protect_all_events(side, rows)
        if isinstance(self._rule, Solver):
            self._rule.clear(side, rows_in_gram(self.spec, table.padded().__getitem__, rows))
        table.reset(rows)
        if isinstance(self._rule, Softmax):
            # What is proposed follows from the numbers of events.
            self._rule.load({})
        self.advance(revision)

    def set_embeddings(
        self, side: int, rows: np.ndarray, vectors: np.ndarray, revision: int, count: int
    ) -> None:
        """See `backend.Backend.set_embeddings`."""
        prior, nobody = self._priors[side], np.empty(0, np.uint32)
        assert prior is not None
        users, items = (rows, nobody) if side == USERS else (nobody, rows)
        update = Update(revision, users, items, None, None, *self.published)
        self.head.open()
        self.pins.protect(update)
        had_prior = self._has_prior(rows) if side == ITEMS else nobody
        cold = prior.describe(rows, vectors, count)
        changed: PriorRows = prior
        if self._features:
            changed, cold = self._features[side], self._features[side].follow_vectors(rows, count)
        if side == USERS:
            self.pins.protect(update, more_users=cold)
        else:
            self.pins.protect(update, cold)
        changed.map_cold()
        if side == ITEMS:
            self._follow_newcomers(rows, had_prior)
        self.advance(revision, *((count, None) if side == USERS else (None, count)))

    def add_map_sums(self, sums: MapSums) -> None:
        """See `backend.Backend.add_map_sums`."""
        prior, nobody, count = self._priors[USERS], np.empty(0, np.uint32), self.published[USERS]
        assert prior is not None
        self.head.open()
        changed, rows = self._told(USERS), prior.add_sums(sums, count)
        assert changed is not None
        if self._features:
            rows = self._features[USERS].follow_vectors(nobody, count)
        self.pins.protect(Update(sums.revision, nobody, nobody, None, None, *self.published), more_users=rows)
        changed.map_cold()
        self.advance(sums.revision)

    def set_features(self, side: int, rows: np.ndarray, bags: Bags, revision: int, count: int) -> None:
        """See `backend.Backend.set_features`."""
        nobody, features = np.empty(0, np.uint32), self._features[side]
        users, items = (rows, nobody) if side == USERS else (nobody, rows)
        update = Update(revision, users, items, None, None, *self.published)
        self.head.open()
        self.pins.protect(update)
        had_prior = self._has_prior(rows) if side == ITEMS else nobody
        cold = features.put(rows, bags, count)
        if side == USERS:
            self.pins.protect(update, more_users=cold)
        else:
            self.pins.protect(update, cold)
        features.map_cold()
        if side == ITEMS:
            self._follow_newcomers(rows, had_prior)
            self._solve_changed(revision, count)
        self.advance(revision, *((count, None) if side == USERS else (None, count)))

    def drop_features(self, side: int, keys: np.ndarray, revision: int) -> None:
        """See `backend.Backend.drop_features`."""
        features, count = self._features[side], self.published[side]
        rows, nobody = features.told(count), np.empty(0, np.uint32)
        users, items = (rows, nobody) if side == USERS else (nobody, rows)
        self.head.open()
        self.pins.protect(Update(revision, users, items, None, None, *self.published))
        had_prior = self._has_prior(rows) if side == ITEMS else nobody
        features.drop(keys, count)
        # The rows without events that the fit changes have bags, so they are protected already.
        features.map_cold()
        if side == ITEMS:
            self._follow_newcomers(rows, had_prior)
            self._solve_changed(revision, count)
        self.advance(revision)

    def _solve_changed(self, revision: int, item_count: int) -> None:
        """Solves the items with events again whose bags have changed."""
        if self._fits_features or not self.spec.features.prior_events:
            return
        items, counts = self._features[ITEMS].changed, (self.published[USERS], item_count)
        last, seen = self.recent(ITEMS, items, 1), self.users.history["seen_count"]
        update = solved_again(items, last, seen.__getitem__, revision, counts)
        if update is not None:
            self.pins.protect(update, self._rule.prepare([update]))
            self._rule.learn(update)

    def learn_context(self, item_rows: np.ndarray, bags: Bags) -> Moves:
        """See `backend.Backend.learn_context`."""
        assert self._context is not None
        return self._context.learn(self.gather(ITEMS, item_rows)[0][:, : self.spec.k], bags)

    def drop_context(self, keys: np.ndarray, revision: int) -> None:
        """See `backend.Backend.drop_context`."""
        assert self._context is not None
        self._context.drop(keys)
        self.advance(revision)

    def context(self, keys: np.ndarray) -> Statistics:
        """See `backend.Backend.context`."""
        assert self._context is not None
        return self._context.statistics(keys)

    def _follow_newcomers(self, rows: np.ndarray, had_prior: np.ndarray) -> None:
        if self._mixer is not None:
            popularity, has_prior = self.items.history["popularity"], self._has_prior(rows)
            self._mixer.describe(self, rows, had_prior, has_prior, popularity, self.items.bias)

    def _has_prior(self, rows: np.ndarray) -> np.ndarray:
        """Which item rows uint32[n] have a vector or a bag, bool[n]."""
        prior = self._told(ITEMS)
        return np.zeros(len(rows), bool) if prior is None else prior.has(rows)

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """See `backend.Backend.advance`."""
        users, items = self.published
        self.published = (
            users if user_count is None else user_count,
            items if item_count is None else item_count,
        )
        self.revision = revision
        self.head.close(revision, *self.published)

    def reserve(self, user_rows: int, item_rows: int) -> bool:
        """Always True: the tables have address space for all rows of the spec, and writes take the
        pages.
        """
        return True

    def wait_for_room(self, update_rows: int) -> None:
        """See `backend.Backend.wait_for_room`. Replayed events count, too."""
        self.pins.wait_for_room(most_events(self.spec, update_rows))

    def sections(self, side: int, count: int) -> dict[str, np.ndarray]:
        """See `backend.Backend.sections`. The arrays are views."""
        return (self.users, self.items)[side].sections(count)

    def try_score(
        self, user_keys: np.ndarray, item_keys: np.ndarray, offsets: np.ndarray | None
    ) -> Candidates | None:
        """See `backend.Backend.try_score`."""
        return self.candidates.read(user_keys, item_keys, offsets)

    def places(self) -> Places | None:
        """Where another process can read what scores need, or None if none can."""
        return model_places(self.head, self.state(), (self.users, self.items))

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `backend.Backend.gather`."""
        return scoring.gather((self.users, self.items)[side], rows)

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`."""
        return (self.users, self.items)[side].read(rows, names)

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `backend.Backend.recent`."""
        return (self.users, self.items)[side].recent(rows, most)

    def pin(self) -> Pin:
        """See `backend.Backend.pin`."""
        state = {name: array.copy() for name, array in self.state().items() if name in ANSWERING}
        return self.pins.pin(PinnedState(self.revision, self.published, state))
