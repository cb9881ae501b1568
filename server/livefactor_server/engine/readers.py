"""Readers: answer Score calls at exactly one published revision while the tables change in place.

Scores of candidates: on the CPU one compiled call looks the keys up and scores the rows while the
writer works, and then looks whether a record was applied meanwhile (`Backend.try_score`). Readers
and the writer do not wait for each other. After a few tries the reader takes turns with the writer
at the gate, which the writer holds for each run of records. A GPU reads only under the gate.

Everything else (`answering`): under the gate the reader pins the revision. Then it reads without
the gate. The pin answers at its revision, and the writer continues meanwhile.
"""

from __future__ import annotations

from typing import Protocol

from livefactor.wire.scoring import ScoreColumns, ScoreQuery
from livefactor_kernels.scoring import Candidates
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.engine.answering.answers import (
    NO_MARKS,
    USUAL,
    Allowance,
    Answers,
    Moment,
    needs_marks,
    score_lists,
    with_labels,
)
from livefactor_server.engine.answering.queries import NO_SHIFT, shift_of
from livefactor_server.engine.short_reads import ShortReader
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import Refused, no_memory, unavailable

GATE_ROWS_MAX = 4096
"""Maximum number of rows read under the gate. Larger reads use a pin."""

AT_ONCE_MAX = 2048
"""Maximum number of scores of a query that is answered without a thread of its own."""


class Source(Protocol):
    """What a reader needs of an engine.

    Attributes:
        state: the state in force.
        gate: the writer holds it while rows change.
        torn: whether the tables may be between two revisions.
    """

    state: ModelState
    gate: Gate
    torn: bool


class Reader:
    """Scores of one model with its present spec. Thread-safe.

    After a switch of the spec the model needs another reader. This one then answers at the last
    revision before the switch.
    """

    def __init__(self, engine: Source) -> None:
        self._engine = engine
        self._state = state = engine.state
        self._answers = Answers(state.spec, state.lineage.bytes, int(state.spec_id, 16))
        # On a GPU a read waits for the kernels before it.
        self._reads_beside = state.backend_name == "cpu"
        self._short = ShortReader.of(state)

    @property
    def state(self) -> ModelState:
        """The state that answers."""
        return self._state

    def score(self, query: ScoreQuery, allowance: Allowance = USUAL) -> ScoreColumns:
        """Answers a checked query.

        Raises:
            Refused: INVALID_ARGUMENT if the query needs histories and the model has none, or if it
                costs more than it may.
                UNAVAILABLE if the tables may be between two revisions. RESOURCE_EXHAUSTED if the
                backend has too little memory for the read.
        """
        if self._engine.torn:
            raise _torn()
        self._answers.check(query)
        try:
            answer = self._answer(query, allowance)
        except MemoryError:
            raise no_memory("this read") from None
        if not query.with_labels:
            return answer
        return with_labels(answer, self._state.labels[ITEMS].get, allowance.answer_bytes_max)

    def answer_at_once(self, raw: bytes, at: int, rows_max: int) -> bytes | None:
        """The answer to a usual small message (`ShortReader.answer`), or None."""
        if self._short is None or self._engine.torn:
            return None
        try:
            return self._short.answer(raw, at, rows_max)
        except MemoryError:
            # The general code tries again, and words the error.
            return None

    def score_at_once(self, query: ScoreQuery) -> ScoreColumns | None:
        """Answers a checked query if that takes well below a millisecond without a wait.

        Otherwise it returns None, and `score` answers the query.

        Raises:
            Refused: RESOURCE_EXHAUSTED if the backend has too little memory for the read.
        """
        is_small = query.target == "candidates" and len(query.user_ids) * len(query.item_ids) <= AT_ONCE_MAX
        is_plain = not query.with_labels and query.event_ids is None and query.query is None
        is_plain = is_plain and query.context is None
        # A fold-in takes milliseconds.
        if not is_small or not is_plain or self._answers.has_histories or self._engine.torn:
            return None
        try:
            found = self._state.backend.try_score(query.user_ids, query.item_ids, query.offsets)
        except MemoryError:
            raise no_memory("this read") from None
        return None if found is None else self._answers.listed(query, found)

    def _answer(self, query: ScoreQuery, allowance: Allowance) -> ScoreColumns:
        is_plain = query.target == "candidates" and query.context is None
        if is_plain and not self._answers.has_histories:
            found = self._state.backend.try_score(query.user_ids, query.item_ids, query.offsets)
            if found is None and len(query.user_ids) + len(query.item_ids) <= GATE_ROWS_MAX:
                with self._engine.gate.reading():
                    found = self._present_scores(query)
            if found is not None:
                return self._answers.listed(query, found)
        moment = self._moment(query)
        with moment.pin:
            return self._answers.answer(query, moment, allowance)

    def _moment(self, query: ScoreQuery) -> Moment:
        """Pins the present revision, which the caller releases."""
        state, backend = self._state, self._state.backend
        with self._engine.gate.reading():
            shift = NO_SHIFT if query.target == "similar" else shift_of(state, query)
            marks = state.marks.bits() if needs_marks(query) else NO_MARKS
            return Moment(backend.pin(), backend.users, backend.items, marks, shift)

    def _present_scores(self, query: ScoreQuery) -> Candidates:
        """The scores at the present revision. The caller holds the gate."""
        backend = self._state.backend
        if self._reads_beside:
            found = backend.try_score(query.user_ids, query.item_ids, query.offsets)
            if found is None:
                raise _torn()
            return found
        user_rows = backend.users.find(query.user_ids, backend.published[USERS])
        item_rows = backend.items.find(query.item_ids, backend.published[ITEMS])
        users, items = backend.gather(USERS, user_rows), backend.gather(ITEMS, item_rows)
        scores = score_lists(backend.mean, users, items, query.offsets)
        return Candidates(self._state.revision, scores, user_rows != NO_ROW, item_rows != NO_ROW)


def _torn() -> Refused:
    return unavailable("model: stopped by an internal error until a restart")
