"""Convert arrays to the bytes of the contract's Score messages, and back.

The functions are pure. The client and the server share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.v1 import scoring_pb2
from livefactor.wire.arrays import FLOATS, KEYS, NUMBERS, as_numbers
from livefactor.wire.content import BagColumns, decode_bags, encode_bags
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.twins import parse_twin, twin_column, twin_of

_FLAGS = np.dtype("u1")
_RequestTwin = twin_of(scoring_pb2.ScoreRequest)
_ResponseTwin = twin_of(scoring_pb2.ScoreResponse)

UInt64s = npt.NDArray[np.uint64]
UInt32s = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class ScoreQuery:
    """A Score request for n users, or for n items whose similar items are asked for.

    min_lineage, min_revision: the position to wait for; min_lineage is None without one. user_ids:
    uint64[n]; with target "similar" the ids of the n items. target: "candidates", "top_k",
    "similar" or None. item_ids: the candidates, or the excluded
    items of a top-k list. offsets: uint32[n + 1] into item_ids; None if all users share one list.
    k, include_unavailable, exclude_seen: settings of a top-k list. event_ids: items that replace
    the users' histories, or None. event_offsets: uint32[n + 1] into event_ids; None if all users
    share one list. query: float32[m], a vector for all users or one a user end to end, or None.
    query_weight: its weight. context: a bag of features for all users or one a user, or None.
    context_weight: its weight. has_users: a request for similar items names users, which it must
    not. keep: the server keeps the call under a score id.
    """

    model: str
    min_lineage: bytes | None
    min_revision: int
    user_ids: UInt64s
    target: str | None
    item_ids: UInt64s
    offsets: UInt32s | None
    k: int
    include_unavailable: bool
    with_labels: bool
    exclude_seen: bool = False
    event_ids: UInt64s | None = None
    event_offsets: UInt32s | None = None
    query: npt.NDArray[np.float32] | None = None
    query_weight: float = 1.0
    has_users: bool = False
    context: BagColumns | None = None
    context_weight: float = 1.0
    keep: bool = False


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """A Score answer for n users with m scores in total.

    lineage (16 bytes), revision: the position at which every score was computed. item_ids:
    uint64[m]. scores: float32[m]. offsets: uint32[n + 1]; the answers of user u are at [offsets[u],
    offsets[u + 1]). user_known: bool[n]. item_known: bool[m]. labels: m str, or an empty sequence.
    seen_truncated: for which users `exclude_seen` could not know all items, bool[n]; empty without
    `exclude_seen`. spec_id: the spec that made the scores; 0 from servers that do not name it.
    score_id: names the answer, if the server keeps it; else 0.
    """

    lineage: bytes
    revision: int
    item_ids: UInt64s
    scores: npt.NDArray[np.float32]
    offsets: UInt32s
    user_known: npt.NDArray[np.bool_]
    item_known: npt.NDArray[np.bool_]
    labels: Sequence[str]
    seen_truncated: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    spec_id: int = 0
    score_id: int = 0


def encode_score(
    model: str,
    user_ids: Ids,
    *,
    candidates: Ids = None,
    similar: bool = False,
    k: int = 0,
    exclude_ids: Ids = None,
    offsets: Any = None,
    include_unavailable: bool = False,
    exclude_seen: bool = False,
    events: Ids = None,
    event_offsets: Any = None,
    query: npt.NDArray[np.float32] | None = None,
    query_weight: float = 1.0,
    context: BagColumns | None = None,
    context_weight: float = 1.0,
    with_labels: bool = False,
    keep: bool = False,
    min_position: tuple[bytes, int] | None = None,
) -> bytes:
    """The bytes of a ScoreRequest.

    It asks for the scores of `candidates`, or for top-k lists without them. user_ids: n ids.
    similar: they are ids of items, and the request asks for the k most similar items of each.
    exclude_ids: items that a top-k list leaves out. offsets: n + 1 numbers into candidates (or
    exclude_ids); None if all users share one list. events: ids that replace the users' histories,
    the oldest first. event_offsets: n + 1 numbers into events; None if all users share one list.
    query: the numbers of a vector for all users, or of one a user. query_weight: its weight.
    context: one bag for all users, or one a user. context_weight: its weight.
    keep: the server keeps the call. min_position: (lineage, revision). Raises ColumnError for ids
    or offsets of a wrong type.
    """
    ids = as_keys("user_ids", user_ids).tobytes()
    request = _RequestTwin(model=model, user_ids=b"" if similar else ids, with_labels=with_labels, keep=keep)
    if min_position is not None:
        request.min_position.lineage, request.min_position.revision = min_position
    if similar:
        request.similar.k, request.similar.include_unavailable = k, include_unavailable
        request.similar.item_ids = ids
        request.similar.SetInParent()
        return bytes(request.SerializeToString())
    if events is not None:
        request.events.SetInParent()
        request.events.item_ids = as_keys("events", events).tobytes()
        if event_offsets is not None:
            request.events.offsets = as_numbers("event_offsets", event_offsets, len(event_offsets)).tobytes()
    if query is not None:
        request.query.vectors = query.astype(FLOATS, copy=False).tobytes()
        request.query.weight = query_weight
    if context is not None:
        request.context.ParseFromString(encode_bags(context))
        request.context.SetInParent()
        request.context_weight = context_weight
    bounds = b"" if offsets is None else as_numbers("offsets", offsets, len(offsets)).tobytes()
    if candidates is not None:
        request.candidates.SetInParent()
        request.candidates.item_ids = as_keys("candidates", candidates).tobytes()
        request.candidates.offsets = bounds
        return bytes(request.SerializeToString())
    request.top_k.k = k
    request.top_k.include_unavailable = include_unavailable
    request.top_k.exclude_seen = exclude_seen
    request.top_k.offsets = bounds
    if exclude_ids is not None:
        request.top_k.exclude_ids = as_keys("exclude_ids", exclude_ids).tobytes()
    request.top_k.SetInParent()
    return bytes(request.SerializeToString())


def decode_score(data: bytes) -> ScoreQuery:
    """Read a ScoreRequest. Raises ColumnError if the bytes do not parse.

    The server checks the content of the request.
    """
    twin = parse_twin(_RequestTwin, scoring_pb2.ScoreRequest, data)
    target = twin.WhichOneof("target")
    asked = twin.similar if target == "similar" else twin.top_k
    lists = twin.top_k if target == "top_k" else twin.candidates
    item_ids = twin_column(lists, "exclude_ids" if target == "top_k" else "item_ids", KEYS)
    offsets = twin_column(lists, "offsets", NUMBERS)
    users = twin_column(twin, "user_ids", KEYS)
    has_position = twin.HasField("min_position")
    has_events = twin.HasField("events")
    event_offsets = twin_column(twin.events, "offsets", NUMBERS)
    return ScoreQuery(
        model=twin.model,
        min_lineage=twin.min_position.lineage if has_position else None,
        min_revision=twin.min_position.revision,
        user_ids=twin_column(asked, "item_ids", KEYS) if target == "similar" else users,
        target=target,
        item_ids=item_ids,
        offsets=offsets if len(offsets) else None,
        k=0 if target == "candidates" else asked.k,
        include_unavailable=target != "candidates" and asked.include_unavailable,
        with_labels=twin.with_labels,
        exclude_seen=target == "top_k" and twin.top_k.exclude_seen,
        event_ids=twin_column(twin.events, "item_ids", KEYS) if has_events else None,
        event_offsets=event_offsets if len(event_offsets) else None,
        query=twin_column(twin.query, "vectors", FLOATS) if twin.HasField("query") else None,
        query_weight=twin.query.weight if twin.query.HasField("weight") else 1.0,
        has_users=target == "similar" and len(users) > 0,
        context=decode_bags(twin.context.SerializeToString()) if twin.HasField("context") else None,
        context_weight=twin.context_weight if twin.HasField("context_weight") else 1.0,
        keep=twin.keep,
    )


def encode_score_response(answer: ScoreColumns) -> bytes:
    """The bytes of a ScoreResponse. answer: arrays with the dtypes that `ScoreColumns` names."""
    twin = _ResponseTwin(
        item_ids=answer.item_ids.astype(KEYS, copy=False).tobytes(),
        scores=answer.scores.astype(FLOATS, copy=False).tobytes(),
        offsets=answer.offsets.astype(NUMBERS, copy=False).tobytes(),
        user_known=answer.user_known.astype(np.bool_, copy=False).tobytes(),
        item_known=answer.item_known.astype(np.bool_, copy=False).tobytes(),
        labels=answer.labels,
        seen_truncated=answer.seen_truncated.astype(np.bool_, copy=False).tobytes(),
        spec_id=answer.spec_id,
    )
    twin.position.lineage, twin.position.revision = answer.lineage, answer.revision
    return bytes(twin.SerializeToString())


def decode_score_response(data: bytes) -> ScoreColumns:
    """Read a ScoreResponse.

    Raises ColumnError if the bytes do not parse or the columns do not match.
    """
    twin = parse_twin(_ResponseTwin, scoring_pb2.ScoreResponse, data)
    answer = ScoreColumns(
        lineage=twin.position.lineage,
        revision=twin.position.revision,
        item_ids=twin_column(twin, "item_ids", KEYS),
        scores=twin_column(twin, "scores", FLOATS),
        offsets=twin_column(twin, "offsets", NUMBERS),
        user_known=_flags(twin, "user_known"),
        item_known=_flags(twin, "item_known"),
        labels=list(twin.labels),
        seen_truncated=_flags(twin, "seen_truncated"),
        spec_id=twin.spec_id,
        score_id=twin.score_id,
    )
    _check_answer(answer)
    return answer


def _flags(twin: Any, name: str) -> npt.NDArray[np.bool_]:
    numbers = twin_column(twin, name, _FLAGS)
    if numbers.size and int(numbers.max()) > 1:
        raise ColumnError(f"{name}: expected 0 or 1 in each row")
    return numbers.view(np.bool_)


def _check_answer(answer: ScoreColumns) -> None:
    users, items, offsets = len(answer.user_known), len(answer.item_ids), answer.offsets
    for name, got, expected in (
        ("scores", len(answer.scores), items),
        ("item_known", len(answer.item_known), items),
        ("labels", len(answer.labels) or items, items),
        ("offsets", len(offsets), users + 1),
        ("seen_truncated", len(answer.seen_truncated) or users, users),
    ):
        if got != expected:
            raise ColumnError(f"{name} has {got} rows, expected {expected}")
    if int(offsets[0]) != 0 or int(offsets[-1]) != items or (offsets[1:] < offsets[:-1]).any():
        raise ColumnError(f"offsets: expected ascending numbers from 0 to {items}")
