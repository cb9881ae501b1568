"""Answers the usual small Score message in one compiled call, from bytes to bytes.

In Python the parts of such a call (parsing, checks, arrays, encoding) cost several times the
arithmetic. The usual message asks for the scores of one user and a list of candidates, and has
nothing else, with its fields in the order of their numbers. Every other message is left to the
general code, which also words all errors. Both give the same bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from livefactor.v1 import scoring_pb2, updates_pb2
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.scoring.cpu_candidates import (
    CHANGED,
    SHORT_PAIRS_MAX,
    CandidateReader,
    read_candidates,
)
from livefactor_kernels.spec.model import FactorDtype, Limits, ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.head import Head
from livefactor_server.changes.tags import BYTES, FIXED64, VARINT, tag_of
from livefactor_server.model.state import ModelState


def _tag(message: Any, field: str, wire_type: int) -> np.uint8:
    return np.uint8(tag_of(message, field, wire_type))


_REQUEST, _RESPONSE, _POSITION = scoring_pb2.ScoreRequest, scoring_pb2.ScoreResponse, updates_pb2.Position
_MODEL, _USERS = _tag(_REQUEST, "model", BYTES), _tag(_REQUEST, "user_ids", BYTES)
_TARGET, _ITEMS = _tag(_REQUEST, "candidates", BYTES), _tag(scoring_pb2.Candidates, "item_ids", BYTES)
_PLACE, _LINEAGE = _tag(_RESPONSE, "position", BYTES), _tag(_POSITION, "lineage", BYTES)
_REVISION, _ITEM_IDS = _tag(_POSITION, "revision", VARINT), _tag(_RESPONSE, "item_ids", BYTES)
_SCORES, _OFFSETS = _tag(_RESPONSE, "scores", BYTES), _tag(_RESPONSE, "offsets", BYTES)
_USER_KNOWN, _ITEM_KNOWN = _tag(_RESPONSE, "user_known", BYTES), _tag(_RESPONSE, "item_known", BYTES)
_SPEC = _tag(_RESPONSE, "spec_id", FIXED64)

_0, _1, _2, _SEVEN, _KEY = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(7), np.uint64(8)
_LOW, _MORE, _SHIFT_MAX = np.uint8(0x7F), np.uint8(0x80), np.uint64(28)
_USER_FIELD = np.uint64(10)
"""Bytes of the field of one user: tag, length and id."""
_POSITION_BYTES = np.uint64(32)
"""Maximum size of a position: two tags, a length, 16 bytes, and a number of at most 10 bytes."""
KEY_BYTES = 8
ROW_BYTES, FIXED_BYTES = 13, 128
"""Bytes of an answer for each candidate, and at most for everything else."""


def model_of(raw: bytes) -> tuple[str, int] | None:
    """The model of a usual message, "" without one, and the place of the next field. None for
    another message.
    """
    if len(raw) < 2:
        return None
    if raw[0] != _MODEL:
        return ("", 0) if raw[0] == _USERS else None
    # A longer name than 127 bytes has a length of two bytes.
    end = 2 + raw[1]
    if raw[1] > 0x7F or end > len(raw):
        return None
    try:
        return raw[2:end].decode(), end
    except UnicodeDecodeError:
        return None


class ShortReader:
    """Answers messages for one state of a model. Any thread may call it."""

    def __init__(self, reader: CandidateReader, lineage: bytes, spec_id: int) -> None:
        """`lineage` has 16 bytes."""
        self._reader = reader
        self._lineage = np.frombuffer(lineage, np.uint8)
        self._spec_id = np.array([spec_id], np.uint64).view(np.uint8)

    @staticmethod
    def of(state: ModelState) -> ShortReader | None:
        """A reader of a model without histories on the CPU, with float32 factors. Others have
        none.
        """
        backend = state.backend
        if not isinstance(backend, CpuModel) or not is_answered(state.spec):
            return None
        return ShortReader(backend.candidates, state.lineage.bytes, int(state.spec_id, 16))

    def answer(self, raw: bytes, at: int, rows_max: int) -> bytes | None:
        """The answer to the message `raw`, whose fields after the model begin at `at`.

        None if the message is not a usual one, if it asks for more than `rows_max` scores, or if
        rows changed meanwhile.
        """
        rows = len(raw) // KEY_BYTES
        if rows > min(SHORT_PAIRS_MAX, rows_max):
            return None
        out, maps = np.empty(ROW_BYTES * rows + FIXED_BYTES, np.uint8), self._reader.maps()
        size = _answer_kernel(
            *self._reader.tables, maps[0].directory, maps[1].directory, np.frombuffer(raw, np.uint8), at,
            self._lineage, self._spec_id, out,
        )  # fmt: skip
        return out[:size].tobytes() if size and self._reader.are_present(maps) else None


@compiled(inline="always")
def _content(raw: Any, at: Any, tag: Any) -> Any:
    """(place, size) of the content of the field at `at` if it has this tag and ends with the
    message. Otherwise the size is 0.
    """
    size, place, shift = _0, at + _1, _0
    if at >= raw.size or raw[at] != tag:
        return _0, _0
    more = True
    while more and place < raw.size and shift < _SHIFT_MAX:
        size |= np.uint64(raw[place] & _LOW) << shift
        more = raw[place] > _LOW
        shift += _SEVEN
        place += _1
    return (_0, _0) if more or place + size != raw.size else (place, size)


@compiled(inline="always")
def _copy(source: Any, first: Any, size: Any, target: Any, at: Any) -> None:
    for i in range(size):
        target[at + i] = source[first + i]


@compiled(inline="always")
def _put_number(out: Any, at: Any, number: Any) -> Any:
    """Writes a varint, and returns the place after it."""
    while number > np.uint64(_LOW):
        out[at] = np.uint8(number & np.uint64(_LOW)) | _MORE
        number >>= _SEVEN
        at += _1
    out[at] = np.uint8(number)
    return at + _1


@compiled(inline="always")
def _put_field(out: Any, at: Any, tag: Any, content: Any) -> Any:
    """Writes a field with these bytes, and returns the place after it."""
    size = np.uint64(content.size)
    out[at] = tag
    at = _put_number(out, at + _1, size)
    _copy(content, _0, size, out, at)
    return at + size


@compiled(nogil=False)
def _answer_kernel(
    words: Any, sums: Any, users: Any, user_bias: Any, items: Any, item_bias: Any, zeros: Any,
    user_directory: Any, item_directory: Any, raw: Any, start: Any, lineage: Any, spec_id: Any, out: Any,
) -> Any:  # fmt: skip
    """Writes the answer to `out`, and returns its size, or 0."""
    at = np.uint64(start)
    if at + _USER_FIELD > raw.size or raw[at] != _USERS or np.uint64(raw[at + _1]) != _KEY:
        return _0
    first, size = _content(raw, at + _USER_FIELD, _TARGET)
    if size == _0:
        return _0
    first, size = _content(raw, first, _ITEMS)
    if size == _0 or size % _KEY != _0:
        return _0
    count = size // _KEY
    user_keys, item_keys = np.empty(_1, np.uint64), np.empty(count, np.uint64)
    _copy(raw, at + _2, _KEY, user_keys.view(np.uint8), _0)
    _copy(raw, first, size, item_keys.view(np.uint8), _0)
    scores, user_known, item_known = (
        np.empty(count, np.float32),
        np.empty(_1, np.uint8),
        np.empty(count, np.uint8),
    )
    revision = read_candidates(words, sums, users, user_bias, items, item_bias, zeros, user_directory,
                               item_directory, user_keys, item_keys, np.empty(_0, np.uint32), scores,
                               user_known, item_known)  # fmt: skip
    if revision == CHANGED:
        return _0
    # The position has the lineage, and the revision unless it is 0.
    position, ends = np.empty(_POSITION_BYTES, np.uint8), np.zeros(_2, np.uint32)
    end = _put_field(position, _0, _LINEAGE, lineage)
    if revision != _0:
        position[end] = _REVISION
        end = _put_number(position, end + _1, revision)
    ends[_1] = np.uint32(count)
    end = _put_field(out, _0, _PLACE, position[:end])
    end = _put_field(out, end, _ITEM_IDS, item_keys.view(np.uint8))
    end = _put_field(out, end, _SCORES, scores.view(np.uint8))
    end = _put_field(out, end, _OFFSETS, ends.view(np.uint8))
    end = _put_field(out, end, _USER_KNOWN, user_known)
    end = _put_field(out, end, _ITEM_KNOWN, item_known)
    out[end] = _SPEC
    _copy(spec_id, _0, _KEY, out, end + _1)
    return end + _1 + _KEY


def is_answered(spec: ModelSpec) -> bool:
    """Whether the usual messages to models of this spec on the CPU are answered here."""
    return not spec.history.users and spec.factor_dtype == FactorDtype.FLOAT32


def compile_kernels(spec: ModelSpec) -> None:
    """Compiles the kernel or loads it from the cache, so that no call to a model waits for it.

    A model whose messages are not answered here needs no kernel.
    """
    if is_answered(spec):
        _compile()


@cache
def _compile() -> None:
    spec = ModelSpec(limits=Limits(users_max=1, items_max=1))
    tables = Table(spec, USERS), Table(spec, ITEMS)
    ShortReader(CandidateReader(Head(), np.zeros(2, np.int64), *tables), bytes(16), 0).answer(b"", 0, 1)
