"""Readers: answer Score calls at exactly one published revision while the tables change in place.

Scores of candidates: under the gate the reader looks up the keys and gathers the rows. The writer
holds the same gate for each run of records. The dot products come after the gate.

Top-k: under the gate the reader pins the revision. Then it scans without the gate. The pin answers
at its revision, and the writer continues meanwhile.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from livefactor.wire.scoring import ScoreColumns, ScoreQuery
from livefactor_kernels.backend import Pin
from livefactor_kernels.reading import Events, PersonReader, with_rows
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.engine.engine import Engine
from livefactor_server.model.availability import rows_of
from livefactor_server.statuses import invalid, no_memory, unavailable

_NO_ROWS, _NO_FLAGS = np.empty(0, np.uint32), np.empty(0, bool)

GATE_ROWS_MAX = 4096
"""Maximum number of rows gathered under the gate. Larger reads use a pin."""


class Reader:
    """Scores of one model. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._state = engine.state
        spec = engine.state.spec
        self._persons = PersonReader(spec) if spec.history.users else None
        self._unavailable: tuple[np.ndarray, np.ndarray] = np.empty(0, np.uint8), _NO_ROWS

    def score(self, query: ScoreQuery) -> ScoreColumns:
        """Answers a checked query.

        Raises:
            Refused: INVALID_ARGUMENT if the query needs histories and the model has none.
                UNAVAILABLE if the tables may be between two revisions. RESOURCE_EXHAUSTED if the
                backend has too little memory for the read.
        """
        if self._engine.torn:
            raise unavailable("model: stopped by an internal error until a restart")
        if self._persons is None:
            if query.exclude_seen:
                raise invalid("exclude_seen: this model has no histories (spec: history.users)")
            if query.event_ids is not None:
                raise invalid("events: this model has no histories (spec: history.users)")
        try:
            return self._candidates(query) if query.target == "candidates" else self._top_k(query)
        except MemoryError:
            raise no_memory("this read") from None

    # ------------------------------------------------------------------ candidates

    def _candidates(self, query: ScoreQuery) -> ScoreColumns:
        backend = self._state.backend
        if self._persons is not None:
            return self._personal_candidates(self._persons, query)
        if len(query.user_ids) + len(query.item_ids) <= GATE_ROWS_MAX:
            with self._engine.gate.reading():
                revision, mean, published = self._state.revision, backend.mean, backend.published
                user_rows = backend.users.find(query.user_ids, published[USERS])
                item_rows = backend.items.find(query.item_ids, published[ITEMS])
                users = backend.gather(USERS, user_rows)
                items = backend.gather(ITEMS, item_rows)
        else:
            with self._engine.gate.reading():
                pin = backend.pin()
                revision = self._state.revision
            with pin:
                mean = pin.mean
                user_rows = backend.users.find(query.user_ids, pin.counts[USERS])
                item_rows = backend.items.find(query.item_ids, pin.counts[ITEMS])
                users = pin.gather(USERS, user_rows)
                items = pin.gather(ITEMS, item_rows)
        scores, offsets = _score_lists(mean, users, items, query.offsets)
        return self._listed(query, revision, scores, offsets, user_rows != NO_ROW, item_rows != NO_ROW)

    def _personal_candidates(self, persons: PersonReader, query: ScoreQuery) -> ScoreColumns:
        """Candidates of a model with histories. The user factors need many rows, so it uses a
        pin.
        """
        backend = self._state.backend
        with self._engine.gate.reading():
            pin = backend.pin()
            revision = self._state.revision
        with pin:
            user_rows = backend.users.find(query.user_ids, pin.counts[USERS])
            item_rows = backend.items.find(query.item_ids, pin.counts[ITEMS])
            read = persons.read(pin, user_rows, pin.counts[ITEMS], self._own_events(query, pin))
            items = pin.gather(ITEMS, item_rows)
        scores, offsets = _score_lists(pin.mean, (read.factors, read.bias), items, query.offsets)
        for user, (start, stop) in enumerate(pairwise(offsets.tolist())):
            rows = item_rows if query.offsets is None else item_rows[start:stop]
            scores[start:stop] += read.gains(user, rows)
        return self._listed(query, revision, scores, offsets, user_rows != NO_ROW, item_rows != NO_ROW)

    def _listed(
        self, query: ScoreQuery, revision: int, scores: np.ndarray, offsets: np.ndarray,
        user_known: np.ndarray, item_known: np.ndarray,
    ) -> ScoreColumns:  # fmt: skip
        repeat = len(query.user_ids) if query.offsets is None else 1
        return self._answer(
            query,
            revision,
            np.tile(query.item_ids, repeat) if repeat > 1 else query.item_ids,
            scores,
            offsets,
            user_known,
            np.tile(item_known, repeat) if repeat > 1 else item_known,
        )

    def _own_events(self, query: ScoreQuery, pin: Pin) -> list[Events | None] | None:
        """The events in the query that replace the histories of the users, without unknown
        items.

        A list without events replaces nothing, also if all users share it.
        """
        if query.event_ids is None or not query.event_ids.size:
            return None
        rows = self._state.backend.items.find(query.event_ids, pin.counts[ITEMS])
        assert self._persons is not None
        if query.event_offsets is None:
            return [self._persons.events_of(rows[rows != NO_ROW])] * len(query.user_ids)
        lists = (rows[start:stop] for start, stop in pairwise(query.event_offsets.tolist()))
        return [self._persons.events_of(part[part != NO_ROW]) if part.size else None for part in lists]

    # ------------------------------------------------------------------ top-k

    def _top_k(self, query: ScoreQuery) -> ScoreColumns:
        backend = self._state.backend
        with self._engine.gate.reading():
            pin = backend.pin()
            revision, marks = self._state.revision, self._state.marks.bits()
        with pin:
            user_rows = backend.users.find(query.user_ids, pin.counts[USERS])
            common, own, own_offsets = self._exclusions(query, pin, marks)
            truncated = _NO_FLAGS
            if self._persons is None:
                factors, bias = pin.gather(USERS, user_rows)
                rows, scores, offsets = pin.top_k(factors, bias, query.k, common, own, own_offsets)
            else:
                read = self._persons.read(pin, user_rows, pin.counts[ITEMS], self._own_events(query, pin))
                if query.exclude_seen:
                    own, own_offsets = read.exclusions(own, own_offsets)
                    truncated = read.truncated
                keys = backend.items.keys
                rows, scores, offsets = read.top_k(pin, keys, query.k, common, own, own_offsets)
        return self._answer(
            query,
            revision,
            backend.items.keys[rows],
            scores,
            offsets.astype(np.uint32),
            user_rows != NO_ROW,
            np.ones(len(rows), bool),
            truncated,
        )

    def _exclusions(
        self, query: ScoreQuery, pin: Pin, marks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(excluded rows of all users, excluded rows of each user, offsets of the latter).

        The rows are uint32[n] and ascending, the second array within each user. Offsets are
        uint32[users + 1].
        """
        items = self._state.backend.items
        rows = items.find(query.item_ids, pin.counts[ITEMS])
        common = _NO_ROWS if query.include_unavailable else self._unavailable_rows(marks)
        own, offsets = _NO_ROWS, np.zeros(len(query.user_ids) + 1, np.uint32)
        if query.offsets is None:
            common = with_rows(common, np.unique(rows[rows != NO_ROW]))
        else:
            lists = [
                np.unique(part[part != NO_ROW])
                for part in np.split(rows, query.offsets[1:-1].astype(np.int64))
            ]
            own = np.concatenate(lists)
            np.cumsum([len(part) for part in lists], out=offsets[1:])
        return common, own, offsets

    def _unavailable_rows(self, marks: np.ndarray) -> np.ndarray:
        """The rows of the unavailable items, ascending. They are kept until a mark changes.

        `marks` has their bits (`Marks.bits`).
        """
        kept, rows = self._unavailable
        if kept is not marks:
            rows = rows_of(marks)
            self._unavailable = marks, rows
        return rows

    def _answer(
        self,
        query: ScoreQuery,
        revision: int,
        item_ids: np.ndarray,
        scores: np.ndarray,
        offsets: np.ndarray,
        user_known: np.ndarray,
        item_known: np.ndarray,
        seen_truncated: np.ndarray = _NO_FLAGS,
    ) -> ScoreColumns:
        labels: list[str] = []
        if query.with_labels:
            names = self._state.labels[ITEMS]
            labels = [names.get(key) for key in item_ids.tolist()]
        return ScoreColumns(
            lineage=self._state.lineage.bytes,
            revision=revision,
            item_ids=item_ids,
            scores=scores,
            offsets=offsets,
            user_known=user_known,
            item_known=item_known,
            labels=labels,
            seen_truncated=seen_truncated,
        )


def _score_lists(
    mean: np.float32,
    users: tuple[np.ndarray, np.ndarray],
    items: tuple[np.ndarray, np.ndarray],
    offsets: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(scores float32[n], offsets uint32[users + 1]) of the lists of candidates.

    With `offsets` each user has a list. Without it all users share one list.
    """
    if offsets is not None:
        return scoring.score_candidates(mean, *users, *items, offsets), offsets
    count, length = len(users[1]), len(items[1])
    ends = np.arange(count + 1, dtype=np.uint32) * np.uint32(length)
    lists = [
        scoring.score_candidates(
            mean, users[0][u : u + 1], users[1][u : u + 1], *items, np.array([0, length], np.uint32)
        )
        for u in range(count)
    ]
    return np.concatenate(lists), ends
