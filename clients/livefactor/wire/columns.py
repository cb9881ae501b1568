"""Convert arrays to the bytes of the contract's update messages, and back.

The functions are pure. The client and the server share them.

A column is written as its tag, its length and the bytes of the array. One join puts all columns
together. A message is read through its twin (twins.py), in which each column is `bytes`. The
columns of Interactions are found by their tags, so no parser copies them. If a peer split or
repeated a column, or did not pack it, the public message class reads the message. scoring.py does
the same for score calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from livefactor.errors import ColumnError
from livefactor.v1 import updates_pb2
from livefactor.wire.arrays import (
    FLOATS,
    KEYS,
    NUMBERS,
    TIMES,
    as_floats,
    as_numbers,
    as_whole,
    require_rows,
)
from livefactor.wire.content import (
    BagColumns,
    EmbeddingColumns,
    FeatureColumns,
    decode_bags,
    decode_dropped_features,
    decode_embeddings,
    decode_features,
    encode_bags,
    encode_dropped_features,
    encode_embeddings,
    encode_features,
)
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.scoring import (
    ScoreColumns,
    ScoreQuery,
    decode_score,
    decode_score_response,
    encode_score,
    encode_score_response,
)
from livefactor.wire.twins import (
    canonical,
    column_view,
    field_prefix,
    malformed,
    parse_body,
    twin_column,
    twin_of,
)

__all__ = [
    "AVAILABILITY",
    "DROPPED_FEATURES",
    "EMBEDDINGS",
    "FACTORS",
    "FACTOR_DELTAS",
    "FEATURES",
    "INTERACTIONS",
    "LABELS",
    "MAP_SUMS",
    "AvailabilityColumns",
    "BagColumns",
    "ColumnError",
    "Columns",
    "EmbeddingColumns",
    "FeatureColumns",
    "LabelColumns",
    "Part",
    "ScoreColumns",
    "ScoreQuery",
    "Stamp",
    "UpdateRequest",
    "apply_prefix",
    "decode_apply",
    "decode_availability",
    "decode_dropped_features",
    "decode_embeddings",
    "decode_features",
    "decode_interactions",
    "decode_labels",
    "decode_score",
    "decode_score_response",
    "encode_apply",
    "encode_availability",
    "encode_dropped_features",
    "encode_embeddings",
    "encode_features",
    "encode_interactions",
    "encode_labels",
    "encode_score",
    "encode_score_response",
    "interaction_parts",
    "join",
    "parse_body",
    "parts_size",
    "select",
    "select_labels",
]

INTERACTIONS = "interactions"
LABELS = "labels"
AVAILABILITY = "availability"
EMBEDDINGS = "embeddings"
FACTORS = "factors"
FEATURES = "features"
DROPPED_FEATURES = "dropped_features"
FACTOR_DELTAS = "factor_deltas"
MAP_SUMS = "map_sums"
_COLUMN_DTYPES: dict[str, np.dtype[Any]] = {
    "user_ids": KEYS,
    "item_ids": KEYS,
    "values": FLOATS,
    "weights": FLOATS,
    "event_types": NUMBERS,
    "times_us": TIMES,
}


def _numbers(public: type[Message], *names: str) -> dict[str, int]:
    return {name: public.DESCRIPTOR.fields_by_name[name].number for name in names}


def _tags(numbers: Iterable[int]) -> dict[int, int]:
    # The fields are length-delimited. Each tag is one byte, because the numbers are below 16.
    return {number << 3 | 2: number for number in numbers}


_COLUMN_NUMBERS = _numbers(updates_pb2.Interactions, *_COLUMN_DTYPES)
_COLUMNS = {name: (_COLUMN_NUMBERS[name], dtype) for name, dtype in _COLUMN_DTYPES.items()}
_OPTIONAL = tuple(_COLUMNS)[2:]
_NO_IDS: npt.NDArray[np.uint64] = np.empty(0, KEYS)
_OF_CONTENT = EMBEDDINGS, FEATURES, DROPPED_FEATURES
_CHANGES = INTERACTIONS, LABELS, AVAILABILITY, *_OF_CONTENT, FACTORS, FACTOR_DELTAS, MAP_SUMS
_CHANGE_NUMBERS = _numbers(updates_pb2.ApplyUpdatesRequest, *_CHANGES)
_CHANGE_NAMES = {number: name for name, number in _CHANGE_NUMBERS.items()}
_MODEL, _PRODUCER = _numbers(updates_pb2.ApplyUpdatesRequest, "model", "producer").values()
_CONTEXT = updates_pb2.Interactions.CONTEXT_FIELD_NUMBER
_SCORE_IDS = updates_pb2.Interactions.SCORE_IDS_FIELD_NUMBER
_COLUMN_TAGS = _tags((*_COLUMN_NUMBERS.values(), _CONTEXT, _SCORE_IDS))
_REQUEST_TAGS = _tags((_MODEL, _PRODUCER, *_CHANGE_NAMES))
_LabelsTwin = twin_of(updates_pb2.Labels)
_AvailabilityTwin = twin_of(updates_pb2.Availability)

Part = bytes | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch of n interactions.

    user_ids, item_ids: uint64[n]. values, weights: float32[n]. event_types: uint32[n]. times_us:
    int64[n]. None stands for an empty column, which means its default. context: a bag of features
    for each row, or None. body: the bytes of the Interactions message, as they were received or in
    canonical form. Decoded arrays are read-only views of it. score_ids: uint64[n], the calls that
    showed the items, or None.
    """

    user_ids: npt.NDArray[np.uint64]
    item_ids: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32] | None
    weights: npt.NDArray[np.float32] | None
    event_types: npt.NDArray[np.uint32] | None
    times_us: npt.NDArray[np.int64] | None
    body: bytes
    context: BagColumns | None = None
    score_ids: npt.NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def arrays(self) -> tuple[npt.NDArray[Any] | None, ...]:
        """The six columns in the order of the message."""
        return self.user_ids, self.item_ids, self.values, self.weights, self.event_types, self.times_us


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """n labels of one side.

    side: a `livefactor.v1.Side` number. ids: uint64[n]. labels: n str. body: the bytes of the
    message.
    """

    side: int
    ids: npt.NDArray[np.uint64]
    labels: Sequence[str]
    body: bytes

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class AvailabilityColumns:
    """Items (uint64[n]) that become available or unavailable. body: the bytes of the message."""

    item_ids: npt.NDArray[np.uint64]
    available: bool
    body: bytes

    def __len__(self) -> int:
        return len(self.item_ids)


