"""What a Producer's rows go through before they are sent: settings, the batch being filled, batches, receipts
and acks.

Nothing here knows of gRPC, threads or time. A push's rows may lie in several batches and a batch may hold
rows of several pushes: the batch's `shares` say which, so that an ack or a rejected row finds its way back to
the push it came from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from livefactor.channel import MESSAGE_BYTES_MAX
from livefactor.errors import DeadlineExceeded, LivefactorError
from livefactor.position import Position, position_of
from livefactor.v1 import updates_pb2
from livefactor.wire.arrays import (
    FLOATS,
    KEYS,
    NUMBERS,
    TIMES,
    HashTexts,
    Ids,
    as_floats,
    as_keys,
    as_numbers,
    as_times,
    require_rows,
)
from livefactor.wire.columns import (
    INTERACTIONS,
    Part,
    Stamp,
    apply_prefix,
    interaction_parts,
    join,
    parts_size,
)

PREFIX_BYTES_MAX = 1024
"""More than everything of a request that is no column: model name, producer id, tags and lengths."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """When the batch that is being filled is sent: as soon as one of these is reached.

    events_max: rows of a batch (the server has a limit of its own). bytes_max: bytes of its message, at most
    4 MiB. latency_ms_max: time since its first row, in milliseconds; 0 sends every push at once; None cuts by
    count alone, so that the same rows give the same batches (to resume a file by sequence).
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
        """Rows of `row_bytes` bytes that a batch may hold."""
        return max(1, min(self.events_max, (self.bytes_max - PREFIX_BYTES_MAX) // row_bytes))


class RowReject(NamedTuple):
    """A row that was not applied. row: index in the columns of its push. reason: such as NOT_FINITE. text:
    the server's.
    """

    row: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True, repr=False)
class Ack:
    """A push is durable and visible.

    position: pass it as `min_position` to read this write. accepted, rejected_count: numbers of the push's rows.
    rejects: the first rejected rows of each of its batches; a server lists 100 for a batch. complete: False if
    the push shares a batch with other pushes and more of its rows were rejected than listed; rejected_count
    then counts the listed rows. duplicate: a batch had been applied before, because an ack was lost.
    """

    position: Position
    accepted: int
    rejected_count: int = 0
    rejects: tuple[RowReject, ...] = ()
    complete: bool = True
    duplicate: bool = False

    def __repr__(self) -> str:
        rejected = f", {self.rejected_count} rejected" if self.rejected_count else ""
        duplicate = ", duplicate" if self.duplicate else ""
        return f"Ack({self.accepted} accepted{rejected}{duplicate}, revision {self.position.revision})"


class RowColumns(NamedTuple):
    """n interactions in the contract's dtypes; None where a column is empty."""

    user_ids: npt.NDArray[np.uint64]
    item_ids: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32] | None
    weights: npt.NDArray[np.float32] | None
    event_types: npt.NDArray[np.uint32] | None
    times_us: npt.NDArray[np.int64] | None

    @property
    def present(self) -> tuple[bool, ...]:
        """Which columns are not empty."""
        return tuple(column is not None for column in self)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return sum(column.itemsize for column in self if column is not None)

    def slice(self, start: int, stop: int) -> RowColumns:
        """Rows start..stop as views."""
        return RowColumns(*(None if column is None else column[start:stop] for column in self))  # type: ignore[arg-type]


def row_columns(
    user_ids: Ids,
    item_ids: Ids,
    values: Any,
    weights: Any,
    event_types: Any,
    times: Any,
    hash_users: HashTexts,
    hash_items: HashTexts,
) -> RowColumns:
    """Columns as callers have them in the contract's dtypes. Raises ColumnError (arrays.py says what is
    taken).

    hash_users, hash_items: n string ids to uint64[n] keys.
    """
    users = as_keys("user_ids", user_ids, hash_users)
    n = len(users)
    items = as_keys("item_ids", item_ids, hash_items)
    require_rows("item_ids", items, n)
    return RowColumns(
        users,
        items,
        None if values is None else as_floats("values", values, n),
        None if weights is None else as_floats("weights", weights, n),
        None if event_types is None else as_numbers("event_types", event_types, n),
        None if times is None else as_times("times", times, n),
    )


