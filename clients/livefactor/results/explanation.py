"""Why a score is what it is, as plain values. `Auditor.explain` returns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.position import Position, position_of
from livefactor.results.answers import spec_name
from livefactor.results.tables import Table, rows_as_columns


@dataclass(frozen=True, slots=True)
class ScorePart:
    """A source of a score. value: what it says of the item. mean, scale: of its values over all
    items. weight: as the mix has learned it. amount: what it adds to the score.
    """

    name: str
    value: float
    mean: float
    scale: float
    weight: float
    amount: float


@dataclass(frozen=True, slots=True)
class CarryingEvent:
    """An event that the model remembers of the user. label: of the item, "" for none. visits_ago:
    visits since it. effect: the score minus the score without this event.
    """

    item_id: int
    label: str
    value: float
    weight: float
    visits_ago: int
    effect: float


@dataclass(frozen=True, slots=True)
class TouchingUpdate:
    """A record of the log that names the user or the item.

    kind: such as INTERACTIONS. producer_id: "" for a batch without a producer. time_us: when the
    server got it, microseconds since 1970. user_rows, item_rows, both_rows: how many of its rows
    name the user, the item, and both.
    """

    revision: int
    kind: str
    producer_id: str
    epoch: int
    sequence: int
    time_us: int
    user_rows: int
    item_rows: int
    both_rows: int


@dataclass(frozen=True, slots=True, repr=False)
class ScoreExplanation(Table):
    """A score at one revision, and what it is made of.

    score = (((mean + user_bias) + item_bias) + product) + gain, each sum rounded to float32; the
    numbers have the bits that `Scorer.score` gives at this revision. product: the dot product of
    user_factors and item_factors, float32[k] each. gain: from counts. parts: the experts of a mix,
    whose amounts add up to the score, or the parts of the gain. events: of the user, the largest
    effects first. remembered_events: how many the model remembers. events_truncated: it has
    forgotten earlier ones. updates: the newest first, as far as the log was searched, which is from
    searched_from on.
    """

    position: Position
    spec_id: str
    user_known: bool
    item_known: bool
    score: np.float32
    mean: np.float32
    user_bias: np.float32
    item_bias: np.float32
    product: np.float32
    gain: np.float32
    user_factors: npt.NDArray[np.float32]
    item_factors: npt.NDArray[np.float32]
    parts: tuple[ScorePart, ...]
    events: tuple[CarryingEvent, ...]
    remembered_events: int
    events_truncated: bool
    updates: tuple[TouchingUpdate, ...]
    searched_from: int
    user_label: str
    item_label: str

    def columns(self) -> dict[str, Any]:
        """One row for each event, with the fields of `CarryingEvent`."""
        return rows_as_columns(CarryingEvent, self.events)

    def __repr__(self) -> str:
        terms = f"{self.mean} + {self.user_bias} + {self.item_bias} + {self.product} + {self.gain}"
        return f"ScoreExplanation({self.score} = {terms}, revision {self.position.revision})"


def explanation_of(message: Any) -> ScoreExplanation:
    """Convert a `livefactor.v1.ExplainResponse` message to plain values."""
    terms = ("score", "mean", "user_bias", "item_bias", "product", "gain")
    return ScoreExplanation(
        position=position_of(message.position),
        spec_id=spec_name(message.spec_id),
        user_known=message.user_known,
        item_known=message.item_known,
        **{name: np.float32(getattr(message, name)) for name in terms},
        user_factors=np.array(message.user_factors, np.float32),
        item_factors=np.array(message.item_factors, np.float32),
        parts=tuple(
            ScorePart(one.name, one.value, one.mean, one.scale, one.weight, one.amount)
            for one in message.parts
        ),
        events=tuple(
            CarryingEvent(one.item_id, one.item_label, one.value, one.weight, one.visits_ago, one.effect)
            for one in message.events
        ),
        remembered_events=message.remembered_events,
        events_truncated=message.events_truncated,
        updates=tuple(
            TouchingUpdate(
                one.revision, one.kind, one.producer_id, one.epoch, one.sequence, one.time_us, one.user_rows,
                one.item_rows, one.both_rows,
            )
            for one in message.updates
        ),
        searched_from=message.searched_from,
        user_label=message.user_label,
        item_label=message.item_label,
    )  # fmt: skip
