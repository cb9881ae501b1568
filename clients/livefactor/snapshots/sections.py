"""The sections of a snapshot: a table of the sections of rows, and one of the sections beside them.

The spec decides which of them a state has, and which shapes they have. The kernels declare the same
sections for their own use. A test compares the two declarations for every rule, optimizer and part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from livefactor.v1 import models_pb2

SIDES = ("users", "items")
FACTOR_DTYPES = {
    models_pb2.FACTOR_DTYPE_UNSPECIFIED: "F32",
    models_pb2.FACTOR_DTYPE_FLOAT32: "F32",
    models_pb2.FACTOR_DTYPE_FLOAT16: "F16",
    models_pb2.FACTOR_DTYPE_BFLOAT16: "BF16",
}
"""The safetensors dtype of factors for each `factor_dtype` of a spec."""

MAX_K, MAX_HISTORY, MAX_REPLAY_SIZE, MAX_DIMENSION = 1024, 8192, 1 << 20, 1024
MAX_FEATURES_PER_ID = 64
SPEC_BYTES_MAX = 1 << 16
RATES_SIZE = 5
MIX_SIZE, RECENT_MIX_SIZE, SIMILAR_MIX_SIZE, BASKETS_MIX_SIZE = 35, 37, 41, 44
WALKS_MIX_SIZE = 48
SIGHTINGS_DEPTH, SIGHTINGS_WIDTH = 4, 1 << 18
_FACTORS = ""
"""Stands for the dtype of the spec's factors in the table below."""
_OPTIMIZERS = models_pb2.OptimizerKind.values()
_ADAGRAD = (models_pb2.OPTIMIZER_KIND_ADAGRAD,)
_ROWWISE = (models_pb2.OPTIMIZER_KIND_ROWWISE_ADAGRAD,)
_ADAM = (models_pb2.OPTIMIZER_KIND_LAZY_ADAM,)
_FTRL = (models_pb2.OPTIMIZER_KIND_FTRL,)

Spec = models_pb2.ModelSpec
Shape = tuple[int, ...]


class Content(Enum):
    """What a section holds, beyond its dtype and shape."""

    ANY = ""
    DISTINCT = "distinct numbers"
    AMOUNTS = "numbers of at least 0"
    SQUARES = "sums or means of squares"
    POWERS = "powers of numbers below 1"
    USER_ROWS = "row numbers of users"
    ITEM_ROWS = "row numbers of items"


class Section(NamedTuple):
    """A section of rows. dtype: its safetensors dtype.

    shape: the shape of one row. It is the largest one if the section is `ragged`: then it holds the
    events of all rows end to end, in the order of rows and places, and a row has min(seen_count,
    shape[0]) of them.
    """

    name: str
    dtype: str
    shape: Shape
    content: Content
    ragged: bool


class SmallSection(NamedTuple):
    """A one-dimensional section beside the rows.

    dtype: its safetensors dtype. length: its number of elements; None for any number.
    """

    name: str
    dtype: str
    length: int | None
    content: Content


class _Row(NamedTuple):
    """A section of rows in the table.

    shape: the shape of a row; None if the spec has no such section.
    """

    name: str
    dtype: str
    shape: Callable[[Spec, str], Shape | None]
    content: Content = Content.ANY


class _Beside(NamedTuple):
    """A section beside the rows in the table.

    length: None for any number. exists: whether the spec has it.
    """

    name: str
    dtype: str
    length: Callable[[Spec], int | None] = lambda spec: None
    exists: Callable[[Spec], bool] = lambda spec: True
    content: Content = Content.ANY


def _one(spec: Spec, side: str) -> Shape:
    return ()


def _factors(spec: Spec, side: str) -> Shape:
    return (spec.k,)


def _powers(spec: Spec, side: str) -> Shape:
    return (2,)


def _optimizer(
    kinds: tuple[int, ...], shape: Callable[[Spec, str], Shape]
) -> Callable[[Spec, str], Shape | None]:
    return lambda spec, side: shape(spec, side) if spec.optimizer.kind in kinds else None


