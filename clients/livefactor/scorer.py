"""Asking for scores: `Scorer` scores given items or finds the best of all, for one user or many, at one
revision that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from livefactor.channel import DEADLINE_S, DEFAULT_TARGET, READ_ATTEMPTS, Connection
from livefactor.errors import ColumnError
from livefactor.position import Position
from livefactor.wire.arrays import KEYS, Ids, as_keys
from livefactor.wire.scoring import ScoreColumns, decode_score_response, encode_score

_SCORE = "/livefactor.v1.ScoringService/Score"


@dataclass(frozen=True, slots=True)
class UserAnswer:
    """One user's m answers. known: whether the model knows the user (else scored by mean and item bias
    alone).

    item_ids: uint64[m]. scores: float32[m]. item_known: bool[m]. labels: m str if asked for, else empty.
    """

    known: bool
    item_ids: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.float32]
    item_known: npt.NDArray[np.bool_]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to n users, all of exactly the revision in `position`; iterate or index for one `UserAnswer` a
    user.

    item_ids: uint64[m], scores: float32[m], item_known: bool[m] of all users end to end; offsets: uint32[n +
    1]: user u's are [offsets[u] .. offsets[u + 1]). user_known: bool[n]. labels: m str if asked for, else
    empty.
    """

    position: Position
    item_ids: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.uint32]
    user_known: npt.NDArray[np.bool_]
    item_known: npt.NDArray[np.bool_]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.user_known)

    def __getitem__(self, user: int) -> UserAnswer:
        if not -len(self) <= user < len(self):
            raise IndexError(f"user {user} of {len(self)}")
        user %= len(self)
        rows = slice(int(self.offsets[user]), int(self.offsets[user + 1]))
        return UserAnswer(
            bool(self.user_known[user]),
            self.item_ids[rows],
            self.scores[rows],
            self.item_known[rows],
            self.labels[rows],
        )

    def __iter__(self) -> Iterator[UserAnswer]:
        return (self[user] for user in range(len(self)))


class Scores(Answers):
    """Scores of candidates, in the order in which they were given."""

    __slots__ = ()


class Recommendations(Answers):
    """The best items of each user, best first; equal scores by ascending item id."""

    __slots__ = ()


class Scorer:
    """Asks one model for scores. Reads never change a model. Safe to use from several threads.

    target: "host:port" or "unix:/path" (or a channel). model: the model's name. secret: key for string ids
    (keys.py), as the producers use it. deadline_s: of a call that names none, seconds. channel: the
    transport, if the caller has one.
    """

    def __init__(
        self,
        target: str | grpc.Channel = DEFAULT_TARGET,
        *,
        model: str = "default",
        secret: bytes = b"",
        deadline_s: float = DEADLINE_S,
        channel: grpc.Channel | None = None,
    ) -> None:
        self.model = model
        self._secret = secret
        self._deadline_s = deadline_s
        self._connection = Connection(target, channel)

    def score(
        self,
        users: Ids,
        items: Any,
        *,
        events: Any = None,
        min_position: Position | None = None,
        deadline_s: float | None = None,
        with_labels: bool = False,
    ) -> Scores:
        """Scores of `items` for each of n users.

        users: one id or n. items: one list of ids that all users share, or n lists. events: items that a user has
        just had, oldest first, in the place of its history in this call and not written, one list for all users or
        n lists (an empty one: the user's own history). min_position: wait until this position is visible (an Ack's:
        read your own write). deadline_s: seconds. Raises ColumnError for ids of a wrong type, DeadlineExceeded (also
        where min_position was not reached), NotFound, InvalidArgument (also events where the model has no histories),
        FailedPrecondition (min_position of another lineage), ResourceExhausted, Unavailable.
        """
        keys = as_keys("users", users, self._secret)
        candidates, offsets = _lists("items", items, len(keys), self._secret)
        request = encode_score(
            self.model,
            keys,
            candidates=candidates,
            offsets=offsets,
            **self._events(events, len(keys)),
            with_labels=with_labels,
            min_position=_pair(min_position),
        )
        return Scores(*self._ask(request, deadline_s, len(keys)))

    def recommend(
        self,
        users: Ids,
        k: int = 10,
        *,
        exclude: Any = None,
        exclude_seen: bool = False,
        include_unavailable: bool = False,
        events: Any = None,
        min_position: Position | None = None,
        deadline_s: float | None = None,
        with_labels: bool = False,
    ) -> Recommendations:
        """The k items with the highest scores for each of n users, exactly; fewer where fewer items are left.

        users: one id or n. exclude: ids that are left out, one list for all users or n lists; unknown ones
        have no effect. exclude_seen: leave out what a user has had, as far as the model remembers it (spec:
        history). include_unavailable: also items marked unavailable. The rest, and the errors, as in
        `score`.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        keys = as_keys("users", users, self._secret)
        excluded, offsets = (
            (None, None) if exclude is None else _lists("exclude", exclude, len(keys), self._secret)
        )
        request = encode_score(
            self.model,
            keys,
            k=k,
            exclude_ids=excluded,
            offsets=offsets,
            include_unavailable=include_unavailable,
            exclude_seen=exclude_seen,
            **self._events(events, len(keys)),
            with_labels=with_labels,
            min_position=_pair(min_position),
        )
        return Recommendations(*self._ask(request, deadline_s, len(keys)))

    def _events(self, events: Any, users: int) -> dict[str, Any]:
        if events is None:
            return {}
        ids, offsets = _lists("events", events, users, self._secret)
        return {"events": ids, "event_offsets": offsets}

    def close(self) -> None:
        """Close the channel if it was opened here."""
        self._connection.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: bytes, deadline_s: float | None, users: int) -> tuple[Any, ...]:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        answer = decode_score_response(
            self._connection.unary(_SCORE, request, deadline_s, f"model {self.model!r}", READ_ATTEMPTS)
        )
        if len(answer.user_known) != users:
            raise ColumnError(f"user_known has {len(answer.user_known)} rows, expected {users} (users)")
        return _fields(answer)


def _fields(answer: ScoreColumns) -> tuple[Any, ...]:
    position = Position(answer.lineage, answer.revision)
    columns = (answer.item_ids, answer.scores, answer.offsets, answer.user_known, answer.item_known)
    return (position, *columns, answer.labels)


def _pair(position: Position | None) -> tuple[bytes, int] | None:
    return None if position is None else (position.lineage, position.revision)


def _lists(
    name: str, ids: Any, users: int, secret: bytes
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32] | None]:
    """Item lists end to end with their offsets; offsets None where all users share one list."""
    if not _is_nested(ids):
        return as_keys(name, ids, secret), None
    if len(ids) != users:
        raise ColumnError(f"{name} has {len(ids)} lists, expected {users} (users), or one list for all")
    lists = [as_keys(f"{name}[{user}]", one, secret) for user, one in enumerate(ids)]
    offsets = np.zeros(users + 1, np.uint32)
    np.cumsum([len(one) for one in lists], out=offsets[1:])
    return np.concatenate([*lists, np.empty(0, KEYS)]), offsets


def _is_nested(ids: Any) -> bool:
    if isinstance(ids, np.ndarray) and ids.dtype != object:
        return ids.ndim == 2
    return (
        isinstance(ids, list | tuple | np.ndarray)
        and len(ids) > 0
        and not isinstance(ids[0], str | bytes)
        and hasattr(ids[0], "__len__")
    )
