"""Parses and checks requests. The package `livefactor_server.changes` checks the changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from livefactor.v1 import models_pb2
from livefactor.wire import columns as wire
from livefactor.wire.limits import over
from livefactor.wire.scoring import ScoreQuery, decode_score
from livefactor_kernels.spec.model import ModelSpec, SpecError
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import (
    NO_REJECTS,
    WIRE_CHANGES,
    Change,
    InteractionsChange,
    Rejects,
    Rollback,
    ShortUpdate,
    short_updates,
)
from livefactor_server.changes.history.erase import SUBJECTS_MAX, Subjects
from livefactor_server.hosting.acts.rollback import Batches, to_moment, without
from livefactor_server.hosting.earlier import Moment
from livefactor_server.log.store import Log
from livefactor_server.model import spec_codec
from livefactor_server.statuses import invalid

RANGES_MAX, BATCHES_MAX = 1024, 65_536
"""Maximum numbers of ranges of sequences, and of batches in them, that a call rolls back."""


class UpdateRequest(NamedTuple):
    """An ApplyUpdates or StreamUpdates request.

    `body` is the encoded change. `short` is what a usual message holds, None for another one.
    """

    model: str
    producer_id: bytes
    epoch: int
    sequence: int
    change: str
    body: bytes
    short: ShortUpdate | None = None


def update_request(raw: bytes) -> UpdateRequest:
    """Parses a request without its change.

    Raises:
        ColumnError: the message is malformed.
        Refused: it contains no change.
    """
    short = short_updates.read(raw)
    if short is not None:
        model, producer, epoch, sequence = short[:4]
        return UpdateRequest(model, producer, epoch, sequence, wire.INTERACTIONS, short.columns.body, short)
    request = wire.decode_apply(raw)
    if request.change is None:
        fields = ", ".join(WIRE_CHANGES)
        raise invalid(f"change: it is missing; expected one of {fields}")
    stamp = request.stamp
    return UpdateRequest(
        request.model, stamp.producer_id.encode(), stamp.epoch, stamp.sequence, request.change, request.body
    )


def change_from_wire(request: UpdateRequest, spec: ModelSpec, rows_max: int) -> tuple[Change, Rejects]:
    """The change of a request without its rejected rows, and the rejects.

    Raises:
        ColumnError: the change is malformed.
        Refused: the change as a whole is invalid.
    """
    if spec.privacy.epsilon and request.change == wire.INTERACTIONS:
        raise invalid("interactions: a model with privacy takes none; send contributions with Contribute")
    if request.short is not None:
        change = InteractionsChange.from_short(request.short, spec, rows_max)
        if change is not None:
            return change, NO_REJECTS
    return WIRE_CHANGES[request.change].from_wire(request.body, spec, rows_max)


def score_query(raw: bytes, users_max: int, rows_max: int) -> ScoreQuery:
    """Parses and checks a Score request.

    `users_max` and `rows_max` are the maximum numbers of users and of scores per call.

    Raises:
        ColumnError: the message is malformed.
        Refused: a field is missing or above a limit.
    """
    query = decode_score(raw)
    users = len(query.user_ids)
    field, asked = ("item_ids", "items") if query.target == "similar" else ("user_ids", "users")
    if not users:
        raise invalid(f"{field}: at least one is required")
    if users > users_max:
        raise invalid(over(field, users_max, users, f"{asked} a call"))
    if query.target is None:
        raise invalid("target: it is missing; expected candidates, top_k or similar")
    if query.target in ("top_k", "similar"):
        if not query.k:
            raise invalid("k: expected at least 1, got 0")
        if query.k * users > rows_max:
            raise invalid(over("k", rows_max // users, query.k, f"for {users} {asked}"))
        if len(query.item_ids) > rows_max:
            raise invalid(over("exclude_ids", rows_max, len(query.item_ids), "ids a call"))
    given = any(each is not None for each in (query.event_ids, query.query, query.context))
    if query.target == "similar" and (given or query.has_users):
        raise invalid("similar: the request must have no user_ids, no events, no query and no context")
    if query.offsets is not None:
        _check_offsets("offsets", query.offsets, users, len(query.item_ids))
    if query.event_ids is not None:
        if len(query.event_ids) > rows_max:
            raise invalid(over("events", rows_max, len(query.event_ids), "ids a call"))
        if query.event_offsets is not None:
            _check_offsets("events.offsets", query.event_offsets, users, len(query.event_ids))
    if query.target == "candidates":
        answers = len(query.item_ids) * (users if query.offsets is None else 1)
        if answers > rows_max:
            raise invalid(over("candidates", rows_max, answers, "scores a call"))
    return query


def changed_spec(current: ModelSpec, name: str, fields: models_pb2.ModelSpec) -> ModelSpec:
    """The spec of the preset `name` with the given fields. "" stands for the `current` spec.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    try:
        return spec_codec.changed(preset(name) if name else current, fields)
    except SpecError as error:
        raise invalid(f"spec: {error}") from None


def rollback(log: Log, request: models_pb2.RollBackRequest) -> Callable[[Callable[[], None]], Rollback]:
    """What a request rolls back: a function that takes a check and reads the log.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    to_time = request.HasField("to_time_us")
    if sum([to_time, request.HasField("to_revision"), len(request.without) > 0]) != 1:
        raise invalid("rollback: expected one of to_revision, to_time_us and without")
    if not request.without:
        moment = Moment(request.to_revision, request.to_time_us if to_time else None)
        return lambda check: to_moment(log, moment)
    if len(request.without) > RANGES_MAX:
        raise invalid(over("without", RANGES_MAX, len(request.without), "ranges"))
    chosen = [
        Batches(each.producer_id.encode(), each.first_sequence, each.last_sequence)
        for each in request.without
    ]
    if any(not 1 <= each.first <= each.last for each in chosen):
        raise invalid("without: expected 1 <= first_sequence <= last_sequence")
    count = sum(each.last - each.first + 1 for each in chosen)
    if count > BATCHES_MAX:
        raise invalid(over("without", BATCHES_MAX, count, "batches"))
    return lambda check: without(log, chosen, check)


def subjects(request: models_pb2.ForgetRequest) -> Subjects:
    """Whom a request forgets.

    Raises:
        Refused: INVALID_ARGUMENT if nobody is named, or too many are.
    """
    count = len(request.user_ids) + len(request.item_ids)
    if not count:
        raise invalid("forget: name a user or an item")
    if count > SUBJECTS_MAX:
        raise invalid(over("forget", SUBJECTS_MAX, count, "ids"))
    return Subjects(tuple(sorted({*request.user_ids})), tuple(sorted({*request.item_ids})))


def _check_offsets(name: str, offsets: np.ndarray, users: int, items: int) -> None:
    good = len(offsets) == users + 1 and offsets[0] == 0 and offsets[-1] == items
    if not good or (offsets[1:] < offsets[:-1]).any():
        raise invalid(f"{name}: expected {users + 1} ascending numbers from 0 to {items}")
