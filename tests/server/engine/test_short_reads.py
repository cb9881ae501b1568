"""The usual small Score message is answered with the bytes of the general code, and no other is."""

from __future__ import annotations

import uuid
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor.errors import ColumnError
from livefactor.v1 import scoring_pb2
from livefactor.wire.scoring import encode_score, encode_score_response
from livefactor_kernels.spec.model import FactorDtype, History, Limits, Loss, ModelSpec
from livefactor_kernels.update import Update
from livefactor_server.engine.readers import Reader
from livefactor_server.engine.short_reads import ShortReader, model_of
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState
from livefactor_server.rpc.decode import score_query
from livefactor_server.statuses import Refused

ROWS_MAX = 1500
USERS, ITEMS = np.arange(5, dtype=np.uint64) << 60, np.arange(900, dtype=np.uint64) * np.uint64(2**53 + 1)


def reader(revision: int = 300) -> Reader:
    spec = ModelSpec(k=64, loss=Loss.LOGISTIC, limits=Limits(users_max=10, items_max=1000))
    state = ModelState.empty(spec, b"", uuid.uuid4(), "cpu", b"")
    backend = state.backend
    rows = backend.users.allocate(np.resize(USERS, ITEMS.size)), backend.items.allocate(ITEMS)
    if revision:
        backend.apply(Update(revision, *rows, None, None, 5, ITEMS.size))
    return Reader(SimpleNamespace(state=state, torn=False, gate=Gate()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def usual() -> Reader:
    return reader()


def short(reader: Reader, raw: bytes) -> bytes | None:
    found = model_of(raw)
    return None if found is None else reader.answer_at_once(raw, found[1], ROWS_MAX)


def general(reader: Reader, raw: bytes) -> bytes | None:
    """The answer of the general code. None if it refuses the message."""
    try:
        return encode_score_response(reader.score(score_query(raw, 10, ROWS_MAX)))
    except (Refused, ColumnError):
        return None


@pytest.mark.parametrize("model", ["", "shop", "ä" * 60])
@pytest.mark.parametrize("count", [1, 15, 16, 300, ROWS_MAX - 100])
def test_the_bytes_are_those_of_the_general_code(usual: Reader, model: str, count: int) -> None:
    draw = np.random.default_rng(count)
    known = draw.choice(ITEMS, count)
    for user in (int(USERS[3]), 12345):
        for ids in (known, np.where(draw.random(count) < 0.5, known, known + np.uint64(1))):
            raw = encode_score(model, [user], candidates=ids)
            assert model_of(raw) is not None
            assert (answer := short(usual, raw)) is not None and answer == general(usual, raw)


@pytest.mark.parametrize("revision", [0, 1, 127, 128, 2**40])
def test_positions_of_any_size_are_written(revision: int) -> None:
    own = reader(revision)
    raw = encode_score("m", [int(USERS[0])], candidates=ITEMS[:3])
    assert (answer := short(own, raw)) is not None and answer == general(own, raw)
    assert scoring_pb2.ScoreResponse.FromString(answer).position.revision == revision


def test_every_other_message_is_left_to_the_general_code(usual: Reader) -> None:
    user, items = [int(USERS[0])], ITEMS[:3]
    raw = encode_score("m", user, candidates=items)
    others = [
        encode_score("m", [*user, *user], candidates=items),
        encode_score("m", user, candidates=items, offsets=[0, 3]),
        encode_score("m", user, candidates=[]),
        encode_score("m", user, candidates=items, with_labels=True),
        encode_score("m", user, candidates=items, events=items),
        encode_score("m", user, candidates=items, min_position=(bytes(16), 1)),
        encode_score("m", user, k=3),
        encode_score("m" * 128, user, candidates=items),
        encode_score("m", [], candidates=items),
        encode_score("m", user, candidates=np.zeros(ROWS_MAX + 1, np.uint64)),
        raw + b"\x38\x01",
        raw + raw,
        raw[:-1],
        b"\x0a\x02\xff\xff" + raw[3:],
        b"",
        b"\x0a",
    ]
    assert short(usual, raw) is not None
    assert [other for other in others if short(usual, other) is not None] == []


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_message_has_the_same_answer_or_none(usual: Reader, data: st.DataObject) -> None:
    raw = bytearray(encode_score("m", [int(USERS[0])], candidates=ITEMS[: data.draw(st.integers(1, 20))]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    answer = short(usual, bytes(raw))
    assert answer is None or answer == general(usual, bytes(raw))


def test_it_answers_nothing_while_rows_change_or_for_another_kind_of_model() -> None:
    own = reader()
    raw = encode_score("m", [int(USERS[0])], candidates=ITEMS[:3])
    assert short(own, raw) is not None
    own.state.backend.head.open()  # type: ignore[attr-defined]
    assert short(own, raw) is None
    for change in ({"factor_dtype": FactorDtype.FLOAT16}, {"history": History(16)}):
        state = SimpleNamespace(backend=own.state.backend, spec=replace(own.state.spec, **change))
        assert ShortReader.of(state) is None  # type: ignore[arg-type]
