"""From messages to rows: every refused event has its number and its reason, and costs no other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from livefactor.ingest.config import Condition, EventTypes, FieldRule, SourceConfig
from livefactor.ingest.mapping import Mapping, decode

FIELDS = {
    "user": FieldRule(("who", "id"), "string"),
    "item": FieldRule(("what",), "string"),
    "value": FieldRule(("stars",), "number", 1.0),
    "time": FieldRule(("at",), "ms", 0),
}


def mapping(**changes: Any) -> Mapping:
    return Mapping(SourceConfig("s", "file", "json", {}, {**FIELDS, **changes.pop("fields", {})}, **changes))


def event(**changes: Any) -> dict[str, Any]:
    return {"who": {"id": "ann"}, "what": "tea", "stars": 4, "at": 1_700_000_000_000, **changes}


def test_a_good_event_becomes_a_row() -> None:
    rows, refusals = mapping().rows([3], [event()])
    assert refusals == []
    assert rows == ([3], ["ann"], ["tea"], [4.0], [1.0], [0], [1_700_000_000_000_000])


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"what": None}, "item: field 'what' is missing"),
        ({"who": "ann"}, "user: field 'who.id' is missing"),
        ({"what": ""}, "item: expected a string, got an empty one"),
        ({"what": 1.5}, "item: expected a string, got 1.5"),
        ({"what": True}, "item: expected a string, got True"),
        ({"what": ["tea"]}, "item: expected a string, got ['tea']"),
        ({"stars": "many"}, "value: could not convert string to float: 'many'"),
        ({"stars": float("nan")}, "value: expected a finite number"),
        ({"stars": True}, "value: expected a number, got True"),
        ({"stars": {}}, "value: expected a number, got {}"),
        ({"at": "2024-01-01"}, "time: expected an integer, got '2024-01-01'"),
        ({"at": 1_700_000_000}, "time: "),
        ({"at": 10**40}, "time: expected 0.."),
    ],
)
def test_a_bad_event_is_refused_and_the_others_are_not(bad: dict[str, Any], told: str) -> None:
    rows, refusals = mapping().rows([5, 6, 7], [event(), event(**bad), event(what="milk")])
    assert rows.numbers == [5, 7]
    assert rows.items == ["tea", "milk"]
    ((number, reason, refused),) = refusals
    assert number == 6
    assert told in reason
    assert refused == event(**bad)


def test_defaults_and_casts() -> None:
    fields = {
        "item": FieldRule(("what",), "integer"),
        "time": FieldRule(("at",), "iso", "2024-01-01T00:00:00Z"),
        "weight": FieldRule(("share",), "number", 0.5),
        "event_type": FieldRule(("kind",), "integer", 7),
    }
    events = [
        {"who": {"id": 7}, "what": "18446744073709551615"},
        {"who": {"id": "x"}, "what": 0, "kind": "3"},
    ]
    rows, refusals = mapping(fields=fields).rows([0, 1], events)
    assert refusals == []
    assert rows.users == ["7", "x"]
    assert rows.items == [2**64 - 1, 0]
    assert (rows.values, rows.weights, rows.types) == ([1.0, 1.0], [0.5, 0.5], [7, 3])
    assert rows.times == [1_704_067_200_000_000] * 2


def test_filters_and_event_types() -> None:
    types = EventTypes(("kind",), {"view": (1, 1.0), "buy": (2, 5.0)})
    rule = mapping(event_types=types, keep=(Condition(("kind",), ("view", "buy", 1)),))
    events = [event(kind=kind) for kind in ("view", "buy", "sell", 1, True, None, [])]
    assert rule.kept(list(range(7)), events) == [0, 1, 3]
    assert rule.kept([1, 2], events) == [1]
    rows, refusals = rule.rows([0, 1, 2], [event(kind="buy"), event(kind="view"), event(kind=1)])
    assert (rows.types, rows.weights) == ([2, 1], [5.0, 1.0])
    assert [(each.number, each.reason) for each in refusals] == [
        (2, "event_types: expected one of view, buy, got 1")
    ]


@pytest.mark.parametrize(
    ("payload", "events", "bad"),
    [
        (b'{"a": 1}', [{"a": 1}], []),
        (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}], []),
        (b'{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}], []),
        (b'{"a": 1}\nnonsense\n7\n{"a": 2}', [{"a": 1}, None, None, {"a": 2}], [1, 2]),
        (b'{\n "a":\n 1}', [None, None, None], [0, 1, 2]),
        (b"", [None], [0]),
        (b"\xff\xfe", [None], [0]),
        (b"[1]", [None], [0]),
        (b'1}, {"a": 1\n{"a": 2', [None, None], [0, 1]),
    ],
)
def test_decoding_keeps_the_number_of_each_event(payload: bytes, events: list[Any], bad: list[int]) -> None:
    found, refusals = decode(payload, "json")
    assert found == events
    assert [each.number for each in refusals] == bad
    json.dumps(refusals)


def test_csv_has_its_header_and_empty_fields_are_missing() -> None:
    found, refusals = decode(b'u,i\nann,"tea, green"\nbob\n,milk\n', "csv")
    assert found == [{"u": "ann", "i": "tea, green"}, None, {"u": None, "i": "milk"}]
    assert [(each.number, each.reason) for each in refusals] == [(1, "expected 2 fields, got 1")]
