"""Columns on the wire: the client writes the contract's bytes, and reads any bytes like the
contract's classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from livefactor.v1 import scoring_pb2, updates_pb2
from livefactor.wire import columns
from livefactor.wire.columns import ColumnError, Stamp

DTYPES = {
    "user_ids": np.uint64,
    "item_ids": np.uint64,
    "values": np.float32,
    "weights": np.float32,
    "event_types": np.uint32,
    "times_us": np.int64,
}
STAMP = Stamp("shop-1", 3, 1 << 40)
ROWS = st.integers(1, 70)


@st.composite
def interactions(draw: st.DrawFn) -> dict[str, Any]:
    """Columns of equal length. Some are absent."""
    n = draw(ROWS)
    kept = [name for name in DTYPES if name in ("user_ids", "item_ids") or draw(st.booleans())]
    return {name: draw(arrays(DTYPES[name], n)) for name in kept}


def public(message: type, fields: dict[str, Any]) -> Any:
    return message(**{name: column.tolist() for name, column in fields.items()})


def same(got: columns.Columns, expected: Any) -> None:
    for name, dtype in DTYPES.items():
        column = getattr(got, name)
        values = np.array(getattr(expected, name), dtype)
        if len(values) == 0 and name not in ("user_ids", "item_ids"):
            assert column is None
            continue
        assert column.dtype == dtype
        assert column.flags.aligned
        assert column.tobytes() == values.tobytes()


@given(interactions())
def test_interactions_are_the_contracts_bytes(fields: dict[str, Any]) -> None:
    body = columns.encode_interactions(**fields)
    expected = public(updates_pb2.Interactions, fields)
    assert body == expected.SerializeToString()
    decoded = columns.decode_interactions(body)
    assert decoded.body == body
    same(decoded, expected)


@given(interactions(), st.data())
def test_selected_rows_are_the_contracts_bytes_of_those_rows(
    fields: dict[str, Any], data: st.DataObject
) -> None:
    mask = data.draw(arrays(np.bool_, len(fields["user_ids"])))
    decoded = columns.decode_interactions(columns.encode_interactions(**fields))
    expected = public(updates_pb2.Interactions, {name: column[mask] for name, column in fields.items()})
    assert columns.select(decoded, mask) == expected.SerializeToString()


@given(st.text(max_size=20), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), interactions())
def test_requests_are_the_contracts_bytes(
    model: str, epoch: int, sequence: int, fields: dict[str, Any]
) -> None:
    body = columns.encode_interactions(**fields)
    data = columns.encode_apply(model, Stamp("é", epoch, sequence), columns.INTERACTIONS, body)
    stamp = updates_pb2.ProducerStamp(id="é", epoch=epoch, sequence=sequence)
    message = public(updates_pb2.Interactions, fields)
    for request in (updates_pb2.ApplyUpdatesRequest, updates_pb2.StreamUpdatesRequest):
        assert data == request(model=model, producer=stamp, interactions=message).SerializeToString()
    assert columns.decode_apply(data) == (model, ("é", epoch, sequence), "interactions", body)


@given(st.integers(0, 2), st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=9))), st.booleans())
def test_labels_and_availability_are_the_contracts_bytes(side: int, rows: list[Any], flag: bool) -> None:
    ids, labels = [key for key, _ in rows], [label for _, label in rows]
    body = columns.encode_labels(side, np.array(ids, np.uint64), labels)
    assert body == updates_pb2.Labels(side=side, ids=ids, labels=labels).SerializeToString()
    decoded = columns.decode_labels(body)
    assert (decoded.side, decoded.ids.tolist(), decoded.labels, decoded.body) == (side, ids, labels, body)
    half = np.arange(len(ids)) % 2 == 0
    assert columns.decode_labels(columns.select_labels(decoded, half)).labels == labels[::2]
    body = columns.encode_availability(np.array(ids, np.uint64), flag)
    assert body == updates_pb2.Availability(item_ids=ids, available=flag).SerializeToString()
    marks = columns.decode_availability(body)
    assert (marks.item_ids.tolist(), marks.available, marks.body) == (ids, flag, body)


def field(number: int, wire: int, content: bytes) -> bytes:
    return _VarintBytes(number << 3 | wire) + (_VarintBytes(len(content)) if wire == 2 else b"") + content


def u64(*values: int) -> bytes:
    return np.array(values, "<u8").tobytes()


PEERS = {
    "a split column": field(1, 2, u64(1, 2)) + field(2, 2, u64(3, 4, 5)) + field(1, 2, u64(6)),
    "no packing": field(1, 1, u64(1)) + field(2, 1, u64(3)) + field(1, 1, u64(2)) + field(2, 1, u64(4)),
    "half packed": field(1, 2, u64(1)) + field(1, 1, u64(2)) + field(2, 2, u64(3, 4)),
    "fields of later versions": field(1, 2, u64(1))
    + field(2, 2, u64(2))
    + field(90, 2, b"new")
    + field(7, 0, b"\x05"),
    "another order": field(2, 2, u64(2)) + field(3, 2, b"\0\0\x80?") + field(1, 2, u64(1)),
    "an empty column": field(1, 2, u64(1)) + field(2, 2, u64(2)) + field(3, 2, b""),
    "a long length": field(1, 2, u64(1)) + b"\x12\x88\x80\x00" + u64(2),
}


@pytest.mark.parametrize("peer", PEERS)
def test_messages_of_other_writers_are_read_like_the_public_class(peer: str) -> None:
    decoded = columns.decode_interactions(PEERS[peer])
    expected = updates_pb2.Interactions.FromString(PEERS[peer])
    same(decoded, expected)
    same(columns.decode_interactions(decoded.body), expected)
    stored = updates_pb2.Interactions.FromString(decoded.body)
    expected.DiscardUnknownFields()
    assert stored == expected


def test_a_change_sent_twice_is_merged_like_in_the_public_class() -> None:
    one = columns.encode_apply("m", STAMP, columns.INTERACTIONS, field(1, 2, u64(1)) + field(2, 2, u64(2)))
    data = one + field(3, 2, field(1, 2, u64(3)) + field(2, 2, u64(4))) + field(2, 2, field(3, 0, b"\x09"))
    request = columns.decode_apply(data)
    assert request.stamp == ("shop-1", 3, 9)
    assert columns.decode_interactions(request.body).user_ids.tolist() == [1, 3]
    last = columns.decode_apply(one + field(5, 2, columns.encode_availability([7], True)))
    assert (last.change, columns.decode_availability(last.body).item_ids.tolist()) == ("availability", [7])


PIECES = st.one_of(
    st.builds(field, st.integers(1, 8), st.just(2), st.binary(max_size=24)),
    st.builds(
        lambda number, value: field(number, 1, u64(value)), st.integers(1, 8), st.integers(0, 2**64 - 1)
    ),
    st.builds(
        lambda number, value: field(number, 0, _VarintBytes(value)),
        st.integers(1, 8),
        st.integers(0, 2**64 - 1),
    ),
    st.builds(
        lambda number, content: field(number, 5, content),
        st.integers(1, 8),
        st.binary(min_size=4, max_size=4),
    ),
    st.binary(max_size=6),
)


def well_formed(message: Any) -> bool:
    """Say whether the columns of an Interactions message have equal lengths and its bags are
    whole.
    """
    n = len(message.user_ids)
    optional = [len(getattr(message, name)) for name in [*list(DTYPES)[2:], "score_ids"]]
    bags = message.context
    return (
        len(message.item_ids) == n
        and set(optional) <= {0, n}
        and (not message.HasField("context") or len(bags.counts) == n)
        and sum(bags.counts) == len(bags.features)
        and len(bags.weights) in (0, len(bags.features))
        and all(feature < len(bags.names) for feature in bags.features)
    )


@settings(max_examples=250)
@given(st.lists(PIECES, max_size=8).map(b"".join))
@example(field(8, 2, u64(5)))
@example(field(1, 2, u64(1)) + field(2, 2, u64(2)) + field(7, 2, b""))
@example(field(1, 2, u64(1)) + field(2, 2, u64(2)) + field(8, 2, u64(5)))
def test_any_bytes_are_read_or_refused_like_in_the_public_class(data: bytes) -> None:
    """The fast path must read every message like the contract's own class, also hostile and odd
    ones.
    """
    try:
        expected = updates_pb2.Interactions.FromString(data)
        fits = well_formed(expected)
    except Exception:
        fits = False
    try:
        decoded = columns.decode_interactions(data)
    except ColumnError:
        assert not fits
        return
    assert fits
    same(decoded, expected)
    shown = [] if decoded.score_ids is None else decoded.score_ids.tolist()
    assert shown == list(expected.score_ids)


@settings(max_examples=250)
@given(st.lists(PIECES, max_size=8).map(b"".join))
@example(field(6, 2, b"\x00"))
def test_any_request_is_read_like_in_the_public_class(data: bytes) -> None:
    try:
        expected = updates_pb2.ApplyUpdatesRequest.FromString(data)
    except Exception:
        expected = None
    try:
        request = columns.decode_apply(data)
    except ColumnError:
        assert expected is None
        return
    # The body is judged when it is decoded. The rest must parse here.
    if expected is None:
        with pytest.raises(ColumnError):
            READERS[request.change or ""](request.body)
        return
    assert (request.model, request.change) == (expected.model, expected.WhichOneof("change"))
    stamp = expected.producer
    assert request.stamp == (stamp.id, stamp.epoch, stamp.sequence)


def only_columns(change: str) -> Any:
    message = type(getattr(updates_pb2.ApplyUpdatesRequest(), change))

    def parse(body: bytes) -> None:
        """Refuse what the class itself refuses, but accept unequal lengths."""
        try:
            message.FromString(body)
        except Exception as error:
            raise ColumnError from error

    return parse


CHANGES = updates_pb2.ApplyUpdatesRequest.DESCRIPTOR.oneofs_by_name["change"].fields
READERS = {field.name: only_columns(field.name) for field in CHANGES}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            field(1, 2, u64(1, 2, 3, 4)) + field(2, 2, u64(1, 2, 3)),
            r"item_ids has 3 rows, expected 4 \(user_ids\)",
        ),
        (field(1, 2, u64(1)) + field(2, 2, u64(1)) + field(3, 2, bytes(8)), "values has 2 rows, expected 1"),
        (field(1, 2, u64(1)), "item_ids has 0 rows, expected 1"),
        (field(3, 2, bytes(4)), "values has 1 rows, expected 0"),
        (field(1, 2, bytes(9)) + field(2, 2, u64(1)), "user_ids: 9 bytes are not a multiple of 8"),
        (b"\x0a\xff\xff\xff\xff\x0f", "malformed Interactions"),
        (b"\x0a\x10" + bytes(15), "malformed Interactions"),
        (b"\x0a", "malformed Interactions"),
        (b"\xff" * 20, "malformed Interactions"),
    ],
)
def test_malformed_columns_say_what_is_wrong(body: bytes, text: str) -> None:
    with pytest.raises(ColumnError, match=text):
        columns.decode_interactions(body)


@pytest.mark.parametrize("data", [b"\x0a\x01\xff", b"\x12\x02\xff\xff", b"\x1a\x05", b"\x0a"])
def test_malformed_requests_are_refused(data: bytes) -> None:
    with pytest.raises(ColumnError, match="malformed ApplyUpdatesRequest"):
        columns.decode_apply(data)


IDS = arrays(np.uint64, st.integers(0, 20))


@given(IDS, IDS, st.integers(0, 99), st.booleans(), st.booleans(), st.booleans())
def test_score_requests_are_the_contracts_bytes(
    users: Any, items: Any, k: int, waits: bool, labels: bool, hidden: bool
) -> None:
    bounds = np.arange(len(users) + 1, dtype=np.uint32)
    position = (b"l" * 16, 1 << 50) if waits else None
    expected = scoring_pb2.ScoreRequest(model="m", user_ids=users.tolist(), with_labels=labels)
    if waits:
        expected.min_position.lineage, expected.min_position.revision = b"l" * 16, 1 << 50
    expected.candidates.CopyFrom(scoring_pb2.Candidates(item_ids=items.tolist(), offsets=bounds.tolist()))
    common: dict[str, Any] = {"offsets": bounds, "with_labels": labels, "min_position": position}
    data = columns.encode_score("m", users, candidates=items, **common)
    assert data == expected.SerializeToString()
    query = columns.decode_score(data)
    assert (query.target, query.user_ids.tolist(), query.item_ids.tolist()) == (
        "candidates",
        users.tolist(),
        items.tolist(),
    )
    assert (query.min_lineage, query.min_revision) == (position or (None, 0))
    assert query.offsets is not None
    assert query.offsets.tolist() == bounds.tolist()
    best = scoring_pb2.TopK(
        k=k, exclude_ids=items.tolist(), offsets=bounds.tolist(), include_unavailable=hidden
    )
    expected.top_k.CopyFrom(best)
    data = columns.encode_score("m", users, k=k, exclude_ids=items, include_unavailable=hidden, **common)
    assert data == expected.SerializeToString()
    query = columns.decode_score(data)
    assert (query.target, query.k, query.include_unavailable, query.with_labels) == (
        "top_k",
        k,
        hidden,
        labels,
    )
    assert query.item_ids.tolist() == items.tolist()


def test_a_score_request_that_is_not_packed_is_read_too() -> None:
    data = field(3, 1, u64(5)) + field(4, 2, field(1, 1, u64(8)) + field(1, 1, u64(9))) + field(3, 1, u64(6))
    query = columns.decode_score(data)
    assert (query.user_ids.tolist(), query.item_ids.tolist(), query.target) == ([5, 6], [8, 9], "candidates")
    assert columns.decode_score(b"").target is None


def answer(**changes: Any) -> columns.ScoreColumns:
    fields: dict[str, Any] = {
        "lineage": b"l" * 16,
        "revision": 9,
        "item_ids": np.array([1, 2**64 - 1, 3], np.uint64),
        "scores": np.array([0.5, -1, 0], np.float32),
        "offsets": np.array([0, 1, 3], np.uint32),
        "user_known": np.array([True, False]),
        "item_known": np.array([True, False, True]),
        "labels": ["a", "", "c"],
    }
    return columns.ScoreColumns(**(fields | changes))


def test_score_responses_are_the_contracts_bytes() -> None:
    given_ = answer()
    data = columns.encode_score_response(given_)
    expected = scoring_pb2.ScoreResponse(
        position={"lineage": b"l" * 16, "revision": 9},
        item_ids=[1, 2**64 - 1, 3],
        scores=[0.5, -1, 0],
        offsets=[0, 1, 3],
        user_known=[True, False],
        item_known=[True, False, True],
        labels=["a", "", "c"],
    )
    assert data == expected.SerializeToString()
    read = columns.decode_score_response(data)
    for name in ("item_ids", "scores", "offsets", "user_known", "item_known"):
        assert getattr(read, name).tolist() == getattr(given_, name).tolist()
        assert getattr(read, name).dtype == getattr(given_, name).dtype
    assert (read.lineage, read.revision, read.labels) == (b"l" * 16, 9, ["a", "", "c"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scores": np.zeros(2, np.float32)}, "scores has 2 rows, expected 3"),
        ({"labels": ["a"]}, "labels has 1 rows, expected 3"),
        ({"user_known": np.array([True])}, "offsets has 3 rows, expected 2"),
        ({"offsets": np.array([0, 2, 1], np.uint32)}, "offsets: expected ascending"),
        ({"offsets": np.array([1, 1, 3], np.uint32)}, "offsets: expected ascending"),
    ],
)
def test_answers_with_columns_that_do_not_match_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ColumnError, match=text):
        columns.decode_score_response(columns.encode_score_response(answer(**changes)))
