"""What people type into the forms of the console, and how it writes values."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from livefactor.models import ModelDescription
from livefactor.results.answers import UserAnswer
from livefactor.results.judgement import JudgeFigure, Judgement
from livefactor.wire.ids import ids_of_texts
from livefactor_server.console.curves import SCORERS
from livefactor_server.text import plain

K_DEFAULT = 10
EVENTS_MAX = 50


@dataclass(frozen=True)
class ListForm:
    """A person asks for a user's list.

    Attributes:
        user: id of the user, as it was typed.
        events: ids of items that stand in for the history of the user, as they were typed.
        k: length of the list.
        exclude_seen: leave out what the user has had.
        strings: ids are strings, even where they are digits.
    """

    user: str
    events: tuple[str, ...]
    k: int
    exclude_seen: bool
    strings: bool

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> ListForm:
        """The form that a browser sent.

        Raises:
            ValueError: a field is missing or is no number.
        """
        user = fields.get("user", "").strip()
        if not user:
            raise ValueError("user: type the id of a user")
        k = fields.get("k", "").strip() or str(K_DEFAULT)
        if not (k.isascii() and k.isdigit() and int(k) > 0):
            raise ValueError(f"k: expected a number above 0, got {k!r}")
        events = tuple(part.strip() for part in fields.get("events", "").split(",") if part.strip())
        if len(events) > EVENTS_MAX:
            raise ValueError(f"events: expected at most {EVENTS_MAX}, got {len(events)}")
        return cls(user, events, int(k), "exclude_seen" in fields, "strings" in fields)

    def users(self) -> Any:
        """The user's id."""
        return [self.user] if self.strings else ids_of_texts([self.user])

    def event_ids(self) -> Any:
        """The ids of the events."""
        return list(self.events) if self.strings else ids_of_texts(self.events)


def rows(answers: Sequence[UserAnswer]) -> list[list[dict[str, Any]]]:
    """The rows of each list: rank, item, label, score, and the rank in the first list."""
    before = {item: rank for rank, item in enumerate(answers[0].item_ids.tolist(), 1)}
    return [
        [
            {
                "rank": rank,
                "item": item,
                "label": label if label != item else "",
                "score": score,
                "before": before.get(item),
            }
            for rank, (item, score, label) in enumerate(
                zip(
                    answer.item_ids.tolist(),
                    answer.scores.tolist(),
                    list(answer.labels) or [""] * len(answer),
                    strict=True,
                ),
                1,
            )
        ]
        for answer in answers
    ]


def groups(judgement: Judgement | None, metric: str) -> list[dict[str, Any]]:
    """The figures of a metric for each event type, if there are at least two types."""
    by_type: dict[int, dict[str, JudgeFigure]] = {}
    for figure in judgement.figures if judgement is not None else ():
        if figure.event_type is not None and figure.metric == metric:
            by_type.setdefault(figure.event_type, {})[figure.scorer] = figure
    if len(by_type) < 2:
        return []
    return [
        {
            "event_type": event_type,
            "metric": metric,
            "events": max(figure.events for figure in found.values()),
            "figures": [found[name].decayed if name in found else None for name in SCORERS],
        }
        for event_type, found in sorted(by_type.items())
    ]


def state(model: ModelDescription) -> str:
    """In a few words whether a model works."""
    if model.fault:
        return "not opened"
    if model.hold is not None:
        return "on hold"
    return "serving" if model.writable else "read only"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separated. A dash where there is none."""
    return f"{value:,.{digits}f}" if value is not None and math.isfinite(value) else "–"


def size(value: float) -> str:
    """Bytes in the largest unit that gives at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def age(micros: int) -> str:
    """How long ago a time was, in one unit."""
    seconds = max(0.0, time.time() - micros / 1e6)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


FILTERS = {"number": number, "size": size, "age": age, "plain": plain}
