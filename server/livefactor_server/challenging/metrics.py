"""What the contests of all models do, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Gauge

from livefactor_server.challenging.messages import Figures

CONTESTANTS = Gauge("livefactor_contestants", "Specs in the running contest, 0 without one.", ["model"])
BEHIND = Gauge(
    "livefactor_contest_lag_events", "Events of the log that the running contest has not learned.", ["model"]
)
CPU = Counter("livefactor_contest_cpu_seconds", "CPU seconds of the contests' processes.", ["model"])
VERDICTS = Counter("livefactor_verdicts", "Ends of contests: won, stayed or failed.", ["model", "outcome"])

_EACH = ["model", "contestant"]
GAIN = Gauge("livefactor_contest_gain", "Mean gain of a contestant in the last round with events.", _EACH)
DIFFERENCE = Gauge(
    "livefactor_contest_difference", "Mean difference of a contestant's gains to the champion's.", _EACH
)
ERROR = Gauge(
    "livefactor_contest_standard_error", "Standard error of the difference, NaN with few users.", _EACH
)

ANSWERS = Counter(
    "livefactor_variant_lists",
    "Lists that the champion and the sharing challenger gave.",
    ["model", "variant"],
)
EVENTS = Counter("livefactor_variant_events", "Later events of users with a last list.", ["model", "variant"])
HITS = Counter(
    "livefactor_variant_hits", "Events whose item was in the user's last list.", ["model", "variant"]
)
_VARIANTS = ("champion", "challenger")


class ShareMetrics:
    """The metrics of a challenger that answers a share of a model's users."""

    def __init__(self, model: str) -> None:
        self._model = model

    def answered(self, variant: int, lists: int) -> None:
        """Counts lists of a variant: 0 is the champion, 1 the challenger."""
        ANSWERS.labels(self._model, _VARIANTS[variant]).inc(lists)

    def happened(self, variant: int, events: int, hits: int) -> None:
        """Counts later events of a variant's users, and the hits among them."""
        EVENTS.labels(self._model, _VARIANTS[variant]).inc(events)
        HITS.labels(self._model, _VARIANTS[variant]).inc(hits)


class ContestMetrics:
    """The metrics of one model's contests."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._shown: set[str] = set()
        self.observe(0, 0, 0.0)

    def contestants(self, count: int) -> None:
        """Reports the number of contestants."""
        CONTESTANTS.labels(self._model).set(count)

    def observe(self, contestants: int, behind: int, cpu_s: float) -> None:
        """Reports the contestants and the lag, and counts CPU seconds."""
        self.contestants(contestants)
        BEHIND.labels(self._model).set(max(0, behind) if contestants else 0)
        CPU.labels(self._model).inc(max(0.0, cpu_s))

    def figures(self, figures: Sequence[Figures]) -> None:
        """Reports the figures of all contestants in place of those of an earlier contest."""
        names = {each.name for each in figures}
        self._hide(self._shown - names)
        self._shown = names
        for each in figures:
            error = float("nan") if each.error is None else each.error
            for gauge, value in ((GAIN, each.mean), (DIFFERENCE, each.difference), (ERROR, error)):
                gauge.labels(self._model, each.name).set(value)

    def _hide(self, names: set[str]) -> None:
        for name in names:
            for gauge in (GAIN, DIFFERENCE, ERROR):
                gauge.remove(self._model, name)

    def verdict(self, outcome: str) -> None:
        """Counts the end of a contest."""
        VERDICTS.labels(self._model, outcome).inc()

    def close(self) -> None:
        """Removes the gauges of the model."""
        for gauge in (CONTESTANTS, BEHIND):
            gauge.remove(self._model)
        self._hide(self._shown)
