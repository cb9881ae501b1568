"""Lists the batches in quarantine, and carries out what an operator decides about them.

`changes/history/quarantine.py` says what that means.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from livefactor_server.changes import NO_REJECTS, AcceptedChange, DroppedChange, HeldChange
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.hosting.hosted import Hosted
from livefactor_server.log.errors import LogError
from livefactor_server.log.format import Record
from livefactor_server.log.store import Kind
from livefactor_server.statuses import Refused, later, precondition, unavailable

DECIDED_MAX = 1000
"""Maximum number of batches that one call decides."""

ANSWER_S_MAX = 60.0
"""Seconds after which a call gives up waiting for its record."""


class Waiting(NamedTuple):
    """A batch in quarantine.

    Attributes:
        revision: that of its HELD record.
        reason: the name of the figure that is an outlier, its value, and the bound. None if the log
            does not have the batch.
        in_log: whether the log has it. A model that was restored from a snapshot may lack it.
    """

    revision: int
    rows: int
    nbytes: int
    producer: bytes = b""
    sequence: int = 0
    time_us: int = 0
    reason: dict[str, Any] | None = None
    in_log: bool = False


class Decision(NamedTuple):
    """What became of a batch: the revision of the decision, and the numbers of learned and of
    rejected rows.
    """

    held: int
    revision: int
    learned: int = 0
    rejected: int = 0


def waiting(hosted: Hosted, check: Callable[[], None]) -> list[Waiting]:
    """The undecided batches, the oldest first. `check` is called again and again."""
    engine, found = hosted.engine, []
    for held in engine.state.quarantine.list():
        check()
        record = _record(engine, held.revision)
        if record is None:
            found.append(Waiting(*held))
        else:
            reason = HeldChange.from_log(bytes(record.body)).reason
            found.append(
                Waiting(*held, record.producer, record.sequence, record.time_us, reason, in_log=True)
            )
    return found


def decide(
    hosted: Hosted, revisions: Sequence[int], accept: bool, check: Callable[[], None]
) -> list[Decision]:
    """Accepts or drops batches, one after another. `check` is called before each.

    Raises:
        Refused: FAILED_PRECONDITION if no batch with one of the revisions waits. Nothing was
            decided then. RESOURCE_EXHAUSTED if another act is in progress, and as an update is
            refused. The text tells how many were decided before.
    """
    engine = hosted.engine
    missing = [each for each in revisions if each not in engine.state.quarantine]
    if missing:
        raise precondition(f"quarantine: no batch waits at revision {missing[0]}")
    if len(set(revisions)) < len(revisions):
        raise precondition("quarantine: a batch is named twice")
    made: list[Decision] = []
    for revision in revisions:
        try:
            check()
            with _alone(hosted):
                made.append(_accept(hosted, revision) if accept else _drop(engine, revision))
        except Refused as refusal:
            if made:
                refusal.text += f"; {len(made)} batches before revision {revision} are decided"
            raise
    return made


@contextmanager
def _alone(hosted: Hosted) -> Iterator[None]:
    """Keeps the state from being swapped, and other decisions from being made."""
    if hosted.forgetter.running is not None:
        raise later("quarantine: an erasure is in progress")
    with hosted.engine.no_promotion() as alone:
        if not alone:
            raise later("quarantine: a promotion, a rollback or another decision is in progress")
        yield


def _drop(engine: Engine, revision: int) -> Decision:
    _check_waits(engine, revision)
    return Decision(revision, engine.append(DroppedChange.of(revision)))


def _accept(hosted: Hosted, revision: int) -> Decision:
    engine = hosted.engine
    _check_waits(engine, revision)
    # An erasure that begins from here on may name rows of the batch.
    erases = len(engine.log.acts.erases)
    record = _record(engine, revision)
    if record is None:
        raise precondition(
            f"quarantine: the log does not have the batch of revision {revision}, so it can only be dropped"
        )
    held = HeldChange.from_log(bytes(record.body))
    change = AcceptedChange.of(held.batch, revision)

    def guard() -> None:
        _check_waits(engine, revision)
        if len(engine.log.acts.erases) != erases:
            raise later("quarantine: an erasure has begun")

    replies = queue.SimpleQueue[Submission]()
    item = Submission(
        change, change.body, b"", 0, 0, NO_REJECTS, engine.log.seal, lambda done: replies.put(done),
        spec=None, guard=guard, confirmations=engine.confirmations,
    )  # fmt: skip
    if rejected := change.rows_outside(engine.state.spec):
        item.reject_rows(rejected)
    engine.submit(item)
    try:
        result = replies.get(timeout=ANSWER_S_MAX).result
    except queue.Empty:
        raise unavailable("quarantine: the log gave no answer in time; list the quarantine again") from None
    if isinstance(result, Refused):
        raise result
    assert isinstance(result, Ack)
    if (screen := engine.observer.screen) is not None:
        screen.accept(held.reason["figure"], held.reason["value"])
    return Decision(revision, result.revision, result.accepted, result.rejects.count)


def _check_waits(engine: Engine, revision: int) -> None:
    if revision not in engine.state.quarantine:
        raise precondition(f"quarantine: no batch waits at revision {revision}")


def _record(engine: Engine, revision: int) -> Record | None:
    """The HELD record at a revision, or None if the log does not have it."""
    if revision <= engine.log.first_revision:
        return None
    try:
        record = next(engine.log.read(revision))
    except (LogError, StopIteration):
        return None
    return record if record.kind == Kind.HELD else None
