"""Promotion: a new spec, and the state that it gives, which is built beside the live one.

A rollback is a promotion whose spec stays: the new state skips records
(`changes/history/rollback.py`). An erasure is one, too: the new state is without its subjects
(`changes/history/erase.py`).

    caller's thread   check ─▶ start ─▶ follow the log until little of it is left
    LOG stage         wait for the APPLY stage ─▶ follow the rest ─▶ append SWITCH ─▶ swap states

The model learns and answers with its present spec until the swap. Updates wait while the rest is
followed, for `PAUSE_S` or a little more. A refusal, a drain or an error before the SWITCH record is
durable leaves the model as it was. `changes/history/switch.py` defines what the record means.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from livefactor_kernels.backend import create_backend
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes import (
    NO_REJECTS,
    Change,
    ErasedChange,
    Header,
    Record,
    ReplayError,
    Rollback,
    RollbackChange,
    SwitchChange,
)
from livefactor_server.changes.content.factors import misfit
from livefactor_server.changes.fitting import accepts_all, events_misfit, rows_misfit
from livefactor_server.changes.history.erase import Erased, Erasures
from livefactor_server.engine.admission import Admission
from livefactor_server.judging.observer import Observer
from livefactor_server.log.format import SALT_BYTES
from livefactor_server.log.store import Entry, Log, LogFull, LogGap
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.records import between
from livefactor_server.snapshots.replay import erasures_at, follow, origin, skipped_at
from livefactor_server.statuses import Refused, later, no_memory, precondition, unavailable

PAUSE_S = 0.05
"""Seconds of replay that the last step may have left. Updates wait for it."""

PATIENCE = 1.2
"""Factor on `PAUSE_S` after each round, because events may come as fast as they are learned."""

TOLD_EVERY_S = 10.0
"""Seconds between two lines of progress in the server's log."""

Start = Callable[[bytes], ModelState]
"""Gives a state with the spec of these bytes at an early revision of the log."""

