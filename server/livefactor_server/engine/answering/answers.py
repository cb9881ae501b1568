"""Answers to Score calls at one revision: the present pin of a server, or that of another process.

`readers.py` has the readers of a server, and the package `workers` those of its score workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from livefactor.wire.limits import MESSAGE_BYTES_MAX, SCORE_PAIRS_MAX, over
from livefactor.wire.scoring import ScoreColumns, ScoreQuery
from livefactor_kernels.pins import View
from livefactor_kernels.reading.persons import Events, PersonReader, with_rows
from livefactor_kernels.scoring import Candidates
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.engine.answering.queries import QueryPart, Shift
from livefactor_server.engine.answering.similar import similar
from livefactor_server.model.availability import rows_of
from livefactor_server.statuses import invalid

_NO_ROWS, _NO_FLAGS = np.empty(0, np.uint32), np.empty(0, bool)
NO_MARKS = np.empty(0, np.uint8)
"""The bits of a moment whose marks are not asked for."""

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


USUAL = Allowance()


class _Best(NamedTuple):
    """The lists of a block of n users: rows and scores of all m, and offsets [n + 1] into them.

    `truncated`: bool[n], see `ScoreColumns.seen_truncated`, or empty.
    """

    rows: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray


class Keys(Protocol):
    """The keys of one side by row, and the rows by key."""

    @property
    def keys(self) -> np.ndarray:
        """uint64[capacity]."""

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """See `backend.RowTable.find`."""


class Moment(NamedTuple):
    """What an answer reads of a model.

    Attributes:
        pin: its rows at one revision.
        users, items: its keys.
        marks: the bits of the marks at this revision (`Marks.bits`), or `NO_MARKS`.
        shift: what the context of the query adds at this revision.
    """

    pin: View
    users: Keys
    items: Keys
    marks: np.ndarray
    shift: Shift

    def rows_of(self, query: ScoreQuery) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the users and of the items of a query."""
        users = self.users.find(query.user_ids, self.pin.counts[USERS])
        return users, self.items.find(query.item_ids, self.pin.counts[ITEMS])


def needs_marks(query: ScoreQuery) -> bool:
    """Whether the answer leaves out unavailable items."""
    return query.target != "candidates" and not query.include_unavailable


