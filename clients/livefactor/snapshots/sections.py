"""What a snapshot holds of a state: one table of the sections of rows, one of the sections beside the rows.

Which of them a state has, and their shapes, are functions of the spec. The kernels declare the same sections for their own
use; a test compares the two for every rule, optimizer and part.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from google.protobuf.message import DecodeError

from livefactor.v1 import models_pb2

SIDES = ("users", "items")
FACTOR_DTYPES = {
    models_pb2.FACTOR_DTYPE_UNSPECIFIED: "F32",
    models_pb2.FACTOR_DTYPE_FLOAT32: "F32",
    models_pb2.FACTOR_DTYPE_FLOAT16: "F16",
    models_pb2.FACTOR_DTYPE_BFLOAT16: "BF16",
}
"""safetensors dtype of factors by the spec's `factor_dtype`."""

MAX_K, MAX_HISTORY, MAX_REPLAY_SIZE = 1024, 8192, 1 << 20
SPEC_BYTES_MAX = 1 << 16
RATES_SIZE = 5
_FACTORS = ""
"""Stands for the dtype of the spec's factors."""
_OPTIMIZERS = models_pb2.OptimizerKind.values()
_ADAGRAD = (models_pb2.OPTIMIZER_KIND_ADAGRAD,)
_ROWWISE = (models_pb2.OPTIMIZER_KIND_ROWWISE_ADAGRAD,)
_ADAM = (models_pb2.OPTIMIZER_KIND_LAZY_ADAM,)
_FTRL = (models_pb2.OPTIMIZER_KIND_FTRL,)

Spec = models_pb2.ModelSpec
Shape = tuple[int, ...]


class Content(Enum):
    """What an honest server writes into a section, where dtype and shape do not say it."""

    ANY = ""
    DISTINCT = "no number twice"
    AMOUNTS = "no negative number"
    SQUARES = "sums or means of squares"
    POWERS = "powers of numbers below 1"
    USER_ROWS = "numbers of user rows"
    ITEM_ROWS = "numbers of item rows"


class Section(NamedTuple):
    """A section of rows. dtype: of safetensors. shape: of one row."""

    name: str
    dtype: str
    shape: Shape
    content: Content


class SmallSection(NamedTuple):
    """A section beside the rows, one-dimensional. dtype: of safetensors. length: in elements, None for any."""

    name: str
    dtype: str
    length: int | None
    content: Content


class _Row(NamedTuple):
    """A section of rows. shape: of a row on a side, None where the spec has no such section."""

    name: str
    dtype: str
    shape: Callable[[Spec, str], Shape | None]
    content: Content = Content.ANY


class _Beside(NamedTuple):
    """A section beside the rows, one-dimensional. length: None for any; exists: whether the spec has it."""

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


_SQUARES, _AMOUNTS = Content.SQUARES, Content.AMOUNTS
_ROWS = (
    _Row("keys", "U64", _one, Content.DISTINCT),
    _Row("factors", _FACTORS, _factors),
    _Row("bias", "F32", _one),
    # What the optimizer keeps of a row.
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
    # A ring of the row's last events, an event at its number modulo the ring's length; then items that follow an item.
    _Row("seen_rows", "U32", _ring),
    _Row("seen_values", "F32", _ring),
    _Row("seen_weights", "F32", _ring, _AMOUNTS),
    _Row("seen_visits", "U32", _ring_of_users),
    _Row("visits", "U32", _of_users),
    _Row("last_time", "I64", _of_users),
    _Row("seen_count", "U32", _remembered),
    _Row("neighbor_rows", "U32", _followers, Content.ITEM_ROWS),
    _Row("neighbor_counts", "F32", _followers, _AMOUNTS),
)
"""In the order that the root hash takes them."""


def _replayed(spec: Spec) -> int:
    return spec.replay.size


def _is_replayed(spec: Spec) -> bool:
    return spec.replay.size > 0