def _probe(shape: Callable[[Spec, str], Shape]) -> Callable[[Spec, str], Shape | None]:
    return lambda spec, side: shape(spec, side) if spec.adaptive_rate.window else None


def _remembered(spec: Spec, side: str) -> Shape | None:
    return () if spec.history.users else None


def _of_users(spec: Spec, side: str) -> Shape | None:
    return () if spec.history.users and side == "users" else None


def _ring(spec: Spec, side: str) -> Shape | None:
    length = spec.history.users if side == "users" else spec.history.items
    return (length,) if spec.history.users and length else None


def _ring_of_users(spec: Spec, side: str) -> Shape | None:
    return _ring(spec, side) if side == "users" else None


def _followers(spec: Spec, side: str) -> Shape | None:
    neighbors = spec.counts.neighbors
    return (neighbors,) if spec.history.users and neighbors and side == "items" else None


def _popularity(spec: Spec, side: str) -> Shape | None:
    if not (spec.mix.learning_rate > 0 and spec.history.users and side == "items"):
        return None
    return (2,) if spec.mix.recent_half_life > 0 else ()


def _dimension(spec: Spec, side: str) -> int:
    return spec.embeddings.dimension if side == "items" else spec.embeddings.user_dimension


def _embedding(spec: Spec, side: str) -> Shape | None:
    return (_dimension(spec, side),) if _dimension(spec, side) else None


def _start(shape: Callable[[Spec, str], Shape]) -> Callable[[Spec, str], Shape | None]:
    return lambda spec, side: shape(spec, side) if _has_starts(spec) or _is_pulled(spec, side) else None


def _is_pulled(spec: Spec, side: str) -> bool:
    """Whether the rows of a side are solved towards their bags or vectors."""
    is_told = spec.features.prior_events > 0 or spec.embeddings.user_dimension > 0
    return spec.rule == models_pb2.RULE_SOLVE and side == "users" and is_told


def _has_starts(spec: Spec) -> bool:
    return spec.rule == models_pb2.RULE_SOLVE and spec.solve.start_events > 0


def _described(spec: Spec, side: str) -> Shape | None:
    return () if _dimension(spec, side) else None


def _bag(spec: Spec, side: str) -> Shape | None:
    return (spec.features.per_id,) if spec.features.size else None


def _bagged(spec: Spec, side: str) -> Shape | None:
    return () if spec.features.size else None