class Stamp(NamedTuple):
    """The producer and the sequence number of a batch (`livefactor.v1.ProducerStamp`)."""

    producer_id: str
    epoch: int
    sequence: int


class UpdateRequest(NamedTuple):
    """One ApplyUpdates or StreamUpdates request.

    change: the name of its field, such as INTERACTIONS, or None. body: the bytes of the change.
    """

    model: str
    stamp: Stamp
    change: str | None
    body: bytes


def join(parts: Iterable[Part]) -> bytes:
    """Concatenate the bytes of the parts. Encoding makes no other copy of them."""
    return b"".join(parts)  # type: ignore[arg-type]


def parts_size(parts: Iterable[Part]) -> int:
    """The number of bytes that `join` returns for the parts."""
    return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)


def interaction_parts(
    user_ids: Ids,
    item_ids: Ids,
    values: Any = None,
    weights: Any = None,
    event_types: Any = None,
    times_us: Any = None,
    context: BagColumns | None = None,
    score_ids: Any = None,
) -> list[Part]:
    """The Interactions message of n rows as parts for `join`.

    Arrays of the contract's dtypes are not copied. user_ids, item_ids: anything that
    `ids.as_keys` takes. values, weights: numbers. event_types: 0..2**32-1. times_us: int64
    microseconds. context: a bag for each row. score_ids: uint64[n]. None leaves a column empty.
    Raises ColumnError for unequal lengths or wrong types.
    """
    users = as_keys("user_ids", user_ids)
    n = len(users)
    items = as_keys("item_ids", item_ids)
    require_rows("item_ids", items, n)
    columns = (
        users,
        items,
        None if values is None else as_floats("values", values, n),
        None if weights is None else as_floats("weights", weights, n),
        None if event_types is None else as_numbers("event_types", event_types, n),
        None if times_us is None else as_whole("times_us", times_us, n, TIMES),
    )
    parts: list[Part] = []
    for number, column in zip(_COLUMN_NUMBERS.values(), columns, strict=True):
        if column is not None and n:
            parts += (field_prefix(number, column.nbytes), column)
    if context is not None and n:
        require_rows("context", context.counts, n)
        bags = encode_bags(context)
        parts += (field_prefix(_CONTEXT, len(bags)), bags)
    if score_ids is not None and n:
        shown = as_keys("score_ids", score_ids)
        require_rows("score_ids", shown, n)
        parts += (field_prefix(_SCORE_IDS, shown.nbytes), shown)
    return parts


