"""Keeping a producer's stream up: sends what is queued, reads acks, waits while the server is away, connects
again.

One background thread owns the stream: it connects, reads answers, and connects again. gRPC's own sending
thread takes the next message (`next_message`), and sends the batch that is being filled once its time is up.
What an answer means is delivery.py's. All state is under one lock, which the Producer takes too, to add to
it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import grpc

from livefactor.channel import Connection, backoff_s, is_unreachable, no_server
from livefactor.errors import (
    BufferFull,
    DeadlineExceeded,
    LivefactorError,
    ProducerClosed,
    Unavailable,
    from_rpc,
)
from livefactor.position import Position, position_of
from livefactor.pushing.batching import Batch, BatchSettings, PendingRows, RowReject
from livefactor.pushing.delivery import TRANSIENT, Delivery, Settled
from livefactor.pushing.labels import IdLabels
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import Part

BACKOFF_S = 0.05
BACKOFF_MAX_S = 5.0
OPEN_DEADLINE_S = 10.0
SAY_EVERY_S = 10.0
"""A producer that waits says so at once, and again this often, in seconds."""

WAKE_SHARE = 0.875
"""Of a full buffer, what must be left before those who wait for room are woken: not for every single ack."""

_OPEN = "/livefactor.v1.UpdateService/OpenProducer"
_STREAM = "/livefactor.v1.UpdateService/StreamUpdates"
# What gRPC itself ends a stream with when a connection is lost, beside UNAVAILABLE.
_BROKEN = TRANSIENT | {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED}

log = logging.getLogger("livefactor")


@dataclass(frozen=True, slots=True)
class ProducerStatus:
    """How a producer fares. waiting_for: why nothing moves, or "". waiting_s: since how long, seconds."""

    epoch: int
    last_sequence: int
    position: Position
    buffered_events: int
    unacknowledged_batches: int
    waiting_for: str
    waiting_s: float


class Sender:
    """The sending half of a Producer; arguments as the Producer's."""

    def __init__(
        self,
        connection: Connection,
        model: str,
        producer_id: str,
        settings: BatchSettings,
        labels: tuple[IdLabels, ...],
        events_max: int,
        open_timeout_s: float,
        on_reject: Callable[[tuple[RowReject, ...]], None] | None,
        on_wait: Callable[[ProducerStatus], None] | None,
    ) -> None:
        self.lock = threading.Lock()
        self.work = threading.Condition(self.lock)  # For those who send: there may be something to do.
        self.progress = threading.Condition(self.lock)  # For those who push: there may be room.
        self.pending: PendingRows | None = None
        self.buffered = 0
        self._settings, self._labels = settings, labels
        self._label_batches: list[Batch] = []  # Those that may have no outcome yet.
        self._warned_of_labels = False
        self._connection, self._model, self._producer_id = connection, model, producer_id
        self._events_max = events_max
        self._on_reject, self._on_wait = on_reject, on_wait
        self._failed: list[Batch] = []
        self._stream = 0  # Which stream may take messages.
        self._resume_at = 0.0
        self._waiting_for, self._waiting_since, self._said_at = "", 0.0, 0.0
        self._attempt = 0
        self.closing = False
        self._call: Any = None
        opened = self._open_patiently(open_timeout_s)
        self.position = position_of(opened.position)
        self.delivery = Delivery(model, producer_id, opened.epoch, opened.last_sequence)
        self._thread = threading.Thread(
            target=self._run, name=f"livefactor-producer-{producer_id}", daemon=True
        )
        self._thread.start()

    # What the Producer does, with the lock held.

    def reserve(self, n: int, timeout_s: float | None) -> None:
        """Count n rows in, once there is room for them. Raises BufferFull and what `check_usable` does."""
        self.check_usable()
        if not self._has_room(n):
            self.progress.wait_for(lambda: self.unusable() or self._has_room(n), timeout_s)
            self.check_usable()
        if not self._has_room(n):
            raise BufferFull(
                f"no room for {n} rows within {timeout_s} s: "
                f"{self.buffered} of {self._events_max} not acknowledged"
                + (f" (waiting for {self._waiting_for})" if self._waiting_for else "")
            )
        self.buffered += n

    def _has_room(self, n: int) -> bool:
        return self._on_the_way() == 0 or self.buffered + n <= self._events_max

    def _on_the_way(self) -> int:
        """Buffered rows that an ack will free: all but those of the batch that is being filled."""
        return self.buffered - (self.pending.batch.rows if self.pending is not None else 0)

    def seal(self) -> None:
        """Queue the batch that is being filled."""
        if self.pending is not None:
            self.add_events(self.pending.batch, self.pending.parts())
            self.pending = None

    def add_events(self, batch: Batch, parts: list[Part]) -> None:
        """Queue a batch of events; the labels of new string ids go in front of it."""
        for labels in self._labels:
            for label_batch, body in labels.batches(self._settings):
                self.delivery.add_unnumbered(label_batch, [body])
                self._label_batches.append(label_batch)
        if self._label_batches:
            self._label_batches = [label_batch for label_batch in self._label_batches if not label_batch.done]
            batch.after = tuple(self._label_batches)
        self.delivery.add(batch, parts)

    def unusable(self) -> bool:
        """Whether this producer is closed or has given up."""
        return self.closing or self.delivery.fatal is not None

    def check_usable(self) -> None:
        """Raise why this producer takes no rows, if it does not."""
        if self.delivery.fatal is not None:
            raise self.delivery.fatal
        if self.closing:
            raise ProducerClosed(f"producer {self._producer_id!r} is closed")

    def raise_failures(self) -> None:
        """Raise what ended this producer, or the first refusal since the last call that no receipt told."""
        if self.delivery.fatal is not None:
            raise self.delivery.fatal
        unseen = [batch.error for batch in self._failed if not batch.error_seen]
        self._failed.clear()
        if unseen and unseen[0] is not None:
            raise unseen[0]

    # Sending (gRPC's thread).

    def next_message(self, stream: int) -> bytes:
        """The next message of this stream; waits for one. Raises StopIteration when the stream shall end."""
        with self.lock:
            while self._stream == stream and not self.unusable():
                now = monotonic()
                until = self._resume_at
                if until <= now:
                    message = self.delivery.take()
                    if message is not None:
                        return message
                    until = float("inf")
                    if self.pending is not None and self.delivery.may_send:
                        until = self.pending.deadline
                        if until <= now:
                            self.seal()
                            continue
                self.work.wait(None if until == float("inf") else until - now)
        raise StopIteration

    # The stream (the background thread).

    def _run(self) -> None:
        try:
            while not self.unusable():
                reason = self._serve_stream()
                if reason and not self.unusable():
                    self._back_off(reason)
            if self.delivery.fatal is not None:
                log.error("producer %s: gives up: %s", self._producer_id, self.delivery.fatal)
                self._give_up(self.delivery.fatal)
        except Exception as error:
            log.exception("producer %s: its thread failed", self._producer_id)
            self._give_up(LivefactorError(f"producer {self._producer_id!r}: internal error: {error}"))

    def _serve_stream(self) -> str:
        """Keep one stream as long as it lasts; why it ended, or "" where a new one may follow at once."""
        try:
            if self.delivery.must_reopen:
                opened = self._open()
                with self.lock:
                    self.delivery.reopened(opened.epoch, opened.last_sequence)
            return self._read_answers()
        except grpc.RpcError as error:
            if error.code() not in _BROKEN:
                self._give_up(from_rpc(error, f"producer {self._producer_id!r}"))
                return ""
            return f"{error.code().name}: {error.details()}"
        finally:
            self._end_stream()

    def _read_answers(self) -> str:
        with self.lock:
            if self.unusable():
                return ""
            self._stream += 1
            messages = _Messages(self, self._stream)
        begin: Any = self._connection.channel.stream_stream(_STREAM)
        self._call = begin(messages)
        for data in self._call:
            message = updates_pb2.StreamUpdatesResponse.FromString(data)
            settled = Settled()
            with self.lock:
                for answer in message.answers:
                    settled.add(self.delivery.answered(answer))
                self._take_in(settled)
                reopen = self.delivery.must_reopen
            self._report(settled)
            if reopen:
                return settled.pause
        return "the server ended the stream"

    def _end_stream(self) -> None:
        with self.lock:
            self._stream += 1
            settled = self.delivery.stream_ended()
            self._take_in(settled)
            self.work.notify_all()
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._report(settled)

    def _take_in(self, settled: Settled) -> None:
        for batch in settled.finished:
            self.buffered -= batch.rows
            if batch.error is not None:
                if not batch.numbered:
                    log.warning("producer %s: ids stay without labels: %s", self._producer_id, batch.error)
                elif self.delivery.fatal is None:
                    self._failed.append(batch)
                    log.error("producer %s: %s", self._producer_id, batch.error)
            elif batch.answer.position.revision >= self.position.revision:
                self.position = position_of(batch.answer.position)
        if settled.finished:
            on_the_way = self._on_the_way()
            if on_the_way <= self._events_max * WAKE_SHARE or on_the_way == 0:
                self.progress.notify_all()
            if not settled.pause:
                self._moving_again()
        if settled.pause:
            self._attempt += 1
            self._resume_at = monotonic() + backoff_s(self._attempt, BACKOFF_S, BACKOFF_MAX_S)
        self.work.notify_all()

    def _report(self, settled: Settled) -> None:
        """Callbacks, outside the lock."""
        for batch in settled.finished:
            if batch.error is None and batch.answer.rejected_count:
                self._report_rejects(batch)
            batch.shares.clear()
        if settled.pause:
            self._say_waiting(settled.pause)

    def _report_rejects(self, batch: Batch) -> None:
        if not batch.numbered:
            if not self._warned_of_labels:
                reason = batch.answer.rejects[0].text if batch.answer.rejects else "rejected"
                log.warning(
                    "producer %s: some ids stay without labels, answers carry their numbers (%s)",
                    self._producer_id,
                    reason,
                )
            self._warned_of_labels = True
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
        self._say_waiting(reason)
        with self.lock:
            self._attempt += 1
            self.work.wait_for(self.unusable, backoff_s(self._attempt, BACKOFF_S, BACKOFF_MAX_S))

    def _say_waiting(self, reason: str) -> None:
        now = monotonic()
        with self.lock:
            if not self._waiting_for:
                self._waiting_since, self._said_at = now, float("-inf")
            self._waiting_for = reason
            status = self.status()
            say = now - self._said_at >= SAY_EVERY_S
            if say:
                self._said_at = now
        if say:
            log.warning(
                "producer %s: waiting for the server, %d events buffered (%s)",
                self._producer_id, status.buffered_events, reason,
            )  # fmt: skip
        if self._on_wait is not None:
            _call_back(self._on_wait, status)

    def _moving_again(self) -> None:
        self._attempt = 0
        if self._waiting_for:
            log.info(
                "producer %s: at work again after %.1f s",
                self._producer_id,
                monotonic() - self._waiting_since,
            )
            self._waiting_for = ""

    def status(self) -> ProducerStatus:
        """How it fares."""
        return ProducerStatus(
            epoch=self.delivery.epoch,
            last_sequence=self.delivery.last_acked,
            position=self.position,
            buffered_events=self.buffered,
            unacknowledged_batches=len(self.delivery),
            waiting_for=self._waiting_for if self.buffered else "",
            waiting_s=monotonic() - self._waiting_since if self._waiting_for and self.buffered else 0.0,
        )

    # Opening and closing.

    def _open(self) -> updates_pb2.OpenProducerResponse:
        request = updates_pb2.OpenProducerRequest(model=self._model, producer_id=self._producer_id)
        call: Any = self._connection.channel.unary_unary(_OPEN)
        data = call(request.SerializeToString(), timeout=OPEN_DEADLINE_S)
        opened: updates_pb2.OpenProducerResponse = updates_pb2.OpenProducerResponse.FromString(data)
        return opened

    def _open_patiently(self, timeout_s: float) -> updates_pb2.OpenProducerResponse:
        began, attempt = monotonic(), 0
        deadline = began + timeout_s
        while True:
            try:
                return self._open()
            except grpc.RpcError as error:
                failure = from_rpc(error, f"producer {self._producer_id!r}")
            attempt += 1
            delay = backoff_s(attempt, BACKOFF_S, BACKOFF_MAX_S)
            connect_s = self._connection.connect_s
            if is_unreachable(failure) and monotonic() + delay > min(deadline, began + connect_s):
                raise no_server(failure, self._connection.target, min(timeout_s, connect_s))
            if not isinstance(failure, Unavailable | DeadlineExceeded) or monotonic() + delay > deadline:
                raise failure
            if attempt == 1:
                log.warning("producer %s: waiting for the server (%s)", self._producer_id, failure.details)
            with self.lock:
                self.work.wait(delay)

    def _give_up(self, error: LivefactorError) -> None:
        with self.lock:
            for batch in self.delivery.fail(error):
                batch.shares.clear()
            if self.pending is not None:
                self.pending.batch.finish(error)
                self.pending = None
            self.buffered = 0
            self.progress.notify_all()
            self.work.notify_all()

    def shut(self) -> None:
        """Stop sending; what is not acknowledged is given up. Called without the lock."""
        with self.lock:
            self.closing = True
            self.work.notify_all()
            self.progress.notify_all()
        self._thread.join(1.0)  # The stream ends by itself if the server is there.
        call = self._call
        if self._thread.is_alive() and call is not None:
            call.cancel()
        self._give_up(ProducerClosed(f"producer {self._producer_id!r} is closed"))
        self._thread.join(OPEN_DEADLINE_S)


class _Messages:
    """What gRPC iterates over to get the messages of one stream."""

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
