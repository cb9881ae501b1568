"""The roles of a stream's events: learned, judged in the search, or held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Context, Loss, ModelSpec
from livefactor_server.tuning.metrics import METRICS, Metric
from livefactor_server.tuning.progressive import BATCH_EVENTS, Stream, judge_then_learn

CONTEXT_SIZE = 1 << 16
"""`context.size` of specs that are judged with context."""
POINTS = 10
"""Number of points in the judged part at which a trial's metric is compared with other trials."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a search.

    Attributes:
        metric: one of `METRICS`.
        batch_events: events per record.
        part: share of the stream that the search uses. The rest is held out.
        warm_up: share of the search part that is learned and not judged.
        judged_max: about the maximum number of judged events, in the search part and in the rest.
        seed: the seed of the sample of judged events.
        context_weight: multiplies what the context of an event adds to scores.
    """

    metric: str
    batch_events: int = BATCH_EVENTS
    part: float = 0.6
    warm_up: float = 0.2
    judged_max: int = 20_000
    seed: int = 0
    context_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one run.

    Attributes:
        value: the metric.
        events_per_s: events learned per CPU second.
        at_points: the metric so far at each point.
    """

    value: float
    events_per_s: float
    at_points: tuple[float, ...]


def sample(stream: Stream, start: int, stop: int, most: int, seed: int, positive_only: bool) -> np.ndarray:
    """A sample of about `most` of the events in [start, stop), bool[n].

    It depends only on the seed, the event's position and the share. Rankings use positive events
    only.
    """
    able = np.zeros(len(stream), bool)
    able[start:stop] = True
    if positive_only:
        able &= stream.values > 0
    share = most / max(1, able.sum())
    draws = np.random.Generator(np.random.Philox(key=seed)).random(able.size)
    result: np.ndarray = able & (draws < share)
    return result


def with_context(spec: ModelSpec) -> ModelSpec:
    """The spec, with context if it has none yet. Squared loss has no context."""
    if spec.loss == Loss.SQUARED or spec.context.size:
        return spec
    return check(replace(spec, context=Context(CONTEXT_SIZE)))


class Plan:
    """A stream and the choice of its judged events.

    Attributes:
        search_events: number of events in the search part, which comes first.
        start: the first judged event.
        search_sample: the judged events of the search part, bool[n].
        rest_sample: the judged events of the rest, bool[n].
    """

    def __init__(self, stream: Stream, settings: Settings) -> None:
        """Raises ValueError if the search part or the rest has no event to judge."""
        self.stream, self.settings = stream, settings
        self.metric: Metric = METRICS[settings.metric]
        self.search_events = int(len(stream) * settings.part)
        self.start = int(self.search_events * settings.warm_up)
        self.search_sample = self._sample(self.start, self.search_events)
        self.rest_sample = self._sample(self.search_events, len(stream))
        if not self.search_sample.any() or not self.rest_sample.any():
            raise ValueError(
                f"events: {len(stream):,} are too few: {self.search_sample.sum()} can be judged in the search part, "
                f"{self.rest_sample.sum()} in the rest"
            )

    def _sample(self, start: int, stop: int) -> np.ndarray:
        settings = self.settings
        most, positive_only = settings.judged_max, settings.metric != "rmse"
        return sample(self.stream, start, stop, most, settings.seed, positive_only)

    def search(
        self, spec: ModelSpec, on_point: Callable[[int, float], None], on_events: Callable[[int], None]
    ) -> Outcome:
        """Evaluates a spec on the search part.

        Args:
            spec: the spec.
            on_point: called with (number, metric so far) at each of `POINTS`. An exception from it
                ends the run.
            on_events: called with the number of learned events.
        """
        head = self.stream.head(self.search_events)
        return self._run(spec, head, self.search_sample[: self.search_events], on_point, on_events)

    def rest(self, spec: ModelSpec, on_events: Callable[[int], None]) -> Outcome:
        """Evaluates a spec on the rest, after it has learned the search part."""
        return self._run(spec, self.stream, self.rest_sample, lambda *_: None, on_events)

    def naive(self) -> tuple[float, float]:
        """The baseline's metric, in the search part and in the rest. It does not know the users."""
        numbers = self.metric.naive(self.stream, self.settings.batch_events)
        return self._value(numbers[self.search_sample]), self._value(numbers[self.rest_sample])

    def with_context(self, spec: ModelSpec) -> ModelSpec:
        """The spec, with context if the events have it and the spec can."""
        return spec if self.stream.context is None else with_context(spec)

    def _value(self, numbers: np.ndarray) -> float:
        return self.metric.of_mean(float(numbers.mean()))

    def _run(
        self,
        spec: ModelSpec,
        stream: Stream,
        judged: np.ndarray,
        on_point: Callable[[int, float], None],
        on_events: Callable[[int], None],
    ) -> Outcome:
        width = (len(stream) - self.start) / POINTS
        numbers: list[np.ndarray] = []
        values: list[float] = []
        seconds = 0.0
        judge = partial(self.metric.judge, context_weight=self.settings.context_weight)
        spec = self.with_context(spec)
        for step in judge_then_learn(spec, stream, judge, judged, self.settings.batch_events):
            numbers.append(step.judged)
            seconds += step.learn_s
            on_events(step.stop)
            is_point = step.stop >= self.start + (len(values) + 1) * width
            if is_point and len(values) < POINTS and any(part.size for part in numbers):
                values.append(self._value(np.concatenate(numbers)))
                on_point(len(values), values[-1])
        rate = len(stream) / max(seconds, 1e-9)
        return Outcome(self._value(np.concatenate(numbers)), rate, tuple(values))
