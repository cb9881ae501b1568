"""The metrics of a progressive run: a number per judged event, and a value of their mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from livefactor_kernels.solve.features import Bags
from livefactor_server.judging.metrics import ndcg_at, recall_at
from livefactor_server.judging.places import places, predictions, shift_of
from livefactor_server.tuning.progressive import TOP, Stream, item_means, popular_ranks


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a progressive run.

    Attributes:
        label: its name for people.
        larger_is_better: its direction.
        judge: computes a number for each event (`progressive.Judge`). Its argument `context_weight`
            multiplies what the context of an event adds to scores.
        naive: computes the same numbers, float64[n], for a baseline that does not know the users.
        naive_label: the name of that baseline.
        of_mean: computes the metric from the mean of the numbers.
    """

    label: str
    larger_is_better: bool
    judge: Callable[..., np.ndarray]
    naive_label: str
    naive: Callable[[Stream, int], np.ndarray]
    of_mean: Callable[[float], float] = float

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is better than `other`."""
        return one > other if self.larger_is_better else one < other


def hits(places: np.ndarray) -> np.ndarray:
    """1 if the item is in the top-k list, else 0: float64[n] from places int64[n]."""
    return recall_at(TOP, places)


def gains(places: np.ndarray) -> np.ndarray:
    """1 / log2(2 + place) in the top-k list, else 0: float64[n] from places int64[n].

    Source: Järvelin and Kekäläinen, 2002. With one relevant item, the ideal gain is 1.
    """
    return ndcg_at(TOP, places)


def list_places(
    model: Any, users: np.ndarray, items: np.ndarray, values: np.ndarray, context: Bags | None = None,
    context_weight: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """The place of each event's item in its user's list, int64[n] (`judging.places`).

    `context` is that of the events. `values` are not used.
    """
    return places(model, users, items, TOP, shift_of(model, context, context_weight))


def squared_errors(
    model: Any, users: np.ndarray, items: np.ndarray, values: np.ndarray, context_weight: float = 1.0
) -> np.ndarray:
    """The squared error of each event's prediction, float64[n]. Ratings have no context."""
    errors: np.ndarray = np.square(predictions(model, users, items) - values)
    return errors


METRICS = {
    "recall": Metric(
        f"recall@{TOP}",
        True,
        lambda *events, **options: hits(list_places(*events, **options)),
        "most-popular, decayed",
        lambda stream, batch: hits(popular_ranks(stream, batch_events=batch)),
    ),
    "ndcg": Metric(
        f"NDCG@{TOP}",
        True,
        lambda *events, **options: gains(list_places(*events, **options)),
        "most-popular, decayed",
        lambda stream, batch: gains(popular_ranks(stream, batch_events=batch)),
    ),
    "rmse": Metric(
        "RMSE",
        False,
        squared_errors,
        "mean of the item's earlier values",
        lambda stream, batch: np.square(item_means(stream, batch) - stream.values),
        lambda mean: float(np.sqrt(mean)),
    ),
}
