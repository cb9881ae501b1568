"""The stream of a producer: it sends queued batches, reads acks, and reconnects after a failure.

One background thread owns the stream. It connects, reads answers, waits while the server is away,
and connects again. gRPC's own sending thread calls `next_message` for each message. It also queues
the pending batch when that batch is due. delivery.py decides what an answer means. One lock guards
all state, and the Producer takes the same lock to add batches.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import grpc

from livefactor.calling import tracing
from livefactor.calling.blocking import Connection
from livefactor.calling.retries import Patience, backoff_s, wait_s
from livefactor.errors import (
    DeadlineExceeded,
    LivefactorError,
    ProducerClosed,
    Unavailable,
    from_rpc,
)
from livefactor.position import Position, position_of
from livefactor.pushing.batching import Batch, BatchSettings, PendingRows, RowReject
from livefactor.pushing.delivery import TRANSIENT, Delivery, Outcomes
from livefactor.pushing.forks import ProcessLock
from livefactor.pushing.labels import IdLabels
from livefactor.pushing.signals import Signal
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import Part

BACKOFF_S = 0.05
BACKOFF_MAX_S = 5.0
OPEN_DEADLINE_S = 10.0
WARN_EVERY_S = 10.0
"""Seconds between the log messages of a producer that waits. It logs the first message at once."""

WAKE_FRACTION = 0.875
"""Threads that wait for room wake when the buffer is filled to at most this fraction, so that not
every ack wakes them.
"""

_OPEN = "/livefactor.v1.UpdateService/OpenProducer"
_STREAM = "/livefactor.v1.UpdateService/StreamUpdates"
_TERM = "livefactor-term"
# gRPC itself ends a stream with these statuses when it loses the connection.
_BROKEN = TRANSIENT | {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED}

log = logging.getLogger("livefactor")


@dataclass(frozen=True, slots=True)
class ProducerStatus:
    """The state of a producer.

    epoch, last_sequence: the current epoch and the last acknowledged batch. position: the newest
    acknowledged one. buffered_events: rows without an ack. waiting_for: why the producer waits, or
    "". waiting_s: for how long it has waited, seconds.
    """

    epoch: int
    last_sequence: int
    position: Position
    buffered_events: int
    unacknowledged_batches: int
    waiting_for: str
    waiting_s: float


class Sender:
    """The half of a Producer that sends. It takes the arguments of the Producer."""

    def __init__(
        self,
        connection: Connection,
        model: str,
        producer_id: str,
        settings: BatchSettings,
        labels: tuple[IdLabels, ...],
        events_max: int,
        open_timeout: float,
        on_reject: Callable[[tuple[RowReject, ...]], None] | None,
        on_wait: Callable[[ProducerStatus], None] | None,
    ) -> None:
        # The thread that sends has no current span, so its streams are children of this one.
        self._parent = tracing.present()
        # The newest term that a server named. One with an earlier term must not take the updates.
        self._term = 0
        self.lock = ProcessLock(f"producer {producer_id!r}")
        # Wakes the threads that send: there may be a message.
        self.work = threading.Condition(self.lock)  # type: ignore[arg-type]
        self.room = Signal(self.lock)
        """There may be room for more rows."""
        self.outcomes = Signal(self.lock)
        """Some batches have their outcome."""
        self.pending: PendingRows | None = None
        self.buffered = 0
        self._settings, self._labels = settings, labels
        # Batches of labels that may still have no outcome.
        self._label_batches: list[Batch] = []
        self._has_warned_of_labels = False
        self._connection, self._model, self._producer_id = connection, model, producer_id
        self._events_max = events_max
        self._on_reject, self._on_wait = on_reject, on_wait
        self._failed: list[Batch] = []
        # Batches whose receipts were not told of their outcome yet.
        self._untold: list[Batch] = []
        # The number of the stream that may take messages.
        self._stream = 0
        self._resume_at = 0.0
        self._waiting_for, self._waiting_since, self._warned_at = "", 0.0, 0.0
        self._attempt = 0
        # How the last stream failed, if the server or gRPC said so.
        self._failure: LivefactorError | None = None
        self.closing = False
        self._call: Any = None
        opened = self._open_with_retries(open_timeout)
        self.position = position_of(opened.position)
        self.note = opened.note
        self.delivery = Delivery(model, producer_id, opened.epoch, opened.last_sequence)
        self._thread = threading.Thread(
            target=self._run, name=f"livefactor-producer-{producer_id}", daemon=True
        )
        self._thread.start()

    # The Producer calls these with the lock held.

    def reserve(self, n: int) -> bool:
        """Reserve room for n rows. False if there is none. Raises the errors of `check_usable`."""
        self.check_usable()
        if not self.has_room(n):
            return False
        self.buffered += n
        return True

    def has_room(self, n: int) -> bool:
        """Whether n further rows may be buffered."""
        return self._rows_in_delivery() == 0 or self.buffered + n <= self._events_max

    def fullness(self) -> str:
        """How full the buffer is, for the text of an error."""
        waiting = f" (waiting for {self._waiting_for})" if self._waiting_for else ""
        return f"{self.buffered} of {self._events_max} rows have no ack yet{waiting}"

    def _rows_in_delivery(self) -> int:
        """Buffered rows that an ack will free. Rows of the pending batch are not among them."""
        return self.buffered - (self.pending.batch.rows if self.pending is not None else 0)

    def queue_pending(self) -> None:
        """Queue the pending batch, if there is one."""
        if self.pending is not None:
            self.add_events(self.pending.batch, self.pending.parts())
            self.pending = None

    def add_events(self, batch: Batch, parts: list[Part]) -> None:
        """Queue a batch of events. The labels of new string ids are queued in front of it."""
        for labels in self._labels:
            for label_batch, body in labels.batches(self._settings):
                self.delivery.add_without_number(label_batch, [body])
                self._label_batches.append(label_batch)
        if self._label_batches:
            self._label_batches = [label_batch for label_batch in self._label_batches if not label_batch.done]
            batch.after = tuple(self._label_batches)
        self.delivery.add(batch, parts)

    def unusable(self) -> bool:
        """Whether this producer is closed or has failed."""
        return self.closing or self.delivery.fatal is not None

    def check_usable(self) -> None:
        """Raise the error that ended this producer, or ProducerClosed, if it takes no more rows."""
        if self.delivery.fatal is not None:
            raise self.delivery.fatal
        if self.closing:
            raise ProducerClosed(f"producer {self._producer_id!r} is closed")

    def raise_failures(self) -> None:
        """Raise the error that ended this producer, or a refusal that no receipt has raised yet.

        Each refusal is raised at most once.
        """
        if self.delivery.fatal is not None:
            raise self.delivery.fatal
        unseen = [batch.error for batch in self._failed if not batch.is_error_seen]
        self._failed.clear()
        if unseen and unseen[0] is not None:
            raise unseen[0]

    # The Producer calls this without the lock, and with nothing to send.

    def keep(self, note: bytes, timeout: float) -> None:
        """Leave a note with the server, which opens a new epoch. timeout: seconds."""
        opened = self._open_with_retries(timeout, note)
        with self.lock:
            self.check_usable()
            self.delivery.renew(opened.epoch, opened.last_sequence)
            self.note = opened.note
            self.work.notify_all()
            self.check_usable()

    # gRPC's sending thread calls this.

    def next_message(self, stream: int) -> bytes:
        """Wait for the next message of this stream.

        Raises StopIteration when the stream must end.
        """
        with self.lock:
            while self._stream == stream and not self.unusable():
                now = monotonic()
                until = self._resume_at
                if until <= now:
                    message = self.delivery.take()
                    if message is not None:
                        return message
                    until = float("inf")
                    if self.pending is not None and self.delivery.can_send:
                        until = self.pending.deadline
                        if until <= now:
                            self.queue_pending()
                            continue
                self.work.wait(None if until == float("inf") else until - now)
        raise StopIteration

    # The background thread runs these.

    def _run(self) -> None:
        try:
            while not self.unusable():
                reason = self._serve_stream()
                if reason and not self.unusable():
                    self._back_off(reason)
            if self.delivery.fatal is not None:
                log.error("producer %s: stopped: %s", self._producer_id, self.delivery.fatal)
                self._fail(self.delivery.fatal)
        except Exception as error:
            log.exception("producer %s: its thread failed", self._producer_id)
            self._fail(LivefactorError(f"producer {self._producer_id!r}: internal error: {error}"))

    def _serve_stream(self) -> str:
        """Run one stream until it ends.

        Returns why it ended, or "" if the next stream may begin at once.
        """
        at, self._failure = self._connection.at, None
        try:
            if self.delivery.needs_new_epoch:
                opened = self._open(at)
                with self.lock:
                    self.delivery.reopen(opened.epoch, opened.last_sequence)
            return self._read_answers(at)
        except grpc.RpcError as error:
            self._failure = from_rpc(error, f"producer {self._producer_id!r}")
            if error.code() not in _BROKEN:
                self._fail(self._failure)
                return ""
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._connection.leave(at)
            return f"{error.code().name}: {error.details()}"
        finally:
            self._end_stream()

    def _read_answers(self, at: int) -> str:
        with self.lock:
            if self.unusable():
                return ""
            self._stream += 1
            messages = _Messages(self, self._stream)
        begin: Any = self._connection.channel_at(at).stream_stream(_STREAM)
        seen = ((_TERM, str(self._term)),) if self._term else ()
        self._call = begin(messages, metadata=self._connection.metadata + self._parent + seen)
        for data in self._call:
            message = updates_pb2.StreamUpdatesResponse.FromString(data)
            self._term = max(self._term, message.term)
            outcomes = Outcomes()
            with self.lock:
                for answer in message.answers:
                    outcomes.add(self.delivery.take_answer(answer))
                self._record(outcomes)
                reopen = self.delivery.needs_new_epoch
            self._report(outcomes)
            if reopen:
                return outcomes.pause
        return "the server ended the stream"

    def _end_stream(self) -> None:
        with self.lock:
            self._stream += 1
            outcomes = self.delivery.end_stream()
            self._record(outcomes)
            self.work.notify_all()
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._report(outcomes)

    def _record(self, outcomes: Outcomes) -> None:
        for batch in outcomes.finished:
            self.buffered -= batch.rows
            if batch.error is not None:
                if not batch.numbered:
                    log.warning("producer %s: some ids have no labels: %s", self._producer_id, batch.error)
                elif self.delivery.fatal is None:
                    self._failed.append(batch)
                    log.error("producer %s: %s", self._producer_id, batch.error)
            elif batch.answer.position.revision >= self.position.revision:
                self.position = position_of(batch.answer.position)
        if outcomes.finished:
            rows = self._rows_in_delivery()
            if rows <= self._events_max * WAKE_FRACTION or rows == 0:
                self.room.notify()
            self.outcomes.notify()
            if not outcomes.pause:
                self._report_progress()
        if outcomes.pause:
            self._attempt += 1
            self._resume_at = monotonic() + backoff_s(self._attempt, BACKOFF_S, BACKOFF_MAX_S)
        self.work.notify_all()

    def _report(self, outcomes: Outcomes) -> None:
        """Run the callbacks, without the lock."""
        for batch in outcomes.finished:
            if batch.error is None and batch.answer.rejected_count:
                self._report_rejects(batch)
        if outcomes.finished:
            self._tell(outcomes.finished)
        if outcomes.pause:
            self._report_wait(outcomes.pause)

    def _tell(self, finished: list[Batch]) -> None:
        """Run the callbacks of the receipts whose last batch has its outcome, without the lock.

        A batch is told of when the batches of labels before it have their outcome, too.
        """
        with self.lock:
            self._untold += finished
            told = [batch for batch in self._untold if batch.done]
            self._untold = [batch for batch in self._untold if not batch.done]
        for batch in told:
            if batch.is_watched:
                for share in batch.shares:
                    share.receipt.call_back()
            batch.shares.clear()

    def _report_rejects(self, batch: Batch) -> None:
        if not batch.numbered:
            if not self._has_warned_of_labels:
                reason = batch.answer.rejects[0].text if batch.answer.rejects else "rejected"
                log.warning(
                    "producer %s: some ids have no labels, so answers carry their numbers (%s)",
                    self._producer_id,
                    reason,
                )
            self._has_warned_of_labels = True
            return
        if self._on_reject is not None:
            for _, rejects in batch.rejects():
                _call_back(self._on_reject, rejects)
            return
        first = batch.answer.rejects[0] if batch.answer.rejects else None
        log.warning(
            "producer %s: %d of the %d rows of batch %d were rejected%s",
            self._producer_id, batch.answer.rejected_count, batch.rows, batch.sequence,
            f", the first for: {first.text}" if first is not None else "",
        )  # fmt: skip

    def _back_off(self, reason: str) -> None:
        self._report_wait(reason)
        with self.lock:
            self._attempt += 1
            if self._failure is None:
                wait = backoff_s(self._attempt, BACKOFF_S, BACKOFF_MAX_S)
            else:
                wait = wait_s(self._failure, self._attempt, BACKOFF_S, BACKOFF_MAX_S)
            self.work.wait_for(self.unusable, wait)

    def _report_wait(self, reason: str) -> None:
        now = monotonic()
        with self.lock:
            if not self._waiting_for:
                self._waiting_since, self._warned_at = now, float("-inf")
            self._waiting_for = reason
            status = self.status()
            is_due = now - self._warned_at >= WARN_EVERY_S
            if is_due:
                self._warned_at = now
        if is_due:
            log.warning(
                "producer %s: waiting for the server, %d events buffered (%s)",
                self._producer_id, status.buffered_events, reason,
            )  # fmt: skip
        if self._on_wait is not None:
            _call_back(self._on_wait, status)

    def _report_progress(self) -> None:
        self._attempt = 0
        if self._waiting_for:
            log.info(
                "producer %s: delivers again after %.1f s",
                self._producer_id,
                monotonic() - self._waiting_since,
            )
            self._waiting_for = ""

    def status(self) -> ProducerStatus:
        """The state of this producer."""
        return ProducerStatus(
            epoch=self.delivery.epoch,
            last_sequence=self.delivery.last_acked,
            position=self.position,
            buffered_events=self.buffered,
            unacknowledged_batches=len(self.delivery),
            waiting_for=self._waiting_for if self.buffered else "",
            waiting_s=monotonic() - self._waiting_since if self._waiting_for and self.buffered else 0.0,
        )

    # These open and close the producer.

    def _open(self, at: int, note: bytes = b"") -> updates_pb2.OpenProducerResponse:
        request = updates_pb2.OpenProducerRequest(model=self._model, producer_id=self._producer_id, note=note)
        call: Any = self._connection.channel_at(at).unary_unary(_OPEN)
        data = call(request.SerializeToString(), timeout=OPEN_DEADLINE_S, metadata=self._connection.metadata)
        opened: updates_pb2.OpenProducerResponse = updates_pb2.OpenProducerResponse.FromString(data)
        return opened

    def _open_with_retries(self, timeout: float, note: bytes = b"") -> updates_pb2.OpenProducerResponse:
        patience = Patience(self._connection, timeout, timeout, BACKOFF_S, BACKOFF_MAX_S)
        has_warned = False
        while True:
            at = self._connection.at
            try:
                return self._open(at, note)
            except grpc.RpcError as error:
                failure = from_rpc(error, f"producer {self._producer_id!r}")
            if not isinstance(failure, Unavailable | DeadlineExceeded):
                raise failure
            wait = patience.after(failure, at)
            if not has_warned:
                log.warning("producer %s: waiting for the server (%s)", self._producer_id, failure.details)
            has_warned = True
            with self.lock:
                self.work.wait(wait)

    def _fail(self, error: LivefactorError) -> None:
        with self.lock:
            failed = self.delivery.fail(error)
            if self.pending is not None:
                self.pending.batch.finish(error)
                failed.append(self.pending.batch)
                self.pending = None
            self.buffered = 0
            self.room.notify()
            self.outcomes.notify()
            self.work.notify_all()
        self._tell(failed)

    def shut(self) -> None:
        """Stop sending.

        Batches without an ack fail with ProducerClosed. Call it without the lock.
        """
        with self.lock:
            self.closing = True
            self.work.notify_all()
            self.room.notify()
        # With a server that answers, the stream ends by itself.
        self._thread.join(1.0)
        call = self._call
        if self._thread.is_alive() and call is not None:
            call.cancel()
        self._fail(ProducerClosed(f"producer {self._producer_id!r} is closed"))
        self._thread.join(OPEN_DEADLINE_S)


class _Messages:
    """The iterator from which gRPC takes the messages of one stream."""

    def __init__(self, sender: Sender, stream: int) -> None:
        self._sender, self._stream = sender, stream

    def __iter__(self) -> _Messages:
        return self

    def __next__(self) -> bytes:
        return self._sender.next_message(self._stream)


def _call_back(function: Callable[[Any], None], argument: object) -> None:
    try:
        function(argument)
    except Exception:
        log.exception("a producer's callback failed")