_SQUARES, _AMOUNTS = Content.SQUARES, Content.AMOUNTS
_ROWS = (
    _Row("keys", "U64", _one, Content.DISTINCT),
    _Row("factors", _FACTORS, _factors),
    _Row("bias", "F32", _one),
    # The state of the optimizer for a row.
    _Row("factor_g", "F32", _optimizer(_ADAGRAD, _factors), _SQUARES),
    _Row("row_g", "F32", _optimizer(_ROWWISE, _one), _SQUARES),
    _Row("bias_g", "F32", _optimizer(_ADAGRAD + _ROWWISE, _one), _SQUARES),
    _Row("factor_m", "F32", _optimizer(_ADAM, _factors)),
    _Row("factor_v", "F32", _optimizer(_ADAM, _factors), _SQUARES),
    _Row("bias_m", "F32", _optimizer(_ADAM, _one)),
    _Row("bias_v", "F32", _optimizer(_ADAM, _one), _SQUARES),
    _Row("powers", "F32", _optimizer(_ADAM, _powers), Content.POWERS),
    _Row("factor_z", "F32", _optimizer(_FTRL, _factors)),
    _Row("factor_n", "F32", _optimizer(_FTRL, _factors), _SQUARES),
    _Row("bias_z", "F32", _optimizer(_FTRL, _one)),
    _Row("bias_n", "F32", _optimizer(_FTRL, _one), _SQUARES),
    # The probe of an adaptive rate.
    _Row("factor_probe", "F32", _probe(_factors)),
    _Row("bias_probe", "F32", _probe(_one)),
    _Row("row_probe", "F32", _probe(_one)),
    # A ring of the row's last events; event number n is at n modulo the ring's length. Then the
    # items that follow an item most often.
    _Row("seen_rows", "U32", _ring),
    _Row("seen_values", "F32", _ring),
    _Row("seen_weights", "F32", _ring, _AMOUNTS),
    _Row("seen_visits", "U32", _ring_of_users),
    _Row("visits", "U32", _of_users),
    _Row("last_time", "I64", _of_users),
    _Row("seen_count", "U32", _remembered),
    _Row("neighbor_rows", "U32", _followers, Content.ITEM_ROWS),
    _Row("neighbor_counts", "F32", _followers, _AMOUNTS),
    # The decayed number of an item's events, if there is a mix of experts; with recent popularity
    # also the number that decays faster.
    _Row("popularity", "F32", _popularity, _AMOUNTS),
    # The vector, and whether the row has one (1) and is in the sums of the map, too (2).
    _Row("embedding", "F16", _embedding),
    _Row("described", "U8", _described),
    # The numbers of the row's features from 1 on, 0 behind the last one, their weights, and whether
    # the row has a bag (1) and is among those to which the rows of features are fitted, too (2).
    _Row("bag", "U32", _bag),
    _Row("bag_weights", "F32", _bag),
    _Row("bagged", "U8", _bagged),
    # The factors of another model with which a row begins, and the events for which they count; or
    # what the bag of a user says, and the negative number of events for which it counts.
    _Row("factors_start", "F32", _start(_factors)),
    _Row("start_events", "F32", _start(_one)),
)
"""The sections of rows, in the order of the root hash."""


def _replayed(spec: Spec) -> int:
    return spec.replay.size


def _is_replayed(spec: Spec) -> bool:
    return spec.replay.size > 0


def _any_length(spec: Spec) -> int | None:
    return None


def _map_sections(prefix: str, side: str) -> Iterator[_Beside]:
    """Those of the map of embeddings of a side and its sums (rule SOLVE).

    Progress has changes, next row, rows in the sums.
    """

    def has_vectors(spec: Spec) -> bool:
        return _dimension(spec, side) > 0

    def mapped(spec: Spec) -> int:
        return (_dimension(spec, side) + 1) * spec.k

    yield _Beside(f"{prefix}.gram", "F64", lambda spec: (_dimension(spec, side) + 1) ** 2, has_vectors)
    yield _Beside(f"{prefix}.map", "F64", mapped, has_vectors)
    yield _Beside(f"{prefix}.progress", "I64", lambda spec: 3, has_vectors)
    yield _Beside(f"{prefix}.rows", "F64", mapped, has_vectors)


def _has_features(spec: Spec) -> bool:
    return spec.features.size > 0


def _has_context(spec: Spec) -> bool:
    return spec.context.size > 0


def _is_sighted(spec: Spec) -> bool:
    return spec.admission.sightings > 1


def _is_evicted(spec: Spec) -> bool:
    return spec.eviction.idle_events > 0


def _is_private(spec: Spec) -> bool:
    return spec.privacy.epsilon > 0


def _follows_data(spec: Spec) -> bool:
    return spec.rule == models_pb2.RULE_SOLVE and spec.solve.unobserved_density > 0


def _mixed(spec: Spec) -> int:
    if spec.mix.walk_users:
        return WALKS_MIX_SIZE
    if spec.mix.baskets:
        return BASKETS_MIX_SIZE
    if spec.mix.neighbors:
        return SIMILAR_MIX_SIZE
    return RECENT_MIX_SIZE if spec.mix.recent_half_life > 0 else MIX_SIZE


