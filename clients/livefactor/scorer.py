"""Asking for scores: `Scorer` scores given items, or finds the best of all items, or similar items.

It asks for one user or for many, and every answer names the revision of the model that gave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.access import Access
from livefactor.calling.blocking import BlockingClient, blocking
from livefactor.calling.cutting import Joined, Lists, ScoreRequest, ask
from livefactor.calling.plans import Plan
from livefactor.calling.routes import Route
from livefactor.channel import CONNECT_S, DEADLINE_S
from livefactor.errors import ColumnError, InvalidArgument
from livefactor.position import Position
from livefactor.results.answers import Recommendations, Scores
from livefactor.wire.arrays import KEYS
from livefactor.wire.bags import as_shared_bags
from livefactor.wire.content import BagColumns, bag_columns
from livefactor.wire.ids import HashTexts, Ids, as_keys, original_ids
from livefactor.wire.keys import keys_of
from livefactor.wire.limits import check_model

_SCORE = "/livefactor.v1.ScoringService/Score"


class ScorerBase:
    """What `Scorer` and its asyncio twin share: the settings, and how a request is sent."""

    _connects: type[Route]
    _connection: Any

    def __init__(
        self,
        target: str | Sequence[str] | Any | None = None,
        *,
        model: str = "default",
        secret: bytes = b"",
        timeout: float = DEADLINE_S,
        connect_s: float = CONNECT_S,
        access: Access | None = None,
        channel: Any | None = None,
        hedge_s: float | None = None,
    ) -> None:
        self.model = check_model(model)
        self._hash: HashTexts = partial(keys_of, secret=secret)
        self._timeout = timeout
        self._connection = self._connects(target, channel, connect_s, access)
        self._hedge_s = _check_hedge(hedge_s, len(self._connection))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.target!r}, model={self.model!r})"

    def _events(self, events: Any, users: int) -> Lists | None:
        return None if events is None else _lists("events", events, users, self._hash)

    def _ask(self, request: ScoreRequest, timeout: float | None, after: Position | None) -> Plan[Joined]:
        doing = f"model {self.model!r}"

        def send(message: bytes, left_s: float) -> Plan[bytes]:
            plan: Plan[bytes] = self._connection.unary(
                _SCORE, message, left_s, doing, retry_s=left_s, hedge_s=self._hedge_s
            )
            return plan

        return ask(request, send, self._timeout if timeout is None else timeout, after, doing)


class Scorer(ScorerBase, BlockingClient):
    """Asks one model for scores. Reads never change a model. Several threads may share a Scorer.

    Any number of users may be asked for at once. Up to 1,024 users and 262,144 scores are one call,
    and all scores of a call are of one revision. A larger request is divided into several calls,
    one after another; their revisions never go back, and `Answers.revisions` names each user's.
    While the server has no free slot, is starting or is draining, a call is tried again until its
    deadline. A Scorer works in a forked child, unless another thread was inside gRPC at the fork:
    so fork before you make a Producer.

    target: "host:port" or "unix:/path", or several of them as a list or with commas, or a channel;
    None takes LIVEFACTOR_TARGET or the default address. With several targets a call goes to the
    next one as soon as one is away. model: the model's name. secret: the key for string ids
    (keys.py) that the producers use. timeout: the deadline of calls that name none, seconds.
    connect_s: how long a call waits for a server that cannot be reached, seconds. access: TLS and
    token; None takes them from the environment. channel: the transport, if the caller has one.
    hedge_s: with several targets, a call that has no answer after so many seconds goes to the next
    target, too, and the first answer counts. A good value is the 95th percentile of the time of a
    call: then a slow server costs little, and 5 % more calls are made. None: never.

    Answers carry the ids as they were given. The Producer sends the text of a string id as its
    label, and `recommend` reads it from there. It gets the 64-bit key instead where there is no
    label: the producers have a `secret` or `labels=False`, or another label was given to the id.
    `score` repeats its arguments.
    """

    @blocking
    def score(
        self,
        users: Ids,
        items: Any,
        *,
        events: Any = None,
        query: Any = None,
        query_weight: float = 1.0,
        context: Any = None,
        context_weight: float = 1.0,
        min_position: Position | None = None,
        timeout: float | None = None,
        with_labels: bool = False,
        keep: bool = False,
    ) -> Plan[Scores]:
        """Score `items` for each of n users.

        users: one id or n. items: one list of ids that all users share, or n lists. events: items
        that a user has just had, oldest first; they stand in for its history in this call and are
        not stored. One list for all users, or n lists; an empty list leaves the user's own history.
        query: the vector of a search query, one for all users or n; the item's score gets
        query_weight * (the cosine of the vector and the item's embedding) added.
        context: what is known of the moment, such as {"hour:13": 1.0, "device:phone": 1.0} or
        ["hour:13"], one bag for all users or n (`Producer.push`); context_weight times what the
        model learned of these features is added to the scores.
        min_position: wait until this position is visible; an Ack's lets you read your own write.
        timeout: seconds. with_labels: also ask for the items' labels. keep: the server keeps the
        call for a time, and the answer names it (`score_ids`), for `Producer.push` and
        `Auditor.served`.

        Raises ColumnError for ids of a wrong type, DeadlineExceeded (also when min_position is not
        visible in time), NotFound, InvalidArgument (also for events where the model has no
        histories, or for a list above a limit of `livefactor.wire.limits`), FailedPrecondition
        (min_position of another lineage). ResourceExhausted and Unavailable: the server was still
        full or away at the deadline.
        """
        keys = as_keys("users", users, self._hash)
        candidates = _lists("items", items, len(keys), self._hash)
        request = ScoreRequest(
            self.model,
            keys,
            candidates=candidates,
            events=self._events(events, len(keys)),
            query=_query(query, len(keys)),
            context=_context(context, len(keys)),
            options={
                "with_labels": with_labels,
                "keep": keep,
                "query_weight": query_weight,
                "context_weight": context_weight,
            },
        )
        joined = yield from self._ask(request, timeout, min_position)
        originals = _original_lists(items, candidates.ids, candidates.offsets is not None)
        if candidates.offsets is None:
            originals = np.tile(originals, len(keys))
        got = len(joined.columns.item_ids)
        if len(originals) != got:
            raise ColumnError(f"item_ids has {got} rows, expected {len(originals)} (items)")
        return Scores(*_fields(joined, original_ids(users, keys), originals))

    @blocking
    def recommend(
        self,
        users: Ids,
        k: int = 10,
        *,
        exclude: Any = None,
        exclude_seen: bool = False,
        include_unavailable: bool = False,
        events: Any = None,
        query: Any = None,
        query_weight: float = 1.0,
        context: Any = None,
        context_weight: float = 1.0,
        min_position: Position | None = None,
        timeout: float | None = None,
        with_labels: bool = True,
        keep: bool = False,
    ) -> Plan[Recommendations]:
        """Find the k items with the highest scores for each of n users, exactly; fewer where fewer
        are left.

        users: one id or n. exclude: ids to leave out, one list for all users or n lists; unknown
        ids have no effect. exclude_seen: leave out what a user has had, as far as the model
        remembers it (spec: history); `seen_truncated` of the answer tells where that is not all.
        include_unavailable: also rank items that are marked unavailable. with_labels: ask for the
        items' labels, which also give string ids back; without them `item_ids` holds 64-bit keys.
        The other arguments and the errors are those of `score`.
        """
        keys = as_keys("users", users, self._hash)
        options = {
            "include_unavailable": include_unavailable,
            "exclude_seen": exclude_seen,
            "with_labels": with_labels,
            "keep": keep,
            "query_weight": query_weight,
            "context_weight": context_weight,
        }
        request = ScoreRequest(
            self.model,
            keys,
            k=k,
            exclude=None if exclude is None else _lists("exclude", exclude, len(keys), self._hash),
            events=self._events(events, len(keys)),
            query=_query(query, len(keys)),
            context=_context(context, len(keys)),
            options=options,
        )
        joined = yield from self._ask(request, timeout, min_position)
        named = _named(joined.columns.item_ids, joined.columns.labels, self._hash)
        return Recommendations(*_fields(joined, original_ids(users, keys), named))

    @blocking
    def similar(
        self,
        items: Ids,
        k: int = 10,
        *,
        include_unavailable: bool = False,
        min_position: Position | None = None,
        timeout: float | None = None,
        with_labels: bool = True,
    ) -> Plan[Recommendations]:
        """Find the k items that are most similar to each of n items, exactly; fewer where fewer are
        left.

        items: one id or n. The scores are the cosines of the items' factors, in -1..1. In the
        answers, `user_id` is the given item. An unknown item has `known` False and no items. The
        other arguments and the errors are those of `recommend`.
        """
        keys = as_keys("items", items, self._hash)
        options = {"similar": True, "include_unavailable": include_unavailable, "with_labels": with_labels}
        request = ScoreRequest(self.model, keys, k=k, options=options)
        joined = yield from self._ask(request, timeout, min_position)
        named = _named(joined.columns.item_ids, joined.columns.labels, self._hash)
        return Recommendations(*_fields(joined, original_ids(items, keys), named))


def _query(query: Any, users: int) -> npt.NDArray[np.float32] | None:
    """The vectors of queries as float32[1 or users, dimension]."""
    if query is None:
        return None
    vectors = np.atleast_2d(np.asarray(query, np.float32))
    if vectors.ndim != 2 or len(vectors) not in (1, users):
        raise ColumnError(f"query: expected one vector, or {users} (users), got shape {vectors.shape}")
    return vectors


def _context(context: Any, users: int) -> BagColumns | None:
    """The bags of a call, 1 or one a user."""
    if context is None:
        return None
    return bag_columns(as_shared_bags(context, users, "context", "users"))


def _fields(joined: Joined, user_ids: npt.NDArray[Any], item_ids: npt.NDArray[Any]) -> tuple[Any, ...]:
    answer = joined.columns
    columns = (answer.scores, answer.offsets, answer.user_known, answer.item_known)
    extra = (answer.item_ids, joined.revisions, answer.seen_truncated, joined.spec_ids, joined.score_ids)
    return (joined.position, user_ids, item_ids, *columns, answer.labels, *extra)


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


def _check_hedge(hedge_s: float | None, targets: int) -> float | None:
    if hedge_s is None:
        return None
    if not hedge_s > 0:
        raise InvalidArgument(f"hedge_s: expected more than 0, got {hedge_s}", code="INVALID_ARGUMENT")
    if targets < 2:
        raise InvalidArgument("hedge_s: expected several targets, got 1", code="INVALID_ARGUMENT")
    return hedge_s


def _lists(name: str, ids: Any, users: int, hash_texts: HashTexts) -> Lists:
    """The lists of items that a caller gave: one for all users, or n."""
    if not _is_nested(ids):
        return Lists(as_keys(name, ids, hash_texts), None)
    if len(ids) != users:
        raise ColumnError(f"{name} has {len(ids)} lists, expected {users} (users), or one list for all")
    lists = [as_keys(f"{name}[{user}]", one, hash_texts) for user, one in enumerate(ids)]
    offsets = np.zeros(users + 1, np.uint32)
    np.cumsum([len(one) for one in lists], out=offsets[1:])
    return Lists(np.concatenate([*lists, np.empty(0, KEYS)]), offsets)


def _is_nested(ids: Any) -> bool:
    if isinstance(ids, np.ndarray) and ids.dtype != object:
        return ids.ndim == 2
    return (
        isinstance(ids, list | tuple | np.ndarray)
        and len(ids) > 0
        and not isinstance(ids[0], str | bytes)
        and hasattr(ids[0], "__len__")
    )
