"""The file that says what to ingest: TOML, checked as a whole before anything is read."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livefactor.channel import DEFAULT_TARGET

REQUIRED: Any = object()
"""The default of a field that an event must have."""

IDS = ("user", "item")
FIELDS = (*IDS, "value", "weight", "event_type", "time")
"""What a row has, in the order of its columns. A field that no mapping names has the contract's
default.
"""

ID_CASTS = ("string", "integer")
TIME_CASTS = ("iso", "s", "ms", "us", "ns")
CASTS = {
    "user": ID_CASTS,
    "item": ID_CASTS,
    "value": ("number",),
    "weight": ("number",),
    "event_type": ("integer",),
    "time": TIME_CASTS,
}
"""For each field the casts that it may have; the first is the default."""

KINDS: dict[str, dict[str, type]] = {
    "file": {"path": str},
    "http": {"port": int, "host": str, "token_env": str},
    "kafka": {"brokers": str, "topic": str, "options": dict},
    "nats": {"url": str, "stream": str, "subject": str},
    "redis": {"url": str, "stream": str, "payload": str},
}
"""The settings of each kind of source."""

_OPTIONAL = {"host", "token_env", "options", "payload", "subject"}
_FORMATS = ("json", "csv")
_SOURCE = ("name", "kind", "format", "fields", "keep", "event_types", "join")
_TOP = ("target", "model", "producer", "delay_s", "batch_events", "dead_letters_mb_max", "sources")
BATCH_EVENTS_MAX = 65_536


class ConfigError(ValueError):
    """The file of an ingester is wrong. The text names the place and what is expected."""


@dataclass(frozen=True, slots=True)
class FieldRule:
    """How one field of a row is read from an event.

    path: the keys that lead to it, outermost first. cast: one of `CASTS`. default: what stands for
    a missing or null one; REQUIRED for none.
    """

    path: tuple[str, ...]
    cast: str
    default: Any = REQUIRED


@dataclass(frozen=True, slots=True)
class Condition:
    """An event is kept if what stands at `path` is one of `values`."""

    path: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class EventTypes:
    """The type and the weight of a row, by the name that stands at `path`."""

    path: tuple[str, ...]
    names: dict[str, tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Join:
    """Fields that another source has under the same id.

    on: the path of the id in an event of this source. source: the other source's name, which has no
    fields of its own. id: the path of the id there. An event waits at most `wait_s` seconds.
    """

    on: tuple[str, ...]
    source: str
    id: tuple[str, ...]
    wait_s: float


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """One source. options: the settings of its kind. fields: by name of the row's field.

    Without fields, its events are only joined to those of other sources.
    """

    name: str
    kind: str
    format: str
    options: dict[str, Any]
    fields: dict[str, FieldRule]
    keep: tuple[Condition, ...] = ()
    event_types: EventTypes | None = None
    join: Join | None = None


@dataclass(frozen=True, slots=True)
class IngestConfig:
    """All settings of an ingester."""

    model: str
    producer: str
    sources: tuple[SourceConfig, ...]
    target: str = DEFAULT_TARGET
    delay_s: float = 0.0
    batch_events: int = 16_384
    dead_letters_mb_max: int = 1024
    folder: Path = field(default_factory=Path)


def read_config(path: Path) -> IngestConfig:
    """Read the file. Raises ConfigError, or OSError if it cannot be read."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    _known("the file", content, _TOP)
    sources = content.pop("sources", None)
    if not isinstance(sources, list) or not sources:
        raise ConfigError("expected at least one [[sources]]")
    parsed = tuple(_source(each, index) for index, each in enumerate(sources))
    for name in ("model", "producer"):
        if not isinstance(content.get(name), str) or not content[name]:
            raise ConfigError(f"{name}: expected a name")
    # As all commands do without `--target`.
    content.setdefault("target", os.environ.get("LIVEFACTOR_TARGET") or DEFAULT_TARGET)
    if not isinstance(content["target"], str):
        raise ConfigError(f"target: expected an address, got {content['target']!r}")
    _bounded(content, "delay_s", 0, 3600, (int, float))
    _bounded(content, "batch_events", 1, BATCH_EVENTS_MAX, int)
    _bounded(content, "dead_letters_mb_max", 1, 1 << 20, int)
    _agree(parsed)
    return IngestConfig(sources=parsed, folder=path.resolve().parent, **content)


