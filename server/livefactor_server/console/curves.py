"""The figures of models over time, as far as pages asked for them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from livefactor.models import ModelDescription

POINTS_MAX = 900
"""Points of a curve. The oldest ones make room."""

MODELS_MAX = 1_000
"""Models with curves. The one that was asked for longest ago makes room."""

POINT_S = 1.0
"""Least seconds between two points."""

RANKING = ("ndcg@10", "recall@10", "sampled_ndcg@10", "auc", "rmse", "loss")
"""Metrics in the order in which a page chooses one."""

SCORERS = ("model", "popular", "popular_decayed")


@dataclass
class Curve:
    """The points of one model.

    Attributes:
        metric: the metric of the points; "" as long as nothing was judged.
        points: (seconds since 1970, events, revision, figure of each of `SCORERS`).
    """

    metric: str = ""
    points: deque[tuple[float, int, int, tuple[float, ...]]] = field(
        default_factory=lambda: deque(maxlen=POINTS_MAX)
    )

    def add(self, now: float, model: ModelDescription) -> None:
        """Adds a point for the description that a server gave at the time `now`."""
        if self.points and now - self.points[-1][0] < POINT_S / 2:
            return
        metric, figures = chosen(model)
        if metric != self.metric:
            # Figures of another metric would not fit the axis.
            self.metric = metric
            self.points.clear()
        self.points.append((now, model.events, model.position.revision, figures))

    def events_per_s(self) -> float:
        """Events a second, over the last ten points."""
        recent = list(self.points)[-10:]
        if len(recent) < 2:
            return 0.0
        return max(0.0, (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0]))

    def columns(self) -> dict[str, Any]:
        """The columns for the picture. A missing figure is None."""

        def shown(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "metric": self.metric,
            "times": [round(point[0], 3) for point in self.points],
            "events": [point[1] for point in self.points],
            "figures": {
                scorer: [shown(point[3][index]) for point in self.points]
                for index, scorer in enumerate(SCORERS)
            },
        }


class Curves:
    """The curves of all models that pages asked for."""

    def __init__(self) -> None:
        self._curves: dict[str, Curve] = {}

    def of(self, lineage: str) -> Curve:
        """The curve of a model, by its lineage: a model that is made anew has another one."""
        curve = self._curves.pop(lineage, None) or Curve()
        self._curves[lineage] = curve
        while len(self._curves) > MODELS_MAX:
            del self._curves[next(iter(self._curves))]
        return curve


def chosen(model: ModelDescription) -> tuple[str, tuple[float, ...]]:
    """The metric that a page shows, and its value for each of `SCORERS`. NaN: there is none."""
    figures = model.judgement.figures if model.judgement else ()
    found = {
        (figure.metric, figure.scorer): figure.decayed for figure in figures if figure.event_type is None
    }
    for metric in RANKING:
        if math.isfinite(found.get((metric, "model"), math.nan)):
            return metric, tuple(found.get((metric, scorer), math.nan) for scorer in SCORERS)
    return "", (math.nan,) * len(SCORERS)
