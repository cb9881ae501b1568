"""Reads a user's file: finds the columns, orders and checks the events, and infers the task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livefactor.wire.keys import keys_of
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.model import MAX_FEATURES_PER_ID, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes.interactions import good_values, good_weights
from livefactor_server.files.events import CONTEXT, EventFileError, Events, Rows, open_file
from livefactor_server.tuning.progressive import Stream
from livefactor_server.tuning.rules import RULES

USUAL_NAMES = {
    "user_ids": ("user_id", "user"),
    "item_ids": ("item_id", "item"),
    "values": ("value", "rating"),
    "weights": ("weight",),
    "event_types": ("event_type", "type"),
    "times": ("time", "timestamp"),
}
"""The usual column names of each field, which are used if the user names none."""
REQUIRED = ("user_ids", "item_ids")


@dataclass(frozen=True, slots=True)
class EventFile:
    """A file that was read.

    Attributes:
        stream: its events, ordered by time.
        names: the column name of each field.
        rows: the number of each event of the stream in the file, int64[n], from 0.
        place: where a row stands in the file, such as "line 7".
        types: the event type of each event of the stream; None if the file has no such column.
        texts: the distinct ids of each field that are strings; None if they were not asked for.
    """

    stream: Stream
    names: dict[str, str]
    rows: np.ndarray
    place: Callable[[int], str]
    types: np.ndarray | None = None
    texts: dict[str, list[str]] | None = None

    @property
    def digest(self) -> str:
        """A digest of the stream. Files with the same digest give the same trials."""
        stream, sha = self.stream, hashlib.sha256()
        for column in (stream.user_keys, stream.item_keys, stream.values, stream.weights, stream.times):
            sha.update(b"-" if column is None else column.tobytes())
        for part in stream.context or ():
            sha.update(part.tobytes())
        return sha.hexdigest()

    def check(self, spec: ModelSpec, why: str) -> None:
        """Raises EventFileError for the first row that a model with this spec would reject.

        `why` names the spec.
        """
        columns = (
            ("values", self.stream.values, good_values),
            ("weights", self.stream.weights, good_weights),
        )
        for field, numbers, good in columns:
            if numbers is None or field not in self.names:
                continue
            bad = np.flatnonzero(~good(numbers, spec))
            if bad.size:
                first = bad[np.argmin(self.rows[bad])]
                where = f"{self.place(int(self.rows[first]))}, column {self.names[field]}"
                raise EventFileError(
                    f"{where}: {why} rejects the {field[:-1]} {numbers[first]:g} ({bad.size:,} such rows)"
                )

    def task(self) -> str:
        """Infers the task: ratings if a value is not 0 or 1, clicks if one is 0, else purchases."""
        values = self.stream.values
        if ((values != 0) & (values != 1)).any():
            return "ratings"
        return "clicks" if (values == 0).any() else "purchases"

    def rules(self, task: str, only: list[str]) -> tuple[list[str], list[str]]:
        """Selects the rules for a task.

        Args:
            task: one of `TASKS`.
            only: the rules that the user asked for; if empty, all rules for the task.

        Returns:
            The selected rules, and the rules for the task that would reject rows of the file.

        Raises:
            EventFileError: the preset of the task, or a rule that the user asked for, rejects a
                row.
            ValueError: a rule that the user asked for is not for the task.
        """
        there = [name for name, rule in RULES.items() if task in rule.tasks]
        for name in only:
            if name not in there:
                raise ValueError(f"rule: expected one of {', '.join(there)} for {task}, got {name!r}")
            self.check(RULES[name].start, name)
        self.check(preset(task), f"preset {task}")
        fits = [name for name in there if good_values(self.stream.values, RULES[name].start).all()]
        return [name for name in fits if name in only or not only], [n for n in there if n not in fits]


def read_events(
    file: Path,
    names_by_field: dict[str, str],
    string_ids: bool = False,
    secret: bytes = b"",
    on_events: Callable[[int, int], None] = lambda read, total: None,
    on_kinds: Callable[[str], None] = lambda sentence: None,
    with_texts: bool = False,
    separator: str = "",
) -> EventFile:
    """Reads a csv or parquet file, which may be compressed.

    Args:
        file: the file.
        names_by_field: column names. A missing field uses a column with a usual name, if there is
            one.
        string_ids: read all ids as strings.
        secret: the key of the hash of ids that are strings.
        on_events: called with (events read, all events or 0).
        on_kinds: called with a sentence about what a column of ids holds.
        with_texts: keep the distinct ids that are strings.
        separator: divides the texts of columns of context, whose fields begin with `CONTEXT`.

    A time column orders the events with a stable sort. Without one, the order of the file is used.

    Raises:
        EventFileError: the file is invalid or has no events.
        OSError: the file cannot be opened.
    """
    opened = open_file(file)
    names = _columns(opened.columns, names_by_field)
    events = Events(opened, names, string_ids, on_kinds=on_kinds)
    context = Contexts(separator) if any(field.startswith(CONTEXT) for field in names) else None
    parts: list[dict[str, np.ndarray]] = []
    read, texts = 0, {name: dict[str, None]() for name in REQUIRED}
    for rows in events:
        for name in REQUIRED if with_texts else ():
            if not isinstance(rows.columns[name], np.ndarray):
                texts[name] |= dict.fromkeys(rows.columns[name].unique().to_pylist())
        part = {
            field: rows.keys(field, secret) if field in REQUIRED else rows.columns[field]
            for field in names
            if not field.startswith(CONTEXT)
        }
        if context is not None:
            context.add(rows, events)
        _require_numbers(events, rows.first, part)
        parts.append(part)
        read += len(rows)
        on_events(read, events.total)
    if not parts:
        raise EventFileError("the file has no events")
    columns = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
    times = columns["times"].view(np.int64) if "times" in names else None
    order = np.arange(read) if times is None else np.argsort(times, kind="stable")
    users, items = columns["user_ids"][order], columns["item_ids"][order]
    values = columns["values"][order] if "values" in names else np.ones(read, np.float32)
    weights = columns["weights"][order] if "weights" in names else None
    bags = None if context is None else context.bags().take(order)
    stream = Stream(users, items, values, weights, None if times is None else times[order], bags)
    types = columns["event_types"][order] if "event_types" in names else None
    kept = {name: list(found) for name, found in texts.items()} if with_texts else None
    return EventFile(stream, names, order, events.place, types, kept)


class Contexts:
    """The context of the events of a file, which come in parts."""

    def __init__(self, separator: str) -> None:
        self._separator, self._numbers = separator, dict[str, int]()
        self._sizes: list[int] = []
        self._features: list[int] = []
        self._weights: list[float] = []

    def add(self, rows: Rows, events: Events) -> None:
        """Takes further events.

        Raises:
            EventFileError: an event has too many features.
        """
        for at, bag in enumerate(rows.pushed(self._separator)["context"]):
            if len(bag) > MAX_FEATURES_PER_ID:
                where = events.place(rows.first + at)
                raise EventFileError(
                    f"{where}: at most {MAX_FEATURES_PER_ID} features of context, got {len(bag)}"
                )
            self._sizes.append(len(bag))
            self._features += [self._numbers.setdefault(name, len(self._numbers)) for name in bag]
            self._weights += bag.values()

    def bags(self) -> Bags:
        """The bags of all events."""
        keys = keys_of(list(self._numbers))[np.array(self._features, np.int64)]
        return Bags(np.cumsum(self._sizes, dtype=np.int64), keys, np.array(self._weights, np.float32))


def _columns(have: list[str], names_by_field: dict[str, str]) -> dict[str, str]:
    names = {}
    for field, usual in USUAL_NAMES.items():
        name = names_by_field.get(field, "") or next((name for name in usual if name in have), "")
        if name:
            names[field] = name
        elif field in REQUIRED:
            raise EventFileError(
                f"there is no column {' or '.join(usual)}, and none was given; the columns are {', '.join(have)}"
            )
    return names | {field: name for field, name in names_by_field.items() if field.startswith(CONTEXT)}


def _require_numbers(events: Events, first: int, columns: dict[str, np.ndarray]) -> None:
    for field, expected in (("values", "a finite number"), ("weights", "a finite number above 0")):
        if field not in columns:
            continue
        bad = ~np.isfinite(columns[field])
        if field == "weights":
            bad |= columns[field] <= 0
        if bad.any():
            row = int(np.argmax(bad))
            raise events.fault(first + row, field, f"expected {expected}, got {columns[field][row]:g}")
