"""How good specs are on a user's events, beside simple baselines: `livefactor evaluate`.

Test-then-learn judges each batch by what was learned before it, and then learns it, as a served
model does. A held-out part is judged by a model that has learned only the events before it. Both
judge the same sample of events for every method, with the metrics of the judge and of
`livefactor tune`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.tuning import opponents
from livefactor_server.tuning.metrics import gains, hits, list_places, squared_errors
from livefactor_server.tuning.plan import POINTS, sample
from livefactor_server.tuning.progressive import (
    BATCH_EVENTS,
    HALF_LIFE_EVENTS,
    TOP,
    Stream,
    item_means,
    judge_then_learn,
    popular_ranks,
)

OnEvents = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is judged.

    Attributes:
        task: one of `TASKS`.
        held_out: share of the stream at its end that is judged and not learned. With 0 every batch
            is judged, then learned.
        warm_up: share of the stream that is learned and not judged, without a held-out part.
        judged_max: about the maximum number of judged events.
        batch_events: events per record.
        seed: the seed of the sample of judged events.
        context_weight: multiplies what the context of an event adds to scores.
    """

    task: str
    held_out: float = 0.0
    warm_up: float = 0.1
    judged_max: int = 20_000
    batch_events: int = BATCH_EVENTS
    seed: int = 0
    context_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of a method.

    Attributes:
        name: its name.
        figures: (value, standard error) of each metric. The error of an RMSE is to first order.
        tenths: the main metric in each tenth of the judged events.
        seconds: how long it took.
        events_per_s: events learned per CPU second; 0 for a baseline.
        worths: the main metric of each judged event, or its squared error for ratings.
    """

    name: str
    figures: dict[str, tuple[float, float]]
    tenths: tuple[float, ...]
    seconds: float
    events_per_s: float
    worths: np.ndarray

    def of_events(self, chosen: np.ndarray) -> float:
        """The main metric over the chosen ones of the judged events, bool[judged], at least one."""
        mean = float(self.worths[chosen].mean())
        return mean**0.5 if "RMSE" in self.figures else mean

    def fields(self) -> dict[str, Any]:
        """The figures as values for JSON."""
        figures = {name: {"value": value, "error": error} for name, (value, error) in self.figures.items()}
        return {
            "name": self.name,
            "figures": figures,
            "tenths": list(self.tenths),
            "seconds": round(self.seconds, 3),
            "events_per_s": round(self.events_per_s),
        }


class Evaluation:
    """The judged events of a stream, and the figures of methods on them.

    Attributes:
        start: the first event that can be judged.
        sample: the judged events, bool[n].
        metrics: the names of the metrics, the main one first.
    """

    def __init__(self, stream: Stream, protocol: Protocol) -> None:
        """Raises ValueError if there is no event to judge."""
        self.stream, self.protocol = stream, protocol
        self.is_rating = protocol.task == "ratings"
        share = 1.0 - protocol.held_out if protocol.held_out else protocol.warm_up
        self.start = int(len(stream) * share)
        self._learned = self.start if protocol.held_out else len(stream)
        self.sample = sample(
            stream, self.start, len(stream), protocol.judged_max, protocol.seed, not self.is_rating
        )
        if not self.sample.any():
            raise ValueError(f"events: {len(stream):,} are too few: none of them can be judged")
        self.metrics = ("RMSE",) if self.is_rating else (f"recall@{TOP}", f"NDCG@{TOP}")

    def of_spec(self, name: str, spec: ModelSpec, on_events: OnEvents) -> Result:
        """The figures of a spec. `on_events` is called with the number of events so far."""
        begin_s, cpu_s, parts = time.monotonic(), 0.0, []
        judge = squared_errors if self.is_rating else list_places
        judge = partial(judge, context_weight=self.protocol.context_weight)
        size = self.protocol.batch_events
        for step in judge_then_learn(spec, self.stream, judge, self.sample, size, self._learned):
            parts.append(step.judged)
            cpu_s += step.learn_s
            on_events(step.stop)
        return self._result(name, np.concatenate(parts), begin_s, self._learned / max(cpu_s, 1e-9))

    def baselines(self) -> list[Result]:
        """The figures of methods that do not know the users."""
        begin_s, size = time.monotonic(), self.protocol.batch_events
        if self.is_rating:
            errors = np.square(item_means(self.stream, size, self._learned) - self.stream.values)
            return [self._result("mean of the item's values", errors[self.sample], begin_s)]
        results = []
        for name, half_life in (("most-popular", np.inf), ("most-popular, decayed", HALF_LIFE_EVENTS)):
            begin_s = time.monotonic()
            places = popular_ranks(self.stream, half_life, size, self._learned)
            results.append(self._result(name, places[self.sample], begin_s))
        return results

    def of_implicit(self, on_events: OnEvents) -> Result:
        """The figures of iALS. Raises ImportError without the package implicit."""
        begin_s, stop = time.monotonic(), len(self.stream)
        fitted_at = [self.start]
        if not self.protocol.held_out:
            tenths = range(POINTS)
            fitted_at = sorted({self.start + (stop - self.start) * n // POINTS for n in tenths})
        places = opponents.implicit_ranks(self.stream, self.sample, fitted_at, self.protocol.seed, on_events)
        fits = "1 fit" if len(fitted_at) == 1 else f"{len(fitted_at)} fits"
        return self._result(f"implicit iALS, {fits}", places, begin_s)

    def _result(self, name: str, numbers: np.ndarray, begin_s: float, rate: float = 0.0) -> Result:
        seconds = time.monotonic() - begin_s
        tenths = [part for part in np.array_split(numbers, POINTS) if part.size]
        if self.is_rating:
            value = float(np.sqrt(numbers.mean()))
            figures = {"RMSE": (value, _error(numbers) / max(2.0 * value, 1e-9))}
            roots = tuple(float(np.sqrt(t.mean())) for t in tenths)
            return Result(name, figures, roots, seconds, rate, numbers)
        figures = {}
        for metric, of_places in zip(self.metrics, (hits, gains), strict=True):
            worth = of_places(numbers)
            figures[metric] = (float(worth.mean()), _error(worth))
        means = tuple(float(hits(part).mean()) for part in tenths)
        return Result(name, figures, means, seconds, rate, hits(numbers))


def _error(numbers: np.ndarray) -> float:
    return float(numbers.std() / np.sqrt(numbers.size))
