"""The reference backend: the semantics in plain NumPy. Tests compare all other backends with it.

Each rule has its own file (`sgd/reference.py`, `solve/reference.py`, `softmax/reference.py`) and
learns in the tables of `tables/reference.py`. This file assembles them to a model. A server can run
on this backend, but it is slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from livefactor_kernels.history.reference import Recorder
from livefactor_kernels.pins import PinnedState
from livefactor_kernels.pins.reference import ReferencePin, gather
from livefactor_kernels.reading.context import Moves, Statistics
from livefactor_kernels.reading.context.learning import Context
from livefactor_kernels.reading.context.reference import ReferenceArithmetic as ContextArithmetic
from livefactor_kernels.reading.learning import Mixer
from livefactor_kernels.reading.reference import ReferenceArithmetic
from livefactor_kernels.reading.remembered import distinct
from livefactor_kernels.replay.reference import Reservoir
from livefactor_kernels.scoring import Candidates
from livefactor_kernels.sgd.reference import Sgd
from livefactor_kernels.sgd.reference_adaptive import AdaptiveSgd
from livefactor_kernels.softmax.reference import Softmax
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.solve.features.learning import FeatureRows, solved_again
from livefactor_kernels.solve.features.reference import ReferenceArithmetic as FeatureArithmetic
from livefactor_kernels.solve.prior import dimension_of
from livefactor_kernels.solve.prior.learning import Prior, following
from livefactor_kernels.solve.prior.reference import ReferenceArithmetic as PriorArithmetic
from livefactor_kernels.solve.prior.rows import PriorRows
from livefactor_kernels.solve.prior.sums import MapSums
from livefactor_kernels.solve.reference import Solver
from livefactor_kernels.spec.model import ModelSpec, Rule
from livefactor_kernels.tables import ITEMS, USERS, read_rows, ring_length
from livefactor_kernels.tables.clearing import rows_in_gram
from livefactor_kernels.tables.deltas import Deltas, add
from livefactor_kernels.tables.recent import RECENT, Recent, recent_of
from livefactor_kernels.tables.reference import ReferenceTables
from livefactor_kernels.tables.start import Start, begin
from livefactor_kernels.tables.state import ANSWERING, Part, state_of
from livefactor_kernels.update import Update, UpdateRun


class LearningRule(Part, Protocol):
    """A rule of the reference."""

    records: bool
    """Whether `learn` records events in the histories. Otherwise the model records them
    afterwards.
    """

    def learn(self, update: Update) -> None:
        """Learns from one record."""


class ReferenceModel:
    """A model in plain NumPy (`backend.Backend`)."""

    def __init__(self, spec: ModelSpec) -> None:
        """An empty model at revision 0. The caller has checked the spec."""
        self.spec = spec
        self._tables = ReferenceTables(spec)
        self.users, self.items = self._tables.users, self._tables.items
        self.revision = 0
        self.published = (0, 0)
        self._recorder = Recorder(spec, self.users, self.items) if spec.history.users else None
        self._reservoir = Reservoir(spec) if spec.replay.size else None
        self._priors = tuple(
            self._prior_of(spec, side) if dimension_of(spec, side) else None for side in (USERS, ITEMS)
        )
        self._features = self._features_of(spec) if spec.features.size else ()
        self._fits_features = bool(self._features) and spec.rule != Rule.SOLVE
        self._context = Context(spec, ContextArithmetic()) if spec.context.size else None
        self._rule = self._rule_of(spec)
        self._mixer = Mixer(spec, ReferenceArithmetic(spec)) if spec.mix.learning_rate else None
        further: list[Part] = [
            part for part in (self._reservoir, self._mixer, *self._priors, self._context) if part is not None
        ]
        further += self._features
        self._parts: list[Part] = [self._tables.mean, self._rule, *further]

    def _prior_of(self, spec: ModelSpec, side: int) -> Prior:
        return Prior(spec, side, partial(getattr, (self.users, self.items)[side]), PriorArithmetic())

    def _told(self, side: int) -> PriorRows | None:
        """What bags and vectors say of the rows of a side, if the spec has any."""
        return self._features[side] if self._features else self._priors[side]

    def _features_of(self, spec: ModelSpec) -> tuple[FeatureRows, FeatureRows]:
        arithmetic = FeatureArithmetic()
        return (
            FeatureRows(spec, USERS, partial(getattr, self.users), arithmetic, self._priors[USERS]),
            FeatureRows(spec, ITEMS, partial(getattr, self.items), arithmetic, self._priors[ITEMS]),
        )

    def _rule_of(self, spec: ModelSpec) -> LearningRule:
        if spec.rule == Rule.SOLVE:
            # `spec.checks.check` ensures it.
            assert self._recorder is not None
            return Solver(self._tables, self._recorder, self._told(ITEMS))
        if spec.rule == Rule.SOFTMAX:
            return Softmax(self._tables)
        return AdaptiveSgd(self._tables) if spec.adaptive_rate.window else Sgd(self._tables)

    @property
    def mean(self) -> np.float32:
        """See `backend.Backend.mean`."""
        return self._tables.mean.value

    def state(self) -> dict[str, np.ndarray]:
        """See `backend.Backend.state`."""
        return state_of(self._parts)

    def load_state(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `backend.Backend.load_state`."""
        for part in self._parts:
            part.load(sections)

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """See `backend.Backend.load_sections`."""
        (self.users, self.items)[side].load_sections(sections, count)

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """See `backend.Backend.advance`."""
        users, items = self.published
        self.published = (
            users if user_count is None else user_count,
            items if item_count is None else item_count,
        )
        self.revision = revision

    def begin(self, start: Start) -> None:
        """See `backend.Backend.begin`."""
        with self.users.lock, self.items.lock:
            begun = begin(self.spec, partial(getattr, (self.users, self.items)[start.side]), start)
            if begun is not None:
                assert isinstance(self._rule, Solver)
                self._rule.begin(begun, start)
            if self._mixer is not None:
                self._mixer.begin(self, self.items.popularity, self.items.bias)
        self.advance(start.revision, start.user_count, start.item_count)

    def add(self, deltas: Deltas) -> None:
        """See `backend.Backend.add`."""
        table = (self.users, self.items)[deltas.side]
        with table.lock:
            add(self.spec, partial(getattr, table), deltas)
        self.advance(deltas.revision, deltas.user_count, deltas.item_count)

    def clear(self, side: int, rows: np.ndarray, revision: int) -> None:
        """See `backend.Backend.clear`."""
        table, counts = (self.users, self.items)[side], self.published
        if self._priors[side] is not None:
            vectors = np.zeros((len(rows), dimension_of(self.spec, side)), np.float16)
            self.set_embeddings(side, rows, vectors, self.revision, counts[side])
        if self._features:
            self.set_features(side, rows, Bags.empty(len(rows)), self.revision, counts[side])
        with table.lock:
            if isinstance(self._rule, Solver):
                self._rule.clear(side, rows_in_gram(self.spec, partial(getattr, table), rows))
            table.reset(rows)
        self.advance(revision)

    def set_embeddings(
        self, side: int, rows: np.ndarray, vectors: np.ndarray, revision: int, count: int
    ) -> None:
        """See `backend.Backend.set_embeddings`."""
        prior = self._priors[side]
        assert prior is not None
        with (self.users, self.items)[side].lock:
            had_prior = self._has_prior(rows) if side == ITEMS else rows
            prior.describe(rows, vectors, count)
            changed: PriorRows = prior
            if self._features:
                changed = self._features[side]
                self._features[side].follow_vectors(rows, count)
            changed.map_cold()
            if side == ITEMS:
                self._follow_newcomers(rows, had_prior)
        self.advance(revision, *((count, None) if side == USERS else (None, count)))

    def add_map_sums(self, sums: MapSums) -> None:
        """See `backend.Backend.add_map_sums`."""
        prior, count = self._priors[USERS], self.published[USERS]
        assert prior is not None
        with self.users.lock:
            prior.add_sums(sums, count)
            changed: PriorRows = prior
            if self._features:
                changed = self._features[USERS]
                self._features[USERS].follow_vectors(np.empty(0, np.uint32), count)
            changed.map_cold()
        self.advance(sums.revision)

    def set_features(self, side: int, rows: np.ndarray, bags: Bags, revision: int, count: int) -> None:
        """See `backend.Backend.set_features`."""
        features = self._features[side]
        with (self.users, self.items)[side].lock:
            had_prior = self._has_prior(rows) if side == ITEMS else rows
            features.put(rows, bags, count)
            features.map_cold()
            if side == ITEMS:
                self._follow_newcomers(rows, had_prior)
                self._solve_changed(revision, count)
        self.advance(revision, *((count, None) if side == USERS else (None, count)))

    def drop_features(self, side: int, keys: np.ndarray, revision: int) -> None:
        """See `backend.Backend.drop_features`."""
        features, count = self._features[side], self.published[side]
        with (self.users, self.items)[side].lock:
            rows = features.told(count)
            had_prior = self._has_prior(rows) if side == ITEMS else rows
            features.drop(keys, count)
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
        last = self.recent(ITEMS, items, 1)
        update = solved_again(items, last, self.users.seen_count.__getitem__, revision, counts)
        if update is not None:
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
            has_prior, items = self._has_prior(rows), self.items
            self._mixer.describe(self, rows, had_prior, has_prior, items.popularity, items.bias)

    def _has_prior(self, rows: np.ndarray) -> np.ndarray:
        """Which item rows uint32[n] have a vector or a bag, bool[n]."""
        prior = self._told(ITEMS)
        return np.zeros(len(rows), bool) if prior is None else prior.has(rows)

    def reserve(self, user_rows: int, item_rows: int) -> bool:
        """Always True: NumPy allocates the memory when rows come."""
        return True

    def wait_for_room(self, update_rows: int) -> None:
        """Returns at once, because pins are complete copies and updates add no further ones."""

    def sections(self, side: int, count: int) -> dict[str, np.ndarray]:
        """See `backend.Backend.sections`."""
        return (self.users, self.items)[side].sections(count)

    def try_score(
        self, user_keys: np.ndarray, item_keys: np.ndarray, offsets: np.ndarray | None
    ) -> Candidates | None:
        """See `backend.Backend.try_score`. Always None."""
        return None

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `backend.Backend.gather`."""
        table = (self.users, self.items)[side]
        return gather(table.factors, table.bias, rows)

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`."""
        table = (self.users, self.items)[side]
        return read_rows({name: getattr(table, name) for name in names}, rows, names, self.spec.k)

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `backend.Backend.recent`."""
        return recent_of(self.read(side, rows, RECENT), ring_length(self.spec, side), most)

    def pin(self) -> ReferencePin:
        """Copies all published rows. See `backend.Backend.pin`."""
        state = {name: array.copy() for name, array in self.state().items() if name in ANSWERING}
        return ReferencePin(self._tables, PinnedState(self.revision, self.published, state))

    def apply_all(self, updates: Sequence[Update]) -> None:
        """See `backend.Backend.apply_all`."""
        for update in updates:
            self.apply(update)

    def apply(self, update: Update) -> None:
        """See `backend.Backend.apply`."""
        update.check()
        with self.users.lock, self.items.lock:
            items = self.published[ITEMS]
            if self._mixer is not None:
                run, popularity = UpdateRun.of([update]), self.items.popularity[:items]
                users = self.published[USERS]
                self._mixer.learn(run, self, users, popularity, self.items.bias[:items])
            learned = update if self._reservoir is None else self._reservoir.extend(update)
            told = self._told(USERS)
            if told is not None:
                told.begin(learned.user_rows.size, learned.user_count)
                told.map_cold()
            if self._fits_features:
                self._features[ITEMS].begin(learned.item_rows.size, learned.item_count)
                self._features[ITEMS].map_cold()
            with following(self._priors[USERS], learned.user_rows):
                self._rule.learn(learned)
            if self._recorder is not None and not self._rule.records:
                self._recorder.record(update, 0, update.user_rows.size)
            for features, touched in zip(
                self._features, (learned.user_rows, learned.item_rows), strict=False
            ):
                features.follow(distinct(touched))
            if self._mixer is not None:
                self._mixer.count(update, self.items.popularity, self.items.bias)
        if self._reservoir is not None:
            self._reservoir.keep(update)
        self.advance(update.revision, update.user_count, update.item_count)
