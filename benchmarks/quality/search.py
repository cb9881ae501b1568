"""Grid search: every setting is judged on the earlier cut, and the best one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

Settings = Mapping[str, float | str]


def grid(**axes: Iterable[float | str]) -> list[dict[str, float | str]]:
    """All combinations of the values."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


@dataclass(frozen=True, slots=True)
class Choice:
    """The best setting, the size of the grid, and the metric on the earlier cut."""

    settings: Settings
    size: int
    value: float

    @property
    def words(self) -> str:
        """The settings as text."""
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"
            for name, value in self.settings.items()
        )


def pick(settings: list[dict[str, float | str]], worth: Callable[[Settings], float]) -> Choice:
    """The setting with the highest worth; the first one of several."""
    values = [worth(each) for each in settings]
    best = max(range(len(values)), key=values.__getitem__)
    return Choice(settings[best], len(settings), values[best])
