"""The methods: how each learns from events, and the grid of settings that it is tuned on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality import als, closed_form
from benchmarks.quality.data import Events
from benchmarks.quality.metrics import Scores
from benchmarks.quality.search import grid
from benchmarks.quality.streamed import FAST_RECORD_EVENTS, RECORD_EVENTS, one_pass, settled

EPOCHS = 10
"""Epochs of our iALS. More epochs change only the fourth digit."""
IMPLICIT_EPOCHS = 15
"""Epochs of implicit's iALS, its default."""

# `rate` multiplies the learning rates of the preset.
CLICKS_GRID = grid(rate=(0.5, 1, 2), l2=(0.001, 0.01), k=(32, 64), negatives=(8, 16))
PURCHASES_GRID = grid(rate=(1, 2), l2=(0.001, 0.01, 0.03), k=(32, 64), negatives=(16, 32))
SOLVE_GRID = grid(unobserved=(0.3, 1), l2=(0.001, 0.003, 0.01), half_life=(0, 1.5), items=(512, 4096))
# In shuffled order nothing is recent, and time does not matter: rows are wider and solved more
# often.
SOLVE_SHUFFLED_GRID = grid(
    unobserved=(0.2, 0.3),
    l2=(0.004, 0.006, 0.01),
    k=(64, 128),
    item_events=(2, 8),
    half_life=(0,),
    items=(4096,),
)
SOFTMAX_GRID = grid(rate=(1, 2, 3), l2=(0.001, 0.03), group_events=(4, 8), proposal=("uniform", "popularity"))
SOFTMAX_FAST_GRID = grid(rate=(1, 2, 3, 4), l2=(0.001, 0.03, 0.1), group_events=(8, 16))
# k is as large as the largest k of livefactor. implicit always ranked best with its largest k.
IALS_GRID = grid(k=(64, 128), unobserved=(0.1, 0.3, 1, 3), l2=(0.001, 0.003, 0.01, 0.02))
IMPLICIT_GRID = grid(k=(128,), alpha=(0.7, 1.3, 2, 4, 8, 16), l2=(10, 20, 30, 60))
KNN_GRID = grid(kind=("cosine", "conditional"), shrinkage=(0, 5, 20, 100), neighbours=(0, 50, 200))
EASE_GRID = grid(l2=(20, 50, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000))
RECENCY_GRID = grid(l2=(300, 600, 1000, 2000), half_life=(2, 3, 5, 8, 20, 80))
POPULAR_GRID = grid(
    half_life=(300, 1000, 2000, 3000, 5000, 7000, 10_000, 20_000, 30_000, 50_000, 100_000, 300_000)
)


class Parts:
    """Events, and data that several settings of a method share, computed at first use."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self._matrix: np.ndarray | None = None
        self._counts: np.ndarray | None = None
        self._ease: tuple[float, np.ndarray] | None = None

    @property
    def matrix(self) -> np.ndarray:
        """float32[users, items]: 1 where there is an event, else 0."""
        if self._matrix is None:
            self._matrix = self.events.matrix()
        return self._matrix

    @property
    def counts(self) -> np.ndarray:
        """Co-occurrence counts, float32[items, items]."""
        if self._counts is None:
            self._counts = closed_form.counted_together(self.matrix)
        return self._counts

    def ease(self, l2: float) -> np.ndarray:
        """The weights of EASE. Only the last ones are cached, so grids vary l2 last."""
        if self._ease is None or self._ease[0] != l2:
            self._ease = l2, closed_form.ease_weights(self.counts, l2)
        return self._ease[1]


def _ease_recent(parts: Parts, seed: int, l2: float, half_life: float) -> Scores:
    history = parts.events.matrix(closed_form.recency(parts.events, half_life))
    return closed_form.linear(history, parts.ease(l2))


class Method(NamedTuple):
    """A method.

    Attributes:
        label: its name for people.
        learn: returns the scores for (parts, seed, settings).
        grid: the settings to tune; one empty setting if there is nothing to tune.
        random: whether seeds matter.
        recent: whether it uses the time order. It is not run in shuffled order.
        ours: whether it is livefactor in one pass.
        is_installed: whether its library is installed.
        shuffled: the grid in shuffled order, if it differs.
    """

    label: str
    learn: Callable[..., Scores]
    grid: list[dict[str, float | str]] = grid()
    random: bool = False
    recent: bool = False
    ours: bool = False
    is_installed: Callable[[], bool] = lambda: True
    shuffled: list[dict[str, float | str]] | None = None


def _ours(key: str, record_events: int = RECORD_EVENTS) -> Callable[..., Scores]:
    def learn(parts: Parts, seed: int, **settings: Any) -> Scores:
        return one_pass(settled(key, seed=seed, **settings), parts.events, record_events).scores

    return learn


METHODS: dict[str, Method] = {
    "popular": Method("most-popular", lambda parts, seed: closed_form.popular(parts.events)),
    "popular_decayed": Method(
        "decayed most-popular",
        lambda parts, seed, half_life: closed_form.popular(parts.events, half_life),
        POPULAR_GRID,
        recent=True,
    ),
    "knn": Method(
        "item-kNN, exact counts",
        lambda parts, seed, **settings: closed_form.item_knn(parts.matrix, parts.counts, **settings),
        KNN_GRID,
    ),
    "ease": Method(
        "EASE", lambda parts, seed, l2: closed_form.linear(parts.matrix, parts.ease(l2)), EASE_GRID
    ),
    "ease_recent": Method("EASE with recency-weighted history", _ease_recent, RECENCY_GRID, recent=True),
    "ials": Method(
        "iALS, our own batch implementation",
        lambda parts, seed, **settings: als.ials(parts.events, EPOCHS, seed, **settings),
        IALS_GRID,
        random=True,
    ),
    "implicit": Method(
        "iALS of the library implicit",
        lambda parts, seed, **settings: als.implicit_ials(parts.events, IMPLICIT_EPOCHS, seed, **settings),
        IMPLICIT_GRID,
        random=True,
        is_installed=lambda: als.AlternatingLeastSquares is not None,
    ),
    "clicks_sgd": Method(
        "livefactor `clicks_sgd`, tuned, one pass", _ours("clicks_sgd"), CLICKS_GRID, True, False, True
    ),
    "purchases_sgd": Method(
        "livefactor `purchases_sgd`, tuned, one pass",
        _ours("purchases_sgd"),
        PURCHASES_GRID,
        True,
        False,
        True,
    ),
    "softmax": Method(
        "livefactor softmax, 64 shared negatives, tuned, one pass",
        _ours("softmax"),
        SOFTMAX_GRID,
        True,
        False,
        True,
    ),
    "softmax_fast": Method(
        "livefactor softmax, k = 32, B = 1,024, no histories, 64 shared negatives, tuned, one pass",
        _ours("softmax_fast", FAST_RECORD_EVENTS),
        SOFTMAX_FAST_GRID,
        True,
        False,
        True,
    ),
    "clicks": Method(
        "livefactor `clicks`, as shipped, one pass", _ours("clicks"), random=True, recent=True, ours=True
    ),
    "clicks_tuned": Method(
        "livefactor `clicks`, tuned, one pass",
        _ours("clicks"),
        SOLVE_GRID,
        True,
        False,
        True,
        shuffled=SOLVE_SHUFFLED_GRID,
    ),
}
