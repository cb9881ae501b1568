"""Tunes, learns and judges every method on one set in one order; also learning curves and
micro-batch sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality import closed_form
from benchmarks.quality.data import Events, Judgement, reordered
from benchmarks.quality.methods import METHODS, Method, Parts
from benchmarks.quality.metrics import NAMES, PRIMARY, Judge
from benchmarks.quality.search import Choice, Settings, pick
from benchmarks.quality.streamed import Learner, one_pass, settled

Figure = float | str | None
Figures = dict[str, Figure]

POINTS = 10
"""Number of points of a learning curve."""
CURVES = ("popular", "popular_decayed", "clicks_sgd", "purchases_sgd", "softmax", "clicks")
MICRO_BATCHES = {"clicks_sgd": (16, 256), "purchases_sgd": (16, 256), "softmax": (1,), "clicks": (1,)}
"""Additional micro-batch sizes. A method's own size is 1, of `softmax` 512, of `clicks` 256."""


class Extent(NamedTuple):
    """How much to measure: settings per grid (0 for all), seeds, and the inverse of the share of
    users.
    """

    settings: int = 0
    seeds: int = 3
    part: int = 1

    def of(self, settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The settings of a grid that are measured."""
        return settings[: self.settings or None]


WHOLE, QUICK = Extent(), Extent(2, 1, 8)


class Part(NamedTuple):
    """A part that is measured at once."""

    name: str
    run: Callable[[], Figures]


def chosen(prefix: str, choice: Choice) -> Figures:
    """Figures about the tuning: the best settings in words, the size of the grid, and the metric on
    the earlier cut.
    """
    return {
        f"{prefix}_settings": choice.words or "nothing to tune",
        f"{prefix}_grid_size": choice.size,
        f"{prefix}_tuning_value": choice.value,
    }


class Ranking:
    """A set in an order. All of its figures start with `prefix`, <set>_<order>."""

    def __init__(self, prefix: str, judgement: Judgement, is_shuffled: bool, extent: Extent) -> None:
        self._prefix, self._judgement, self._shuffled, self._extent = prefix, judgement, is_shuffled, extent
        self._tuning, self._final = Judge(judgement.tuning), Judge(judgement.final)
        self._shared = Parts(judgement.tuning.learned)
        self._picked: dict[str, Choice] = {}

    def parts(self) -> Iterator[Part]:
        """All parts, to be run in this order."""
        yield Part(f"{self._prefix}_events", self._about)
        for key, method in METHODS.items():
            if not (method.recent and self._shuffled):
                yield Part(f"{self._prefix}_{key}", lambda k=key, m=method: self._ranked(k, m))
        for key in () if self._shuffled else MICRO_BATCHES:
            yield Part(f"{self._prefix}_{key}_micro_batches", lambda k=key: self._micro_batches(k))
        for key in () if self._shuffled else CURVES:
            yield Part(f"{self._prefix}_{key}_curve", lambda k=key: self._curve(k))

    def _about(self) -> Figures:
        counts = {
            "learned_events": len(self._judgement.final.learned),
            "judged_events": len(self._judgement.final.judged),
            "judged_users": self._final.users.size,
            "tuning_learned_events": len(self._judgement.tuning.learned),
            "tuning_judged_users": self._tuning.users.size,
        }
        return {f"{self._prefix}_{name}": count for name, count in counts.items()}

    def _stream(self, seed: int) -> Events:
        learned = self._judgement.final.learned
        return reordered(learned, seed) if self._shuffled else learned

    def _ranked(self, key: str, method: Method) -> Figures:
        def worth(settings: Settings) -> float:
            return self._tuning.figures(method.learn(self._shared, 0, **settings))[PRIMARY]

        if not method.is_installed():
            return {}
        tried = method.shuffled if self._shuffled and method.shuffled else method.grid
        choice = self._picked[key] = pick(self._extent.of(tried), worth)
        results, seconds, on_clock = [], [], []
        for seed in range(self._extent.seeds if method.random else 1):
            parts = Parts(self._stream(seed) if method.ours else self._judgement.final.learned)
            started, began = time.process_time(), time.perf_counter()
            scores = method.learn(parts, seed, **choice.settings)
            seconds.append(time.process_time() - started)
            on_clock.append(time.perf_counter() - began)
            results.append(self._final.figures(scores))
        prefix, values = f"{self._prefix}_{key}", [result[PRIMARY] for result in results]
        figures: Figures = {f"{prefix}_{name}": float(np.mean([r[name] for r in results])) for name in NAMES}
        figures[f"{prefix}_{PRIMARY}_spread"] = max(values) - min(values)
        events = len(self._judgement.final.learned)
        figures[f"{prefix}_events_per_s"] = events / float(np.mean(seconds))
        if method.ours:
            figures[f"{prefix}_clock_events_per_s"] = events / float(np.median(on_clock))
        return figures | chosen(prefix, choice)

    def _micro_batches(self, key: str) -> Figures:
        """NDCG@10 of the tuned settings at other micro-batch sizes."""
        figures: Figures = {}
        for size in MICRO_BATCHES[key]:
            values = []
            # B = 1 takes a minute, so it gets one seed.
            for seed in range(1 if size == 1 else self._extent.seeds):
                spec = settled(key, seed=seed, micro_batch=size, **self._picked[key].settings)
                values.append(self._final.figures(one_pass(spec, self._stream(seed)).scores)[PRIMARY])
            figures[f"{self._prefix}_{key}_b{size}_{PRIMARY}"] = float(np.mean(values))
        return figures

    def _curve(self, key: str) -> Figures:
        """NDCG@10 and recall@10 on the held-out events after each tenth of the stream, with one
        seed.
        """
        events = self._judgement.final.learned
        ends = [len(events) * point // POINTS for point in range(1, POINTS + 1)]
        figures: Figures = {}
        settings: dict[str, Any] = self._picked[key].settings
        if not METHODS[key].ours:
            for point, end in enumerate(ends, 1):
                scores = closed_form.popular(events.take(slice(0, end)), **settings)
                figures |= self._point(key, point, self._final.figures(scores))
            return figures
        learner, reached = Learner(settled(key, **settings), events), 1
        for learned in learner.learn():
            if learned >= ends[reached - 1]:
                figures |= self._point(key, reached, self._final.figures(learner.scores))
                reached += 1
        return figures

    def _point(self, key: str, point: int, measured: dict[str, float]) -> Figures:
        names = {name: f"{self._prefix}_{key}_{name}_after_{point:02}" for name in ("ndcg10", "recall10")}
        return {full: measured[name] for name, full in names.items()}