@dataclass(slots=True)
class Share:
    """`count` rows of one push in one batch: from row `batch_start` of the batch and `push_start` of the
    push.
    """

    receipt: Receipt
    batch: Batch
    batch_start: int
    push_start: int
    count: int


class Batch:
    """One message: rows in order, what they are (`change`), who shares it, and in the end its outcome."""

    def __init__(self, change: str, *, numbered: bool = True) -> None:
        self.change = change
        self.numbered = numbered
        """Whether it takes a sequence number. Labels of string ids take none: see labels.py."""
        self.after: tuple[Batch, ...] = ()
        """Batches without a number that must have their outcome before this one counts as done."""
        self.rows = 0
        self.shares: list[Share] = []
        self.sequence = 0  # While the batch is being filled.
        self.doubtful = False
        """Sent, with no answer that settles it: a server may still come upon it under the number it was sent
        with.
        """
        self._message = b""
        self._body_start = 0
        self._stamp: Stamp | None = None
        self._done = threading.Event()
        self._answer: updates_pb2.ApplyUpdatesResponse | None = None
        self._error: LivefactorError | None = None
        self.error_seen = False

    def write(self, model: str, stamp: Stamp | None, parts: list[Part]) -> None:
        """Make the message from the body's parts: the one copy of the rows that is kept until the ack.

        stamp: None for a batch without a number.
        """
        prefix = apply_prefix(model, stamp, self.change, parts_size(parts))
        self._message = join([prefix, *parts])
        self._body_start = len(prefix)
        self._stamp = stamp
        self.sequence = 0 if stamp is None else stamp.sequence

    def message(self, model: str, producer_id: str, epoch: int) -> bytes:
        """The message under this epoch and the batch's present sequence."""
        if not self.numbered:
            return self._message
        stamp = Stamp(producer_id, epoch, self.sequence)
        if stamp != self._stamp:
            body = memoryview(self._message)[self._body_start :]
            prefix = apply_prefix(model, stamp, self.change, len(body))
            self._message = b"".join((prefix, body))
            self._body_start, self._stamp = len(prefix), stamp
        return self._message

    def share(self, receipt: Receipt, push_start: int, count: int) -> None:
        """Add `count` rows of a push behind the rows that are here."""
        share = Share(receipt, self, self.rows, push_start, count)
        self.shares.append(share)
        receipt.shares.append(share)
        self.rows += count

    def finish(self, outcome: updates_pb2.ApplyUpdatesResponse | LivefactorError) -> None:
        """Settle the batch; its message is let go."""
        if isinstance(outcome, LivefactorError):
            self._error = outcome
        else:
            self._answer = outcome
        self._message = b""
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether the batch and those in `after` have their outcomes."""
        return self._done.is_set() and all(batch.done for batch in self.after)

    @property
    def error(self) -> LivefactorError | None:
        """Why the batch was refused, once it was."""
        return self._error

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until `done`; False if it did not come in time."""
        if not self.after:
            return self._done.wait(timeout_s)
        deadline = None if timeout_s is None else monotonic() + timeout_s

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - monotonic())

        return all(batch._done.wait(left()) for batch in (*self.after, self))

    @property
    def answer(self) -> updates_pb2.ApplyUpdatesResponse:
        """The server's answer. Only of a batch that is done and has no error."""
        assert self._answer is not None
        return self._answer

    def rejects(self) -> Iterator[tuple[Receipt, tuple[RowReject, ...]]]:
        """The named rejects by push, rows counted as the push counted them."""
        if self.answer.rejects:
            for share in self.shares:
                mine = share_rejects(share)
                if mine:
                    yield share.receipt, mine


