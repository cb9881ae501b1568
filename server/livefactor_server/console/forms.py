"""What people type into the forms of the console, and how it writes values."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
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


def groups(judgement: Judgement | None, metric: str) -> dict[str, list[dict[str, Any]]]:
    """The figures of a metric for groups of events, by what tells the groups apart.

    The groups are event types, and new and known users. What has fewer than two groups is left out.
    """
    if judgement is None:
        return {}
    figures = [*judgement.figures, *judgement.new_user_figures, *judgement.known_user_figures]
    types = sorted({figure.event_type for figure in figures if figure.event_type is not None})
    found: dict[str, dict[str, Sequence[JudgeFigure]]] = {
        "event type": {
            str(kind): [figure for figure in judgement.figures if figure.event_type == kind] for kind in types
        },
        "users": {"new": judgement.new_user_figures, "known": judgement.known_user_figures},
    }
    rows = {
        kind: [
            _row(name, each, metric) for name, each in named.items() if any(f.metric == metric for f in each)
        ]
        for kind, named in found.items()
    }
    return {kind: each for kind, each in rows.items() if len(each) > 1}


def _row(name: str, figures: Iterable[JudgeFigure], metric: str) -> dict[str, Any]:
    by_scorer = {figure.scorer: figure for figure in figures if figure.metric == metric}
    return {
        "name": name,
        "events": max(figure.events for figure in by_scorer.values()),
        "figures": [by_scorer[one].decayed if one in by_scorer else None for one in SCORERS],
    }


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
