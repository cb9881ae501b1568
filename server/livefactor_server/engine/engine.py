"""One engine per model: the only writer of its log and its tables.

    handlers ── submit ─▶ queue ─▶ LOG stage: admit, append, sync, keys → rows ─▶ APPLY stage: kernel, publish, ack
    readers  ── gate (small reads) or pin (long reads) ─▶ the state at one published revision

Order of a commit, and why nothing acknowledged can be lost: a record is written and its sync has returned before it is
applied; it is applied and published before it is acknowledged. What is queued when a stage turns forms the next
group: throughput under load, latency when idle. Under load the disk writes one group while the LOG stage finds the
rows of the group before. A failed sync is final: the engine acknowledges nothing more and says why in `failure`; a
restart recovers from the log.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from livefactor_server.changes import InteractionsChange
from livefactor_server.engine.admission import Admission
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.judging.observer import Observer, ObserverSettings
from livefactor_server.log.store import Kind, Log, LogFailed, LogFull
from livefactor_server.metrics import EngineMetrics
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import Header, Logged, ModelState
from livefactor_server.snapshots.freezing import freeze
from livefactor_server.snapshots.store import FrozenState
from livefactor_server.statuses import Refused, exhausted, unavailable

GROUP_RECORDS_MAX = 256
GROUP_BYTES_MAX = 8 << 20
GROUPS_AHEAD_MAX = 2
"""Logged groups that may wait for the APPLY stage."""

RUN_WORK_MAX = 16_384
"""Events times `ModelSpec.work_of_event` that are applied under one hold of the gate, one larger record aside."""

IDLE_MARK_S = 0.010
"""After this long without a batch the log gets a mark, so that a torn tail can be told from damage."""

logger = logging.getLogger(__name__)

_Group = list[tuple[Submission, Logged]]
"""Durable records and the batches that wait for them."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine needs to know beside its model. Bytes; 0 pins nothing. observer: the judge."""

    queue_bytes_max: int = 64 << 20
    memory_bytes_max: int = 8 << 30
    backend: str = "cpu"
    observer: ObserverSettings = field(default_factory=ObserverSettings)


