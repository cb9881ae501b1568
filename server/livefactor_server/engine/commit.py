"""The commit: the steps of a group of batches, in the order of the methods of `Commit`.

    admit ─▶ seal ─▶ append (write, sync) ─▶ place ─▶ apply ─▶ publish ─▶ acknowledge
    └──────────── LOG stage ──────────────────────┘   └─────── APPLY stage ────────┘

An acknowledged batch cannot be lost. The sync of a record returns before the record is applied. The
record is applied and published before its batch is acknowledged.

The stages overlap. While one group is applied, the next group is written. While that group is
written, the LOG stage places the group before it. A small group is applied by the LOG stage itself,
if the APPLY stage is idle. Each group passes all steps in order, and each
step takes the groups in order. The assertions check this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from livefactor_server import changes
from livefactor_server.changes import Change, Header, HeldChange, Record
from livefactor_server.engine.admission import Admission
from livefactor_server.engine.metrics import EngineMetrics
from livefactor_server.engine.submission import Ack, Submission, Wake
from livefactor_server.judging.observer import Observer
from livefactor_server.log.format import HASH_BYTES
from livefactor_server.log.store import Entry, Log
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import Refused

RUN_WORK_MAX = 16_384
"""Maximum of events times `ModelSpec.cost_of_event` under one hold of the gate.