_BESIDE = (
    # The context of events: the counts of its features, sums over items, the keys of the features
    # in the order of their places, their texts, as those of labels, and the sums of each feature.
    _Beside("context.counts", "F64", _any_length, _has_context, Content.AMOUNTS),
    _Beside("context.gram", "F64", lambda spec: (spec.k + 1) ** 2, _has_context),
    _Beside("context.keys", "U64", _any_length, _has_context, Content.DISTINCT),
    _Beside("context.labels.keys", "U64", _any_length, _has_context),
    _Beside("context.labels.offsets", "U64", _any_length, _has_context),
    _Beside("context.labels.text", "U8", _any_length, _has_context),
    _Beside("context.sums", "F64", _any_length, _has_context),
    # The number of accepted interactions.
    _Beside("events", "U64", lambda spec: 1),
    # The features of items and of users: their keys, in the order of their numbers from 1 on; their
    # texts, as those of labels; and their rows, with that of all bags first. Progress has changes,
    # next row, fitted rows.
    *(
        _Beside(f"features.{side}.{name}", dtype, length, _has_features, content)
        for side in ("item", "user")
        for name, dtype, length, content in (
            ("keys", "U64", _any_length, Content.DISTINCT),
            ("labels.keys", "U64", _any_length, Content.ANY),
            ("labels.offsets", "U64", _any_length, Content.ANY),
            ("labels.text", "U8", _any_length, Content.ANY),
            ("progress", "I64", lambda spec: 3, Content.ANY),
            ("rows", "F32", _any_length, Content.ANY),
        )
    ),
    # The Gram matrices of users and items (rule SOLVE).
    _Beside(
        "gram", "F64", lambda spec: 2 * (spec.k + 1) ** 2, lambda spec: spec.rule == models_pb2.RULE_SOLVE
    ),
    # The labels in ascending order of their ids: UTF-8 text, and one more offset into it than there
    # are ids.
    _Beside("labels.item.keys", "U64"),
    _Beside("labels.item.offsets", "U64"),
    _Beside("labels.item.text", "U8"),
    _Beside("labels.user.keys", "U64"),
    _Beside("labels.user.offsets", "U64"),
    _Beside("labels.user.text", "U8"),
    # The global mean: a fixed-point sum in units of 2**-20, and a count.
    _Beside("mean", "I64", lambda spec: 2),
    # The mix: the weights of 8 experts for 4 groups of users, and 3 sums about popularity; with
    # recent popularity also its 2 factors, with similar users 4 more weights, with baskets or walks
    # 3 numbers about runs, and with walks 4 more weights.
    _Beside("mix", "F64", _mixed, lambda spec: spec.mix.learning_rate > 0),
    *_map_sections("prior", "items"),
    # The ledger of differential privacy: the window, its releases, all releases.
    _Beside("privacy", "U64", lambda spec: 3, _is_private),
    # The server's table of producers for exactly-once delivery. The client does not interpret it.
    _Beside("producers", "U8"),
    # The adaptive rate: step, moves, events in the window, sum and sum of squares.
    _Beside("rates", "F64", lambda spec: RATES_SIZE, lambda spec: spec.adaptive_rate.window > 0),
    # The reservoir. Its first min(events, replay.size) places are filled.
    _Beside("replay.item_rows", "U32", _replayed, _is_replayed, Content.ITEM_ROWS),
    _Beside("replay.user_rows", "U32", _replayed, _is_replayed, Content.USER_ROWS),
    _Beside("replay.values", "F32", _replayed, _is_replayed),
    _Beside("replay.weights", "F32", _replayed, _is_replayed, _AMOUNTS),
    # How often ids without rows were seen: counters of users, then of items; and the events of each
    # side since its counters were halved.
    _Beside("sightings", "U8", lambda spec: 2 * SIGHTINGS_DEPTH * SIGHTINGS_WIDTH, _is_sighted),
    _Beside("sightings.since", "U64", lambda spec: 2, _is_sighted),
    # The spec's bytes in the log.
    _Beside("spec", "U8"),
    # The number of users that begin with factors of another model.
    _Beside("started", "F64", lambda spec: 1, _has_starts),
    # The number of learned events at the last one of each row, with eviction.
    _Beside("touched.items", "U64", _any_length, _is_evicted),
    _Beside("touched.users", "U64", _any_length, _is_evicted),
    # The ids of unavailable items in ascending order.
    _Beside("unavailable", "U64"),
    # The weight of pairs without an event, if it follows the data.
    _Beside("unobserved", "F64", lambda spec: 1, _follows_data),
    *_map_sections("user_prior", "users"),
)
"""The sections beside the rows, in the order of their names.

The root hash takes them in this order.
"""


