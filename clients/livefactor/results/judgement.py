"""The judge's measurements of a live model as plain values. `Models.describe` returns them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from livefactor.results.tables import Table, rows_as_columns


@dataclass(frozen=True, slots=True)
class JudgeFigure:
    """One metric over events that the judge scored before the model learned them.

    metric: loss, rmse, auc, sampled_recall@10, sampled_ndcg@10, recall@10 or ndcg@10. scorer:
    model, popular or popular_decayed. event_type: None if the figure covers all types. events:
    judged events in the window. windowed: mean over the window. decayed: mean with weights that
    halve with age. Both are NaN without enough events.
    """

    metric: str
    scorer: str
    event_type: int | None
    events: int
    windowed: float
    decayed: float


@dataclass(frozen=True, slots=True)
class JudgeEvent:
    """A problem or a change that the judge found.

    kind: drift, loss_not_finite, loss_above_window, factors_clamped or norms_growing. revision: the
    model's revision at that time. time_us: microseconds since 1970 UTC. before, after: the metric
    before and after a drift; for other kinds, the bound and the metric. worse: whether the model
    got worse.
    """

    kind: str
    metric: str
    revision: int
    time_us: int
    before: float
    after: float
    worse: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a model refuses updates, and since when.

    revision: the model's revision when the hold began. time_us: microseconds since 1970 UTC.
    good_revision: the newest revision whose figures were within all bounds; 0 if none is known.
    snapshot_id: the newest snapshot at or before that revision; empty if there is none.
    """

    reason: str
    revision: int
    time_us: int
    good_revision: int
    snapshot_id: str


@dataclass(frozen=True, slots=True, repr=False)
class Judgement(Table):
    """How good a live model is.

    since_revision: where judging began. revision: the newest state that was judged. judged_events:
    number of judged events. sampled_events: how many of them were ranked among sampled items.
    ranked_events: how many were ranked among all items. events: the last notices, the oldest first.
    good_revision: the newest revision whose figures were within all bounds; 0 if none was checked.
    row_norm: mean norm of the judged rows. clamped_share: fraction of their factors at the spec's
    bound. Both are NaN before the first check. drift_detection: False if the server does not have
    river installed. new_user_figures: figures over events of users that the model did not know when
    it scored the event. known_user_figures: over those of users that it knew. They are empty if the
    window has no such events.
    """

    since_revision: int
    revision: int
    judged_events: int
    sampled_events: int
    ranked_events: int
    figures: tuple[JudgeFigure, ...]
    events: tuple[JudgeEvent, ...]
    good_revision: int
    row_norm: float
    clamped_share: float
    drift_detection: bool
    new_user_figures: tuple[JudgeFigure, ...] = ()
    known_user_figures: tuple[JudgeFigure, ...] = ()

    def columns(self) -> dict[str, Any]:
        """One row for each figure, with the fields of `JudgeFigure`."""
        return rows_as_columns(JudgeFigure, self.figures)

    def __repr__(self) -> str:
        counts = (
            f"{self.judged_events} judged events, {len(self.figures)} figures, {len(self.events)} notices"
        )
        return f"Judgement({counts}, revision {self.revision})"

    def figure(self, metric: str, scorer: str = "model", event_type: int | None = None) -> JudgeFigure | None:
        """The figure of a metric, a scorer and an event type. None if there is no such figure."""
        for figure in self.figures:
            if (figure.metric, figure.scorer, figure.event_type) == (metric, scorer, event_type):
                return figure
        return None


def judgement_of(message: Any) -> Judgement:
    """Convert a `livefactor.v1.Judgement` message to plain values."""
    return Judgement(
        since_revision=message.since_revision,
        revision=message.revision,
        judged_events=message.judged_events,
        sampled_events=message.sampled_events,
        ranked_events=message.ranked_events,
        figures=_figures(message.figures),
        events=tuple(
            JudgeEvent(one.kind, one.metric, one.revision, one.time_us, one.before, one.after, one.worse)
            for one in message.events
        ),
        good_revision=message.good_revision,
        row_norm=message.row_norm,
        clamped_share=message.clamped_share,
        drift_detection=message.drift_detection,
        new_user_figures=_figures(message.new_user_figures),
        known_user_figures=_figures(message.known_user_figures),
    )


def _figures(messages: Iterable[Any]) -> tuple[JudgeFigure, ...]:
    return tuple(
        JudgeFigure(
            metric=one.metric,
            scorer=one.scorer,
            event_type=one.event_type if one.HasField("event_type") else None,
            events=one.events,
            windowed=one.windowed,
            decayed=one.decayed,
        )
        for one in messages
    )


def hold_of(message: Any) -> Hold:
    """Convert a `livefactor.v1.Hold` message to plain values."""
    return Hold(message.reason, message.revision, message.time_us, message.good_revision, message.snapshot_id)