A single record may exceed it.
"""

Run = list[tuple[Submission, Record]]
"""Consecutive records that one hold of the gate applies, each with the batch that waits for it."""


@dataclass(frozen=True)
class Parts:
    """The parts of a model that a commit uses. `wake` wakes the readers that wait for a
    revision.
    """

    state: ModelState
    log: Log
    gate: Gate
    admission: Admission
    observer: Observer
    metrics: EngineMetrics
    wake: Callable[[], None]

    @cached_property
    def cost_of_event(self) -> int:
        """`ModelSpec.cost_of_event` of the spec in force."""
        return self.state.spec.cost_of_event


@dataclass(slots=True)
class Commit:
    """One group of batches.

    The stages call each method once and in this order, except `admit`, which is called once per
    batch. `work` is the number of rows times `Change.work_of_row` and `ModelSpec.cost_of_event`.
    `appended` and `applied` are when the group was appended and when its last run was applied, from
    and to, in seconds of `time.perf_counter`.
    """

    parts: Parts
    batches: list[Submission] = field(default_factory=list)
    new_rows: int = 0
    work: int = 0
    entries: list[Entry] = field(default_factory=list)
    chain: bytes = b""
    headers: list[Header] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    appended: tuple[float, float] = (0.0, 0.0)
    applied: tuple[float, float] = (0.0, 0.0)

    # ------------------------------------------------------------------ LOG stage

    def admit(self, batch: Submission) -> None:
        """Adds the batch to the group if its sequence is next, updates are not on hold, and its
        rows fit.

        Raises:
            Refused: the batch may not enter the log.
        """
        assert not self.entries, "the group is sealed"
        if self.parts.admission.admit(batch):
            self.batches.append(batch)
            self.new_rows += batch.new_rows
            self.work += self._work_of(batch.change)

    def _work_of(self, change: Change) -> int:
        return change.rows * change.work_of_row * self.parts.cost_of_event

    def seal(self) -> None:
        """Makes log entries of the batches, with the revisions after the log's last one."""
        log = self.parts.log
        self.entries = [batch.entry(log.last_revision + 1 + i) for i, batch in enumerate(self.batches)]
        self.chain = log.last_hash
        assert {len(entry.commitment) for entry in self.entries} == {HASH_BYTES}

    def append(self) -> None:
        """Writes and syncs the entries. When this returns, all batches survive a power failure.

        Raises:
            LogFull: the disk is full, and nothing was logged.
            LogFailed: the log cannot be written any more.
        """
        log, entries = self.parts.log, self.entries
        assert (log.last_revision + 1, log.last_hash) == (entries[0].revision, self.chain)
        start = time.perf_counter()
        hashes = log.append(entries)
        self.appended = start, time.perf_counter()
        self.parts.metrics.observe_append(self.appended[1] - start)
        assert (log.last_revision, log.last_hash) == (entries[-1].revision, hashes[-1])
        for batch, entry, own, previous in zip(
            self.batches, entries, hashes, [self.chain, *hashes[:-1]], strict=True
        ):
            self.headers.append(
                Header(
                    revision=entry.revision,
                    producer=batch.producer,
                    epoch=batch.epoch,
                    sequence=batch.sequence,
                    salt=batch.salt,
                    received_hash=batch.received_hash,
                    rejects=batch.rejects,
                    hash=own,
                    previous=previous,
                    time_us=entry.time_us,
                    is_held=isinstance(batch.change, HeldChange),
                )
            )

    def refuse(self, refusal: Refused) -> None:
        """Answers all batches with a refusal. Nothing of them was logged."""
        self.parts.admission.withdraw(self.batches)
        for batch in self.batches:
            batch.finish(refusal)

    def place(self) -> None:
        """Allocates table rows for the keys of the group.

        Only durable records get rows, so a failed append has nothing to revert.
        """
        assert len(self.headers) == len(self.batches), "the group is not durable"
        ordered = [batch.change for batch in self.batches]
        start = time.perf_counter()
        placements = changes.place(self.parts.state, ordered)
        self.parts.metrics.observe_place(time.perf_counter() - start)
        self.records = [Record(*each) for each in zip(self.headers, ordered, placements, strict=True)]

    # ------------------------------------------------------------------ APPLY stage

    def runs(self) -> Iterator[Run]:
        """Yields the group in runs of bounded work.

        The bound limits the time for which readers wait at the gate.
        """
        if self.work <= RUN_WORK_MAX:
            yield list(zip(self.batches, self.records, strict=True))
            return
        run: Run = []
        work = 0
        for batch, record in zip(self.batches, self.records, strict=True):
            more = self._work_of(record.change)
            if run and work + more > RUN_WORK_MAX:
                yield run
                run, work = [], 0
            run.append((batch, record))
            work += more
        yield run

    def apply(self, run: Run) -> None:
        """Applies the records of a run to the state.

        Readers see all records of the run or none. The judge reads the state before.
        """
        parts, records = self.parts, [record for _, record in run]
        if events := sum(record.change.rows for record in records if record.placement is not None):
            parts.state.backend.wait_for_room(events)
        parts.observer.before(records)
        with parts.gate.writing():
            start = time.perf_counter()
            changes.apply(parts.state, records)
            self.applied = start, time.perf_counter()
            parts.metrics.observe_apply(len(records), self.applied[1] - start)

    def publish(self, run: Run) -> None:
        """Removes the run's batches from the batches in flight.

        From now on the state answers their retries. Readers that wait for a revision wake up.
        """
        parts, last = self.parts, run[-1][1].header
        assert (parts.state.revision, parts.state.log_hash) == (last.revision, last.hash)
        with parts.admission.lock:
            for batch, _ in run:
                parts.admission.settle(batch)
        parts.metrics.arrivals.note([batch for batch, _ in run])
        parts.wake()

    def acknowledge(self, run: Run) -> None:
        """Answers each batch and each retry that waits for it. The judge concludes afterwards."""
        wakes: set[Wake] = set()
        try:
            for batch, record in run:
                assert record.header.revision <= self.parts.state.revision
                if batch.trace is not None:
                    batch.trace.step("queue", batch.started, self.appended[0])
                    batch.trace.step("log", *self.appended)
                    batch.trace.step("apply", *self.applied)
                wakes |= batch.answer(_ack(record))
        finally:
            for wake in wakes:
                wake()
        self.parts.metrics.observe([batch for batch, _ in run], time.perf_counter())
        self.parts.observer.after()


def _ack(record: Record) -> Ack:
    header, change = record.header, record.change
    return Ack(
        header.revision,
        change.rows,
        header.rejects,
        epoch=header.epoch,
        last_sequence=header.sequence if change.opens_producer else 0,
        is_held=header.is_held,
    )
