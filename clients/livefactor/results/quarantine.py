"""The batches in quarantine, and what was decided. `Models.quarantine` and its kin return them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from livefactor.position import Position, position_of


@dataclass(frozen=True, slots=True)
class QuarantinedBatch:
    """A batch that waits for a decision.

    revision: that of its record; it names the batch. producer, sequence: who sent it. time_us: when
    it arrived, microseconds since 1970. rows, bytes: its size. figure: what is an outlier: loss,
    gradient or new_keys. value, bound: the figure, and what it may be at most. in_log: False if the
    log does not have the batch, because the model was restored from a snapshot. It can only be
    dropped then, and is known by revision, rows and bytes alone.
    """

    revision: int
    producer: str
    sequence: int
    time_us: int
    rows: int
    bytes: int
    figure: str
    value: float
    bound: float
    in_log: bool


@dataclass(frozen=True, slots=True)
class QuarantineDecision:
    """What became of a batch.

    revision: that of the batch. position: that of the decision. accepted: rows that were learned.
    rejected: rows of an accepted batch that the spec or a limit does not allow any more.
    """

    revision: int
    position: Position
    accepted: int
    rejected: int


def batch_of(message: Any) -> QuarantinedBatch:
    """A QuarantinedBatch message as plain values."""
    return QuarantinedBatch(
        message.revision, message.producer_id, message.sequence, message.time_us, message.rows,
        message.bytes, message.figure, message.value, message.bound, message.in_log,
    )  # fmt: skip


def decision_of(message: Any) -> QuarantineDecision:
    """A QuarantineDecision message as plain values."""
    return QuarantineDecision(
        message.revision, position_of(message.position), message.accepted, message.rejected
    )
