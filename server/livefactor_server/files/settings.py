"""The settings of a spec as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def settings(spec: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """The fields of a spec with their values, without those that are off.

    A field of a part has the part's name before its own, such as `optimizer.learning_rate`.
    """
    found: list[tuple[str, str]] = []
    for name, value in spec.items():
        if isinstance(value, Mapping):
            found += settings(value, f"{above}{name}.")
        elif value not in (None, False, 0, "", [], ()):
            found.append((above + name, f"{value:g}" if isinstance(value, float) else str(value)))
    return found
