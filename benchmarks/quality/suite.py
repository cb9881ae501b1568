"""All parts of the quality benchmark. Names of figures are flat: <set>_<order>_<method>_<metric>.

The sets are ml1m (the timed half) and retail; the orders are time and shuffled. In addition to
`ranking.py`, there are figures of test-then-learn (retail_next_... and news_next_...), of ratings
(ml1m_<order>_..._rmse), of learning rates (adaptive_<stream>_...), of embeddings
(`content.py`), of warm starts (`warm_start.py`), of sessions (`auto/sessions.py`), and of
adversarial training, of an adapted encoder and of forgetting (`depth`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.progressive.data import Stream, read_purchases, read_ratings
from benchmarks.progressive.recall import model_hits, own_first_hits, popular_hits
from benchmarks.progressive.suite import TUNED_PART
from benchmarks.quality import adaptive, content, ratings, warm_start
from benchmarks.quality.auto import sessions
from benchmarks.quality.auto.sets import diginetica
from benchmarks.quality.data import Judgement, in_time, numbered, shuffled
from benchmarks.quality.depth import adversarial, forgetting
from benchmarks.quality.methods import CLICKS_GRID, POPULAR_GRID, PURCHASES_GRID
from benchmarks.quality.news import news_stream
from benchmarks.quality.ranking import Extent, Figures, Part, Ranking, chosen
from benchmarks.quality.search import Choice, Settings, grid, pick
from benchmarks.quality.streamed import settled
from benchmarks.quality.test_then_learn import knn_hits
from livefactor_kernels.spec.presets import preset

BY_USER = {"ml1m": True, "retail": False}
ORDERS = {"time": in_time, "shuffled": shuffled}
WINDOWS = 10
"""Number of equal parts of the stream in test-then-learn."""

NEXT_TUNED_PART = TUNED_PART["retail"]
"""Share of every stream that settings are tuned on."""
NEXT_KNN_GRID = grid(
    kind=("cosine", "conditional"), shrinkage=(20, 50, 100), half_life=(30, 60, 100), repeats=(2, 3, 4)
)
NEXT_GRIDS: dict[str, dict[str, list[dict[str, float | str]]]] = {
    "retail": {
        "popular_decayed": POPULAR_GRID,
        "own_first": POPULAR_GRID,
        "knn": NEXT_KNN_GRID,
        "clicks_sgd": CLICKS_GRID,
        "purchases_sgd": PURCHASES_GRID,
        "clicks_tuned": grid(half_life=(1, 1.5, 3), weight=(0.5, 1, 2), l2=(0.001, 0.003)),
        "clicks_repeats": grid(repeat=(0.05, 0.1, 0.2, 0.5)),
        "purchases": grid(repeat=(1, 1.5, 2), bias_rate=(0.05, 0.2, 0.4, 1)),
    },
    "news": {
        "popular_decayed": POPULAR_GRID,
        "knn": NEXT_KNN_GRID,
        "clicks_sgd": CLICKS_GRID,
        "clicks": grid(),
        "news": grid(),
    },
}
NEXT_OURS = {
    name: [key for key in grids if key not in ("popular_decayed", "own_first", "knn")]
    for name, grids in NEXT_GRIDS.items()
}
STREAMED_GRIDS = {
    "ratings_sgd": grid(rate=(0.25, 0.5, 1, 2), l2=(0.003, 0.01, 0.03), k=(16, 32)),
    "ratings": grid(l2=(0.07, 0.1, 0.15), bias_l2=(0.02, 0.05), k=(16, 32)),
}
MULTI_PASS_GRID = grid(rate=(0.005, 0.01, 0.02), l2=(0.02, 0.04, 0.06, 0.1), k=(16, 64))


def thinned(stream: Stream, part: int) -> Stream:
    """The events of one in `part` users."""
    kept = np.unique(stream.user_keys, return_inverse=True)[1] % part == 0
    times = None if stream.times is None else stream.times[kept]
    return Stream(stream.user_keys[kept], stream.item_keys[kept], stream.values[kept], times=times)


def all_parts(ratings_file: Path | None, extent: Extent) -> Iterator[Part]:
    """All parts, to be run in order.

    Without the file of ratings, only those that do not need it.
    """
    streams = {"retail": read_purchases()}
    if ratings_file is not None and ratings_file.exists():
        streams = {"ml1m": read_ratings(ratings_file)} | streams
    for name, stream in streams.items():
        stream = thinned(stream, extent.part)
        for order, divide in ORDERS.items():
            judgement = divide(numbered(stream, once=True), BY_USER[name])
            yield from Ranking(f"{name}_{order}", judgement, order == "shuffled", extent).parts()
            if name == "ml1m":
                yield from _rmse_parts(f"{name}_{order}", judgement, extent)
    yield from _next_parts("retail", thinned(streams["retail"], extent.part), extent)
    yield from _next_parts("news", thinned(news_stream(), extent.part), extent)
    films = ratings_file.parent if ratings_file is not None and ratings_file.exists() else None
    yield Part("content", lambda: _content(films, extent))
    yield Part("warm_start", lambda: _warm_start(films, extent))
    purchases = thinned(streams["retail"], extent.part)
    yield Part("adversarial", lambda: adversarial.figures(numbered(purchases, once=True), extent.seeds))
    yield Part("adapter", lambda: _adapter(films, extent))
    yield Part("forgetting", lambda: forgetting.figures(numbered(purchases, once=True)))
    yield Part("sessions", lambda: _sessions(films, extent))
    yield from adaptive.parts({name: thinned(each, extent.part) for name, each in streams.items()}, extent)


def _content(films: Path | None, extent: Extent) -> Figures:
    users = 300 if extent.part > 1 else 0
    return content.figures_of(content.sets_of(films, users), preset("auto"), extent.seeds)


def _warm_start(films: Path | None, extent: Extent) -> Figures:
    sets = content.sets_of(films, 300 if extent.part > 1 else 0)
    return warm_start.figures_of(sets, warm_start.with_starts(preset("auto")), extent.seeds)


def _adapter(films: Path | None, extent: Extent) -> Figures:
    """The figures of items with few events. None without the extra `adapt`."""
    try:
        import peft  # noqa: F401  # the part needs it and PyTorch
    except ModuleNotFoundError as missing:
        print(f"adapter: left out, because {missing.name} is missing (pip install 'livefactor[adapt]')")
        return {}
    from benchmarks.quality.depth import adapt

    users, steps = (300, 2) if extent.part > 1 else (0, adapt.STEPS)
    return adapt.suite_figures(content.sets_of(films, users), films, steps)


def _sessions(films: Path | None, extent: Extent) -> Figures:
    """The figures of sessions. None without their data, which are expected beside the films."""
    if films is None or not (films.parent / "ader-diginetica").exists():
        return {}
    clicks = diginetica(films.parent)
    if extent.part > 1:
        clicks = sessions.head(clicks, len(clicks.items) // 50)
    return sessions.figures(clicks, extent.of(sessions.GRID))


def _rmse_parts(prefix: str, judgement: Judgement, extent: Extent) -> Iterator[Part]:
    yield Part(f"{prefix}_multi_pass_rmse", lambda: _multi_pass(f"{prefix}_multi_pass", judgement, extent))
    for key, settings in STREAMED_GRIDS.items():
        yield Part(
            f"{prefix}_{key}_rmse", lambda k=key, s=settings: _streamed(prefix, k, s, judgement, extent)
        )


def _multi_pass(prefix: str, judgement: Judgement, extent: Extent) -> Figures:
    epochs: dict[str, int] = {}

    def worth(settings: Settings) -> float:
        error, epochs[str(settings)] = ratings.best_epochs(judgement.tuning, settings)
        return -error

    choice = pick(extent.of(MULTI_PASS_GRID), worth)
    chosen_epochs = epochs[str(choice.settings)]
    choice = Choice({**choice.settings, "epochs": chosen_epochs}, choice.size, -choice.value)
    return _rmse(prefix, judgement, choice, extent, ratings.multi_pass)


def _streamed(
    prefix: str, key: str, settings: list[dict[str, Any]], judgement: Judgement, extent: Extent
) -> Figures:
    learn = partial(ratings.streamed, key=key)

    def worth(settings: Settings) -> float:
        model = learn(judgement.tuning.learned, 0, **settings)
        return -ratings.error_of(model, judgement.tuning.judged)

    choice = pick(extent.of(settings), worth)
    choice = Choice(choice.settings, choice.size, -choice.value)
    return _rmse(f"{prefix}_{key}", judgement, choice, extent, learn)


def _rmse(
    prefix: str, judgement: Judgement, choice: Choice, extent: Extent, learn: Callable[..., ratings.Predicts]
) -> Figures:
    errors, seconds = [], []
    for seed in range(extent.seeds):
        started = time.process_time()
        model = learn(judgement.final.learned, seed=seed, **choice.settings)
        seconds.append(time.process_time() - started)
        errors.append(ratings.error_of(model, judgement.final.judged))
    return {
        f"{prefix}_rmse": float(np.mean(errors)),
        f"{prefix}_rmse_spread": max(errors) - min(errors),
        f"{prefix}_events_per_s": len(judgement.final.learned) / float(np.mean(seconds)),
    } | chosen(prefix, choice)


def _next_parts(name: str, stream: Stream, extent: Extent) -> Iterator[Part]:
    def hits_of(key: str, part: Stream, settings: Settings, seed: int) -> np.ndarray:
        if key == "popular_decayed":
            return popular_hits(part, settings["half_life"])  # type: ignore[arg-type]
        if key == "own_first":
            return own_first_hits(part, settings["half_life"])  # type: ignore[arg-type]
        if key == "knn":
            return knn_hits(numbered(part, once=False), **settings)  # type: ignore[arg-type]
        preset_key = key.removesuffix("_tuned").removesuffix("_repeats")
        return model_hits(settled(preset_key, seed=seed, **settings), part)  # type: ignore[arg-type]

    for key, settings in NEXT_GRIDS[name].items():
        prefix, tried = f"{name}_next_{key}", extent.of(settings)
        seeds = extent.seeds if key in NEXT_OURS[name] else 1
        yield Part(
            prefix,
            lambda p=prefix, k=key, t=tried, s=seeds: _next(p, stream, t, s, lambda *a: hits_of(k, *a)),
        )


def _next(
    prefix: str, stream: Stream, settings: list[dict[str, float | str]], seeds: int,
    hits_of: Callable[[Stream, Settings, int], np.ndarray],
) -> Figures:  # fmt: skip
    """Recall@10 of the whole stream, of the part after tuning, and of each window."""
    tuned = int(len(stream) * NEXT_TUNED_PART)
    choice = pick(settings, lambda each: float(hits_of(stream.head(tuned), each, 0).mean()))
    hits = np.mean([hits_of(stream, choice.settings, seed) for seed in range(seeds)], axis=0)
    figures: Figures = {
        f"{prefix}_recall10": float(hits.mean()),
        f"{prefix}_recall10_later": float(hits[tuned:].mean()),
    }
    for window, part in enumerate(np.array_split(hits, WINDOWS), 1):
        figures[f"{prefix}_recall10_window_{window:02}"] = float(part.mean())
    return figures | chosen(prefix, choice)
