"""Test-then-learn for the events of a live model.

`Judge.before` reads the judged events of a run before the model learns them, and `Judge.after`
evaluates them.

An event is ranked with the context that it carries, at weight 1, which is that of a Score call that
names none. Losses are those of the rule, which does not learn context, so they are without it.

A judged event is scored at the state before its run. Large records, records under light load, and
replayed records are applied one by one. For them this is the state before the record. When many
small records arrive at once, the state can be up to `RUN_WORK_MAX` of the engine of work older.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np

from livefactor_kernels.spec.model import Loss
from livefactor_server.changes import InteractionsChange, Record
from livefactor_server.judging import choice, drift, metrics, report, scoring
from livefactor_server.judging.bounds import Bounds
from livefactor_server.judging.floor import Floor
from livefactor_server.judging.popularity import (
    DECAYED,
    PLAIN,
    Counted,
    Popularity,
    item_bytes,
    joined,
)
from livefactor_server.judging.report import Event, Figure, Report
from livefactor_server.judging.scoring import Best, Read, Reading, Sample
from livefactor_server.judging.windows import Window
from livefactor_server.model.state import ModelState

SAMPLED_ITEMS = 100
"""Number of items, drawn with replacement, that an event is ranked against."""
RANKED_ROWS_PER_RECORD = 8_000
"""Item rows that full rankings may score per judged record, on average.

With more items, fewer events are ranked against all items.
"""
EVENTS_PER_HOUR = 1_000
"""The floor of judged events, if there are so many (`floor.py`)."""
RANKED_PER_HOUR = 250
"""The floor of events that are ranked among all items."""
FLOOR_RANKED_PER_RECORD, FLOOR_ROWS_PER_RECORD = 8, 1 << 20
"""What the floor may rank for a record: so many events, and so many item rows, but one event."""
EVENTS_KEPT = 16
LOTS_AHEAD = 1024
DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How much is judged, and the windows of the figures.

    Attributes:
        record_share: share of the records that is judged; 0 turns the judge off. There are floors
            beside it, `EVENTS_PER_HOUR` and `RANKED_PER_HOUR`.
        events_per_record_max: maximum number of judged events per record.
        sampled_share: share of the judged events that is ranked against sampled items.
        ranked_share: share that is ranked against all items; `RANKED_ROWS_PER_RECORD` can lower it.
        window_events: window of the figures, in judged events.
        half_life_events: half-life of the decayed figures, in judged events.
        popularity_half_life_events: half-life of the decayed popularity, in learned events.
    """

    record_share: float = 0.015625
    events_per_record_max: int = 64
    sampled_share: float = 0.25
    ranked_share: float = 0.125
    window_events: int = 10_000
    half_life_events: int = 2_000
    popularity_half_life_events: int = 20_000


_Figures = tuple[Figure, ...]
_Shown = tuple[tuple[int, ...], _Figures, _Figures, _Figures]
"""Rows that the windows had got, and the figures of all, of new and of known users."""


class _Pending(NamedTuple):
    """What was read for a run before the model learned it."""

    revision: int
    sample: Sample
    negatives: np.ndarray
    candidates: np.ndarray
    ranked: np.ndarray
    read: Read
    asked: Sample
    best: Best | None


