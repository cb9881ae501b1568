"""A Score request of any number of users, divided into calls that the contract takes.

A call is of one revision, and it has limits (`wire/limits.py`). A request within them is one call.
A larger one is several calls, in the order of its users. Each names the position of the one before
as its `min_position`, so the revisions of the answers never go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from livefactor.calling.plans import Plan
from livefactor.errors import ColumnError, DeadlineExceeded, InvalidArgument
from livefactor.position import Position
from livefactor.wire.content import BagColumns
from livefactor.wire.limits import MESSAGE_BYTES_MAX, SCORE_ROWS_MAX, SCORE_USERS_MAX, check_most, is_over
from livefactor.wire.scoring import ScoreColumns, decode_score_response, encode_score

_FIELD_BYTES = 512
_NAME_BYTES = 6
"""Bytes of the tag and the length of a name, at most."""
"""Room for what is in a message beside its lists: tags, lengths, the model, a position."""

Ask = Callable[[bytes, float], Plan[bytes]]
"""The plan that sends a message within a number of seconds and returns the answer."""


class Lists(NamedTuple):
    """A list of ids for each of n users, or one list that all share.

    ids: uint64[m], the lists end to end. offsets: uint32[n + 1] into ids; None for a shared list.
    """

    ids: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.uint32] | None

    def lengths(self, users: int) -> npt.NDArray[np.int64]:
        """The number of ids that each user brings, int64[users]; zeros for a shared list."""
        if self.offsets is None:
            return np.zeros(users, np.int64)
        ends = self.offsets.astype(np.int64)
        return ends[1:] - ends[:-1]

    def part(self, start: int, stop: int) -> Lists:
        """The lists of the users [start, stop)."""
        if self.offsets is None:
            return self
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Lists(self.ids[first:last], self.offsets[start : stop + 1] - self.offsets[start])

    def longest(self) -> int:
        """The number of ids in the longest list."""
        if self.offsets is None:
            return len(self.ids)
        return int(self.lengths(0).max(initial=0))


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A request for n users: the scores of candidates, or lists of the k best items. Or one for the
    k items that are most similar to each of n items.

    users: uint64[n]; with the option `similar` they are the items. candidates: the items to score,
    or None. k: length of the lists, 0 with candidates. exclude, events: as in `Scorer.recommend`,
    or None. query: a vector for all users float32[1, d], or one a user [n, d], or None. context: a
    bag for all users, or one a user, or None. options:
    the other arguments of `encode_score`. The constructor raises InvalidArgument,
    which names the limit, if one user alone exceeds it.
    """

    model: str
    users: npt.NDArray[np.uint64]
    candidates: Lists | None = None
    k: int = 0
    exclude: Lists | None = None
    events: Lists | None = None
    query: npt.NDArray[np.float32] | None = None
    context: BagColumns | None = None
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not len(self.users):
            raise InvalidArgument("users: expected at least 1, got 0", code="INVALID_ARGUMENT")
        if self.candidates is None and self.k < 1:
            raise InvalidArgument(f"k: expected at least 1, got {self.k}", code="INVALID_ARGUMENT")
        check_most("k", SCORE_ROWS_MAX, self.k)
        for name, lists in (("items", self.candidates), ("exclude", self.exclude), ("events", self.events)):
            check_most(name, SCORE_ROWS_MAX, lists.longest() if lists else 0, "ids a user")
        largest = self._shared_bytes() + int(self._bytes_of_users().max())
        check_most("request", MESSAGE_BYTES_MAX, largest, "bytes a user")

    def ranges(self) -> list[tuple[int, int]]:
        """The users [start, stop) of each call: as many as the limits allow."""
        users = len(self.users)
        answers = np.full(users, self.k, np.int64)
        if self.candidates is not None:
            shared = len(self.candidates.ids) if self.candidates.offsets is None else 0
            answers = self.candidates.lengths(users) + shared
        none = np.zeros(users, np.int64)
        costs = (
            (np.ones(users, np.int64), SCORE_USERS_MAX),
            (answers, SCORE_ROWS_MAX),
            (self.exclude.lengths(users) if self.exclude else none, SCORE_ROWS_MAX),
            (self.events.lengths(users) if self.events else none, SCORE_ROWS_MAX),
            (self._bytes_of_users(), MESSAGE_BYTES_MAX - self._shared_bytes()),
        )
        sums = [(np.concatenate([[0], np.cumsum(cost)]), most) for cost, most in costs]
        found, start = [], 0
        while start < users:
            stops = (int(np.searchsorted(total, total[start] + most, "right")) - 1 for total, most in sums)
            found.append((start, stop := min(stops)))
            start = stop
        return found

    def message(self, start: int, stop: int, min_position: tuple[bytes, int] | None) -> bytes:
        """The bytes of the ScoreRequest for the users [start, stop)."""
        fields = dict(self.options or {})
        lists = self.exclude if self.candidates is None else self.candidates
        if lists is not None:
            part = lists.part(start, stop)
            fields["exclude_ids" if self.candidates is None else "candidates"] = part.ids
            fields["offsets"] = part.offsets
        if self.events is not None:
            fields["events"], fields["event_offsets"] = self.events.part(start, stop)
        if self.query is not None:
            fields["query"] = self.query if len(self.query) == 1 else self.query[start:stop]
        if self.context is not None:
            fields["context"] = self.context if len(self.context) == 1 else self.context.part(start, stop)
        return encode_score(self.model, self.users[start:stop], k=self.k, min_position=min_position, **fields)

    def _lists(self) -> list[Lists]:
        return [lists for lists in (self.candidates, self.exclude, self.events) if lists is not None]

    def _shared_bytes(self) -> int:
        shared = sum(8 * len(lists.ids) for lists in self._lists() if lists.offsets is None)
        if self.query is not None and len(self.query) == 1:
            shared += self.query.nbytes
        if self.context is not None:
            # Any part of the users may have all names.
            shared += sum(len(name.encode()) + _NAME_BYTES for name in self.context.names)
            shared += int(self._bytes_of_bags().sum()) if len(self.context) == 1 else 0
        return _FIELD_BYTES + shared

    def _bytes_of_bags(self) -> npt.NDArray[np.int64]:
        """Bytes of each bag of the context: a count, and the index and the weight of a feature."""
        assert self.context is not None
        return 4 + 8 * self.context.counts.astype(np.int64)

    def _bytes_of_users(self) -> npt.NDArray[np.int64]:
        users = len(self.users)
        ids: npt.NDArray[np.int64] = sum(
            (lists.lengths(users) for lists in self._lists()), np.zeros(users, np.int64)
        )
        numbers = 0 if self.query is None or len(self.query) == 1 else self.query.shape[1]
        if self.context is not None and len(self.context) > 1:
            ids = ids + -(-self._bytes_of_bags() // 8)
        # An id has 8 bytes, and an offset or a number of a vector has 4.
        return 8 * (1 + ids) + 4 * (numbers + sum(lists.offsets is not None for lists in self._lists()))


class Joined(NamedTuple):
    """The answers of all calls as one.

    position: of the first call. columns: the answers end to end. revisions, spec_ids, score_ids:
    uint64[n], of each user.
    """

    position: Position
    columns: ScoreColumns
    revisions: npt.NDArray[np.uint64]
    spec_ids: npt.NDArray[np.uint64]
    score_ids: npt.NDArray[np.uint64]


def ask(
    request: ScoreRequest, send: Ask, timeout: float, min_position: Position | None, doing: str
) -> Plan[Joined]:
    """The plan of the calls of a request, one after another, within `timeout` seconds in all.

    A server may have lower limits, and labels may make an answer too large. A call that is refused
    for its size is divided in two, down to one user. doing: the error's text begins with it. Raises
    DeadlineExceeded, and what `send` raises.
    """
    until = monotonic() + timeout
    after = None if min_position is None else (min_position.lineage, min_position.revision)
    waiting = deque(request.ranges())
    answers: list[ScoreColumns] = []
    while waiting:
        start, stop = waiting.popleft()
        left = until - monotonic()
        if left <= 0 and answers:
            text = f"{start} of {len(request.users)} users were answered in {timeout:g} s"
            raise DeadlineExceeded(f"{doing}: {text}", code="DEADLINE_EXCEEDED", details=text)
        try:
            answer = decode_score_response((yield from send(request.message(start, stop, after), left)))
        except InvalidArgument as refused:
            if stop - start == 1 or not is_over(refused.details):
                raise
            middle = (start + stop) // 2
            waiting.extendleft([(middle, stop), (start, middle)])
            continue
        if len(answer.user_known) != stop - start:
            raise ColumnError(
                f"user_known has {len(answer.user_known)} rows, expected {stop - start} (users)"
            )
        after = answer.lineage, answer.revision
        answers.append(answer)
    return _joined(answers)


def _joined(answers: Sequence[ScoreColumns]) -> Joined:
    first = answers[0]
    counts = [len(answer.user_known) for answer in answers]
    of_users = [
        np.repeat(np.array([getattr(answer, name) for answer in answers], np.uint64), counts)
        for name in ("revision", "spec_id", "score_id")
    ]
    position = Position(first.lineage, first.revision)
    if len(answers) == 1:
        return Joined(position, first, *of_users)
    starts = np.cumsum([0, *(len(answer.item_ids) for answer in answers)])
    offsets = [answer.offsets[1:] + start for answer, start in zip(answers, starts, strict=False)]
    columns = ScoreColumns(
        lineage=first.lineage,
        revision=first.revision,
        item_ids=np.concatenate([answer.item_ids for answer in answers]),
        scores=np.concatenate([answer.scores for answer in answers]),
        offsets=np.concatenate([first.offsets[:1], *offsets]).astype(np.uint32),
        user_known=np.concatenate([answer.user_known for answer in answers]),
        item_known=np.concatenate([answer.item_known for answer in answers]),
        labels=[label for answer in answers for label in answer.labels],
        seen_truncated=np.concatenate([answer.seen_truncated for answer in answers]),
    )
    return Joined(position, columns, *of_users)
