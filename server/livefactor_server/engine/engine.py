"""The engine of a model: the only writer of its log and its tables. It runs the stages of `Commit`.

    handlers ── submit ─▶ queue ─▶ LOG stage: admit, seal, append, place
                                       │
                                       ▼
                                   APPLY stage: apply, publish, acknowledge
                                   (for a small group the LOG stage does this, too)

    readers  ── version (small reads) or pin (long reads) ─▶ the state at one published revision

When a stage becomes free, it takes the batches in its queue as the next group. This gives
throughput under load, and low latency without load. Under load the disk writes one group while the
LOG stage places the group before. A small group takes one thread all the way, because waking
another one costs more than its work.

A failed sync is final. The engine then acknowledges no further batch, and `failure` has the reason.
A restart recovers from the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server import changes
from livefactor_server.changes import Change, Rollback
from livefactor_server.engine import dimension
from livefactor_server.engine.admission import Admission
from livefactor_server.engine.budget import Budget
from livefactor_server.engine.commit import Commit, Parts, Run
from livefactor_server.engine.evicting import Evicting, Evictor
from livefactor_server.engine.handover import Handover
from livefactor_server.engine.intake import Intake
from livefactor_server.engine.metrics import EngineMetrics
from livefactor_server.engine.new_ids import limits_of
from livefactor_server.engine.promotion import Erasing, Progress, Promotion, Solo, Start
from livefactor_server.engine.quotas import Quotas
from livefactor_server.engine.ratings import Recogniser
from livefactor_server.engine.settings import EngineSettings as EngineSettings
from livefactor_server.engine.submission import Confirmations, Submission, abandon
from livefactor_server.judging.observer import Observer
from livefactor_server.log.store import Log, LogFailed, LogFull
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.freezing import freeze
from livefactor_server.snapshots.store import FrozenState
from livefactor_server.statuses import NotLeader, Refused, late, later, unavailable

GROUPS_AHEAD_MAX = 2
"""Maximum number of logged groups that wait for the APPLY stage."""

SMALL_WORK_MAX = 4_096
"""A group with at most this work (`Commit.work`) is applied by the LOG stage, if the APPLY stage is
idle. The hand-over would cost more than the overlap saves.
"""

logger = logging.getLogger(__name__)


class Engine:
    """Runs the two stages of a model. Any thread may call `submit` and the read methods."""

    def __init__(self, name: str, state: ModelState, log: Log, settings: EngineSettings,
                 hold_path: Path | None = None) -> None:  # fmt: skip
        """Makes an engine that does not run yet.

        `hold_path` is the file that keeps a hold of updates across restarts. None keeps the hold in
        memory.
        """
        assert (state.revision, state.log_hash) == (log.last_revision, log.last_hash), (
            "the state and the log differ"
        )
        self.name = name
        self.state = state
        self.log = log
        # The reads of a GPU share memory for transfers.
        self.gate = Gate(is_shared=state.backend_name != "cuda")
        self.failure: str | None = None
        # The server that takes the updates in place of this one; "" for this one.
        self.leader = ""
        self.torn, self.switched = False, 0
        self.on_switch: Callable[[], None] = lambda: None
        self.metrics = EngineMetrics(name)
        self.observer = Observer(name, state, settings.observer, hold_path, self.gate.reading)
        needed = settings.ack_after_followers
        self.confirmations = Confirmations(needed, settings.ack_wait_s) if needed else None
        self._memory_bytes_max = settings.memory_bytes_max
        self.quotas = Quotas(name, settings.quotas)
        self._evictor = Evictor(name, log, self.metrics)
        self._parts = self._parts_of(state)
        self._promoting = threading.Lock()
        self._promotion: Promotion | None = None
        self._recogniser = Recogniser(name, state.spec, log, self.promote)
        self.dimension = dimension.Recogniser(name, lambda: self.state, log, self.promote)
        self._to_apply: Handover[Commit] = Handover(GROUPS_AHEAD_MAX)
        self._intake: Intake[Promotion | Solo] = Intake(self._to_apply, self._mark)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix=f"disk-{name}")
        self._durable: Commit | None = None
        self._budget = Budget(settings.queue_bytes_max)
        self._awaited: dict[Callable[[], None], int] = {}
        self._draining = False
        self._ended = False
        self._submitting = threading.Lock()
        self._log_thread = threading.Thread(target=self._log_stage, name=f"log-{name}", daemon=True)
        self._apply_thread = threading.Thread(target=self._apply_stage, name=f"apply-{name}", daemon=True)

    def _parts_of(self, state: ModelState) -> Parts:
        admission = Admission(
            state, self._memory_bytes_max, self.log.seal, self.observer.refusal, self.observer.item_bytes,
            *limits_of(self.quotas, (state.backend.users, state.backend.items)),
            screen=self.observer.screen,
        )  # fmt: skip
        return Parts(state, self.log, self.gate, admission, self.observer, self.metrics, self.wake)

    def start(self) -> None:
        """Starts both stages."""
        self.metrics.watch(
            lambda: self.state, self.log, self.observer, lambda: self.memory_bytes,
            lambda: self._promotion.lag if self._promotion is not None else 0,
            lambda: self._budget.used, lambda: self.failure is None,
        )  # fmt: skip
        self._parts.admission.warn_if_full(self.name)
        if not self.leader:
            self._recogniser.start()
        self._log_thread.start()
        self._apply_thread.start()

    # ------------------------------------------------------------------ handlers

    def submit(self, item: Submission) -> None:
        """Queues a batch. It waits until the queue has room, which is the flow control of a stream.

        Raises:
            Refused: the server drains, or the log has failed.
        """
        self._check_writable()
        if not self._budget.take(item.size, True, lambda: self.failure is not None or self._draining):
            self._check_writable()
        self.enqueue([item])

    def reserve(self, item: Submission) -> bool:
        """Takes room for a batch, which `enqueue` then queues. Returns False if the queue is full.

        Raises:
            Refused: the server drains, or the log has failed.
        """
        self._check_writable()
        return self._budget.take(item.size, False, lambda: False)

    def enqueue(self, items: Sequence[Submission]) -> None:
        """Queues batches that have room. If the server drains by now, it refuses them."""
        with self._submitting:
            is_open = not self._draining
            for item in items if is_open else ():
                self._intake.put(item)
        for item in () if is_open else items:
            self._budget.give(item.size)
            item.finish(unavailable("server: draining"))

    def _check_writable(self) -> None:
        if self.failure is not None:
            raise unavailable("model: writes are stopped after a failure; see the server's log")
        if self._draining:
            raise unavailable("server: draining")
        if self.leader:
            raise NotLeader(self.leader)

    @property
    def revision(self) -> int:
        """The published revision."""
        return self.state.revision

    @property
    def admission(self) -> Admission:
        """The admission of the state in force. A second state counts its memory there."""
        return self._parts.admission

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of memory of each part of the model. A promotion has a second state."""
        second = self._promotion.nbytes if self._promotion is not None else 0
        return self.state.memory_bytes | {"judge": self.observer.nbytes, "promotion": second}

    def has_reached(self, revision: int) -> bool:
        """Whether `revision` is published.

        Raises:
            Refused: UNAVAILABLE if the engine will not publish it.
        """
        if self.state.revision >= revision:
            return True
        if self._ended:
            raise unavailable("model: it accepts no updates any more, so the position cannot be reached")
        return False

    def await_revision(self, revision: int, call_back: Callable[[], None]) -> None:
        """Calls `call_back` when `revision` is published, or when the engine ends.

        The call comes from an engine thread, it may come more than once, and it must not block.
        After `await_revision` the caller checks `has_reached`, because the revision may be
        published already.
        """
        self._awaited[call_back] = revision

    def ignore(self, call_back: Callable[[], None]) -> None:
        """Ends the calls of `call_back`."""
        self._awaited.pop(call_back, None)

    def wake(self) -> None:
        """Calls back whoever awaits a revision that is published now."""
        for call_back, revision in list(self._awaited.items()):
            if self._ended or self.state.revision >= revision:
                call_back()

    def withdraw(self) -> None:
        """Ends the answers that other processes give from the present state."""
        if isinstance(self.state.backend, CpuModel):
            self.state.backend.head.withdraw()

    def view(self) -> AbstractContextManager[FrozenState]:
        """The frozen state at the published revision. Updates continue meanwhile."""
        return freeze(self.name, lambda: self.state, self.log.hash_name, self.gate)

    @property
    def queued_bytes(self) -> int:
        """Bytes of the batches that are queued or being logged."""
        return self._budget.used

    def promote(self, spec: ModelSpec, start: Start | None = None, progress: Progress | None = None,
                act: Rollback | Erasing | None = None) -> int:  # fmt: skip
        """Gives the model another spec while it serves. Returns the revision of the switch.

        With `act` the spec is the one in force, and the model skips records or parts of them.

        The call learns the log after the state that `start` gives, or all of it. `progress` is
        called again and again. If it raises an exception, the promotion ends with it. After any
        exception the model is as it was.

        Raises:
            Refused: FAILED_PRECONDITION if the spec cannot be that of this log, with the reason.
                RESOURCE_EXHAUSTED if another promotion is in progress, or for want of memory or
                disk. UNAVAILABLE if the engine drains or cannot write.
        """
        if not self._promoting.acquire(blocking=False):
            raise later("promotion: another one is in progress")
        try:
            self._check_writable()
            promotion = Promotion(self.name, self._parts.admission, self.log, spec, self._check_writable, act)
            promotion.admit()
            with promotion.memory_counted():
                self._promotion = promotion
                promotion.build(start, progress)
                return self._result(promotion)
        finally:
            self._promotion = None
            self._promoting.release()

    def append(self, change: Change) -> int:
        """Logs a change as a commit of its own and applies it. Returns its revision, or refuses."""
        return self._result(Solo(self._parts.admission, self.log, change))

    def _result(self, switch: Promotion | Solo) -> int:
        with self._submitting:
            self._check_writable()
            self._intake.put(switch)
        return switch.outcome.result()

    @contextmanager
    def no_promotion(self) -> Iterator[bool]:
        """Keeps promotions from starting. Gives False if one is in progress or the engine ended."""
        alone = self._promoting.acquire(blocking=False)
        try:
            yield alone and self.failure is None and not self._ended
        finally:
            if alone:
                self._promoting.release()

    def lead(self) -> None:
        """Takes updates from now on. Nobody applies records of another leader any more."""
        self._parts = self._parts_of(self.state)
        self._recogniser.start()
        self.leader = ""

    def drain(self) -> None:
        """Refuses new batches, finishes the accepted ones, stops both stages and closes the log."""
        with self._submitting:
            self._draining = True
            self._intake.put(None)
        self._budget.wake()
        self._log_thread.join()
        self._apply_thread.join()
        self._recogniser.stop()
        # A promotion has ended before its log is closed.
        with self._promoting:
            self._end()
        self._disk.shutdown()
        self.log.close()
        self.metrics.close()

    # ------------------------------------------------------------------ LOG stage

    def _log_stage(self) -> None:
        try:
            open_end = True
            while open_end:
                group, open_end = self._intake.next_group(self._parts.cost_of_event)
                if group:
                    self._log_group(group)
                if self._evictor.is_due(self.state):
                    self._finish_durable()
                    self._evict()
                if self._intake.next_switch is not None:
                    self._finish_durable()
                    self._switch(self._intake.next_switch)
                    self._intake.next_switch = None
            self._finish_durable()
        except BaseException:
            # A bug, or a log that takes no mark: the engine stops writing and still serves reads.
            self.fail("the log stage stopped after an unexpected error")
            logger.exception("model %s: log stage", self.name)
            if self._durable is not None:
                abandon(self._durable.batches)
            if self._intake.next_switch is not None:
                self._intake.next_switch.refuse(unavailable("model: writes are stopped"))
            while (item := self._intake.get()) is not None:
                item.refuse(unavailable("model: writes are stopped"))
        finally:
            self._to_apply.end()

    def _evict(self) -> None:
        self._to_apply.wait_until_idle()
        with self.no_promotion() as is_alone:
            if is_alone and (eviction := self._evictor.next(self._parts.admission)) is not None:
                self._switch(eviction)

    def _switch(self, promotion: Promotion | Solo | Evicting) -> None:
        """Gives the model the state of a promotion, or applies a record that is alone.

        An exception other than a refusal stops the LOG stage.
        """
        started = time.monotonic()
        self._to_apply.wait_until_idle()
        try:
            state, record = promotion.complete()
            is_new = state is not self.state
            if is_new:
                promotion.judge(self.observer, state)
            with self.gate.writing():
                changes.apply(state, [record])
                if is_new:
                    self.withdraw()
                self.state = state
            if is_new:
                self._parts = self._parts_of(state)
                if not isinstance(promotion, Evicting):
                    self.switched += 1
                    self.metrics.observe_switch()
                self.on_switch()
        except Refused as refusal:
            promotion.refuse(refusal)
            return
        except LogFailed as error:
            self.fail(str(error))
            promotion.refuse(unavailable("model: writes are stopped after a failed log write"))
            return
        self.wake()
        promotion.finish(state.revision, time.monotonic() - started)

    def _mark(self) -> None:
        try:
            if self.failure is None:
                self.log.mark()
        except LogFull:
            # The next group tries again.
            return
        except LogFailed as error:
            self.fail(str(error))

    def _log_group(self, group: list[Submission]) -> None:
        """Logs a group.

        A batch whose rows may not fit waits until all earlier new rows are placed, and starts
        another commit.
        """
        commit = Commit(self._parts)
        admission = self._parts.admission
        rows_ahead = self._durable.new_rows if self._durable else 0
        admission.expect(sum(batch.change.rows for batch in group), rows_ahead)
        for batch in group:
            self._budget.give(batch.size)
            try:
                if self.failure is not None:
                    raise unavailable("model: writes are stopped")
                if batch.is_late is not None and batch.is_late():
                    raise late("call: its deadline passed, or its caller left, before the batch was logged")
                rows_ahead = commit.new_rows + (self._durable.new_rows if self._durable else 0)
                if rows_ahead and not admission.surely_fits(batch, rows_ahead):
                    self._make_durable(commit)
                    self._finish_durable()
                    commit = Commit(self._parts)
                commit.admit(batch)
            except Refused as refusal:
                batch.finish(refusal)
        self._make_durable(commit)
        if commit.work <= SMALL_WORK_MAX or self._intake.is_empty:
            self._finish_durable()

    def _make_durable(self, commit: Commit) -> None:
        """Seals and appends a commit.

        The disk writes this group while the LOG stage places the one before.
        """
        if not commit.batches:
            return
        commit.seal()
        try:
            if self._durable is not None:
                appended = self._disk.submit(commit.append)
                self._finish_durable()
                appended.result()
            else:
                commit.append()
        except LogFull:
            commit.refuse(later("disk: it is full; nothing was logged"))
        except LogFailed as error:
            self.fail(str(error))
            commit.refuse(unavailable("model: writes are stopped after a failed log write"))
        else:
            self._durable = commit

    def _finish_durable(self) -> None:
        """Places the last durable group. Applies it, or passes it to the APPLY stage."""
        commit = self._durable
        if commit is None:
            return
        commit.place()
        self._durable = None
        if commit.work <= SMALL_WORK_MAX and self._to_apply.is_idle:
            self._apply(commit)
        else:
            self._to_apply.put(commit, commit.work)

    def _end(self) -> None:
        """Calls back the waiting readers, because the engine publishes no further revision."""
        self._ended = True
        self.wake()

    def fail(self, reason: str) -> None:
        """Stops writes until a restart."""
        self.failure = reason
        self._budget.wake()
        self._end()
        logger.critical("model %s: %s; no batch is acknowledged until a restart", self.name, reason)

    # ------------------------------------------------------------------ APPLY stage

    def _apply_stage(self) -> None:
        while (commit := self._to_apply.get()) is not None:
            try:
                self._apply(commit)
            finally:
                self._to_apply.finish(commit.work)
            # After a switch it would keep the old state in memory.
            del commit

    def _apply(self, commit: Commit) -> None:
        """Applies a group. One thread at a time calls it.

        The LOG stage calls it only while the APPLY stage is idle.
        """
        for run in commit.runs():
            if not self.torn:
                self._apply_or_tear(commit, run)
            else:
                abandon([batch for batch, _ in run])

    def _apply_or_tear(self, commit: Commit, run: Run) -> None:
        try:
            commit.apply(run)
            commit.publish(run)
            commit.acknowledge(run)
            if self._recogniser.watches:
                self._recogniser.see(record.change for _, record in run)
        except BaseException:
            self.tear("the apply stage stopped after an unexpected error")
            abandon([batch for batch, _ in run])

    def tear(self, reason: str) -> None:
        """Stops reads and writes until a restart. After a bug a record may be applied in part."""
        self.torn = True
        self.withdraw()
        self.fail(reason)
        logger.exception("model %s: apply stage", self.name)
