"""Joins events with the Score calls that showed their items.

An event gets the context of its call, as it was when the call was answered. The log has the event
with that context and without the score id. So a replay needs no memory of what was served. Each
outcome of a call, which is a user, an item and an event type, is learned once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from prometheus_client import Counter

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.content import BagColumns, bag_columns
from livefactor.wire.scoring import ScoreQuery, decode_score, decode_score_response
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes import InteractionsChange
from livefactor_server.changes.content.bags import check_context
from livefactor_server.changes.joined import JoinedChange
from livefactor_server.engine.answering.journal import Claim as Claimed
from livefactor_server.engine.answering.served import Served
from livefactor_server.engine.submission import Submission

OUTCOMES = Counter(
    "livefactor_outcomes",
    "Events that named a Score call: joined with it, duplicate (rejected), or unknown (no such call is"
    " kept, or the user is not in it).",
    ["model", "kind"],
)

Claim = Callable[[Submission], None]
"""Rejects the rows of an admitted batch whose outcomes other events had. The LOG stage calls it."""


class _Known(NamedTuple):
    query: ScoreQuery
    places: dict[int, int]


def join(
    change: InteractionsChange, served: Served, model: str, lineage: bytes, spec: ModelSpec, body: bytes
) -> tuple[JoinedChange, Claim]:
    """The change that is logged for a received one with score ids, and what claims its outcomes.

    `body` are the received bytes.

    Raises:
        Refused: the bags of all events together have more features than a batch may have.
    """
    columns = change.columns
    assert columns.score_ids is not None

    @cache
    def known(score_id: int) -> _Known | None:
        call = served.get(score_id) if score_id else None
        if call is None or call.model != model or decode_score_response(call.answer).lineage != lineage:
            return None
        query = decode_score(call.request)
        return _Known(query, {user: place for place, user in enumerate(query.user_ids.tolist())})

    ids, users = columns.score_ids.tolist(), columns.user_ids.tolist()
    calls = [known(score_id) for score_id in ids]
    is_joined = [call is not None and user in call.places for call, user in zip(calls, users, strict=True)]
    context = columns.context
    if spec.context.size and any(is_joined):
        bags = [{}] * len(users) if context is None else _bags(context)
        for row, (call, user) in enumerate(zip(calls, users, strict=True)):
            if call is not None and user in call.places:
                bags[row] = _bag_of(call, user)
        context = bag_columns(bags)
        check_context(context, spec)
    logged = wire.encode_interactions(
        columns.user_ids, columns.item_ids, columns.values, columns.weights, columns.event_types,
        columns.times_us, context if spec.context.size else columns.context,
    )  # fmt: skip
    types = [0] * len(users) if columns.event_types is None else columns.event_types.tolist()
    outcomes = list(zip(users, columns.item_ids.tolist(), types, strict=True))
    digest = hashlib.sha256(body).digest()

    def claim(item: Submission) -> None:
        joined = [row for row, is_known in enumerate(is_joined) if is_known]
        owners = [(item.producer, item.sequence, digest, row) for row in joined]
        are_first = served.claim(
            Claimed(ids[row], outcomes[row], owner) for row, owner in zip(joined, owners, strict=True)
        )
        rejected = [
            (row, int(updates_pb2.REJECT_REASON_DUPLICATE_OUTCOME))
            for row, is_first in zip(joined, are_first, strict=True)
            if not is_first
        ]
        if rejected:
            item.reject_rows(rejected)
        counts = len(is_joined) - len(rejected), len(rejected)
        unknown = sum(not known and score_id != 0 for known, score_id in zip(is_joined, ids, strict=True))
        for kind, count in (
            ("joined", sum(is_joined) - counts[1]), ("duplicate", counts[1]), ("unknown", unknown),
        ):  # fmt: skip
            if count:
                OUTCOMES.labels(model, kind).inc(count)

    return JoinedChange(wire.decode_interactions(logged), logged), claim


def _bag_of(call: _Known, user: int) -> dict[str, float]:
    context = call.query.context
    if context is None:
        return {}
    place = call.places[user] if len(context) > 1 else 0
    return _bags(context)[place]


def _bags(context: BagColumns) -> list[dict[str, float]]:
    ends = np.cumsum(context.counts.astype(np.int64))
    starts = ends - context.counts
    names = [context.names[each] for each in context.features.tolist()]
    weights = context.weights.tolist()
    return [
        dict(zip(names[start:end], weights[start:end], strict=True))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
