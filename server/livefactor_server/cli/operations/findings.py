"""What a check of `livefactor doctor` reports."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple


class State(StrEnum):
    """OK: nothing to do. WARNING: the server runs, but worse. FAULT: the server does not run."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


class Finding(NamedTuple):
    """The result of one check.

    `figures` holds the numbers behind `text`, for scripts. Their names contain their units.
    `remedy` says what to do. It is empty if the state is OK.
    """

    check: str
    state: State
    text: str
    remedy: str = ""
    figures: Mapping[str, Any] = MappingProxyType({})


def ok(check: str, text: str, **figures: Any) -> Finding:
    """A check that found nothing to do."""
    return Finding(check, State.OK, text, "", figures)


def warning(check: str, text: str, remedy: str, **figures: Any) -> Finding:
    """A check that found what makes the server worse."""
    return Finding(check, State.WARNING, text, remedy, figures)


def fault(check: str, text: str, remedy: str, **figures: Any) -> Finding:
    """A check that found what keeps the server from running."""
    return Finding(check, State.FAULT, text, remedy, figures)