def encode_interactions(
    user_ids: Ids,
    item_ids: Ids,
    values: Any = None,
    weights: Any = None,
    event_types: Any = None,
    times_us: Any = None,
    context: BagColumns | None = None,
    score_ids: Any = None,
) -> bytes:
    """The bytes of an Interactions message of n rows.

    `interaction_parts` explains arguments and errors.
    """
    columns = user_ids, item_ids, values, weights, event_types, times_us, context, score_ids
    return join(interaction_parts(*columns))


def decode_interactions(body: bytes) -> Columns:
    """Read an Interactions message.

    `Columns.body` is `body`, or its canonical form if a column was split or not packed. Raises
    ColumnError if the bytes do not parse or the lengths of the columns differ.
    """
    spans = _spans(body, _COLUMN_TAGS)
    if spans is None:
        body = canonical(updates_pb2.Interactions, body)
        spans = _spans(body, _COLUMN_TAGS) or {}
    columns = {
        name: column_view(name, dtype, body, *spans[number])
        for name, (number, dtype) in _COLUMNS.items()
        if number in spans
    }
    users = columns.pop("user_ids", _NO_IDS)
    items = columns.pop("item_ids", _NO_IDS)
    require_rows("item_ids", items, len(users))
    others: dict[str, Any] = {}
    for name, column in columns.items():
        if len(column):
            require_rows(name, column, len(users))
            others[name] = column
    values, weights, types, times = map(others.get, _OPTIONAL)
    context = None
    if _CONTEXT in spans:
        context = decode_bags(body[slice(*spans[_CONTEXT])])
        require_rows("context", context.counts, len(users))
    score_ids = None
    if _SCORE_IDS in spans and (shown := column_view("score_ids", KEYS, body, *spans[_SCORE_IDS])).size:
        require_rows("score_ids", shown, len(users))
        score_ids = shown
    return Columns(users, items, values, weights, types, times, body, context, score_ids)


def select(columns: Columns, mask: npt.NDArray[np.bool_]) -> bytes:
    """The Interactions message with the rows where `mask` (bool[n]) is true, in order."""
    values, weights, types, times = (
        None if column is None else column[mask] for column in columns.arrays[2:]
    )
    context = None if columns.context is None else columns.context.select(mask)
    users, items = columns.user_ids[mask], columns.item_ids[mask]
    score_ids = None if columns.score_ids is None else columns.score_ids[mask]
    return encode_interactions(users, items, values, weights, types, times, context, score_ids)


def encode_labels(side: int, ids: Ids, labels: Sequence[str]) -> bytes:
    """The bytes of a Labels message.

    side: a `livefactor.v1.Side` number. ids: n ids. labels: n str. Raises ColumnError for unequal
    lengths or wrong types.
    """
    keys = as_keys("ids", ids)
    if len(labels) != len(keys):
        raise ColumnError(f"labels has {len(labels)} rows, expected {len(keys)} (ids)")
    try:
        return _LabelsTwin(side=side, ids=keys.tobytes(), labels=labels).SerializeToString()  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ColumnError("labels: expected str that can be encoded as UTF-8") from error


def decode_labels(body: bytes) -> LabelColumns:
    """Read a Labels message. Raises ColumnError if the bytes do not parse or the lengths differ."""
    twin, body = parse_body(_LabelsTwin, updates_pb2.Labels, body)
    ids, labels = twin_column(twin, "ids", KEYS), list(twin.labels)
    if len(labels) != len(ids):
        raise ColumnError(f"labels has {len(labels)} rows, expected {len(ids)} (ids)")
    return LabelColumns(twin.side, ids, labels, body)


