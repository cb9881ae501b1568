"""Asking for scores: `Scorer` scores given items, or finds the best of all items.

It asks for one user or for many, and every answer names the revision of the model that gave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from livefactor.channel import CONNECT_S, DEADLINE_S, DEFAULT_TARGET, READ_ATTEMPTS, Connection
from livefactor.errors import ColumnError
from livefactor.position import Position
from livefactor.wire.arrays import KEYS, HashTexts, Ids, as_keys, original_ids
from livefactor.wire.keys import keys_of
from livefactor.wire.scoring import ScoreColumns, decode_score_response, encode_score

_SCORE = "/livefactor.v1.ScoringService/Score"
_SHOWN = 5


@dataclass(frozen=True, slots=True, repr=False)
class UserAnswer:
    """The answer to one user: m items.

    user_id: as it was given. known: whether the model knows the user; if not, the mean and the item
    biases alone give the scores. item_ids: m ids as they were given, see `Answers`. scores:
    float32[m]. item_known: bool[m]. labels: m str if they were asked for, else empty.
    seen_truncated: True if `exclude_seen` was asked for and the user has had more events than the
    model remembers, so that the items may be among those that the user has had.
    """

    user_id: int | str
    known: bool
    item_ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    item_known: npt.NDArray[np.bool_]
    labels: Sequence[str]
    seen_truncated: bool = False

    def __len__(self) -> int:
        return len(self.item_ids)

    def __repr__(self) -> str:
        items = zip(self.item_ids.tolist()[:_SHOWN], self.scores[:_SHOWN].tolist(), strict=True)
        shown = [f"{item!r}: {score:.4g}" for item, score in items]
        more = [f"... {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        flags = "" if self.known else ", unknown"
        flags += ", seen_truncated" if self.seen_truncated else ""
        return f"UserAnswer({self.user_id!r}{flags}, {{{', '.join(shown + more)}}})"


@dataclass(frozen=True, slots=True, repr=False)
class Answers:
    """Answers to n users, m items in all. Iterate or index for one `UserAnswer` per user.

    position: every score is of exactly this revision. user_ids: n ids, item_ids: m ids of all users
    end to end, both as they were given: uint64 arrays where all ids are integers, else object
    arrays of str and int. An id that was pushed as a string and has no label comes back as its
    64-bit key. scores: float32[m]. offsets: uint32[n + 1]; user u's items are [offsets[u] ..
    offsets[u + 1]). user_known: bool[n]. item_known: bool[m]. labels: m str if they were asked for,
    else empty. item_keys: uint64[m], the 64-bit keys that the model knows the items by.
    seen_truncated: bool[n], for which users `exclude_seen` may have left items in that they have
    had, because they have had more events than the model remembers; empty without `exclude_seen`.
    """

    position: Position
    user_ids: npt.NDArray[Any]
    item_ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.uint32]
    user_known: npt.NDArray[np.bool_]
    item_known: npt.NDArray[np.bool_]
    labels: Sequence[str]
    item_keys: npt.NDArray[np.uint64] = field(repr=False)
    seen_truncated: npt.NDArray[np.bool_] = field(repr=False, default_factory=lambda: np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.user_known)

    def __getitem__(self, user: int) -> UserAnswer:
        if not -len(self) <= user < len(self):
            raise IndexError(f"user {user} of {len(self)}")
        user %= len(self)
        rows = slice(int(self.offsets[user]), int(self.offsets[user + 1]))
        return UserAnswer(
            self.user_ids[user : user + 1].tolist()[0],
            bool(self.user_known[user]),
            self.item_ids[rows],
            self.scores[rows],
            self.item_known[rows],
            self.labels[rows],
            bool(self.seen_truncated[user : user + 1].any()),
        )

    def __iter__(self) -> Iterator[UserAnswer]:
        return (self[user] for user in range(len(self)))

    def __repr__(self) -> str:
        first = f": {self[0]!r}" if len(self) == 1 else ""
        users = "1 user" if len(self) == 1 else f"{len(self)} users"
        revision = self.position.revision
        return f"{type(self).__name__}({users}, {len(self.item_ids)} items, revision {revision}{first})"


class Scores(Answers):
    """Scores of candidates, in the order in which they were given."""

    __slots__ = ()


class Recommendations(Answers):
    """The best items of each user, best first.

    Equal scores stand in ascending order of the 64-bit keys.
    """

    __slots__ = ()


class Scorer:
    """Asks one model for scores. Reads never change a model. Several threads may share a Scorer.

    target: "host:port" or "unix:/path" (or a channel). model: the model's name. secret: the key for
    string ids (keys.py) that the producers use. deadline_s: the deadline of calls that name none,
    seconds. connect_s: how long a call waits for a server that cannot be reached, seconds. channel:
    the transport, if the caller has one.

    Answers carry the ids as they were given. The Producer sends the text of a string id as its
    label, and `recommend` reads it from there. It gets the 64-bit key instead where there is no
    label: the producers have a `secret` or `labels=False`, or another label was given to the id.
    `score` repeats its arguments.
    """

    def __init__(
        self,
        target: str | grpc.Channel = DEFAULT_TARGET,
        *,
        model: str = "default",
        secret: bytes = b"",
        deadline_s: float = DEADLINE_S,
        connect_s: float = CONNECT_S,
        channel: grpc.Channel | None = None,
    ) -> None:
        self.model = model
        self._hash: HashTexts = partial(keys_of, secret=secret)
        self._deadline_s = deadline_s
        self._connection = Connection(target, channel, connect_s)

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
        """Score `items` for each of n users.

        users: one id or n. items: one list of ids that all users share, or n lists. events: items
        that a user has just had, oldest first; they stand in for its history in this call and are
        not stored. One list for all users, or n lists; an empty list leaves the user's own history.
        min_position: wait until this position is visible; an Ack's lets you read your own write.
        deadline_s: seconds. with_labels: also ask for the items' labels.

        Raises ColumnError for ids of a wrong type, DeadlineExceeded (also when min_position is not
        visible in time), NotFound, InvalidArgument (also for events where the model has no
        histories), FailedPrecondition (min_position of another lineage), ResourceExhausted,
        Unavailable.
        """
        keys = as_keys("users", users, self._hash)
        candidates, offsets = _lists("items", items, len(keys), self._hash)
        request = encode_score(
            self.model,
            keys,
            candidates=candidates,
            offsets=offsets,
            **self._events(events, len(keys)),
            with_labels=with_labels,
            min_position=_pair(min_position),
        )
        answer = self._ask(request, deadline_s, len(keys))
        originals = _original_lists(items, candidates, offsets is not None)
        if offsets is None:
            originals = np.tile(originals, len(keys))
        if len(originals) != len(answer.item_ids):
            raise ColumnError(f"item_ids has {len(answer.item_ids)} rows, expected {len(originals)} (items)")
        return Scores(*_fields(answer, original_ids(users, keys), originals))

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
        with_labels: bool = True,
    ) -> Recommendations:
        """Find the k items with the highest scores for each of n users, exactly; fewer where fewer
        are left.

        users: one id or n. exclude: ids to leave out, one list for all users or n lists; unknown
        ids have no effect. exclude_seen: leave out what a user has had, as far as the model
        remembers it (spec: history); `seen_truncated` of the answer tells where that is not all.
        include_unavailable: also rank items that are marked unavailable. with_labels: ask for the
        items' labels, which also give string ids back; without them `item_ids` holds 64-bit keys.
        The other arguments and the errors are those of `score`.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        keys = as_keys("users", users, self._hash)
        excluded, offsets = (
            (None, None) if exclude is None else _lists("exclude", exclude, len(keys), self._hash)
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
        answer = self._ask(request, deadline_s, len(keys))
        named = _named(answer.item_ids, answer.labels, self._hash)
        return Recommendations(*_fields(answer, original_ids(users, keys), named))

    def _events(self, events: Any, users: int) -> dict[str, Any]:
        if events is None:
            return {}
        ids, offsets = _lists("events", events, users, self._hash)
        return {"events": ids, "event_offsets": offsets}

    def close(self) -> None:
        """Close the channel if it was opened here."""
        self._connection.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Scorer({self._connection.target!r}, model={self.model!r})"

    def _ask(self, request: bytes, deadline_s: float | None, users: int) -> ScoreColumns:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        answer = decode_score_response(
            self._connection.unary(_SCORE, request, deadline_s, f"model {self.model!r}", READ_ATTEMPTS)
        )
        if len(answer.user_known) != users:
            raise ColumnError(f"user_known has {len(answer.user_known)} rows, expected {users} (users)")
        return answer


def _fields(answer: ScoreColumns, user_ids: npt.NDArray[Any], item_ids: npt.NDArray[Any]) -> tuple[Any, ...]:
    position = Position(answer.lineage, answer.revision)
    columns = (answer.scores, answer.offsets, answer.user_known, answer.item_known)
    return (position, user_ids, item_ids, *columns, answer.labels, answer.item_ids, answer.seen_truncated)


def _named(keys: npt.NDArray[np.uint64], labels: Sequence[str], hash_texts: HashTexts) -> npt.NDArray[Any]:
    """The ids of m items: the label where it is the text that the key was made of, else the key."""
    distinct = [label for label in set(labels) if label]
    if not distinct:
        return keys
    texts = dict(zip(hash_texts(distinct).tolist(), distinct, strict=True))
    ids = np.empty(len(keys), object)
    ids[:] = [texts.get(key, key) for key in keys.tolist()]
    return ids


def _original_lists(items: Any, keys: npt.NDArray[np.uint64], nested: bool) -> npt.NDArray[Any]:
    """`original_ids` of the lists that `_lists` put end to end as `keys`."""
    if not nested:
        return original_ids(items, keys)
    originals, start = [], 0
    for one in items:
        stop = start + len(one)
        originals.append(original_ids(one, keys[start:stop]))
        start = stop
    return np.concatenate(originals) if originals else keys


def _pair(position: Position | None) -> tuple[bytes, int] | None:
    return None if position is None else (position.lineage, position.revision)


def _lists(
    name: str, ids: Any, users: int, hash_texts: HashTexts
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32] | None]:
    """Item lists end to end with their offsets; offsets None where all users share one list."""
    if not _is_nested(ids):
        return as_keys(name, ids, hash_texts), None
    if len(ids) != users:
        raise ColumnError(f"{name} has {len(ids)} lists, expected {users} (users), or one list for all")
    lists = [as_keys(f"{name}[{user}]", one, hash_texts) for user, one in enumerate(ids)]
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