Progress = Callable[[int, int], None]
"""Function of (revision of the new state, last revision of the log)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Erasing:
    """What an ERASED record will say, and what the new state is without from then on."""

    erased: Erased
    erasures: Erasures


@dataclass(slots=True)
class Promotion:
    """One promotion. `outcome` gets the revision of the switch, or a refusal.

    Attributes:
        name: name of the model.
        admission: the admission of the live engine.
        spec: the new spec, and `body` its bytes.
        check: is called again and again. Its exception ends the promotion.
        act: a rollback, whose revisions the new state skips, or an erasure, whose subjects it is
            without. The spec stays then. None switches the spec.
        state: the state with the new spec, None before it is started.
    """

    name: str
    admission: Admission
    log: Log
    spec: ModelSpec
    check: Callable[[], None]
    act: Rollback | Erasing | None = None
    body: bytes = b""
    state: ModelState | None = None
    outcome: Future[int] = field(default_factory=Future)
    started: float = field(default_factory=time.monotonic)
    _scans: bool = False
    _scanned: int = -1
    _told: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.body = spec_codec.encode(self.spec)
        self.spec = spec_codec.decode(self.body)

    def admit(self) -> None:
        """Checks what can be known before the work.

        Raises:
            Refused: FAILED_PRECONDITION with the reason.
        """
        if self.live.backend_name == "cuda":
            what = {Rollback: "roll a model back", Erasing: "forget"}.get(type(self.act), "switch the spec")
            raise precondition(f"model: backend cuda cannot {what} (docs/gpu.md)")
        if self.act is not None:
            # The model has learned everything with this spec.
            return
        if self.body == self.live.spec_body:
            raise precondition("spec: it is the one in force")
        if lacking := self.log.lacks:
            raise precondition(f"model: {lacking}, and another spec cannot learn them")
        if self.spec.admission != self.live.spec.admission:
            # Ids without rows were never counted against the limits of the tables.
            raise precondition("spec: admission cannot be changed; push the events to a new model")
        if self.spec.privacy != self.live.spec.privacy:
            # What users were promised, and what of it is spent, would mean something else.
            raise precondition("spec: privacy cannot be changed; make a new model")
        self._check_rows()
        known = [spec_codec.decode(body) for body in (self.log.spec_body, *self.log.switches.values())]
        accepts = all(accepts_all(self.spec, spec) for spec in known)
        # A log has factors only if one of its specs could take them.
        has_factors = not all(misfit(spec, 1) for spec in known)
        self._scans = bool(
            self.log.switches_from or not accepts or (has_factors and misfit(self.spec, self.live.spec.k))
        )

    @property
    def live(self) -> ModelState:
        """The state in force."""
        return self.admission.state

    def memory_counted(self) -> AbstractContextManager[None]:
        """Counts the memory of the new state (`Admission.with_second_state`).

        It compiles the kernels.
        """
        backend = create_backend(self.live.backend_name, self.spec)
        rows = backend.users.row_bytes, backend.items.row_bytes
        return self.admission.with_second_state(rows, lambda: self._page_bytes)

    def build(self, start: Start | None, progress: Progress | None) -> None:
        """Makes the new state, and follows the log until little of it is left.

        `start` is called for the state at the beginning. None means the empty state.

        Raises:
            Refused: an event or a row does not fit the new spec, the memory does not suffice, or
                `check` raised it.
        """
        try:
            begin = start or (lambda body: origin(self.log, self.live.backend_name, body))
            logger.info("model %s: spec %s learns the log", self.name, spec_codec.id_of(self.body))
            self.state = begin(self.body)
            last = self.log.last_revision
            self.state.skipped, self.state.erasures = skipped_at(self.log, last), erasures_at(self.log, last)
            if isinstance(self.act, Rollback):
                self.state.skipped = self.act.skipped
            if isinstance(self.act, Erasing):
                self.state.erasures = self.act.erasures
            pause_s, round_s = PAUSE_S, float("inf")
            while round_s > pause_s:
                started = time.monotonic()
                self._catch_up(progress or (lambda at, last: None))
                round_s, pause_s = time.monotonic() - started, pause_s * PATIENCE
        except MemoryError:
            raise no_memory("a second state") from None
        except (LogGap, ReplayError) as error:
            # A start does not read the part of the log that tells it (`Log.check_earlier`).
            what = "the state cannot be computed" if self.act else "another spec cannot learn them"
            raise precondition(f"model: {error}, and {what}") from None
        except OverflowError:
            self._check_rows()
            raise

    def _catch_up(self, progress: Progress) -> None:
        state, last = self.state, self.log.last_revision
        assert state is not None

        def tick() -> None:
            self.check()
            self.admission.check_second_state()
            self._tell(state.revision, last)
            progress(state.revision, last)

        tick()
        self._check_rows()
        if self._scans and last > self._scanned:
            found = events_misfit(between(self.log, self._scanned, last), self.spec, tick)
            if found:
                raise precondition(f"spec: the log has events that it does not accept: {found}")
            self._scanned = last
        follow(state, self.log, last, check=tick)

    def _check_rows(self) -> None:
        if found := rows_misfit(self.live, self.spec):
            raise precondition(f"spec: {found}")

    @property
    def lag(self) -> int:
        """The number of records that the new state has not learned yet."""
        return self.log.last_revision - (self.state.revision if self.state is not None else 0)

    def _tell(self, revision: int, last: int) -> None:
        now = time.monotonic()
        if now - self._told >= TOLD_EVERY_S:
            self._told = now
            logger.info(
                "model %s: spec %s has learned %d of %d records",
                self.name, spec_codec.id_of(self.body), revision, last,
            )  # fmt: skip

    @property
    def _page_bytes(self) -> int:
        if self.state is None:
            return 0
        return self.state.backend.users.page_bytes + self.state.backend.items.page_bytes

    @property
    def nbytes(self) -> int:
        """The memory of the new state, in bytes."""
        return sum(self.state.memory_bytes.values()) if self.state is not None else 0

    def refuse(self, refusal: Refused) -> None:
        """Ends the promotion with a refusal."""
        self.outcome.set_exception(refusal)

    def finish(self, revision: int, pause_s: float) -> None:
        """Ends the promotion, whose record has `revision`. Updates have waited `pause_s`."""
        logger.info(
            "model %s: spec %s is in force since revision %d; it took %.1f s, and updates waited %.3f s",
            self.name, spec_codec.id_of(self.body), revision, time.monotonic() - self.started, pause_s,
        )  # fmt: skip
        self.outcome.set_result(revision)

    # ------------------------------------------------------------------ LOG stage

    def judge(self, observer: Observer, state: ModelState) -> None:
        """The judge begins anew."""
        observer.judge(state)

    def complete(self) -> tuple[ModelState, Record]:
        """Follows the rest of the log, and appends the SWITCH, ROLLBACK or ERASED record. No batch
        is in flight.

        Returns the new state before this record, and the record.

        Raises:
            Refused: as `build`, or the disk is full. Nothing was logged.
            LogFailed: the log cannot be written any more.
        """
        try:
            self._catch_up(lambda at, last: None)
        except MemoryError:
            raise no_memory("a second state") from None
        except Exception as error:
            if isinstance(error, Refused):
                raise
            logger.exception("model %s: the promotion of a spec failed", self.name)
            raise unavailable("promotion: it failed; see the server's log") from None
        assert self.state is not None
        assert (self.state.revision, self.state.log_hash) == (self.log.last_revision, self.log.last_hash)
        return self.state, appended(self.log, self._change)

    @property
    def _change(self) -> Change:
        if self.act is None:
            return SwitchChange(self.body)
        if isinstance(self.act, Rollback):
            return RollbackChange(self.act.to_body())
        return ErasedChange(self.act.erased.to_body())


def appended(log: Log, change: Change) -> Record:
    """Appends a record that no producer sent. Only the LOG stage calls it.

    Raises:
        Refused: the disk is full. Nothing was logged.
        LogFailed: the log cannot be written any more.
    """
    salt = os.urandom(SALT_BYTES)
    revision, previous = log.last_revision + 1, log.last_hash
    commitment, now_us = log.seal(salt, b"", change.body), time.time_ns() // 1000
    entry = Entry(
        change.kind, revision, time_us=now_us, count=change.rows, body=change.body, salt=salt,
        commitment=commitment,
    )  # fmt: skip
    try:
        (own,) = log.append([entry])
    except LogFull:
        raise later("disk: it is full; nothing was logged") from None
    header = Header(revision, b"", 0, 0, salt, commitment, NO_REJECTS, own, previous, now_us)
    return Record(header, change, None)


@dataclass(slots=True)
class Solo:
    """A record that the LOG stage appends alone, and applies to the live state.

    `outcome` gets its revision, or a refusal.
    """

    admission: Admission
    log: Log
    change: Change
    outcome: Future[int] = field(default_factory=Future)

    def complete(self) -> tuple[ModelState, Record]:
        """See `Promotion.complete`. The state is the live one."""
        return self.admission.state, appended(self.log, self.change)

    def judge(self, observer: Observer, state: ModelState) -> None:
        """The state stays, and so does its judge."""

    def refuse(self, refusal: Refused) -> None:
        """Ends it with a refusal."""
        self.outcome.set_exception(refusal)

    def finish(self, revision: int, pause_s: float) -> None:
        """Ends it. Updates have waited `pause_s`."""
        self.outcome.set_result(revision)