class Judge:
    """Judges one model.

    One thread calls `before` and `after` alternately. Any thread may call `report` and
    `restart_bounds`.
    """

    def __init__(self, state: ModelState, settings: JudgeSettings, reading: Reading = nullcontext) -> None:
        """Compiles the kernels and starts with empty windows.

        Args:
            state: the model.
            settings: how much is judged.
            reading: a context manager that locks the backend for short reads (the gate). A replay
                needs none.
        """
        compile_kernels()
        spec = state.spec
        self._backend, self._spec, self._settings, self._reading = state.backend, spec, settings, reading
        self._ranks = spec.loss != Loss.SQUARED
        sizes = settings.window_events, settings.half_life_events
        self._losses = Window(report.LOSS_COLUMNS[Loss(spec.loss)], *sizes)
        self._drawn, self._full = (Window(report.RANK_COLUMNS, *sizes) for _ in range(2))
        self._popularity = Popularity(not self._ranks, settings.popularity_half_life_events)
        self._bounds = Bounds(spec.limits.factor_max, spec.k)
        self._loss_drift = drift.LossDrift() if drift.available() else None
        self._hit_drift = drift.HitDrift() if drift.available() and self._ranks else None
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._since = self._revision = state.revision
        self._good_revision = 0
        self.drift_revision = 0
        """The revision at which drift for the worse was found last, 0 if none was."""
        self._lock = threading.Lock()
        self._lots_from = -LOTS_AHEAD
        self._lots = self._small_lots = frozenset[int]()
        self._floor, self._ranked_floor = Floor(EVENTS_PER_HOUR), Floor(RANKED_PER_HOUR)
        self._shown: _Shown = (), (), (), ()
        self._records: list[Record] = []
        self._pending: _Pending | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the counts of items. All else has a fixed size."""
        return self._popularity.nbytes

    @property
    def item_bytes(self) -> int:
        """Bytes of memory that one further item takes."""
        return item_bytes(not self._ranks)

    @property
    def good_revision(self) -> int:
        """The newest revision whose figures were within all bounds, 0 if none was checked."""
        return self._good_revision

    def follow(self, state: ModelState, item_rows: np.ndarray) -> None:
        """Judges a state without some of the rows. `item_rows` as in `Observer.follow`."""
        self._backend = state.backend
        self._popularity.keep(item_rows)

    def before(self, records: Sequence[Record]) -> None:
        """Reads the judged events of consecutive records that the model is about to learn."""
        self._records = [record for record in records if record.change.has_events and record.change.rows]
        self._pending = None
        if not self._records:
            return
        picked = [record for record in self._records if self._is_judged(record)]
        if picked:
            revisions = np.array([record.header.revision for record in picked], np.uint64)
            sizes = np.array([record.change.rows for record in picked], np.int64)
            most = self._settings.events_per_record_max
            chosen = choice.choose(self._spec.seed, revisions, sizes, most)
            sample = scoring.sample_of(picked, chosen, self._spec.context.size > 0)
            sample = sample._replace(values=self._learned(sample.values))
            if len(sample.events):
                self._pending = self._read(sample, picked[-1].header.time_us)

    def _is_judged(self, record: Record) -> bool:
        """Whether the record is judged, by lot or for the floor."""
        if not self._wins(record) and not self._floor.left(record.header.time_us):
            return False
        self._floor.take(choice.count_of(record.change.rows, self._settings.events_per_record_max))
        return True

    def _wins(self, record: Record) -> bool:
        """Whether the record is judged by lot. The lots of many records are drawn at once."""
        revision = record.header.revision
        if not self._lots_from <= revision < self._lots_from + LOTS_AHEAD:
            revisions = np.arange(revision, revision + LOTS_AHEAD, dtype=np.uint64)
            self._lots_from = revision
            self._lots, self._small_lots = (
                frozenset(revisions[judged(self._spec.seed, self._settings.record_share, revisions)].tolist())
                for judged in (choice.judged_records, choice.judged_small_records)
            )
        is_small = record.change.rows <= choice.EVENTS_LEAST
        return revision in (self._small_lots if is_small else self._lots)

    def _read(self, sample: Sample, time_us: int) -> _Pending:
        settings = self._settings
        judgeable = (sample.values > 0) & (sample.item_counts > 1) & self._ranks
        ranked = judgeable & (sample.lots[:, 0] < settings.sampled_share)
        negatives = self._draw(choice.NEGATIVE_DOMAIN, sample, self._spec.negatives if self._ranks else 0)
        candidates = self._draw(choice.CANDIDATE_DOMAIN, sample.where(ranked), SAMPLED_ITEMS)
        read = scoring.read(self._backend, self._reading, sample, ranked, negatives, candidates)
        asked = sample.where(self._asked(sample, judgeable, time_us))
        best = scoring.best_items(self._backend, self._reading, asked) if len(asked.events) else None
        return _Pending(
            revision=self._backend.revision,
            sample=sample,
            negatives=negatives,
            candidates=candidates,
            ranked=ranked,
            read=read,
            asked=asked,
            best=best,
        )

    def _asked(self, sample: Sample, judgeable: np.ndarray, time_us: int) -> np.ndarray:
        """Which events are ranked among all items, by lot or for the floor: bool[m]."""
        rows = sample.item_counts * sample.companions
        scans = RANKED_ROWS_PER_RECORD / rows
        asked: np.ndarray = judgeable & (sample.lots[:, 1] < np.minimum(self._settings.ranked_share, scans))
        left = min(self._ranked_floor.left(time_us) - int(asked.sum()), FLOOR_RANKED_PER_RECORD)
        if left > 0 and self._settings.ranked_share > 0:
            able = np.flatnonzero(judgeable & ~asked)
            few = max(1, int(FLOOR_ROWS_PER_RECORD // rows.max())) if able.size else 0
            first = able[np.argsort(sample.lots[able, 1], kind="stable")]
            asked[first[: min(left, few)]] = True
        self._ranked_floor.take(int(asked.sum()))
        return asked

    def after(self) -> list[Event]:
        """Evaluates the events that `before` read, and adds the records to the popularity counts.

        Returns:
            The drifts and warnings that were found.
        """
        if not self._records:
            return []
        noticed = self._conclude(self._pending) if self._pending is not None else []
        for rows, values in joined(self._counted()):
            self._popularity.count(rows, values)
        self._records, self._pending = [], None
        return noticed

    def _counted(self) -> Iterator[Counted]:
        """The item rows of each record, and their values, None if all are 1."""
        for record in self._records:
            change, placement = record.change, record.placement
            assert isinstance(change, InteractionsChange) and placement is not None
            values = None if self._spec.loss == Loss.BPR else change.columns.values
            counted, rows = None if values is None else self._learned(values), placement.item_rows
            if (learned := placement.learned) is not None:
                counted, rows = None if counted is None else counted[learned], rows[learned]
            yield rows, counted

    def _learned(self, values: np.ndarray) -> np.ndarray:
        """The values that the model learns, in the dtype of `values`."""
        return (values > 0).astype(values.dtype) if self._spec.auto.ratings_events else values

    def _conclude(self, pending: _Pending) -> list[Event]:
        _, sample, negatives, candidates, ranked, read, asked, best = pending
        self._popularity.settle(int(sample.item_counts.max()))
        rows, there = self._loss_rows(sample, read, negatives)
        drawn = scoring.ranks_among_drawn(read, sample.item_rows[ranked], candidates, self._popularity)
        with self._lock:
            self._revision = pending.revision
            self._losses.push(rows[there], sample.types[there], read.known[there])
            self._drawn.push(drawn, sample.types[ranked], read.known[ranked])
            if best is not None:
                among_all = scoring.ranks_among_all(best, asked, self._popularity)
                self._full.push(among_all, asked.types, best.known)
            noticed = self._notice(rows[there, 0], drawn[:, 0], read)
            self._events.extend(noticed)
            if any(event.kind == DRIFT and event.worse for event in noticed):
                self.drift_revision = pending.revision
        return noticed

    def _draw(self, domain: int, sample: Sample, width: int) -> np.ndarray:
        return choice.draw(
            self._spec.seed,
            domain,
            sample.revisions,
            sample.events,
            sample.item_rows,
            sample.item_counts,
            width,
        )

    def _loss_rows(self, sample: Sample, read: Read, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows for the window of losses, float64[m, columns], and which have a loss, bool[m]."""
        loss, popularity = Loss(self._spec.loss), self._popularity
        losses, alone = scoring.losses(loss, sample, read), sample.item_counts < 2
        everywhere = np.ones(len(sample.events), bool)
        if loss == Loss.SQUARED:
            floors = [popularity.scores(which, sample.item_rows) for which in (PLAIN, DECAYED)]
            errors = [(scores - sample.values) ** 2 for scores in (read.own.astype(np.float64), *floors)]
            return np.column_stack((losses, *errors)), everywhere
        if loss == Loss.IMPLICIT:
            return losses[:, None], everywhere
        if loss in (Loss.BPR, Loss.SOFTMAX):
            return losses[:, None], ~alone
        own = [read.own, *(popularity.scores(which, sample.item_rows) for which in (PLAIN, DECAYED))]
        if negatives.shape[1]:
            others = [
                read.negatives[:, 0],
                *(popularity.scores(which, negatives[:, 0]) for which in (PLAIN, DECAYED)),
            ]
            took = (sample.values > 0) & ~alone
            others = [np.where(took, scores, np.nan) for scores in others]
        else:
            others = [np.full(len(own[0]), np.nan)] * 3
        return np.column_stack((losses, sample.values > 0, *own, *others)), everywhere

    def _notice(self, losses: np.ndarray, drawn_ranks: np.ndarray, read: Read) -> list[Event]:
        found: list[tuple[str, str, float, float]] = []
        hits = metrics.recall_at(scoring.RANKED_AT, drawn_ranks)
        for metric, detector, series in (
            ("loss", self._loss_drift, losses),
            (f"sampled_recall@{scoring.RANKED_AT}", self._hit_drift, hits),
        ):
            change = detector.push(series) if detector is not None else None
            if change is not None:
                found.append((DRIFT, metric, *change))
        ended, alarms = self._bounds.push(losses, read.factors)
        found += alarms
        if ended and not self._bounds.passed:
            self._good_revision = self._revision
        now = time.time_ns() // 1000
        return [Event(kind, metric, self._revision, now, old, new) for kind, metric, old, new in found]

    def restart_bounds(self) -> None:
        """Resets the bounds after an operator has handled a warning.

        The next events define the normal values.
        """
        with self._lock:
            self._bounds.restart()

    def report(self) -> Report:
        """The present results. `before` and `after` wait for copies only, not for the figures."""
        settings, loss = self._settings, Loss(self._spec.loss)
        with self._lock:
            windows = (self._losses, self._drawn, self._full)
            pushed = tuple(window.pushed for window in windows)
            # Figures take a tenth of a second, and several readers ask at the same time.
            shown = self._shown
            rows = [] if pushed == shown[0] else [window.rows() for window in windows]
            found = Report(
                since_revision=self._since,
                revision=self._revision,
                judged_events=self._losses.pushed,
                ranked_events=(self._drawn.pushed, self._full.pushed),
                figures=(),
                new_user_figures=(),
                known_user_figures=(),
                events=tuple(self._events),
                good_revision=self._good_revision,
                row_norm=self._bounds.row_norm,
                clamped_share=self._bounds.clamped_share,
                drift_detection=self._loss_drift is not None,
            )
        sizes = settings.window_events, settings.half_life_events
        if rows:
            every, new, known = (
                tuple(report.figures(loss, rows, *sizes, known=each)) for each in (None, False, True)
            )
            shown = self._shown = pushed, every, new, known
        _, every, new, known = shown
        return replace(found, figures=every, new_user_figures=new, known_user_figures=known)


@cache
def compile_kernels() -> None:
    """Compiles or loads the judge's kernels, so that no record waits for them."""
    rows = np.zeros(1, np.uint32)
    one = np.ones(1, np.uint64)
    choice.judged_records(0, 1.0, one)
    choice.choose(0, one, np.ones(1, np.int64), 1)
    choice.draw(0, choice.CANDIDATE_DOMAIN, one, np.zeros(1, np.int64), rows, one, 1)
    scoring.compile_kernels()
    for means in (False, True):
        popularity = Popularity(means, 1.0)
        popularity.count(rows, np.ones(1, np.float32))
        popularity.settle()
