"""What a server's judge says of a live model, as plain values: see `Models.describe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JudgeFigure:
    """One figure of events that were scored before the model learned them.

    metric: loss, rmse, auc, sampled_recall@10, sampled_ndcg@10, recall@10 or ndcg@10. scorer: model, popular or
    popular_decayed. event_type: None of all events. events: judged events in the window. windowed, decayed: over the
    last of them, and with weights that halve; NaN if it cannot be told.
    """

    metric: str
    scorer: str
    event_type: int | None
    events: int
    windowed: float
    decayed: float


@dataclass(frozen=True, slots=True)
class JudgeEvent:
    """Something that was noticed. kind: drift, loss_not_finite, loss_above_window, factors_clamped or norms_growing.
    revision: the model's then; time_us: since 1970. before, after: the metric (or its bound, and the metric). worse:
    whether the model got worse."""

    kind: str
    metric: str
    revision: int
    time_us: int
    before: float
    after: float
    worse: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Why updates are refused, and since when. good_revision: the newest whose figures were within all bounds, 0 if none
    is known; snapshot_id: the newest snapshot at or before it, empty if there is none."""

    reason: str
    revision: int
    time_us: int
    good_revision: int
    snapshot_id: str


@dataclass(frozen=True, slots=True, repr=False)
class Judgement:
    """How good a live model is. since_revision: where judging began. revision: the newest state that was judged.

    judged_events, and of them sampled_events (ranked among drawn items) and ranked_events (among all). events: the last few,
    oldest first. good_revision: the newest whose figures were within all bounds, 0 if none was looked at. row_norm: mean norm
    of judged rows, and clamped_share of their factors at the spec's bound; NaN before the first look. drift_detection: False
    where the server lacks river.
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

    def __repr__(self) -> str:
        counts = (
            f"{self.judged_events} judged events, {len(self.figures)} figures, {len(self.events)} notices"
        )
        return f"Judgement({counts}, revision {self.revision})"

    def figure(self, metric: str, scorer: str = "model", event_type: int | None = None) -> JudgeFigure | None:
        """The figure of a metric and scorer, None if there is none."""
        for figure in self.figures:
            if (figure.metric, figure.scorer, figure.event_type) == (metric, scorer, event_type):
                return figure
        return None


def judgement_of(message: Any) -> Judgement:
    """A `livefactor.v1.Judgement` as plain values."""
    return Judgement(
        since_revision=message.since_revision,
        revision=message.revision,
        judged_events=message.judged_events,
        sampled_events=message.sampled_events,
        ranked_events=message.ranked_events,
        figures=tuple(
            JudgeFigure(
                metric=one.metric,
                scorer=one.scorer,
                event_type=one.event_type if one.HasField("event_type") else None,
                events=one.events,
                windowed=one.windowed,
                decayed=one.decayed,
            )
            for one in message.figures
        ),
        events=tuple(
            JudgeEvent(one.kind, one.metric, one.revision, one.time_us, one.before, one.after, one.worse)
            for one in message.events
        ),
        good_revision=message.good_revision,
        row_norm=message.row_norm,
        clamped_share=message.clamped_share,
        drift_detection=message.drift_detection,
    )


def hold_of(message: Any) -> Hold:
    """A `livefactor.v1.Hold` as plain values."""
    return Hold(message.reason, message.revision, message.time_us, message.good_revision, message.snapshot_id)
