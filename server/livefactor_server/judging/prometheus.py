"""What the judges of all models find, for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from livefactor_server.judging.report import Figure, Report

DRIFTS = Counter(
    "livefactor_drifts", "Changes that ADWIN found in the judged metrics.", ["model", "metric", "direction"]
)
WARNINGS = Counter("livefactor_judge_warnings", "Violations of the judge's bounds.", ["model", "kind"])
HELD = Gauge("livefactor_held", "1 while a hold stops updates, else 0.", ["model"])


class JudgeCollector(Collector):
    """The judges' figures of all models, computed at each scrape.

    Label sets follow models, event types and groups of users.
    """

    NAMES = (
        "livefactor_judge_figure",
        "livefactor_judge_group_figure",
        "livefactor_judged_events",
        "livefactor_judge_row_norm",
        "livefactor_judge_clamped_share",
    )

    def __init__(self) -> None:
        self._reports: dict[str, Callable[[], Report | None]] = {}
        self._lock = threading.Lock()

    def watch(self, model: str, report: Callable[[], Report | None], is_held: Callable[[], bool]) -> None:
        """Adds a model: its figures, and whether its updates are on hold."""
        HELD.labels(model).set_function(lambda: float(is_held()))
        with self._lock:
            self._reports[model] = report

    def forget(self, model: str) -> None:
        """Removes a model."""
        HELD.remove(model)
        with self._lock:
            self._reports.pop(model, None)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the metric families."""
        labels = ["model", "metric", "scorer", "event_type", "span"]
        group_labels = ["model", "metric", "scorer", "users", "span"]
        figures, of_groups, judged, norm, clamped = (
            GaugeMetricFamily(name, text, labels=names)
            for name, text, names in zip(
                self.NAMES,
                (
                    "A figure of progressive validation for one scorer, windowed or decayed.",
                    "The same over events of users that the model knew when it scored them, or did not.",
                    "Judged events since the start.",
                    "Mean norm of the judged rows.",
                    "Share of the judged factors at the spec's bound.",
                ),
                (labels, group_labels, ["model"], ["model"], ["model"]),
                strict=True,
            )
        )
        with self._lock:
            reports = list(self._reports.items())
        for model, report_of in reports:
            report = report_of()
            if report is None:
                continue
            judged.add_metric([model], report.judged_events)
            norm.add_metric([model], report.row_norm)
            clamped.add_metric([model], report.clamped_share)
            for figure in report.figures:
                kind = "all" if figure.event_type is None else str(figure.event_type)
                _add(figures, model, figure, kind)
            groups = (("new", report.new_user_figures), ("known", report.known_user_figures))
            for users, of_users in groups:
                for figure in of_users:
                    _add(of_groups, model, figure, users)
        yield from (figures, of_groups, judged, norm, clamped)


def _add(family: GaugeMetricFamily, model: str, figure: Figure, group: str) -> None:
    """Adds both spans of a figure. `group` names its event type or its users."""
    for span, value in (("window", figure.windowed), ("decayed", figure.decayed)):
        family.add_metric([model, figure.metric, figure.scorer, group, span], value)


JUDGES = JudgeCollector()
REGISTRY.register(JUDGES)
