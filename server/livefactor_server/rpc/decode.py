"""Parses and checks requests. The package `livefactor_server.changes` checks the changes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor.wire import columns as wire
from livefactor.wire.scoring import ScoreQuery, decode_score
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes import WIRE_CHANGES, Change, Rejects
from livefactor_server.statuses import invalid


class UpdateRequest(NamedTuple):
    """An ApplyUpdates or StreamUpdates request. `body` is the encoded change."""

    model: str
    producer_id: bytes
    epoch: int
    sequence: int
    change: str
    body: bytes


def update_request(raw: bytes) -> UpdateRequest:
    """Parses a request without its change.

    Raises:
        ColumnError: the message is malformed.
        Refused: it contains no change.
    """
    request = wire.decode_apply(raw)
    if request.change is None:
        raise invalid("change: it is missing; expected interactions, labels or availability")
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
    if not users:
        raise invalid("user_ids: at least one is required")
    if users > users_max:
        raise invalid(f"user_ids: at most {users_max} in one call, got {users}")
    if query.target is None:
        raise invalid("target: it is missing; expected candidates or top_k")
    if query.target == "top_k":
        _check_top_k(query, users, rows_max)
    else:
        _check_candidates(query, users, rows_max)
    if query.event_ids is not None:
        if len(query.event_ids) > rows_max:
            raise invalid(f"events.item_ids: at most {rows_max} in one call, got {len(query.event_ids)}")
        if query.event_offsets is not None:
            _check_offsets("events.offsets", query.event_offsets, users, len(query.event_ids))
    return query


def _check_top_k(query: ScoreQuery, users: int, rows_max: int) -> None:
    if query.k < 1:
        raise invalid("top_k.k: at least 1 is required")
    if query.k * users > rows_max:
        raise invalid(
            f"top_k.k: users * k is at most {rows_max} in one call, got {users} * {query.k}; for as many users "
            f"k is at most {rows_max // users}"
        )
    if len(query.item_ids) > rows_max:
        raise invalid(f"top_k.exclude_ids: at most {rows_max} in one call, got {len(query.item_ids)}")
    if query.offsets is not None:
        _check_offsets("top_k.offsets", query.offsets, users, len(query.item_ids))


def _check_candidates(query: ScoreQuery, users: int, rows_max: int) -> None:
    items = len(query.item_ids)
    if query.offsets is not None:
        _check_offsets("candidates.offsets", query.offsets, users, items)
    if items > rows_max:
        raise invalid(f"candidates.item_ids: at most {rows_max} in one call, got {items}")
    if query.offsets is None and users * items > rows_max:
        raise invalid(
            f"candidates.item_ids: users * items is at most {rows_max} in one call, got {users} * {items}; for "
            f"as many users there are at most {rows_max // users} items"
        )


def _check_offsets(name: str, offsets: np.ndarray, users: int, items: int) -> None:
    good = len(offsets) == users + 1 and offsets[0] == 0 and offsets[-1] == items
    if not good or (offsets[1:] < offsets[:-1]).any():
        raise invalid(f"{name}: expected {users + 1} ascending numbers from 0 to {items}")
