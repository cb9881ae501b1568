"""The compiled reading of usual update messages gives what the general code gives."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.columns import ColumnError
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import short_updates
from livefactor_server.rpc import decode
from livefactor_server.statuses import Refused

PRESETS = ("ratings_sgd", "clicks_sgd", "purchases", "auto", "clicks")
STAMPS = (wire.Stamp("", 0, 0), wire.Stamp("me", 3, 9), wire.Stamp("ä", 0, 2**62), wire.Stamp("", 1, 2**63))


def message(columns: dict[str, np.ndarray], stamp: wire.Stamp = STAMPS[0], model: str = "live") -> bytes:
    return wire.encode_apply(model, stamp, wire.INTERACTIONS, wire.encode_interactions(**columns))


def events(n: int, *more: str) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(n)
    columns = {
        "user_ids": draw.integers(0, 2**63, n, np.uint64),
        "item_ids": draw.integers(0, 9, n, np.uint64),
        "values": draw.normal(2.0, 1.0, n).astype(np.float32),
        "weights": draw.uniform(0.1, 2.0, n).astype(np.float32),
        "event_types": draw.integers(0, 3, n).astype(np.uint32),
        "times_us": draw.integers(0, 2**50, n),
    }
    return {name: column for name, column in columns.items() if name.endswith("ids") or name in more}


def outcome(raw: bytes, spec: ModelSpec, general: bool) -> object:
    """All that the engine gets of a message, or the error."""
    read = (lambda _: None) if general else short_updates.read
    try:
        with patch.object(decode.short_updates, "read", read):
            update = decode.update_request(raw)
            change, rejects = decode.change_from_wire(update, spec, 1000)
    except (ColumnError, Refused) as error:
        return type(error), str(error)
    columns = change.columns  # type: ignore[attr-defined]
    arrays = [None if each is None else (each.dtype, each.tobytes()) for each in columns.arrays]
    assert all(each is None or each.flags.aligned for each in columns.arrays)
    return update[:5], update.body, bytes(change.body), arrays, rejects


def messages() -> Iterator[bytes]:
    all_names = ("values", "weights", "event_types", "times_us")
    for names in ((), ("values",), ("weights",), ("times_us",), ("values", "event_types"), all_names):
        for n, stamp in zip((1, 2, 3, 17), STAMPS, strict=True):
            yield message(events(n, *names), stamp)
    for value in (0.0, -0.0, 1.0, -1.0, 1e30, np.inf, -np.inf, np.nan):
        for name in ("values", "weights"):
            columns = events(3, "values", "weights")
            columns[name] = np.array([1.0, value, 1.0], np.float32)
            yield message(columns)
    yield message(events(2), model="")
    yield message(events(2), model="ü" * 100)


@pytest.mark.parametrize("name", PRESETS)
def test_usual_messages_give_the_change_of_the_general_code(name: str) -> None:
    spec = preset(name)
    for raw in messages():
        assert outcome(raw, spec, False) == outcome(raw, spec, True)


def test_usual_messages_are_read_in_one_call() -> None:
    assert short_updates.read(message(events(512, "values"), STAMPS[1])) is not None


def test_every_damaged_message_gives_what_the_general_code_gives() -> None:
    """One byte is changed, or the end is cut off."""
    spec = preset("ratings_sgd")
    raw = message(events(2, "values", "weights"), STAMPS[1], "m")
    damaged = [raw[:end] for end in range(len(raw))]
    for at in range(len(raw)):
        damaged += [raw[:at] + bytes([byte]) + raw[at + 1 :] for byte in (0, 1, raw[at] ^ 0x80, 255)]
    for each in damaged:
        assert outcome(each, spec, False) == outcome(each, spec, True), each


def test_unusual_messages_are_left_to_the_general_code() -> None:
    body = wire.encode_interactions(**events(2, "values"))
    stamp = updates_pb2.ProducerStamp(id="me").SerializeToString()
    field = {1: b"\x0a", 2: b"\x12", 3: b"\x1a"}
    producer = field[2] + bytes([len(stamp)]) + stamp
    parts = wire.encode_apply("", wire.Stamp("", 0, 0), wire.INTERACTIONS, body)
    assert short_updates.read(parts) is not None
    spec = preset("ratings_sgd")
    for raw in (
        # A field after the change, a field twice, unknown fields, no events, an unpacked column.
        parts + producer,
        producer + producer + parts,
        parts + b"\xa0\x06\x01",
        message(events(0)),
        wire.encode_apply("", STAMPS[0], wire.INTERACTIONS, b"\x09" + bytes(8) + b"\x11" + bytes(8)),
        b"",
    ):
        assert short_updates.read(raw) is None
        assert outcome(raw, spec, False) == outcome(raw, spec, True)