class Answers:
    """Answers of one spec of a model. Any thread may call it."""

    def __init__(self, spec: ModelSpec, lineage: bytes, spec_id: int) -> None:
        """`lineage` has 16 bytes."""
        self._spec, self._lineage, self._spec_id = spec, lineage, spec_id
        self._persons = PersonReader(spec) if spec.history.users else None
        self._unavailable: tuple[np.ndarray, np.ndarray] = NO_MARKS, _NO_ROWS

    @property
    def has_histories(self) -> bool:
        """Whether users are folded in, which takes milliseconds."""
        return self._persons is not None

    def check(self, query: ScoreQuery) -> None:
        """Checks that the model has what a query asks for.

        Raises:
            Refused: INVALID_ARGUMENT.
        """
        if self._persons is None:
            if query.exclude_seen:
                raise invalid("exclude_seen: this model has no histories (spec: history.users)")
            if query.event_ids is not None:
                raise invalid("events: this model has no histories (spec: history.users)")
            if query.query is not None:
                raise invalid("query: this model has no embeddings (spec: embeddings.dimension)")

    def answer(self, query: ScoreQuery, moment: Moment, allowance: Allowance) -> ScoreColumns:
        """Answers a checked query, without labels.

        Raises:
            Refused: INVALID_ARGUMENT if it costs more than it may, or has a vector that does not
                fit the model.
            MemoryError: the backend has too little memory for the read.
        """
        if query.target == "top_k":
            return self._top_k(query, moment, allowance)
        if query.target == "similar":
            return self._similar(query, moment, allowance)
        if self._persons is not None:
            return self._personal_candidates(self._persons, query, moment, allowance)
        return self.listed(query, _plain_candidates(query, moment))

    def listed(self, query: ScoreQuery, found: Candidates) -> ScoreColumns:
        """The answer for lists of candidates. `found.item_known` has a flag for each id in it."""
        return listed(query, found, self._lineage, self._spec_id)

    def _personal_candidates(
        self, persons: PersonReader, query: ScoreQuery, moment: Moment, allowance: Allowance
    ) -> ScoreColumns:
        """Candidates of a model with histories."""
        pin, shared = moment.pin, np.array([0, len(query.item_ids)], np.uint32)
        user_rows, item_rows = moment.rows_of(query)
        lists = []
        factors, bias = pin.gather(ITEMS, item_rows)
        part = self._query_part(query)
        embeddings = part.embeddings(pin, item_rows) if part is not None else factors
        own = self._own_events(query, moment)
        for users in _blocks(len(user_rows), len(query.item_ids), allowance):
            events = own[users] if own is not None else None
            read = persons.read(pin, user_rows[users], pin.counts[ITEMS], events)
            read = replace(read, factors=moment.shift.added(read.factors, users))
            for user in range(len(read.bias)):
                at = users.start + user
                start, stop = shared if query.offsets is None else query.offsets[at : at + 2]
                one = read.factors[user : user + 1], read.bias[user : user + 1]
                span = np.array([0, stop - start], np.uint32)
                scores = scoring.score_candidates(pin.mean, *one, factors[start:stop], bias[start:stop], span)
                scores = scores + read.gains(user, item_rows[start:stop])
                if part is not None:
                    scores = scores + part.of(at, embeddings[start:stop])
                lists.append(scores)
        known = user_rows != NO_ROW, item_rows != NO_ROW
        return self.listed(query, Candidates(pin.revision, np.concatenate(lists), *known))

    def _query_part(self, query: ScoreQuery) -> QueryPart | None:
        return None if query.query is None else QueryPart(self._spec, query)

    def _own_events(self, query: ScoreQuery, moment: Moment) -> list[Events | None] | None:
        """The events in the query that replace the histories of the users, without unknown
        items.

        A list without events replaces nothing, also if all users share it.
        """
        if query.event_ids is None or not query.event_ids.size:
            return None
        rows = moment.items.find(query.event_ids, moment.pin.counts[ITEMS])
        assert self._persons is not None
        if query.event_offsets is None:
            return [self._persons.events_of(rows[rows != NO_ROW])] * len(query.user_ids)
        lists = (rows[start:stop] for start, stop in pairwise(query.event_offsets.tolist()))
        return [self._persons.events_of(part[part != NO_ROW]) if part.size else None for part in lists]

    def _top_k(self, query: ScoreQuery, moment: Moment, allowance: Allowance) -> ScoreColumns:
        pin = moment.pin
        check_pairs(len(query.user_ids), pin.counts[ITEMS], allowance.pairs_max)
        user_rows = moment.users.find(query.user_ids, pin.counts[USERS])
        exclusions = self._exclusions(query, moment)
        events, part = self._own_events(query, moment), self._query_part(query)
        lists = [
            self._best(query, moment, users, user_rows[users], exclusions, events, part)
            for users in _blocks(len(user_rows), pin.counts[ITEMS], allowance)
        ]
        rows = np.concatenate([each.rows for each in lists])
        sizes = np.concatenate([np.diff(each.offsets) for each in lists])
        return self._answer(
            moment,
            moment.items.keys[rows],
            np.concatenate([each.scores for each in lists]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32),
            user_rows != NO_ROW,
            np.ones(len(rows), bool),
            np.concatenate([each.truncated for each in lists]),
        )

    def _similar(self, query: ScoreQuery, moment: Moment, allowance: Allowance) -> ScoreColumns:
        pin, keys = moment.pin, moment.items.keys
        check_pairs(len(query.user_ids), pin.counts[ITEMS], allowance.pairs_max, "item_ids", "items")
        asked = moment.items.find(query.user_ids, pin.counts[ITEMS])
        excluded = self._unavailable_rows(moment.marks)
        rows, cosines, offsets = similar(pin, keys, asked, query.k, excluded, allowance.check)
        return self._answer(moment, keys[rows], cosines, offsets, asked != NO_ROW, np.ones(len(rows), bool))

    def _best(
        self, query: ScoreQuery, moment: Moment, users: slice, user_rows: np.ndarray,
        exclusions: tuple[np.ndarray, np.ndarray, np.ndarray], events: list[Events | None] | None,
        part: QueryPart | None,
    ) -> _Best:  # fmt: skip
        pin, keys = moment.pin, moment.items.keys
        common, own, ends = exclusions
        ends = ends[users.start : users.stop + 1]
        own, own_offsets = own[ends[0] : ends[-1]], ends - ends[0]
        if self._persons is None:
            factors, bias = pin.gather(USERS, user_rows)
            factors = moment.shift.added(factors, users)
            return _Best(*pin.top_k(factors, bias, query.k, common, own, own_offsets), _NO_FLAGS)
        own_events = events[users] if events is not None else None
        read = self._persons.read(pin, user_rows, pin.counts[ITEMS], own_events)
        read = replace(read, factors=moment.shift.added(read.factors, users))
        truncated = _NO_FLAGS
        if query.exclude_seen:
            own, own_offsets = read.exclusions(own, own_offsets)
            truncated = read.truncated
        if part is not None:
            best = part.best(pin, read, users.start, keys, query.k, common, own, own_offsets)
            return _Best(*best, truncated)
        return _Best(*read.top_k(pin, keys, query.k, common, own, own_offsets), truncated)

    def _exclusions(self, query: ScoreQuery, moment: Moment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(excluded rows of all users, excluded rows of each user, offsets of the latter).

        The rows are uint32[n] and ascending, the second array within each user. Offsets are
        uint32[users + 1].
        """
        rows = moment.items.find(query.item_ids, moment.pin.counts[ITEMS])
        common = self._unavailable_rows(moment.marks)
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
        if not marks.size:
            return _NO_ROWS
        kept, rows = self._unavailable
        if kept is not marks:
            rows = rows_of(marks)
            self._unavailable = marks, rows
        return rows

    def _answer(
        self,
        moment: Moment,
        item_ids: np.ndarray,
        scores: np.ndarray,
        offsets: np.ndarray,
        user_known: np.ndarray,
        item_known: np.ndarray,
        seen_truncated: np.ndarray = _NO_FLAGS,
    ) -> ScoreColumns:
        return ScoreColumns(
            lineage=self._lineage,
            revision=moment.pin.revision,
            item_ids=item_ids,
            scores=scores,
            offsets=offsets,
            user_known=user_known,
            item_known=item_known,
            labels=(),
            seen_truncated=seen_truncated,
            spec_id=self._spec_id,
        )


def _plain_candidates(query: ScoreQuery, moment: Moment) -> Candidates:
    pin, (user_rows, item_rows) = moment.pin, moment.rows_of(query)
    (factors, bias), items = pin.gather(USERS, user_rows), pin.gather(ITEMS, item_rows)
    users = moment.shift.added(factors, slice(None)), bias
    scores = score_lists(pin.mean, users, items, query.offsets)
    return Candidates(pin.revision, scores, user_rows != NO_ROW, item_rows != NO_ROW)


def with_labels(answer: ScoreColumns, label_of: Callable[[int], str], bytes_max: int) -> ScoreColumns:
    """Adds the items' labels to an answer, unless it would get too large.

    The size is computed first, because labels have up to 1,024 bytes each.

    Raises:
        Refused: INVALID_ARGUMENT if it would get larger than `bytes_max`.
    """
    names = [label_of(key) for key in answer.item_ids.tolist()]
    size = ROW_BYTES * len(names) + sum(map(_text_bytes, names))
    if size > bytes_max:
        raise invalid(over("answer", bytes_max, size, "bytes with its labels"))
    return replace(answer, labels=names)


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


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


def score_lists(
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
