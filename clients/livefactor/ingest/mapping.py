"""From the events of messages to rows: decoding, filters, casts, and the reasons of refusals.

A column is converted as a whole where all its values are good. Otherwise each value is looked at,
so one bad event costs the others nothing but time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

from livefactor.errors import ColumnError
from livefactor.ingest.config import IDS, REQUIRED, FieldRule, SourceConfig
from livefactor.wire.times import as_times

TEXT_MAX = 512
"""Characters of an event that a reason repeats."""

PAYLOAD_MAX = 65_536
"""Characters of a payload that a dead letter keeps where it is no JSON object."""

_KEY_END = 1 << 64
_MISSING: Any = object()


class Refusal(NamedTuple):
    """An event that gives no row. number: of the event in its message. event: as far as decoded."""

    number: int
    reason: str
    event: Any


class Rows(NamedTuple):
    """n rows in the columns of `Producer.push`. times: microseconds since 1970 UTC, 0 for unknown.

    numbers: of each row's event in its message.
    """

    numbers: list[int]
    users: list[Any]
    items: list[Any]
    values: list[float]
    weights: list[float]
    types: list[int]
    times: list[int]

    @classmethod
    def empty(cls) -> Rows:
        """No rows."""
        return cls([], [], [], [], [], [], [])


def decode(payload: bytes | dict[str, Any], form: str) -> tuple[list[Any], list[Refusal]]:
    """The events of a message, and what is none.

    payload: an event, or bytes of JSON: an object, an array of objects, or an object a line; or of
    csv with its header. A refused event stands as None in the list, so that indices are kept.
    """
    if isinstance(payload, dict):
        return [payload], []
    if form == "csv":
        return _csv(payload)
    text = payload.strip()
    try:
        content = json.loads(text) if text[:1] in (b"[", b"{") and b"\n" not in text else None
    except ValueError:
        content = None
    if isinstance(content, dict):
        events: list[Any] = [content]
    elif isinstance(content, list):
        events = content
    else:
        events = _lines(text)
    bad = [Refusal(i, _not_an_event(e), _shown(e)) for i, e in enumerate(events) if type(e) is not dict]
    for refusal in bad:
        events[refusal.number] = None
    return events, bad


def _lines(text: bytes) -> list[Any]:
    lines = text.split(b"\n")
    try:
        whole: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")
        if len(whole) == len(lines):
            return whole
    except ValueError:
        pass
    events: list[Any] = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            events.append(line)
    return events


def _csv(payload: bytes) -> tuple[list[Any], list[Refusal]]:
    lines = payload.decode("utf-8", "replace").splitlines()
    header = next(csv.reader(lines[:1]))
    events: list[Any] = []
    refusals = []
    for index, fields in enumerate(csv.reader(lines[1:])):
        if len(fields) == len(header):
            # An empty field is a missing one, as in every other way in.
            events.append({name: text or None for name, text in zip(header, fields, strict=True)})
        else:
            reason = f"expected {len(header)} fields, got {len(fields)}"
            refusals.append(Refusal(index, reason, _shown(",".join(fields))))
            events.append(None)
    return events, refusals


def _not_an_event(found: Any) -> str:
    if isinstance(found, bytes):
        return "it is not JSON"
    return f"expected a JSON object, got {type(found).__name__}"


def _shown(event: Any) -> str:
    text = event.decode("utf-8", "replace") if isinstance(event, bytes) else str(event)
    return text[:PAYLOAD_MAX]


class Mapping:
    """Makes rows of the events of one source."""

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self._kept = [(_reader(c.path), frozenset(map(_hashable, c.values))) for c in source.keep]
        self._readers = {name: _reader(rule.path) for name, rule in source.fields.items()}
        self._columns = {name: _column_reader(rule.path) for name, rule in source.fields.items()}
        types = source.event_types
        self._types = None if types is None else (_reader(types.path), types.names)

    def kept(self, numbers: list[int], events: Sequence[Any]) -> list[int]:
        """The numbers of those of `events` that the filters keep."""
        for read, values in self._kept:
            numbers = [i for i in numbers if _hashable(read(events[i])) in values]
        return numbers

    def missing(self, event: dict[str, Any]) -> list[str]:
        """The names of fields that the mapping needs and the event has not."""
        return [
            ".".join(rule.path)
            for name, rule in self.source.fields.items()
            if rule.default is REQUIRED and self._readers[name](event) is _MISSING
        ]

    def rows(self, numbers: Sequence[int], events: Sequence[dict[str, Any]]) -> tuple[Rows, list[Refusal]]:
        """The rows of events, and the events that give none.

        numbers: of each event in its message.
        """
        reasons: dict[int, str] = {}
        n = len(events)
        columns: dict[str, list[Any]] = {}
        for name, rule in self.source.fields.items():
            columns[name] = _column(name, rule, self._columns[name](events), reasons)
        weights, types = columns.get("weight", [1.0] * n), columns.get("event_type", [0] * n)
        if self._types is not None:
            weights, types = self._typed(events, weights, types, reasons)
        every = (
            list(numbers),
            *(columns[side] for side in IDS),
            columns.get("value", [1.0] * n),
            weights,
            types,
            columns.get("time", [0] * n),
        )
        if not reasons:
            return Rows(*every), []
        good = [i for i in range(n) if i not in reasons]
        refusals = [Refusal(numbers[i], reasons[i], events[i]) for i in sorted(reasons)]
        return Rows(*([column[i] for i in good] for column in every)), refusals

    def _typed(
        self,
        events: Sequence[dict[str, Any]],
        weights: list[float],
        types: list[int],
        reasons: dict[int, str],
    ) -> tuple[list[float], list[int]]:
        assert self._types is not None
        read, names = self._types
        found = list(map(read, events))
        for i, name in enumerate(found):
            if not isinstance(name, str) or name not in names:
                told = "nothing" if name is _MISSING else repr(name)[:TEXT_MAX]
                reasons.setdefault(i, f"event_types: expected one of {', '.join(names)}, got {told}")
                found[i] = next(iter(names))
        # A weight of the event itself is multiplied by that of its type.
        return (
            [weight * names[name][1] for weight, name in zip(weights, found, strict=True)],
            [names[name][0] for name in found],
        )


def reader(path: tuple[str, ...]) -> Callable[[dict[str, Any]], Any]:
    """A function that reads what stands at `path` of an event, and None if nothing does."""
    read = _reader(path)

    def value(event: dict[str, Any]) -> Any:
        found = read(event)
        return None if found is _MISSING else found

    return value


def _reader(path: tuple[str, ...]) -> Callable[[dict[str, Any]], Any]:
    if len(path) == 1:
        key = path[0]
        return lambda event: event.get(key, _MISSING)

    def read(event: Any) -> Any:
        for key in path:
            if type(event) is not dict:
                return _MISSING
            event = event.get(key, _MISSING)
        return event

    return read


def _column_reader(path: tuple[str, ...]) -> Callable[[Sequence[dict[str, Any]]], list[Any]]:
    """A function that reads what stands at `path` of each event."""
    if len(path) == 1:
        # A call for each event takes longer than the reading.
        key = path[0]
        return lambda events: [event.get(key, _MISSING) for event in events]
    read = _reader(path)
    return lambda events: list(map(read, events))


def _hashable(value: Any) -> Any:
    # True is no 1, and what JSON nests can be no key of a set.
    return (type(value).__name__, value) if isinstance(value, str | int | float) else (type(value).__name__,)


def _column(name: str, rule: FieldRule, found: list[Any], reasons: dict[int, str]) -> list[Any]:
    """The converted column. The reason of a bad value goes into `reasons`."""
    if None in found or _MISSING in found:
        filler = None if rule.default is REQUIRED else rule.default
        for i, value in enumerate(found):
            if value is None or value is _MISSING:
                found[i] = filler
                if filler is None:
                    reasons.setdefault(i, f"{name}: field {'.'.join(rule.path)!r} is missing")
    try:
        return _convert(name, rule, found)
    except (ValueError, TypeError, OverflowError):
        pass
    whole = []
    for i, value in enumerate(found):
        try:
            whole += _convert(name, rule, [value])
        except (ValueError, TypeError, OverflowError) as error:
            reasons.setdefault(i, f"{name}: {error}")
            whole.append(0)
    return whole


def _strings(found: list[Any]) -> list[str]:
    kinds = set(map(type, found))
    if kinds - {str, int}:
        wrong = next(value for value in found if type(value) not in (str, int))
        raise ValueError(f"expected a string, got {wrong!r}"[:TEXT_MAX])
    if int in kinds:
        found = [str(value) for value in found]
    if "" in found:
        raise ValueError("expected a string, got an empty one")
    return found


def _integers(found: list[Any], end: int = _KEY_END) -> list[int]:
    numbers = found
    if set(map(type, found)) != {int}:
        numbers = [value if type(value) is int else _integer(value) for value in found]
    for number in (min(numbers, default=0), max(numbers, default=0)):
        if not 0 <= number < end:
            raise ValueError(f"expected 0..{end - 1}, got {number}")
    return numbers


def _integer(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    raise ValueError(f"expected an integer, got {value!r}"[:TEXT_MAX])


def _numbers(found: list[Any]) -> list[float]:
    numbers = [float(value) if type(value) in (int, float, str) else _no_number(value) for value in found]
    if not all(map(isfinite, numbers)):
        raise ValueError("expected a finite number")
    return numbers


def _no_number(value: Any) -> float:
    raise ValueError(f"expected a number, got {value!r}"[:TEXT_MAX])


def _times(found: list[Any], unit: str) -> list[int]:
    """Microseconds since 1970 UTC. unit: of integers, or "iso" for texts in ISO 8601."""
    if unit == "iso":
        values: list[Any] = [value if isinstance(value, str) else _no_time(value) for value in found]
        unit = "s"
    else:
        values = _integers(found)
    try:
        times: list[int] = as_times("time", values, len(values), unit, "cast = '{unit}'").tolist()
    except ColumnError as error:
        raise ValueError(str(error).split(": ", 1)[-1]) from None
    return times


def _no_time(value: Any) -> str:
    raise ValueError(f"expected a text in ISO 8601, got {value!r}; cast names a unit of numbers"[:TEXT_MAX])


def _convert(name: str, rule: FieldRule, found: list[Any]) -> list[Any]:
    if name == "time":
        return _times(found, rule.cast)
    if name == "event_type":
        return _integers(found, 1 << 32)
    if rule.cast == "string":
        return _strings(found)
    return _integers(found) if rule.cast == "integer" else _numbers(found)