def share_rejects(share: Share) -> tuple[RowReject, ...]:
    """The named rejects among a share's rows."""
    shift, stop = share.push_start - share.batch_start, share.batch_start + share.count
    return tuple(
        RowReject(reject.row + shift, _reason(reject.reason), reject.text)
        for reject in share.batch.answer.rejects
        if share.batch_start <= reject.row < stop
    )


def _reason(number: int) -> str:
    known = updates_pb2.RejectReason.DESCRIPTOR.values_by_number.get(number)  # None: a newer server's.
    return f"REASON_{number}" if known is None else str(known.name).removeprefix("REJECT_REASON_")


class Receipt:
    """What `push` returns: a future of its Ack."""

    __slots__ = ("_at", "_urge", "shares")

    def __init__(self, urge: Callable[[], None], at: Position) -> None:
        self.shares: list[Share] = []
        self._urge = urge
        self._at = at

    def __repr__(self) -> str:
        rows = sum(share.count for share in self.shares)
        return f"Receipt({rows} rows, {'done' if self.done else 'not acknowledged yet'})"

    @property
    def done(self) -> bool:
        """Whether every row of the push has its outcome."""
        return all(share.batch.done for share in self.shares)

    def result(self, timeout_s: float | None = None) -> Ack:
        """Wait for the Ack; rows that wait for their batch to fill are sent at once.

        timeout_s: seconds, None for ever. Raises DeadlineExceeded if it did not come in time (the rows stay
        on their way), or why the rows were refused (InvalidArgument and others of errors.py).
        """
        if any(share.batch.sequence == 0 and not share.batch.done for share in self.shares):
            self._urge()
        deadline = None if timeout_s is None else monotonic() + timeout_s
        for share in self.shares:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if not share.batch.wait(left):
                raise DeadlineExceeded(f"no ack of batch {share.batch.sequence} within {timeout_s} s")
        for share in self.shares:
            if share.batch.error is not None:
                share.batch.error_seen = True
                raise share.batch.error
        return self._ack()

    def exception(self, timeout_s: float | None = None) -> LivefactorError | None:
        """Wait as `result` does; the error of refused rows, or None. Raises DeadlineExceeded if it did not
        come in time.
        """
        try:
            self.result(timeout_s)
        except LivefactorError as error:
            if not self.done:
                raise
            return error
        return None

    def _ack(self) -> Ack:
        if not self.shares:
            return Ack(self._at, 0)
        rejects: list[RowReject] = []
        rejected, complete = 0, True
        for share in self.shares:
            mine, answer = share_rejects(share), share.batch.answer
            alone = share.count == share.batch.rows
            named = answer.rejected_count == len(answer.rejects)
            rejected += answer.rejected_count if alone else len(mine)
            complete = complete and (alone or named)
            rejects += mine
        rows = sum(share.count for share in self.shares)
        batches = {batch for share in self.shares for batch in (share.batch, *share.batch.after)}
        answers = (batch.answer for batch in batches if batch.error is None)
        last = max(answers, key=lambda answer: answer.position.revision)
        duplicate = any(share.batch.answer.duplicate for share in self.shares)
        return Ack(position_of(last.position), rows - rejected, rejected, tuple(rejects), complete, duplicate)


_DTYPES = (KEYS, KEYS, FLOATS, FLOATS, NUMBERS, TIMES)


class PendingRows:
    """The batch of interactions that is being filled: columns with room for `rows_max` rows, written into in
    place.
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
        """Copy `rows` (at most `room`, the same columns) behind those that are here."""
        start = self.batch.rows
        self.batch.share(receipt, push_start, len(rows.user_ids))
        for column, new in zip(self._columns, rows, strict=True):
            if column is not None:
                column[start : self.batch.rows] = new
        self.room -= len(rows.user_ids)

    def parts(self) -> list[Part]:
        """The message body's parts."""
        filled = (None if column is None else column[: self.batch.rows] for column in self._columns)
        return interaction_parts(*filled)