def _source(table: Any, index: int) -> SourceConfig:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str) or not table["name"]:
        raise ConfigError(f"sources[{index}]: expected a table with a name")
    name, kind = table["name"], table.get("kind")
    where = f"source {name!r}"
    if not all(character.isalnum() or character in "-_." for character in name):
        raise ConfigError(f"{where}: name: expected letters, digits, '-', '_' and '.'")
    if kind not in KINDS:
        raise ConfigError(f"{where}: kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    settings = KINDS[kind]
    _known(where, table, (*_SOURCE, *settings))
    for setting, kind_of in settings.items():
        if setting not in table and setting in _OPTIONAL:
            continue
        if not isinstance(table.get(setting), kind_of):
            raise ConfigError(
                f"{where}: {setting}: expected a {kind_of.__name__}, got {table.get(setting)!r}"
            )
    form = table.get("format", "json")
    if form not in _FORMATS or (form == "csv" and kind != "file"):
        raise ConfigError(f"{where}: format: expected json, or csv of a file, got {form!r}")
    return SourceConfig(
        name,
        kind,
        form,
        {setting: table[setting] for setting in settings if setting in table},
        _fields(where, table["fields"]) if "fields" in table else {},
        tuple(_condition(f"{where}: keep[{i}]", each) for i, each in enumerate(table.get("keep", ()))),
        _event_types(f"{where}: event_types", table["event_types"]) if "event_types" in table else None,
        _join(f"{where}: join", table["join"]) if "join" in table else None,
    )


def _fields(where: str, table: Any) -> dict[str, FieldRule]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a table [sources.fields] with user and item")
    _known(f"{where}: fields", table, FIELDS)
    for name in IDS:
        if name not in table:
            raise ConfigError(f"{where}: fields: {name} is missing")
    rules = {}
    for name, rule in table.items():
        place = f"{where}: fields.{name}"
        rule = {"from": rule} if isinstance(rule, str) else rule
        if not isinstance(rule, dict):
            raise ConfigError(f"{place}: expected a name, or a table with from, cast and default")
        _known(place, rule, ("from", "cast", "default"))
        cast = rule.get("cast", CASTS[name][0])
        if cast not in CASTS[name]:
            raise ConfigError(f"{place}: cast: expected one of {', '.join(CASTS[name])}, got {cast!r}")
        rules[name] = FieldRule(_path(place, rule), cast, rule.get("default", REQUIRED))
    return rules


def _path(where: str, table: dict[str, Any], key: str = "from") -> tuple[str, ...]:
    if not isinstance(table.get(key), str) or not table[key]:
        raise ConfigError(f"{where}: {key}: expected the name of a field of the events, such as 'user.id'")
    return tuple(table[key].split("."))


def _condition(where: str, table: Any) -> Condition:
    if not isinstance(table, dict) or not isinstance(table.get("in"), list):
        raise ConfigError(f"{where}: expected from = 'field' and in = [values]")
    _known(where, table, ("from", "in"))
    return Condition(_path(where, table), tuple(table["in"]))


def _event_types(where: str, table: Any) -> EventTypes:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a table")
    names = {}
    for name, entry in table.items():
        if name == "from":
            continue
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}.{name}: expected a table such as {{type = 1, weight = 2.0}}")
        _known(f"{where}.{name}", entry, ("type", "weight"))
        number, weight = entry.get("type", 0), entry.get("weight", 1.0)
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise ConfigError(f"{where}.{name}: type: expected 0..4294967295, got {number!r}")
        if type(weight) not in (int, float) or not weight > 0:
            raise ConfigError(f"{where}.{name}: weight: expected a number above 0, got {weight!r}")
        names[name] = (number, float(weight))
    return EventTypes(_path(where, table), names)


def _join(where: str, table: Any) -> Join:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a table with on, source and id")
    _known(where, table, ("on", "source", "id", "wait_s"))
    _bounded(table, "wait_s", 0, 3600, (int, float))
    if not isinstance(table.get("source"), str):
        raise ConfigError(f"{where}: source: expected the name of another source")
    return Join(
        _path(where, table, "on"), table["source"], _path(where, table, "id"), float(table.get("wait_s", 60))
    )


def _agree(sources: tuple[SourceConfig, ...]) -> None:
    """Refuse sources of one name, and sources whose ids of a side have different types."""
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two sources have the name {name!r}")
    joined = {source.join.source for source in sources if source.join}
    for source in sources:
        if source.join and source.join.source not in names:
            raise ConfigError(f"source {source.name!r}: join: there is no source {source.join.source!r}")
        if bool(source.fields) == (source.name in joined):
            raise ConfigError(
                f"source {source.name!r}: expected a table [sources.fields] with user and item, "
                "or a join of another source that names this one"
            )
    for side in IDS:
        casts = {source.fields[side].cast: source.name for source in sources if source.fields}
        if len(casts) > 1:
            told = " and ".join(f"{cast} in source {name!r}" for cast, name in casts.items())
            raise ConfigError(
                f"fields.{side}: the sources disagree about the type of the id: {told}; "
                "the integer 7 and the string '7' are two ids"
            )


def _known(where: str, table: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in table:
        if name not in names:
            raise ConfigError(f"{where}: {name!r} is not known; expected {', '.join(names)}")


def _bounded(table: dict[str, Any], name: str, low: float, high: float, kinds: Any) -> None:
    if name in table and (type(table[name]) is bool or not isinstance(table[name], kinds)):
        raise ConfigError(f"{name}: expected a number, got {table[name]!r}")
    if name in table and not low <= table[name] <= high:
        raise ConfigError(f"{name}: expected {low}..{high}, got {table[name]}")
