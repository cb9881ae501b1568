"""The judge's results as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from livefactor_kernels.spec.model import Loss
from livefactor_server.judging import metrics
from livefactor_server.judging.scoring import RANKED_AT
from livefactor_server.judging.windows import Rows

MODEL, POPULAR, POPULAR_DECAYED = "model", "popular", "popular_decayed"
SCORERS = (MODEL, POPULAR, POPULAR_DECAYED)
TYPES_MAX = 16
"""Maximum number of event types with separate figures. The most frequent ones have them."""

LOSS_COLUMNS = {
    Loss.SQUARED: ("loss", *SCORERS),
    Loss.LOGISTIC: ("loss", "positive", *SCORERS, *(f"{scorer}_negative" for scorer in SCORERS)),
    Loss.BPR: ("loss",),
    Loss.IMPLICIT: ("loss",),
    Loss.SOFTMAX: ("loss",),
}
"""Columns of the window of losses.

For the squared loss they are the squared errors of each scorer. For the logistic loss they are the
scores of the event and of one negative (NaN if it has none).
"""
RANK_COLUMNS = SCORERS


class Figure(NamedTuple):
    """One metric of one scorer, windowed and decayed. `event_type` None stands for all events."""

    metric: str
    scorer: str
    event_type: int | None
    events: int
    windowed: float
    decayed: float


class Event(NamedTuple):
    """A finding: "drift" or one of `bounds.KINDS`.

    `revision` is the model's revision at the judgement.
    """

    kind: str
    metric: str
    revision: int
    time_us: int
    before: float
    after: float

    @property
    def worse(self) -> bool:
        """Whether the model got worse.

        More is better for hits, and less is better for all other metrics.
        """
        return (
            self.after < self.before
            if self.metric == f"sampled_recall@{RANKED_AT}"
            else not self.after < self.before
        )


@dataclass(frozen=True, slots=True)
class Report:
    """All results at one moment.

    Attributes:
        since_revision: where judging began.
        revision: the last judged revision.
        judged_events: number of judged events.
        ranked_events: number of events ranked against sampled items, and against all items.
        figures: the figures over all users.
        new_user_figures: over events of users that the model did not know; none if all were known.
        known_user_figures: over events of users that it knew; none if it knew nobody.
        events: the last drifts and warnings.
        good_revision: the newest revision whose figures were within all bounds, 0 if none was
            checked.
        row_norm: mean norm of the judged rows in the last block.
        clamped_share: share of their factors at the spec's bound.
        drift_detection: whether drift detection is on.
    """

    since_revision: int
    revision: int
    judged_events: int
    ranked_events: tuple[int, int]
    figures: tuple[Figure, ...]
    new_user_figures: tuple[Figure, ...]
    known_user_figures: tuple[Figure, ...]
    events: tuple[Event, ...]
    good_revision: int
    row_norm: float
    clamped_share: float
    drift_detection: bool


_Columns = dict[str, np.ndarray]
_Value = Callable[[_Columns, np.ndarray], float]


def _loss_figures(loss: Loss) -> Iterator[tuple[str, str, _Value]]:
    yield "loss", MODEL, lambda columns, weights: metrics.mean(columns["loss"], weights)
    for scorer in SCORERS:
        if loss == Loss.SQUARED:
            yield "rmse", scorer, lambda columns, weights, of=scorer: metrics.rmse(columns[of], weights)  # type: ignore[misc]
        elif loss == Loss.LOGISTIC:
            yield "auc", scorer, lambda columns, weights, of=scorer: _auc(columns, weights, of)  # type: ignore[misc]


def _auc(columns: _Columns, weights: np.ndarray, scorer: str) -> float:
    drawn = columns[f"{scorer}_negative"]
    there = ~np.isnan(drawn)
    return metrics.auc(
        np.concatenate((columns[scorer], drawn[there])),
        np.concatenate((columns["positive"] > 0, np.zeros(int(there.sum()), bool))),
        np.concatenate((weights, weights[there])),
    )


def _rank_figures(prefix: str) -> Iterator[tuple[str, str, _Value]]:
    for name, gain in (
        (f"{prefix}recall@{RANKED_AT}", metrics.recall_at),
        (f"{prefix}ndcg@{RANKED_AT}", metrics.ndcg_at),
    ):
        for scorer in SCORERS:
            yield (
                name,
                scorer,
                lambda columns, weights, of=scorer, gain=gain: metrics.mean(  # type: ignore[misc]
                    gain(RANKED_AT, columns[of]), weights
                ),
            )


def figures(
    loss: Loss,
    windows: Sequence[Rows],
    window_events: int,
    half_life_events: int,
    *,
    known: bool | None = None,
) -> Iterator[Figure]:
    """Yields all figures, over all events and over each of the most frequent event types.

    With fewer than two event types, there are no separate figures.

    Args:
        loss: the loss of the model.
        windows: the windows of losses, of ranks among drawn items, and of ranks among all items.
        window_events: number of judged events that the windowed figures cover.
        half_life_events: half-life of the decayed figures, in judged events.
        known: whether the model knew the users of the events. None for all events. For a group of
            users there are figures only if the window has such events, and none of event types.
    """
    names = list(_loss_figures(loss)), list(_rank_figures("sampled_")), list(_rank_figures(""))
    for (columns, types, users), named in zip(windows, names, strict=True):
        if not types.size:
            continue
        decayed = metrics.half_life_weights(types.size, half_life_events)
        windowed = (np.arange(types.size) >= types.size - window_events).astype(np.float64)
        of_users = np.ones(types.size, bool) if known is None else users == known
        if not of_users[-window_events:].any():
            continue
        kinds = _frequent(types[-window_events:]) if known is None else []
        groups = [(None, of_users), *((kind, types == kind) for kind in kinds)]
        for kind, mask in groups:
            part = {name: column[mask] for name, column in columns.items()}
            count = int(windowed[mask].sum())
            for metric, scorer, value in named:
                yield Figure(
                    metric, scorer, kind, count, value(part, windowed[mask]), value(part, decayed[mask])
                )


def _frequent(types: np.ndarray) -> list[int]:
    kinds, counts = np.unique(types, return_counts=True)
    if kinds.size < 2:
        return []
    order = np.argsort(-counts, kind="stable")[:TYPES_MAX]
    return sorted(int(kind) for kind in kinds[order])
