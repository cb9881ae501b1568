"""A model that follows a leader: the records that come from there are logged and applied here.

    entries of the leader ─▶ verify commitments and chain ─▶ append, sync ─▶ read back ─▶ apply

The log gets the same records with the same chain hashes. How they lie in groups is each server's
own. They are applied as a replay applies them, so the state at a revision is the leader's. A record
that asks for another state, such as a switch of the spec, is logged alone. The caller then opens
the model again, which computes that state.

While a model follows, `Engine.leader` keeps everything else from its log.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from livefactor_kernels.cpu import CpuModel
from livefactor_server.engine.engine import Engine
from livefactor_server.log.acts import ALONE
from livefactor_server.log.columns import Columns
from livefactor_server.log.errors import LogError
from livefactor_server.log.following import Follower
from livefactor_server.log.format import (
    HASH_IDS,
    Entry,
    Erasure,
    Kind,
    Record,
    commitment_of,
    hash_function,
)
from livefactor_server.log.packing import PRODUCERS_MAX, TIME_SPAN_US, pack_group
from livefactor_server.snapshots import replay

COMMIT_RECORDS_MAX, COMMIT_BYTES_MAX = 1024, 8 << 20
"""Maximum records of a commit, and the bytes of bodies after which no more are added."""

HELD_EVENTS, HELD_RECORDS = 16_384, 1024
"""Events and records after which the gate is given up, so that readers wait for a bounded time."""

RESTATING = frozenset({Kind.SWITCH, Kind.ROLLBACK, Kind.ERASED})
"""Kinds of records after which the state is another one, which is computed from the log."""


class Mismatch(Exception):
    """What the leader sent does not continue this log."""


class Applier:
    """Takes the leader's records into one model. One thread uses it.

    Attributes:
        is_restated: whether the last record asks for another state, so that the model must be
            opened again. Nothing more is taken then.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        """`folder` is that of the model's log."""
        self._engine = engine
        self._reader = Follower(folder, engine.state.revision)
        self.is_restated = False

    def take(self, entries: Sequence[Entry], last_hash: bytes) -> None:
        """Logs and applies records. When it returns, they are durable and published.

        `last_hash` is the chain hash of the last one, 32 bytes.

        Raises:
            Mismatch: they do not continue the log, or bytes differ from what the leader hashed.
                Nothing was logged.
            LogError: the log cannot be written.
        """
        engine, log = self._engine, self._engine.log
        self._verify(entries, last_hash)
        for commit in _commits(entries):
            try:
                began = time.perf_counter()
                log.append(commit)
                engine.metrics.observe_append(time.perf_counter() - began)
            except LogError as error:
                engine.fail(str(error))
                raise
            if commit[0].kind in RESTATING:
                self.is_restated = True
                return
        try:
            self._apply()
        except BaseException:
            engine.tear("a record of the leader could not be applied")
            raise
        engine.wake()

    def _verify(self, entries: Sequence[Entry], last_hash: bytes) -> None:
        log = self._engine.log
        new_hash, previous = hash_function(log.hash_name), log.last_hash
        for number, entry in enumerate(entries, log.last_revision + 1):
            if entry.revision != number:
                raise Mismatch(f"revision {number} expected, the leader sent {entry.revision}")
            try:
                kept = Erasure.from_bytes(entry.erasure).current if entry.erasure else entry.commitment
            except (ValueError, struct.error) as error:
                raise Mismatch(f"of revision {number}, {error}") from None
            if commitment_of(new_hash, entry.salt, entry.rejects, entry.body) != kept:
                raise Mismatch(f"the payload of revision {number} is not the one that the leader hashed")
        for commit in _commits(entries):
            packed, _ = pack_group(commit, previous, HASH_IDS[log.hash_name], new_hash)
            previous = packed.last
        if previous != last_hash:
            raise Mismatch(f"the chain hash of revision {entries[-1].revision} is not the leader's")

    def _apply(self) -> None:
        engine, state = self._engine, self._engine.state
        for records in self._reader.read(engine.log.last_revision):
            for part in _held(records):
                began = time.perf_counter()
                backend = state.backend
                backend.wait_for_room(HELD_EVENTS)
                with engine.gate.writing():
                    replay.apply_groups(state, [part])
                if state.backend is not backend:
                    # After an eviction readers would go on with the old tables.
                    if isinstance(backend, CpuModel):
                        backend.head.withdraw()
                    engine.on_switch()
                engine.metrics.observe_apply(len(part), time.perf_counter() - began)


def _commits(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Cuts the entries into commits that change no header: a group holds a span of time and a
    number of producers.
    """
    commit: list[Entry] = []
    producers, size = set[tuple[bytes, int]](), 0
    for entry in entries:
        producers.add((entry.producer, entry.epoch))
        if commit and (
            entry.kind in ALONE
            or commit[0].kind in ALONE
            or len(commit) == COMMIT_RECORDS_MAX
            or size >= COMMIT_BYTES_MAX
            or abs(entry.time_us - commit[0].time_us) > TIME_SPAN_US
            or len(producers) > PRODUCERS_MAX
        ):
            yield commit
            commit, producers, size = [], {(entry.producer, entry.epoch)}, 0
        commit.append(entry)
        size += len(entry.body)
    if commit:
        yield commit


def _held(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Cuts records into parts that one hold of the gate applies."""
    if isinstance(records, Columns):
        # Their bodies are small.
        for start in range(0, len(records), HELD_RECORDS):
            yield records[start : start + HELD_RECORDS]
        return
    start = events = 0
    for number, record in enumerate(records):
        events += record.count
        if events >= HELD_EVENTS:
            yield records[start : number + 1]
            start, events = number + 1, 0
    if start < len(records):
        yield records[start:]
