"""Writes tables into pages of the docs, between two marks. It needs only Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- /figures -->"


def between_marks(text: str, command: str) -> tuple[str, str, str]:
    """Splits a page at the marks of `command` into the text before, between and after.

    Raises ValueError unless the first mark occurs once, and the other one after it.
    """
    begin = f"<!-- figures: {command} -->"
    if text.count(begin) != 1 or END not in text[text.index(begin) :]:
        raise ValueError(f"expected {begin} once, and {END} after it")
    before, rest = text.split(begin)
    between, after = rest.split(END, 1)
    return before + begin + "\n", between.strip("\n"), "\n" + END + after


def write_between(path: Path, command: str, content: str) -> None:
    """Replaces the text between the marks of a page by `content`."""
    before, _, after = between_marks(path.read_text(encoding="utf-8"), command)
    path.write_text(before + content + after, encoding="utf-8")


def six_digits(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with floats rounded to six digits."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in figures.items()
    }


UNITS = {"": 1.0, "k": 1e3, "M": 1e6}


def is_reached(goal: str, value: float) -> bool:
    """Whether a figure reaches a goal in words: "at least 2", "at most 1.02", "under 8", "over 1",
    "0.9 to 1.1", "at least 2 M".
    """
    bounds = [float(number) * UNITS[unit] for number, unit in re.findall(r"(\d[\d.]*)(?: ([kM])\b)?", goal)]
    if goal.startswith("at least"):
        return value >= bounds[0]
    if goal.startswith("at most"):
        return value <= bounds[0]
    if goal.startswith("under"):
        return value < bounds[0]
    if goal.startswith("over"):
        return value > bounds[0]
    low, high = bounds
    return low <= value <= high


def with_verdict(goal: str, value: float | str | None) -> str:
    """The goal, and "not reached" if the figure does not reach it."""
    missed = bool(goal) and isinstance(value, float | int) and not is_reached(goal, value)
    return f"{goal} (not reached)" if missed else goal