_BESIDE = (
    # Number of accepted interactions.
    _Beside("events", "U64", lambda spec: 1),
    # Gram matrices of users and items (rule SOLVE).
    _Beside(
        "gram", "F64", lambda spec: 2 * (spec.k + 1) ** 2, lambda spec: spec.rule == models_pb2.RULE_SOLVE
    ),
    # Labels by ascending id, UTF-8; offsets into the text, one more than ids.
    _Beside("labels.item.keys", "U64"),
    _Beside("labels.item.offsets", "U64"),
    _Beside("labels.item.text", "U8"),
    _Beside("labels.user.keys", "U64"),
    _Beside("labels.user.offsets", "U64"),
    _Beside("labels.user.text", "U8"),
    # The global mean: a sum in fixed point of 2**-20, and a count.
    _Beside("mean", "I64", lambda spec: 2),
    # The server's exactly-once table, opaque here.
    _Beside("producers", "U8"),
    # An adapted rate: step, moves, events in the window, sum and sum of squares.
    _Beside("rates", "F64", lambda spec: RATES_SIZE, lambda spec: spec.adaptive_rate.window > 0),
    # The reservoir: the first min(events, replay.size) places are filled.
    _Beside("replay.item_rows", "U32", _replayed, _is_replayed, Content.ITEM_ROWS),
    _Beside("replay.user_rows", "U32", _replayed, _is_replayed, Content.USER_ROWS),
    _Beside("replay.values", "F32", _replayed, _is_replayed),
    _Beside("replay.weights", "F32", _replayed, _is_replayed, _AMOUNTS),
    # The logged bytes.
    _Beside("spec", "U8"),
    # Ids of items that may not be recommended, ascending.
    _Beside("unavailable", "U64"),
)
"""By name, which is the order that the root hash takes them in."""


def row_sections(spec: Spec, side: str) -> list[Section]:
    """Sections of the rows of "users" or "items" under a spec, in the order of the root hash."""
    sections = []
    for name, dtype, shape_of, content in _ROWS:
        shape = shape_of(spec, side)
        if shape is not None:
            if name == "seen_rows":
                content = Content.ITEM_ROWS if side == "users" else Content.USER_ROWS
            sections.append(Section(name, dtype or FACTOR_DTYPES[spec.factor_dtype], shape, content))
    return sections


def optimizer_state(spec: Spec) -> list[str]:
    """Names of those row sections that hold the state of the spec's optimizer."""
    plain = Spec(k=spec.k, optimizer=models_pb2.Optimizer(kind=spec.optimizer.kind))
    return [section.name for section in row_sections(plain, "users")[3:]]


def small_sections(spec: Spec) -> list[SmallSection]:
    """Sections beside the rows under a spec, in the order of the root hash."""
    return [
        SmallSection(each.name, each.dtype, each.length(spec), each.content)
        for each in _BESIDE
        if each.exists(spec)
    ]


def parse_spec(spec: bytes) -> Spec:
    """The `livefactor.v1.ModelSpec` message of logged bytes. Raises ValueError."""
    if len(spec) > SPEC_BYTES_MAX:
        raise ValueError(f"spec: expected at most {SPEC_BYTES_MAX} bytes, got {len(spec)}")
    try:
        return Spec.FromString(spec)
    except DecodeError:
        raise ValueError("spec: the bytes are not a ModelSpec message") from None


def bounded_spec(spec: bytes) -> Spec:
    """As `parse_spec`; raises ValueError, too, if the shapes of sections that follow from it are not those of any model."""
    message = parse_spec(spec)
    if not 1 <= message.k <= MAX_K:
        raise ValueError(f"spec: k: expected 1..{MAX_K}, got {message.k}")
    if message.factor_dtype not in FACTOR_DTYPES:
        raise ValueError(f"spec: factor_dtype: expected a known one, got {message.factor_dtype}")
    if message.optimizer.kind not in _OPTIMIZERS:
        raise ValueError(f"spec: optimizer.kind: expected a known one, got {message.optimizer.kind}")
    lengths = message.history.users, message.history.items, message.counts.neighbors
    if max(lengths) > MAX_HISTORY:
        raise ValueError(f"spec: histories: expected at most {MAX_HISTORY}, got {max(lengths)}")
    if message.replay.size > MAX_REPLAY_SIZE:
        raise ValueError(f"spec: replay.size: expected at most {MAX_REPLAY_SIZE}, got {message.replay.size}")
    return message
