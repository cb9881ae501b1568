"""Readers: answer Score calls at exactly one published revision while the tables change in place.

Scores of candidates: on the CPU one compiled call looks the keys up and scores the rows while the
writer works, and then looks whether a record was applied meanwhile (`Backend.try_score`). Readers
and the writer do not wait for each other. After a few tries the reader takes turns with the writer
at the gate, which the writer holds for each run of records. A GPU reads only under the gate.

Top-k: under the gate the reader pins the revision. Then it scans without the gate. The pin answers
at its revision, and the writer continues meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from livefactor.wire.limits import MESSAGE_BYTES_MAX, SCORE_PAIRS_MAX, over
from livefactor.wire.scoring import ScoreColumns, ScoreQuery
from livefactor_kernels.backend import Pin
from livefactor_kernels.reading.persons import Events, PersonReader, with_rows
from livefactor_kernels.scoring import Candidates
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.engine.queries import QueryPart, Shift, shift_of
from livefactor_server.engine.short_reads import ShortReader
from livefactor_server.engine.similar import similar
from livefactor_server.model.availability import rows_of
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import Refused, invalid, no_memory, unavailable

_NO_ROWS, _NO_FLAGS = np.empty(0, np.uint32), np.empty(0, bool)

GATE_ROWS_MAX = 4096
"""Maximum number of rows read under the gate. Larger reads use a pin."""

AT_ONCE_MAX = 2048
"""Maximum number of scores of a query that is answered without a thread of its own."""

ROW_BYTES = 18
"""Bytes of a score with its item in an encoded answer, with the tag and the length of its label."""

BLOCK_PAIRS = 1 << 24
"""Pairs of a user and an item that a top-k call compares before it looks whether its caller still
waits: about a quarter of a second.
"""

BLOCK_USERS_MIN, BLOCK_USERS_MAX = 4, 64
"""Users of such a block. Fewer would not fill a matrix product, more would not fill it better."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a read may cost.

    Attributes:
        pairs_max: maximum number of pairs of a user and an item that a top-k read of more than one
            user compares.
        answer_bytes_max: maximum size of the encoded answer, in bytes.
        check: is called between blocks of users. Its exception ends the read.
    """

    pairs_max: int = SCORE_PAIRS_MAX
    answer_bytes_max: int = MESSAGE_BYTES_MAX
    check: Callable[[], None] = lambda: None


_USUAL = Allowance()


class _Best(NamedTuple):
    """The lists of a block of n users: rows and scores of all m, and offsets [n + 1] into them.

    `truncated`: bool[n], see `ScoreColumns.seen_truncated`, or empty.
    """

    rows: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray


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
        self._persons = PersonReader(state.spec) if state.spec.history.users else None
        # On a GPU a read waits for the kernels before it.
        self._reads_beside = state.backend_name == "cpu"
        self._spec_id = int(state.spec_id, 16)
        self._short = ShortReader.of(state)
        self._unavailable: tuple[np.ndarray, np.ndarray] = np.empty(0, np.uint8), _NO_ROWS

    @property
    def state(self) -> ModelState:
        """The state that answers."""
        return self._state

    def score(self, query: ScoreQuery, allowance: Allowance = _USUAL) -> ScoreColumns:
        """Answers a checked query.

        Raises:
            Refused: INVALID_ARGUMENT if the query needs histories and the model has none, or if it
                costs more than it may.
                UNAVAILABLE if the tables may be between two revisions. RESOURCE_EXHAUSTED if the
                backend has too little memory for the read.
        """
        if self._engine.torn:
            raise _torn()
        if self._persons is None:
            if query.exclude_seen:
                raise invalid("exclude_seen: this model has no histories (spec: history.users)")
            if query.event_ids is not None:
                raise invalid("events: this model has no histories (spec: history.users)")
            if query.query is not None:
                raise invalid("query: this model has no embeddings (spec: embeddings.dimension)")
        try:
            reads = {"candidates": self._candidates, "top_k": self._top_k, "similar": self._similar}
            answer = reads[query.target or ""](query, allowance)
        except MemoryError:
            raise no_memory("this read") from None
        return self._with_labels(answer, allowance.answer_bytes_max) if query.with_labels else answer

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
        # A fold-in takes milliseconds.
        is_plain = is_plain and query.context is None
        if not is_small or not is_plain or self._persons is not None or self._engine.torn:
            return None
        try:
            found = self._state.backend.try_score(query.user_ids, query.item_ids, query.offsets)
        except MemoryError:
            raise no_memory("this read") from None
        return None if found is None else self._listed(query, found)

    # ------------------------------------------------------------------ candidates

    def _candidates(self, query: ScoreQuery, allowance: Allowance) -> ScoreColumns:
        backend = self._state.backend
        if self._persons is not None:
            return self._personal_candidates(self._persons, query, allowance)
        if query.context is not None:
            return self._listed(query, self._pinned_scores(query))
        found = backend.try_score(query.user_ids, query.item_ids, query.offsets)
        if found is None and len(query.user_ids) + len(query.item_ids) <= GATE_ROWS_MAX:
            with self._engine.gate.reading():
                found = self._present_scores(query)
        return self._listed(query, found or self._pinned_scores(query))

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
        scores = _score_lists(backend.mean, users, items, query.offsets)
        return Candidates(self._state.revision, scores, user_rows != NO_ROW, item_rows != NO_ROW)

    def _pinned_scores(self, query: ScoreQuery) -> Candidates:
        """The scores of many rows, which would hold the gate for too long."""
        backend = self._state.backend
        with self._engine.gate.reading():
            pin = backend.pin()
            revision, shift = self._state.revision, shift_of(self._state, query)
        with pin:
            user_rows = backend.users.find(query.user_ids, pin.counts[USERS])
            item_rows = backend.items.find(query.item_ids, pin.counts[ITEMS])
            (factors, bias), items = pin.gather(USERS, user_rows), pin.gather(ITEMS, item_rows)
        factors = shift.added(factors, slice(None))
        scores = _score_lists(pin.mean, (factors, bias), items, query.offsets)
        return Candidates(revision, scores, user_rows != NO_ROW, item_rows != NO_ROW)

    def _personal_candidates(
        self, persons: PersonReader, query: ScoreQuery, allowance: Allowance
    ) -> ScoreColumns:
        """Candidates of a model with histories. The user factors need many rows, so it uses a
        pin.
        """
        backend = self._state.backend
        with self._engine.gate.reading():
            pin = backend.pin()
            revision, shift = self._state.revision, shift_of(self._state, query)
        shared = np.array([0, len(query.item_ids)], np.uint32)
        lists = []
        with pin:
            user_rows = backend.users.find(query.user_ids, pin.counts[USERS])
            item_rows = backend.items.find(query.item_ids, pin.counts[ITEMS])
            factors, bias = pin.gather(ITEMS, item_rows)
            part = self._query_part(query)
            embeddings = part.embeddings(pin, item_rows) if part is not None else factors
            own = self._own_events(query, pin)
            for users in _blocks(len(user_rows), len(query.item_ids), allowance):
                events = own[users] if own is not None else None
                read = persons.read(pin, user_rows[users], pin.counts[ITEMS], events)
                read = replace(read, factors=shift.added(read.factors, users))
                for user in range(len(read.bias)):
                    at = users.start + user
                    start, stop = shared if query.offsets is None else query.offsets[at : at + 2]
                    one = read.factors[user : user + 1], read.bias[user : user + 1]
                    span = np.array([0, stop - start], np.uint32)
                    scores = scoring.score_candidates(
                        pin.mean, *one, factors[start:stop], bias[start:stop], span
                    )
                    scores = scores + read.gains(user, item_rows[start:stop])
                    if part is not None:
                        scores = scores + part.of(at, embeddings[start:stop])
                    lists.append(scores)
        known = user_rows != NO_ROW, item_rows != NO_ROW
        return self._listed(query, Candidates(revision, np.concatenate(lists), *known))

    def _listed(self, query: ScoreQuery, found: Candidates) -> ScoreColumns:
        return listed(query, found, self._state.lineage.bytes, self._spec_id)

    def _query_part(self, query: ScoreQuery) -> QueryPart | None:
        return None if query.query is None else QueryPart(self._state.spec, query)

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

    def _top_k(self, query: ScoreQuery, allowance: Allowance) -> ScoreColumns:
        backend = self._state.backend
        with self._engine.gate.reading():
            pin = backend.pin()
            revision, marks = self._state.revision, self._state.marks.bits()
            shift = shift_of(self._state, query)
        with pin:
            check_pairs(len(query.user_ids), pin.counts[ITEMS], allowance.pairs_max)
            user_rows = backend.users.find(query.user_ids, pin.counts[USERS])
            exclusions = self._exclusions(query, pin, marks)
            events, part = self._own_events(query, pin), self._query_part(query)
            lists = [
                self._best(query, pin, users, user_rows[users], exclusions, events, part, shift)
                for users in _blocks(len(user_rows), pin.counts[ITEMS], allowance)
            ]
        rows = np.concatenate([each.rows for each in lists])
        sizes = np.concatenate([np.diff(each.offsets) for each in lists])
        return self._answer(
            query,
            revision,
            backend.items.keys[rows],
            np.concatenate([each.scores for each in lists]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32),
            user_rows != NO_ROW,
            np.ones(len(rows), bool),
            np.concatenate([each.truncated for each in lists]),
        )

    def _similar(self, query: ScoreQuery, allowance: Allowance) -> ScoreColumns:
        backend = self._state.backend
        with self._engine.gate.reading():
            pin = backend.pin()
            revision, marks = self._state.revision, self._state.marks.bits()
        with pin:
            check_pairs(len(query.user_ids), pin.counts[ITEMS], allowance.pairs_max, "item_ids", "items")
            asked = backend.items.find(query.user_ids, pin.counts[ITEMS])
            excluded = _NO_ROWS if query.include_unavailable else self._unavailable_rows(marks)
            keys = backend.items.keys
            rows, cosines, offsets = similar(pin, keys, asked, query.k, excluded, allowance.check)
        known = np.ones(len(rows), bool)
        return self._answer(query, revision, keys[rows], cosines, offsets, asked != NO_ROW, known)

    def _best(
        self, query: ScoreQuery, pin: Pin, users: slice, user_rows: np.ndarray,
        exclusions: tuple[np.ndarray, np.ndarray, np.ndarray], events: list[Events | None] | None,
        part: QueryPart | None, shift: Shift,
    ) -> _Best:  # fmt: skip
        common, own, ends = exclusions
        ends = ends[users.start : users.stop + 1]
        own, own_offsets = own[ends[0] : ends[-1]], ends - ends[0]
        if self._persons is None:
            factors, bias = pin.gather(USERS, user_rows)
            factors = shift.added(factors, users)
            return _Best(*pin.top_k(factors, bias, query.k, common, own, own_offsets), _NO_FLAGS)
        own_events = events[users] if events is not None else None
        read = self._persons.read(pin, user_rows, pin.counts[ITEMS], own_events)
        read = replace(read, factors=shift.added(read.factors, users))
        truncated = _NO_FLAGS
        if query.exclude_seen:
            own, own_offsets = read.exclusions(own, own_offsets)
            truncated = read.truncated
        keys = self._state.backend.items.keys
        if part is not None:
            best = part.best(pin, read, users.start, keys, query.k, common, own, own_offsets)
            return _Best(*best, truncated)
        return _Best(*read.top_k(pin, keys, query.k, common, own, own_offsets), truncated)

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
        return ScoreColumns(
            lineage=self._state.lineage.bytes,
            revision=revision,
            item_ids=item_ids,
            scores=scores,
            offsets=offsets,
            user_known=user_known,
            item_known=item_known,
            labels=(),
            seen_truncated=seen_truncated,
            spec_id=self._spec_id,
        )

    def _with_labels(self, answer: ScoreColumns, bytes_max: int) -> ScoreColumns:
        """Adds the items' labels to an answer, unless it would get too large.

        The size is computed first, because labels have up to 1,024 bytes each.
        """
        names = self._state.labels[ITEMS]
        keys = answer.item_ids.tolist()
        size = ROW_BYTES * len(keys) + sum(_text_bytes(names.get(key)) for key in keys)
        if size > bytes_max:
            raise invalid(over("answer", bytes_max, size, "bytes with its labels"))
        return replace(answer, labels=[names.get(key) for key in keys])


def listed(query: ScoreQuery, found: Candidates, lineage: bytes, spec_id: int) -> ScoreColumns:
    """The answer for lists of candidates. `found.item_known` has a flag for each id in it."""
    users, item_ids, offsets = len(query.user_ids), query.item_ids, query.offsets
    item_known = found.item_known
    if offsets is None:
        offsets = np.arange(users + 1, dtype=np.uint32) * np.uint32(len(item_ids))
        if users > 1:
            item_ids, item_known = np.tile(item_ids, users), np.tile(item_known, users)
    return ScoreColumns(
        lineage=lineage,
        revision=found.revision,
        item_ids=item_ids,
        scores=found.scores,
        offsets=offsets,
        user_known=found.user_known,
        item_known=item_known,
        labels=(),
        spec_id=spec_id,
    )


def check_pairs(asked: int, items: int, pairs_max: int, field: str = "user_ids", of: str = "users") -> None:
    """Checks how many pairs a read compares that finds the best of all items for `asked` users.

    `field` and `of` name what is asked for.

    Raises:
        Refused: INVALID_ARGUMENT if more than one user is asked for, and there are more pairs.
    """
    if asked > 1 and asked * items > pairs_max:
        raise invalid(over(field, max(1, pairs_max // items), asked, f"{of} a call for {items} items"))


def _blocks(users: int, items: int, allowance: Allowance) -> Iterator[slice]:
    """Blocks of users that are read one after the other while the caller waits."""
    size = min(max(BLOCK_PAIRS // max(1, items), BLOCK_USERS_MIN), BLOCK_USERS_MAX)
    for start in range(0, users, size):
        allowance.check()
        yield slice(start, min(start + size, users))


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _score_lists(
    mean: np.float32,
    users: tuple[np.ndarray, np.ndarray],
    items: tuple[np.ndarray, np.ndarray],
    offsets: np.ndarray | None,
) -> np.ndarray:
    """The scores float32[n] of the lists of candidates.

    With `offsets` each user has a list. Without it all users share one list.
    """
    if offsets is not None:
        return scoring.score_candidates(mean, *users, *items, offsets)
    count, length = len(users[1]), len(items[1])
    lists = [
        scoring.score_candidates(
            mean, users[0][u : u + 1], users[1][u : u + 1], *items, np.array([0, length], np.uint32)
        )
        for u in range(count)
    ]
    return np.concatenate(lists)


def _torn() -> Refused:
    return unavailable("model: stopped by an internal error until a restart")