def row_sections(spec: Spec, side: str) -> list[Section]:
    """The row sections of a side ("users" or "items") under a spec, in the order of the root
    hash.
    """
    sections = []
    for name, dtype, shape_of, content in _ROWS:
        shape = shape_of(spec, side)
        if shape is not None:
            if name == "seen_rows":
                content = Content.ITEM_ROWS if side == "users" else Content.USER_ROWS
            ragged = spec.history.paged and shape_of in (_ring, _ring_of_users)
            dtype = dtype or FACTOR_DTYPES[spec.factor_dtype]
            sections.append(Section(name, dtype, shape, content, ragged))
    return sections


def remembered_offsets(spec: Spec, side: str, counts: np.ndarray) -> np.ndarray:
    """Where the events of each row begin in a ragged section, int64[rows + 1].

    counts: the section seen_count of the side, uint32[rows].
    """
    length = spec.history.users if side == "users" else spec.history.items
    ends: np.ndarray = np.cumsum(np.minimum(counts, np.uint32(length)), dtype=np.int64)
    return np.append(np.int64(0), ends)


def optimizer_state(spec: Spec) -> list[str]:
    """The names of the row sections that hold the state of the spec's optimizer."""
    plain = Spec(k=spec.k, optimizer=models_pb2.Optimizer(kind=spec.optimizer.kind))
    return [section.name for section in row_sections(plain, "users")[3:]]


def small_sections(spec: Spec) -> list[SmallSection]:
    """The sections beside the rows under a spec, in the order of the root hash."""
    return [
        SmallSection(each.name, each.dtype, each.length(spec), each.content)
        for each in _BESIDE
        if each.exists(spec)
    ]


def parse_spec(spec: bytes) -> Spec:
    """Parse a `livefactor.v1.ModelSpec` message.

    Raises ValueError if it is too long or does not parse.
    """
    if len(spec) > SPEC_BYTES_MAX:
        raise ValueError(f"spec: expected at most {SPEC_BYTES_MAX} bytes, got {len(spec)}")
    try:
        return Spec.FromString(spec)
    except DecodeError:
        raise ValueError("spec: the bytes are not a ModelSpec message") from None


def bounded_spec(spec: bytes) -> Spec:
    """Parse a spec and check the fields that decide the shapes of sections. Raises ValueError."""
    message = parse_spec(spec)
    if not 1 <= message.k <= MAX_K:
        raise ValueError(f"spec: k: expected 1..{MAX_K}, got {message.k}")
    if message.factor_dtype not in FACTOR_DTYPES:
        raise ValueError(f"spec: factor_dtype: expected a known value, got {message.factor_dtype}")
    if message.optimizer.kind not in _OPTIMIZERS:
        raise ValueError(f"spec: optimizer.kind: expected a known value, got {message.optimizer.kind}")
    lengths = message.history.users, message.history.items, message.counts.neighbors
    if max(lengths) > MAX_HISTORY:
        raise ValueError(f"spec: histories: expected at most {MAX_HISTORY}, got {max(lengths)}")
    dimension = max(message.embeddings.dimension, message.embeddings.user_dimension)
    if dimension > MAX_DIMENSION:
        raise ValueError(f"spec: embeddings.dimension: expected at most {MAX_DIMENSION}, got {dimension}")
    per_id = message.features.per_id
    if message.features.size and not 1 <= per_id <= MAX_FEATURES_PER_ID:
        raise ValueError(f"spec: features.per_id: expected 1..{MAX_FEATURES_PER_ID}, got {per_id}")
    if message.replay.size > MAX_REPLAY_SIZE:
        raise ValueError(f"spec: replay.size: expected at most {MAX_REPLAY_SIZE}, got {message.replay.size}")
    return message
