"""What a progressive run is worth: a number of each judged event, and what their mean says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from livefactor_kernels.backend import Backend
from livefactor_server.judging.metrics import ndcg_at, recall_at
from livefactor_server.tuning.progressive import TOP, Stream, item_means, popular_ranks, predictions, ranks


@dataclass(frozen=True, slots=True)
class Metric:
    """label: for people. larger_is_better. judge: a number of each event (`progressive.Judge`). naive: the same of a
    baseline that knows no users, float64[n] of every event, with its name. of_mean: the metric from the numbers' mean."""

    label: str
    larger_is_better: bool
    judge: Callable[[Backend, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    naive_label: str
    naive: Callable[[Stream, int], np.ndarray]
    of_mean: Callable[[float], float] = float

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is better than `other`."""
        return one > other if self.larger_is_better else one < other


def hits(places: np.ndarray) -> np.ndarray:
    """1 where an item is in the list, else 0: float64[n] of places int64[n]."""
    return recall_at(TOP, places)


def gains(places: np.ndarray) -> np.ndarray:
    """1 / log2(2 + place) where an item is in the list, else 0 (Järvelin, Kekäläinen 2002; one relevant item, so the
    ideal gain is 1): float64[n]."""
    return ndcg_at(TOP, places)


METRICS = {
    "recall": Metric(
        f"recall@{TOP}",
        True,
        lambda model, users, items, values: hits(ranks(model, users, items)),
        "most-popular, decayed",
        lambda stream, batch: hits(popular_ranks(stream, batch_events=batch)),
    ),
    "ndcg": Metric(
        f"NDCG@{TOP}",
        True,
        lambda model, users, items, values: gains(ranks(model, users, items)),
        "most-popular, decayed",
        lambda stream, batch: gains(popular_ranks(stream, batch_events=batch)),
    ),
    "rmse": Metric(
        "RMSE",
        False,
        lambda model, users, items, values: np.square(predictions(model, users, items) - values),
        "mean of the item so far",
        lambda stream, batch: np.square(item_means(stream, batch) - stream.values),
        lambda mean: float(np.sqrt(mean)),
    ),
}
