"""The figures of topics: each has a command, a file of results and a page of its own.

A full run of `make quality` measures all of them and writes their files. quality.json takes from
these files the figures that have a goal, and the day of the measurement if the part was run alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.pages import ROOT, six_digits
from benchmarks.report import Figure

RESULTS = ROOT / "benchmarks" / "results"
FILES = {
    "content": "content.json",
    "warm_start": "warm_start.json",
    "sessions": "auto.json",
    "adversarial": "adversarial.json",
    "adapter": "adapt.json",
    "forgetting": "forgetting.json",
}
"""The file of results of each part."""


class Goal(NamedTuple):
    """A figure of a part that has a goal, in words."""

    part: str
    label: str
    goal: str


GOALS = {
    "cold_films_ndcg10_to_oracle": Goal(
        "content", "Hidden films, known by their texts: NDCG@10 ÷ list by true popularity", "at least 0.8"
    ),
    "few_events_recall10_ratio": Goal(
        "content", "Items with at most 5 events, recall@10: with vectors ÷ without", "at least 2"
    ),
    "warm_start_ratio": Goal(
        "warm_start", "Users that iALS knows: live model that began with its factors ÷ iALS", "at least 1"
    ),
    "sessions_recall20_to_sknn": Goal(
        "sessions", "Sessions, recall@20: `auto` ÷ tuned session-kNN", "at least 1.05"
    ),
    "sessions_new_items_recall20_to_cooccurrence": Goal(
        "sessions", "Sessions, items that are new to them, recall@20: `auto` ÷ co-occurrence", "at least 1.05"
    ),
    "adversarial_loss_ratio": Goal(
        "adversarial", "NDCG@10 lost with moved factors: adversarial training ÷ none", "at most 0.5"
    ),
    "fake_profile_shift_ratio": Goal(
        "adversarial", "Places that fake users move an item: with the defence ÷ without", "at most 0.5"
    ),
    "adapter_few_events_ratio": Goal(
        "adapter", "Items with at most 5 events, recall@10: adapted encoder ÷ frozen one", "over 1"
    ),
    "old_task_ratio_after_a_year": Goal(
        "forgetting", "Items of the first quarter, NDCG@10 after a year: `auto` in a stream ÷ retrained", ""
    ),
}


def kept(part: str) -> dict[str, Figure]:
    """The figures in the file of a part. There are none without a file."""
    path = RESULTS / FILES[part]
    found: dict[str, Figure] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def store(part: str, measured: Mapping[str, Figure]) -> None:
    """Writes the figures of a part to its file. Other figures of the file stay."""
    text = json.dumps(kept(part) | six_digits(measured), indent=1)
    (RESULTS / FILES[part]).write_text(text + "\n", encoding="utf-8")


def with_goals(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """The figures, and those of the files of topics that have a goal.

    A figure that was not measured is None.
    """
    files = {part: kept(part) for part in FILES}
    return dict(figures) | {name: files[goal.part].get(name) for name, goal in GOALS.items()}
