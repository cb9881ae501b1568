"""Batches of a Producer: when they are sent, which pushes they hold, and their receipts.

This module makes no gRPC calls and starts no threads. The rows of a push may lie in several
batches, and a batch may hold rows of several pushes. The `shares` of a batch record which rows came
from which push. They lead an ack or a rejected row back to its push.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from livefactor.calling.tracing import present_field
from livefactor.errors import DeadlineExceeded, LivefactorError
from livefactor.position import Position, position_of
from livefactor.pushing.rows import RowColumns
from livefactor.v1 import updates_pb2
from livefactor.wire.arrays import FLOATS, KEYS, NUMBERS, TIMES
from livefactor.wire.columns import (
    INTERACTIONS,
    Part,
    Stamp,
    apply_prefix,
    interaction_parts,
    join,
    parts_size,
)
from livefactor.wire.limits import MESSAGE_BYTES_MAX

log = logging.getLogger("livefactor")

PREFIX_BYTES_MAX = 1024
"""Upper bound, in bytes, on the rest of a request: model name, producer id, tags and lengths."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """When the pending batch is sent: as soon as it reaches one of these limits.

    events_max: rows in a batch (the server has a limit of its own). bytes_max: bytes of the
    message, at most 4 MiB. latency_ms_max: milliseconds since the first row. 0 sends every push at
    once. With None, only the number of rows and bytes counts: the same rows then give the same
    batches, and a file can be resumed by its sequence number. Raises ValueError for a limit out of
    range.
    """

    events_max: int = 8192
    bytes_max: int = MESSAGE_BYTES_MAX
    latency_ms_max: float | None = 5.0

    def __post_init__(self) -> None:
        if self.events_max < 1:
            raise ValueError(f"events_max: expected at least 1, got {self.events_max}")
        if not 2 * PREFIX_BYTES_MAX <= self.bytes_max <= MESSAGE_BYTES_MAX:
            raise ValueError(
                f"bytes_max: expected {2 * PREFIX_BYTES_MAX}..{MESSAGE_BYTES_MAX}, got {self.bytes_max}"
            )
        if self.latency_ms_max is not None and not self.latency_ms_max >= 0:
            raise ValueError(f"latency_ms_max: expected None or 0 and above, got {self.latency_ms_max}")

    def rows_max(self, row_bytes: int) -> int:
        """How many rows of `row_bytes` bytes a batch may hold."""
        return max(1, min(self.events_max, (self.bytes_max - PREFIX_BYTES_MAX) // row_bytes))


class RowReject(NamedTuple):
    """A row that the server did not apply.

    row: its index in the columns of its push. reason: a name such as NOT_FINITE. text: the server's
    text.
    """

    row: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True, repr=False)
class Ack:
    """The acknowledgement of a push: its rows are durable and visible.

    position: pass it as `min_position` to read this write. accepted, rejected_count: numbers of
    rows. rejects: the first rejected rows of each batch; a server lists 100 for a batch. complete:
    False if the push shares a batch with other pushes and the server rejected more rows of that
    batch than it listed. In that case rejected_count counts only the listed rows. duplicate:
    whether a batch had been applied before, because its first ack was lost. held: how many of the
    accepted rows wait in quarantine. They are durable, and the model does not know them until an
    operator accepts them.
    """

    position: Position
    accepted: int
    rejected_count: int = 0
    rejects: tuple[RowReject, ...] = ()
    complete: bool = True
    duplicate: bool = False
    held: int = 0

    def __repr__(self) -> str:
        rejected = f", {self.rejected_count} rejected" if self.rejected_count else ""
        duplicate = ", duplicate" if self.duplicate else ""
        held = f", {self.held} of them held" if self.held else ""
        return f"Ack({self.accepted} accepted{held}{rejected}{duplicate}, revision {self.position.revision})"


@dataclass(slots=True)
class Share:
    """The `count` rows that one push has in one batch.

    They begin at row `batch_start` of the batch and at row `push_start` of the push.
    """

    receipt: Receipt
    batch: Batch
    batch_start: int
    push_start: int
    count: int


class Batch:
    """One message to the server, the pushes whose rows it holds, and finally its outcome.

    change: what the rows are (INTERACTIONS, LABELS or AVAILABILITY). numbered: whether the batch
    takes a sequence number.
    """

    def __init__(self, change: str, *, numbered: bool = True) -> None:
        self.change = change
        self.numbered = numbered
        """Whether it takes a sequence number. Labels of string ids take none: see labels.py."""
        self.after: tuple[Batch, ...] = ()
        """Batches without a number that must have an outcome before this one counts as done."""
        self.rows = 0
        self.shares: list[Share] = []
        self.sequence = 0
        """The sequence number; 0 while the batch takes further rows."""
        self.is_in_doubt = False
        """Whether it was sent and no answer decided its outcome.

        A copy under the number it was sent with may still reach the server.
        """
        self._message = b""
        self._body_start = 0
        self._stamp: Stamp | None = None
        self._trace = present_field()
        """Makes the batch a child of the span in which its first rows were pushed."""
        self._done = threading.Event()
        self._answer: updates_pb2.ApplyUpdatesResponse | None = None
        self._error: LivefactorError | None = None
        self.is_error_seen = False
        self.is_watched = False
        """Whether a receipt of one of its pushes has callbacks."""

    def write(self, model: str, stamp: Stamp | None, parts: list[Part]) -> None:
        """Make the message from the parts of its body.

        The message is the only copy kept until the ack. stamp: None for a batch without a number.
        """
        prefix = apply_prefix(model, stamp, self.change, parts_size(parts))
        self._message = join([prefix, *parts, self._trace])
        self._body_start = len(prefix)
        self._stamp = stamp
        self.sequence = 0 if stamp is None else stamp.sequence

    def message(self, model: str, producer_id: str, epoch: int) -> bytes:
        """The message with this epoch and the batch's current sequence number."""
        if not self.numbered:
            return self._message
        stamp = Stamp(producer_id, epoch, self.sequence)
        if stamp != self._stamp:
            body = memoryview(self._message)[self._body_start :]
            prefix = apply_prefix(model, stamp, self.change, len(body) - len(self._trace))
            self._message = b"".join((prefix, body))
            self._body_start, self._stamp = len(prefix), stamp
        return self._message

    def share(self, receipt: Receipt, push_start: int, count: int) -> None:
        """Record that the next `count` rows belong to a push.

        push_start: the first of them in the push.
        """
        share = Share(receipt, self, self.rows, push_start, count)
        self.shares.append(share)
        receipt.shares.append(share)
        self.rows += count

    def finish(self, outcome: updates_pb2.ApplyUpdatesResponse | LivefactorError) -> None:
        """Set the outcome and free the message."""
        if isinstance(outcome, LivefactorError):
            self._error = outcome
        else:
            self._answer = outcome
        self._message = b""
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether this batch and all batches in `after` have an outcome."""
        return self._done.is_set() and all(batch.done for batch in self.after)

    @property
    def error(self) -> LivefactorError | None:
        """Why the batch was refused; None while it has no outcome and after an ack."""
        return self._error

    def wait(self, timeout: float | None) -> bool:
        """Wait until `done`. False if `timeout` seconds pass before; None waits for ever."""
        if not self.after:
            return self._done.wait(timeout)
        deadline = None if timeout is None else monotonic() + timeout

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - monotonic())

        return all(batch._done.wait(left()) for batch in (*self.after, self))

    @property
    def answer(self) -> updates_pb2.ApplyUpdatesResponse:
        """The server's answer. Ask only once the batch is done and has no error."""
        assert self._answer is not None
        return self._answer

    def rejects(self) -> Iterator[tuple[Receipt, tuple[RowReject, ...]]]:
        """Each push with its listed rejects. Row numbers count from the first row of the push."""
        if self.answer.rejects:
            for share in self.shares:
                rejects = share_rejects(share)
                if rejects:
                    yield share.receipt, rejects


