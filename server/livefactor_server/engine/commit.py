"""The commit: what a group of batches goes through, in the order of the methods of `Commit`.

    admit ─▶ seal ─▶ append (write, sync) ─▶ place ─▶ apply ─▶ publish ─▶ acknowledge
    └──────────── LOG stage ──────────────────────┘   └─────── APPLY stage ────────┘

Nothing acknowledged can be lost: a record is written and its sync has returned before it is applied, and it is applied
and published before it is acknowledged. The stages overlap: while one group is applied the next one is written, and
while it is written the group before it is placed. Each group still goes through all steps in order, and the groups go
through each step in order; the assertions hold them to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from livefactor_server import changes
from livefactor_server.changes import Header, Record
from livefactor_server.engine.admission import Admission
from livefactor_server.engine.metrics import EngineMetrics
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.judging.observer import Observer
from livefactor_server.log.format import HASH_BYTES
from livefactor_server.log.store import Entry, Log
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState

RUN_WORK_MAX = 16_384
"""Events times `ModelSpec.work_of_event` that are applied under one hold of the gate, one larger record aside."""

Run = list[tuple[Submission, Record]]
"""Consecutive records that are applied under one hold of the gate, and the batches that wait for them."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a commit works on: one model's parts. wake: lets those who wait for a revision look again."""

    state: ModelState
    log: Log
    gate: Gate
    admission: Admission
    observer: Observer
    metrics: EngineMetrics
    wake: Callable[[], None]


@dataclass(slots=True)
class Commit:
    """One group. The stages call each method once and in this order; `admit` once for each batch."""

    parts: Parts
    batches: list[Submission] = field(default_factory=list)
    rows: int = 0
    entries: list[Entry] = field(default_factory=list)
    chain: bytes = b""
    headers: list[Header] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    # ------------------------------------------------------------------ LOG stage

    def admit(self, batch: Submission) -> None:
        """The batch joins the group if its sequence is next, no hold stands and its rows fit. Raises Refused."""
        assert not self.entries, "the group is sealed"
        if self.parts.admission.admit(batch):
            self.batches.append(batch)
            self.rows += batch.change.rows

    def seal(self) -> None:
        """Batches become log entries: numbered behind the log's last revision, bound to its chain."""
        log = self.parts.log
        self.entries = [batch.entry(log.last_revision + 1 + i) for i, batch in enumerate(self.batches)]
        self.chain = log.last_hash
        assert {len(entry.commitment) for entry in self.entries} == {HASH_BYTES}

    def append(self) -> None:
        """Write and sync: when this returns, all batches survive a power cut. Raises LogFull, LogFailed."""
        log, entries = self.parts.log, self.entries
        assert (log.last_revision + 1, log.last_hash) == (entries[0].revision, self.chain)
        hashes = log.append(entries)
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
                )
            )

    def place(self) -> None:
        """Keys become rows. Only durable records get rows, so a failed append has nothing to undo."""
        assert len(self.headers) == len(self.batches), "the group is not durable"
        asked = [batch.change for batch in self.batches]
        placements = changes.place(self.parts.state, asked)
        self.records = [Record(*each) for each in zip(self.headers, asked, placements, strict=True)]

    # ------------------------------------------------------------------ APPLY stage

    def runs(self) -> Iterator[Run]:
        """The group in pieces of bounded work: how long readers may have to wait for the gate."""
        run: Run = []
        work = 0
        for batch, record in zip(self.batches, self.records, strict=True):
            more = record.change.rows * self.parts.state.spec.work_of_event
            if run and work + more > RUN_WORK_MAX:
                yield run
                run, work = [], 0
            run.append((batch, record))
            work += more
        yield run

    def apply(self, run: Run) -> None:
        """The records change the state. Readers see all of the run or nothing; the judge has looked before."""
        parts, records = self.parts, [record for _, record in run]
        if learned := sum(record.change.rows for record in records if record.placement is not None):
            parts.state.backend.wait_for_room(learned)
        parts.observer.before(records)
        with parts.gate.writing():
            changes.apply(parts.state, records)

    def publish(self, run: Run) -> None:
        """Nothing of the run is in flight any more: retries are answered from the state, and waiting readers wake."""
        parts, last = self.parts, run[-1][1].header
        assert (parts.state.revision, parts.state.log_hash) == (last.revision, last.hash)
        with parts.admission.lock:
            for batch, _ in run:
                parts.admission.settle(batch)
        parts.wake()

    def acknowledge(self, run: Run) -> None:
        """Each batch, and each retry that waits for it, gets its answer. The judge concludes once they have it."""
        for batch, record in run:
            assert record.header.revision <= self.parts.state.revision
            batch.finish(_ack(record))
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
    )