def select_labels(columns: LabelColumns, mask: npt.NDArray[np.bool_]) -> bytes:
    """The Labels message with the rows where `mask` (bool[n]) is true, in order."""
    labels = [label for label, keep in zip(columns.labels, mask.tolist(), strict=True) if keep]
    return encode_labels(columns.side, columns.ids[mask], labels)


def encode_availability(item_ids: Ids, available: bool) -> bytes:
    """The bytes of an Availability message for n items.

    Raises ColumnError for ids of a wrong type.
    """
    keys = as_keys("item_ids", item_ids)
    return _AvailabilityTwin(item_ids=keys.tobytes(), available=available).SerializeToString()  # type: ignore[no-any-return]


def decode_availability(body: bytes) -> AvailabilityColumns:
    """Read an Availability message. Raises ColumnError if the bytes do not parse."""
    twin, body = parse_body(_AvailabilityTwin, updates_pb2.Availability, body)
    ids = twin_column(twin, "item_ids", KEYS)
    return AvailabilityColumns(ids, twin.available, body)


def apply_prefix(model: str, stamp: Stamp | None, change: str, body_size: int) -> bytes:
    """The bytes of an ApplyUpdatesRequest or StreamUpdatesRequest up to the body of its change.

    stamp: None for a batch without a producer. body_size: size of that body in bytes.
    """
    name = model.encode()
    head = field_prefix(_MODEL, len(name)) + name if name else b""
    tail = field_prefix(_CHANGE_NUMBERS[change], body_size)
    if stamp is None:
        return head + tail
    producer = updates_pb2.ProducerStamp(id=stamp.producer_id, epoch=stamp.epoch, sequence=stamp.sequence)
    written = producer.SerializeToString()
    return b"".join((head, field_prefix(_PRODUCER, len(written)), written, tail))


def encode_apply(model: str, stamp: Stamp, change: str, body: bytes) -> bytes:
    """The bytes of an ApplyUpdatesRequest or StreamUpdatesRequest.

    change: the name of its field, such as INTERACTIONS.
    """
    return apply_prefix(model, stamp, change, len(body)) + body


def decode_apply(data: bytes) -> UpdateRequest:
    """Read an ApplyUpdatesRequest or StreamUpdatesRequest.

    Raises ColumnError if the bytes do not parse.
    """
    spans = _spans(data, _REQUEST_TAGS)
    if spans is None or len(spans.keys() & _CHANGE_NAMES.keys()) > 1:
        data = canonical(updates_pb2.ApplyUpdatesRequest, data)
        spans = _spans(data, _REQUEST_TAGS) or {}
    number = next((number for number in spans if number in _CHANGE_NAMES), None)
    try:
        model = data[slice(*spans.get(_MODEL, (0, 0)))].decode()
        producer = updates_pb2.ProducerStamp.FromString(data[slice(*spans.get(_PRODUCER, (0, 0)))])
    except (UnicodeDecodeError, DecodeError) as error:
        raise malformed(updates_pb2.ApplyUpdatesRequest) from error
    stamp = Stamp(producer.id, producer.epoch, producer.sequence)
    if number is None:
        return UpdateRequest(model, stamp, None, b"")
    return UpdateRequest(model, stamp, _CHANGE_NAMES[number], data[slice(*spans[number])])


def _spans(body: bytes, tags: dict[int, int]) -> dict[int, tuple[int, int]] | None:
    """The place of each length-delimited field's content: (start, stop) by field number.

    tags: field number by first byte. None if the message has any other field or a field twice. The
    public class must read such a message.
    """
    spans: dict[int, tuple[int, int]] = {}
    at, end = 0, len(body)
    while at < end:
        number = tags.get(body[at])
        if number is None or number in spans:
            return None
        size = shift = 0
        more = True
        while more:
            at += 1
            if at >= end or shift > 28:
                return None
            size |= (body[at] & 0x7F) << shift
            more = body[at] > 0x7F
            shift += 7
        start, at = at + 1, at + 1 + size
        if at > end:
            return None
        spans[number] = (start, at)
    return spans