class Engine:
    """Runs a model's two stages. `submit` and the read methods may be called from any thread."""

    def __init__(
        self, name: str, state: ModelState, log: Log, settings: EngineSettings, hold_path: Path | None = None
    ) -> None:
        """hold_path: where a hold of updates is kept over a restart; None keeps it in memory."""
        self.name = name
        self.state = state
        self.log = log
        self.gate = Gate()
        self.failure: str | None = None
        self.torn = False
        self.metrics = EngineMetrics(name)
        self.observer = Observer(name, state, settings.observer, hold_path, self.gate.reading)
        self._admission = Admission(state, settings.memory_bytes_max, log.commit)
        self._queue: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()
        self._to_apply: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix=f"disk-{name}")
        self._durable: list[tuple[Submission, Header]] = []
        self._durable_rows = 0
        self._ahead = threading.BoundedSemaphore(GROUPS_AHEAD_MAX)
        self._budget = _Budget(settings.queue_bytes_max)
        self._published = threading.Condition()
        self._draining = False
        self._ended = False
        self._submitting = threading.Lock()
        self._log_thread = threading.Thread(target=self._log_stage, name=f"log-{name}", daemon=True)
        self._apply_thread = threading.Thread(target=self._apply_stage, name=f"apply-{name}", daemon=True)

    def start(self) -> None:
        """Start both stages."""
        self.metrics.watch(self)
        self._log_thread.start()
        self._apply_thread.start()

    # ------------------------------------------------------------------ handlers

    def submit(self, item: Submission, wait: bool) -> None:
        """Queue a batch. Raises Refused when draining, failed, or (without `wait`) when the queue is full.

        With `wait` the caller is held until there is room: that is a stream's flow control.
        """
        self._check_writable()
        if not self._budget.take(item.size, wait, lambda: self.failure is not None or self._draining):
            self._check_writable()
            raise exhausted("queue: full, try again later")
        with self._submitting:
            if self._draining:
                self._budget.give(item.size)
                raise unavailable("server: draining")
            self._queue.put(item)

    def _check_writable(self) -> None:
        if self.failure is not None:
            raise unavailable("model: writes are stopped, the log could not be written; see the server's log")
        if self._draining:
            raise unavailable("server: draining")

    @property
    def revision(self) -> int:
        """The published revision."""
        return self.state.revision

    def wait_for(self, revision: int, timeout_s: float | None, is_wanted: Callable[[], bool]) -> bool:
        """Wait until `revision` is published; False if the time is up first or, seen at a `wake`, nobody wants it any more.

        Raises Refused (UNAVAILABLE) when nothing more will be published.
        """

        def is_over() -> bool:
            return self.state.revision >= revision or self._ended or not is_wanted()

        with self._published:
            self._published.wait_for(is_over, timeout_s)
        if self.state.revision >= revision:
            return True
        if self._ended:
            raise unavailable("model: it takes no updates any more, the position will not be reached here")
        return False

    def wake(self) -> None:
        """Let those who wait for a revision look again."""
        with self._published:
            self._published.notify_all()

    def view(self) -> AbstractContextManager[FrozenState]:
        """The state at the published revision, frozen while updates go on."""
        return freeze(self.name, self.state, self.log.hash_name, self.gate)

    @property
    def queued_bytes(self) -> int:
        """Bytes of batches that are queued or being logged."""
        return self._budget.used

    def drain(self) -> None:
        """Accept nothing more, finish what was accepted, stop both stages, close the log."""
        with self._submitting:
            self._draining = True
            self._queue.put(None)
        self._budget.wake()
        self._log_thread.join()
        self._apply_thread.join()
        self._end()
        self._disk.shutdown()
        self.log.close()
        self.metrics.close()

    # ------------------------------------------------------------------ LOG stage

    def _log_stage(self) -> None:
        try:
            open_end = True
            while open_end:
                group, open_end = self._next_group()
                if group:
                    self._commit(group)
            self._hand_over()
        except BaseException:  # a bug or a log that cannot even be marked: stop writing, keep serving reads
            self._fail("the log stage stopped on an unexpected error")
            logger.exception("model %s: log stage", self.name)
            for item, _ in self._durable:
                item.finish(unavailable("model: writes are stopped"))
            self._refuse_queue()
        finally:
            self._to_apply.put(None)

    def _next_group(self) -> tuple[list[Submission], bool]:
        """What is queued now; waits for the first. The flag is False when the queue has ended."""
        first = self._first()
        if first is None:
            return [], False
        group, size = [first], len(first.received_body)
        while len(group) < GROUP_RECORDS_MAX and size < GROUP_BYTES_MAX:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return group, False
            group.append(item)
            size += len(item.received_body)
        return group, True

    def _first(self) -> Submission | None:
        try:
            return self._queue.get(timeout=IDLE_MARK_S)
        except queue.Empty:
            if self.failure is None:
                self._mark()
            return self._queue.get()

    def _mark(self) -> None:
        try:
            self.log.mark()
        except LogFull:
            pass  # the next group tries again
        except LogFailed as error:
            self._fail(str(error))

    def _commit(self, group: list[Submission]) -> None:
        """Admit, append and sync; what found no certain room ends the group, so that it is decided on the exact state."""
        admitted: list[Submission] = []
        rows = self._durable_rows
        for item in group:
            self._budget.give(item.size)
            try:
                if self.failure is not None:
                    raise unavailable("model: writes are stopped")
                if not self._admission.surely_fits(item.change, rows):
                    self._append(admitted)
                    self._hand_over()
                    admitted, rows = [], 0
                if self._admission.sequence(item):
                    self._check_hold(item)
                    self._make_fit(item)
                    admitted.append(item)
                    rows += item.change.rows
            except Refused as refusal:
                item.finish(refusal)
        self._append(admitted)
        if self._queue.empty():
            self._hand_over()

    def _check_hold(self, item: Submission) -> None:
        """Retries of what was acknowledged never come here: they get their answer while updates are on hold, too."""
        refusal = self.observer.refusal() if isinstance(item.change, InteractionsChange) else None
        if refusal is not None:
            self._admission.withdraw([item])
            raise refusal

    def _make_fit(self, item: Submission) -> None:
        if isinstance(item.change, InteractionsChange) and self._admission.surely_fits(item.change, 0):
            return
        try:
            self._admission.make_fit(item)
        except Refused:
            self._admission.withdraw([item])
            raise

    def _append(self, items: list[Submission]) -> None:
        """One commit group: durable when `log.append` has returned. Meanwhile the group before finds its rows."""
        if not items:
            return
        base = self.log.last_revision
        entries = [item.entry(base + 1 + i) for i, item in enumerate(items)]
        try:
            if self._durable:
                written = self._disk.submit(self.log.append, entries)
                self._hand_over()
                hashes = written.result()
            else:
                hashes = self.log.append(entries)
        except LogFull:
            self._refuse(items, exhausted("disk: full, nothing was logged, try again later"))
            return
        except LogFailed as error:
            self._fail(str(error))
            self._refuse(items, unavailable("model: writes are stopped, the log could not be written"))
            return
        self._durable = [
            (
                item,
                Header(
                    base + 1 + i,
                    item.producer,
                    item.epoch,
                    item.sequence,
                    item.salt,
                    item.received_hash,
                    item.rejects,
                    chain,
                ),
            )
            for i, (item, chain) in enumerate(zip(items, hashes, strict=True))
        ]
        self._durable_rows = sum(item.change.rows for item in items)

    def _hand_over(self) -> None:
        """Keys to rows, in log order, of the group that became durable last; on to the APPLY stage."""
        if not self._durable:
            return
        placed = self.state.place([item.change for item, _ in self._durable])
        group = [
            (item, Logged(header, item.change, rows))
            for (item, header), rows in zip(self._durable, placed, strict=True)
        ]
        self._durable, self._durable_rows = [], 0
        self._ahead.acquire()
        self._to_apply.put(group)

    def _refuse(self, items: list[Submission], refusal: Refused) -> None:
        self._admission.withdraw(items)
        for item in items:
            item.finish(refusal)

    def _refuse_queue(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            item.finish(unavailable("model: writes are stopped"))

    def _end(self) -> None:
        """Nothing more will be published, or nobody can say what will."""
        self._ended = True
        self.wake()

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._budget.wake()
        self._end()
        logger.critical("model %s: %s; no batch is acknowledged until a restart", self.name, reason)

    # ------------------------------------------------------------------ APPLY stage

    def _apply_stage(self) -> None:
        while (group := self._to_apply.get()) is not None:
            try:
                for run in self._runs(group):
                    if self.torn:
                        self._abandon(run)
                    else:
                        self._apply_or_tear(run)
            finally:
                self._ahead.release()

    def _runs(self, group: _Group) -> Iterator[_Group]:
        """The group in pieces of bounded work: how long readers may have to wait for the gate."""
        run: _Group = []
        work = 0
        for entry in group:
            more = entry[0].change.rows * self.state.spec.work_of_event
            if run and work + more > RUN_WORK_MAX:
                yield run
                run, work = [], 0
            run.append(entry)
            work += more
        yield run

    def _apply_or_tear(self, run: _Group) -> None:
        try:
            self._apply(run)
        except (
            BaseException
        ):  # a bug: a record may be half applied, so nobody may read or write until a restart
            self.torn = True
            self._fail("the apply stage stopped on an unexpected error")
            logger.exception("model %s: apply stage", self.name)
            self._abandon(run)

    @staticmethod
    def _abandon(run: _Group) -> None:
        for item, _ in run:
            if item.result is None:
                item.finish(unavailable("model: writes are stopped"))

    def _apply(self, run: _Group) -> None:
        """Apply durable records, publish the last one's revision, acknowledge them."""
        learned = sum(record.change.rows for _, record in run if record.placed is not None)
        if learned:
            self.state.backend.wait_for_room(learned)
        records = [record for _, record in run]
        self.observer.before(records)
        with self.gate.writing():
            self.state.apply(records)
        with self._admission.lock:
            for item, _ in run:
                self._admission.settle(item)
        self.wake()
        for item, record in run:
            item.finish(_ack(item, record))
        self.metrics.observe([item for item, _ in run], time.perf_counter())
        self.observer.after()


def _ack(item: Submission, record: Logged) -> Ack:
    header = record.header
    last = header.sequence if item.change.kind == Kind.OPEN_PRODUCER else 0
    return Ack(header.revision, item.change.rows, header.rejects, epoch=header.epoch, last_sequence=last)


class _Budget:
    """Bytes that may be queued."""

    def __init__(self, limit: int) -> None:
        self._condition = threading.Condition()
        self._limit = limit
        self.used = 0

    def take(self, size: int, wait: bool, cancelled: object) -> bool:
        """Take `size` bytes, waiting for room if told to; False if there is none or `cancelled()` came true."""
        with self._condition:
            while self.used and self.used + size > self._limit:
                if not wait or cancelled():  # type: ignore[operator]
                    return False
                self._condition.wait()
            self.used += size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._condition:
            self.used -= size
            self._condition.notify()

    def wake(self) -> None:
        """Let waiting callers look at their cancel condition again."""
        with self._condition:
            self._condition.notify_all()
