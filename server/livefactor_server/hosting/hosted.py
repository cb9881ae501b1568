"""A hosted model: its parts, and its description at one revision.

A description reads small facts under the gate. Only a root hash reads all rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.challenging.challengers import Challengers
from livefactor_server.challenging.sharing import Sharing
from livefactor_server.changes.content.releasing import Releaser
from livefactor_server.changes.history.rollback import Ranges
from livefactor_server.engine import promotion
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.metrics import Arrival
from livefactor_server.engine.readers import Reader
from livefactor_server.hosting import kernels
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.identity import Terms
from livefactor_server.hosting.keeper import Keeper
from livefactor_server.judging.board import Board
from livefactor_server.judging.hold import Hold
from livefactor_server.log.gaps import Gap
from livefactor_server.log.store import Log
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.replay import skipped_at
from livefactor_server.snapshots.store import root_hash_of


@dataclass(slots=True)
class Hosted:
    """The parts of one model."""

    name: str
    folder: Path
    engine: Engine
    keeper: Keeper
    forgetter: Forgetter
    board: Board | None = None
    challengers: Challengers | None = None
    terms: Terms = field(default_factory=Terms)
    _reader: Reader | None = None
    releaser: Releaser = field(init=False)

    def __post_init__(self) -> None:
        self.releaser = Releaser(self.engine)

    @property
    def term(self) -> int:
        """The newest term in the log."""
        return self.terms.term

    def keep_term(self) -> None:
        """Takes the newest term from the log, and keeps it durably.

        Raises:
            OSError: it cannot be written to the model's folder.
        """
        if (logged := self.engine.log.acts.term) > self.term:
            self.terms = replace(self.terms, term=logged)
            self.terms.save(self.folder)

    @property
    def reader(self) -> Reader:
        """Answers from the present state. Take it again for each call."""
        reader = self._reader
        if reader is None or reader.state is not self.engine.state:
            reader = self._reader = Reader(self.engine)
        return reader

    @property
    def sharing(self) -> Sharing | None:
        """The challenger that answers a share of the users."""
        return None if self.challengers is None else self.challengers.sharing

    def forget_reader(self) -> None:
        """Drops the reader of a state that is not in force any more, so that its memory is free."""
        self._reader = None

    def promote(self, spec: ModelSpec, progress: promotion.Progress | None = None) -> int:
        """Gives the model another spec while it serves. Returns the revision of the switch.

        See `Engine.promote`. The newest snapshot with this spec shortens the work. It may be one of
        a challenger (`replay.challenger_store`).
        """
        engine = self.engine
        backend = engine.state.backend_name
        kernels.prepare(spec, backend)
        start = partial(replay.start_of, self.folder, engine.log, backend)
        return engine.promote(spec, start, progress)

    def end(self) -> None:
        """Finishes accepted batches, and stops without a last snapshot."""
        self.engine.drain()
        self.stop(take_last=False)

    def stop(self, take_last: bool) -> None:
        """Stops the challengers, the keeper and the board. The engine is drained already.

        With `take_last` the keeper takes a last snapshot.
        """
        self.forgetter.stop()
        if self.challengers is not None:
            self.challengers.close(take_last)
        self.keeper.stop(take_last and self.engine.failure is None)
        if self.board is not None:
            self.board.stop()


@dataclass(frozen=True, slots=True)
class Description:
    """The facts about one model.

    Attributes:
        log_hash: chain hash at `revision`, 32 bytes.
        memory_bytes: bytes of memory of all parts of the model (`Engine.memory_bytes`).
        adapted_rate: factor on the learning rates of the spec, None for fixed rates.
        hold: the hold of updates, None without one.
        hold_snapshot_id: the newest snapshot from before the hold within all bounds, "" without
            one.
        root_hash: root hash of the state at `revision`, b"" if it was not requested.
        specs: (revision, logged bytes) of the known specs up to `revision`, oldest first. The last
            one is in force.
        skipped: the revisions that were rolled back (`changes/history/rollback.py`).
        gap: the revisions that the log lacks, None for a whole log.
        spec_revision: the revision from which `spec` is in force, None if it is not known yet.
        term: how often a follower took its leader's place.
        leader: the server that takes the updates, "" for this one.
    """

    name: str
    lineage: uuid.UUID
    revision: int
    spec: ModelSpec
    spec_id: str
    users: int
    items: int
    events: int
    backend: str
    log_hash: bytes
    log_bytes: int
    memory_bytes: int
    writable: bool
    adapted_rate: float | None = None
    hold: Hold | None = None
    hold_snapshot_id: str = ""
    root_hash: bytes = b""
    specs: tuple[tuple[int, bytes], ...] = ()
    spec_revision: int | None = None
    gap: Gap | None = None
    skipped: Ranges = ()
    term: int = 0
    leader: str = ""


def describe(
    hosted: Hosted, with_root_hash: bool = False, check: Callable[[], None] = lambda: None
) -> Description:
    """The facts about a model at its published revision.

    `check` is called again and again while the rows are hashed. If it raises an exception, the
    work ends with this exception.

    Raises:
        Refused: the memory is not sufficient to read all rows.
    """
    engine, state = hosted.engine, hosted.engine.state
    hold = engine.observer.hold
    with engine.gate.reading():
        users, items = state.backend.published
        found = Description(
            name=hosted.name,
            lineage=state.lineage,
            revision=state.revision,
            spec=state.spec,
            spec_id=state.spec_id,
            users=users,
            items=items,
            events=state.events,
            backend=state.backend_name,
            log_hash=state.log_hash,
            log_bytes=engine.log.size_bytes,
            memory_bytes=sum(engine.memory_bytes.values()),
            writable=engine.failure is None,
            adapted_rate=state.adapted_rate,
            hold=hold,
            gap=engine.log.gap,
            skipped=skipped_at(engine.log, state.revision),
            term=hosted.term,
            leader=engine.leader,
        )
    found = replace(found, **_specs(engine.log, found.revision))
    if hold is not None:
        good = [info for info in hosted.keeper.store.list() if info.revision <= hold.good_revision]
        found = replace(found, hold_snapshot_id=good[-1].snapshot_id if good else "")
    if not with_root_hash:
        return found
    with engine.view() as view:
        users, items = view.pin.counts
        return replace(
            found,
            revision=view.revision,
            users=users,
            items=items,
            events=int(view.small["events"][0]),
            log_hash=view.log_hash,
            root_hash=root_hash_of(view, lambda done, total: check())[0],
        )


def _specs(log: Log, revision: int) -> dict[str, Any]:
    """The fields of a description that tell the specs in force up to a revision."""
    switches = [(at, body) for at, body in sorted(log.switches.items()) if at <= revision]
    since = switches[-1][0] if switches else None if log.switches_from else log.first_revision
    return {"specs": ((log.first_revision, log.spec_body), *switches), "spec_revision": since}


class ProducerReport(NamedTuple):
    """A producer as the engine sees it.

    Attributes:
        last_sequence: the sequence of the last applied batch.
        waiting: batches that were admitted and are not applied yet.
        revision: the revision of the last applied batch, 0 if none is known any more.
    """

    id: bytes
    epoch: int
    last_sequence: int
    waiting: int
    revision: int
    arrival: Arrival | None


def producers_of(engine: Engine, limit: int) -> tuple[int, list[ProducerReport]]:
    """The number of producers of a model, and those that sent last, the newest first."""
    admission, arrivals = engine.admission, engine.metrics.arrivals
    table = admission.state.producers
    with admission.lock:
        frozen = [
            (key, producer.epoch, producer.last_sequence, producer.outcome(producer.last_sequence))
            for key, producer in table.items()
        ]
        waiting = admission.waiting()
    reports = [
        ProducerReport(
            key,
            epoch,
            sequence,
            waiting.get(key, 0),
            outcome.revision if outcome is not None else 0,
            arrivals.of(key),
        )
        for key, epoch, sequence, outcome in frozen
    ]
    newest = nlargest(limit, reports, key=_newness)
    return len(reports), newest


def _newness(one: ProducerReport) -> tuple[int, int, bytes]:
    return one.arrival.time_us if one.arrival is not None else 0, one.revision, one.id