def share_rejects(share: Share) -> tuple[RowReject, ...]:
    """The listed rejects among the rows of a share."""
    shift, stop = share.push_start - share.batch_start, share.batch_start + share.count
    return tuple(
        RowReject(reject.row + shift, _reason(reject.reason), reject.text)
        for reject in share.batch.answer.rejects
        if share.batch_start <= reject.row < stop
    )


def _reason(number: int) -> str:
    value = updates_pb2.RejectReason.DESCRIPTOR.values_by_number.get(number)
    # A newer server may send a reason that this version has no name for.
    return f"REASON_{number}" if value is None else str(value.name).removeprefix("REJECT_REASON_")


def _end_future(receipt: Receipt) -> None:
    """Wake the threads that wait for a receipt in `concurrent.futures`."""
    errors = [share.batch.error for share in receipt.shares if share.batch.error is not None]
    if errors:
        Future.set_exception(receipt, errors[0])
    else:
        Future.set_result(receipt, receipt.result(0))


# Guards the lists of callbacks of all receipts, which are seldom used.
_callbacks_lock = threading.Lock()


class Receipt(Future["Ack"]):
    """A future of an Ack. `push` returns it.

    It is a `concurrent.futures.Future`, so `asyncio.wrap_future` and `concurrent.futures.wait` take
    it, and a coroutine can await it. It cannot be cancelled.
    """

    __slots__ = ("_at", "_urge", "shares")

    # Most receipts have no callbacks.
    _called: tuple[Callable[[Receipt], object], ...] = ()

    def __init__(self, urge: Callable[[bool], None], at: Position) -> None:
        # The constructor of Future makes a lock, which costs as much as the rest of a push. See
        # `__getattr__`.
        self.shares: list[Share] = []
        self._urge = urge
        self._at = at

    def __getattr__(self, name: str) -> Any:
        # Only `concurrent.futures.wait` and `as_completed` ask for the attributes of Future.
        if name not in ("_condition", "_state", "_waiters"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _callbacks_lock:
            is_new = "_condition" not in self.__dict__
            if is_new:
                super().__init__()
        if is_new:
            self.add_done_callback(_end_future)
        return getattr(self, name)

    def __repr__(self) -> str:
        rows = sum(share.count for share in self.shares)
        return f"Receipt({rows} rows, {'done' if self.done() else 'not acknowledged yet'})"

    def done(self) -> bool:
        """Whether every row of the push has its outcome."""
        return all(share.batch.done for share in self.shares)

    def running(self) -> bool:
        """Whether a row of the push has no outcome yet."""
        return not self.done()

    def cancelled(self) -> bool:
        """Always False."""
        return False

    def cancel(self) -> bool:
        """Does nothing and returns False, because rows that were pushed are delivered."""
        return False

    def add_done_callback(self, fn: Callable[[Receipt], object]) -> None:
        """Call `fn(receipt)` once every row of the push has its outcome; at once if it is so now.

        The call is made on the producer's background thread, so it must be short, and must not push
        or flush. An error that it raises is logged. A callback does not send a pending batch.
        """
        with _callbacks_lock:
            self._called += (fn,)
        for share in self.shares:
            share.batch.is_watched = True
        self.call_back()

    def __await__(self) -> Generator[Any, None, Ack]:
        """Wait for the Ack in an event loop, with the errors of `result`.

        A pending batch with rows of this push is sent after what is ready to run in the loop, so
        the rows of tasks that push at the same time share it.
        """
        if not self.done():
            asyncio.get_running_loop().call_soon(self._send_now)
            yield from asyncio.wrap_future(self).__await__()
        return self.result(0)

    def _send_now(self) -> None:
        if not self.done():
            self._urge(any(share.batch.sequence == 0 for share in self.shares if not share.batch.done))

    def call_back(self) -> None:
        """Run the callbacks, if every row of the push has its outcome and they did not run yet."""
        if not self._called or not self.done():
            return
        with _callbacks_lock:
            called, self._called = self._called, ()
        for fn in called:
            try:
                fn(self)
            except Exception:
                log.exception("a callback of a receipt failed")

    def result(self, timeout: float | None = None) -> Ack:
        """Wait for the Ack. A pending batch with rows of this push is sent at once.

        timeout: seconds; None waits for ever. Raises DeadlineExceeded if no ack comes in time;
        the producer goes on delivering the rows. If the server refused the rows, raises the reason
        (InvalidArgument or another error of errors.py). Raises ForkError in a forked child.
        """
        self._send_now()
        deadline = None if timeout is None else monotonic() + timeout
        for share in self.shares:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if not share.batch.wait(left):
                raise DeadlineExceeded(f"batch {share.batch.sequence}: no ack within {timeout} s")
        for share in self.shares:
            if share.batch.error is not None:
                share.batch.is_error_seen = True
                raise share.batch.error
        return self._ack()

    def exception(self, timeout: float | None = None) -> LivefactorError | None:
        """Wait as `result` does and return the error of refused rows; None if there is none.

        timeout: seconds; None waits for ever. Raises DeadlineExceeded if no outcome comes in
        time.
        """
        try:
            self.result(timeout)
        except LivefactorError as error:
            if not self.done():
                raise
            return error
        return None

    def _ack(self) -> Ack:
        if not self.shares:
            return Ack(self._at, 0)
        rejects: list[RowReject] = []
        rejected, complete, held = 0, True, 0
        for share in self.shares:
            listed, answer = share_rejects(share), share.batch.answer
            is_whole_batch = share.count == share.batch.rows
            lists_all = answer.rejected_count == len(answer.rejects)
            out = answer.rejected_count if is_whole_batch else len(listed)
            rejected += out
            held += share.count - out if answer.held else 0
            complete = complete and (is_whole_batch or lists_all)
            rejects += listed
        rows = sum(share.count for share in self.shares)
        batches = {batch for share in self.shares for batch in (share.batch, *share.batch.after)}
        answers = (batch.answer for batch in batches if batch.error is None)
        last = max(answers, key=lambda answer: answer.position.revision)
        duplicate = any(share.batch.answer.duplicate for share in self.shares)
        return Ack(
            position_of(last.position), rows - rejected, rejected, tuple(rejects), complete, duplicate, held
        )


_DTYPES = (KEYS, KEYS, FLOATS, FLOATS, NUMBERS, TIMES)


class PendingRows:
    """The pending batch of interactions, with columns that have room for `rows_max` rows.

    like: rows with the same non-empty columns. deadline: when the batch is due, on the monotonic
    clock.
    """

    def __init__(self, like: RowColumns, rows_max: int, deadline: float) -> None:
        self.batch = Batch(INTERACTIONS)
        self.present = like.present
        self.deadline = deadline
        self._columns = [
            np.empty(rows_max, dtype) if present else None
            for dtype, present in zip(_DTYPES, self.present, strict=True)
        ]
        self.room = rows_max

    def add(self, rows: RowColumns, receipt: Receipt, push_start: int) -> None:
        """Append a copy of `rows`: at most `room` rows with the same non-empty columns."""
        start = self.batch.rows
        self.batch.share(receipt, push_start, len(rows.user_ids))
        for column, new in zip(self._columns, rows, strict=True):
            if column is not None:
                column[start : self.batch.rows] = new
        self.room -= len(rows.user_ids)

    def parts(self) -> list[Part]:
        """The parts of the message body."""
        filled = (None if column is None else column[: self.batch.rows] for column in self._columns)
        return interaction_parts(*filled)
