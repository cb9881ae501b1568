"""Picking settings: a grid, every point of it judged on the earlier cut, the best one taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

Settings = Mapping[str, float | str]


def grid(**axes: Iterable[float | str]) -> list[dict[str, float | str]]:
    """Every combination of the axes' values."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was picked, out of how many, and what it was worth on the earlier cut."""

    settings: Settings
    size: int
    value: float

    @property
    def words(self) -> str:
        """The settings for people."""
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"
            for name, value in self.settings.items()
        )


def pick(settings: list[dict[str, float | str]], worth: Callable[[Settings], float]) -> Choice:
    """The settings of the highest worth, the first ones if several have it."""
    values = [worth(each) for each in settings]
    best = max(range(len(values)), key=values.__getitem__)
    return Choice(settings[best], len(settings), values[best])
