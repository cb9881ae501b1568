"""What `Producer` and its asyncio twin share: settings, state, and how rows are taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from livefactor.access import Access
from livefactor.calling.blocking import Connection
from livefactor.calling.plans import Plan, Until, Work
from livefactor.channel import CONNECT_S
from livefactor.errors import BufferFull, FlushTimeout
from livefactor.position import Position
from livefactor.pushing.batching import Batch, BatchSettings, PendingRows, Receipt, RowReject
from livefactor.pushing.labels import ITEMS, USERS, IdLabels, TextReader
from livefactor.pushing.rows import RowColumns
from livefactor.pushing.sending import ProducerStatus, Sender
from livefactor.wire.columns import (
    EMBEDDINGS,
    FACTOR_DELTAS,
    FACTORS,
    FEATURES,
    INTERACTIONS,
    interaction_parts,
)
from livefactor.wire.keys import keys_of


class ProducerBase:
    """What `Producer` and its asyncio twin share: settings, state, and how rows are taken."""

    _connection: Any
    _sender: Sender

    def __init__(
        self,
        target: str | Sequence[str] | Any | None = None,
        producer_id: str = "",
        *,
        model: str = "default",
        batch: BatchSettings | None = None,
        buffer_events_max: int = 1 << 20,
        timeout: float | None = 60.0,
        open_timeout: float = 30.0,
        connect_s: float = CONNECT_S,
        secret: bytes = b"",
        labels: bool = True,
        on_reject: Callable[[tuple[RowReject, ...]], None] | None = None,
        on_wait: Callable[[ProducerStatus], None] | None = None,
        access: Access | None = None,
        channel: Any | None = None,
    ) -> None:
        if not 1 <= len(producer_id.encode()) <= 64:
            raise ValueError(f"producer_id: expected 1..64 bytes, got {producer_id!r}")
        if buffer_events_max < 1:
            raise ValueError(f"buffer_events_max: expected at least 1, got {buffer_events_max}")
        self.producer_id, self.model = producer_id, model
        self.batch = batch or BatchSettings()
        self._timeout, self._open_timeout = timeout, open_timeout
        self._events_max = buffer_events_max
        self._on_reject, self._on_wait = on_reject, on_wait
        self._hash = partial(keys_of, secret=secret)
        self._labels = {side: IdLabels(side) for side in (USERS, ITEMS)} if labels and not secret else {}
        self._opens_with = Connection(target, channel, connect_s, access)
        self._begin()

    def _begin(self) -> None:
        """What follows the settings."""

    def _open(self) -> None:
        """Open the producer, which waits for the server, and start its thread."""
        try:
            self._sender = Sender(
                self._opens_with,
                self.model,
                self.producer_id,
                self.batch,
                tuple(self._labels.values()),
                self._events_max,
                self._open_timeout,
                self._on_reject,
                self._on_wait,
            )
        except BaseException:
            self._opens_with.close()
            raise

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._opens_with.target!r}, {self.producer_id!r}, model={self.model!r})"
        )

    @property
    def last_sequence(self) -> int:
        """Sequence number of the last acknowledged batch.

        After opening: the batch to resume behind.
        """
        return self._sender.delivery.last_acked

    @property
    def note(self) -> bytes:
        """What `keep` left with this producer id last; empty if it never did."""
        return self._sender.note

    @property
    def status(self) -> ProducerStatus:
        """The current state of this producer."""
        with self._sender.lock:
            return self._sender.status()

    # The bodies of calls of both kinds of producers.

    def _room(self, n: int, timeout: float | None, deadline: float | None) -> Plan[float | None]:
        """The plan that waits until there seems to be room for n rows.

        timeout: the caller's. deadline: what this returned before, on the monotonic clock; None at
        the first time. Raises BufferFull.
        """
        sender = self._sender
        timeout = self._timeout if timeout is None else timeout
        if timeout is not None and deadline is None:
            deadline = monotonic() + timeout
        left = None if deadline is None else max(0.0, deadline - monotonic())
        if not (yield Until(sender.room, lambda: sender.unusable() or sender.has_room(n), left)):
            raise BufferFull(f"no room for {n} rows within {timeout} s: {sender.fullness()}")
        return deadline

    def _taken_bodies(
        self,
        change: str,
        bodies: list[tuple[int, bytes]],
        timeout: float | None,
        taken: Callable[[], None] | None = None,
    ) -> Plan[Receipt]:
        sender, deadline = self._sender, None
        n = sum(rows for rows, _ in bodies)
        while True:
            with sender.lock:
                if sender.reserve(n):
                    if taken is not None:
                        taken()
                    return self._queued(change, bodies)
            deadline = yield from self._room(n, timeout, deadline)

    def _queued(self, change: str, bodies: list[tuple[int, bytes]]) -> Receipt:
        sender = self._sender
        sender.queue_pending()
        receipt, start = Receipt(self._urge, sender.position), 0
        for rows, body in bodies:
            batch = Batch(change)
            batch.share(receipt, start, rows)
            # The labels of new string ids go in front of what is said of them.
            is_of_ids = change in (INTERACTIONS, EMBEDDINGS, FEATURES, FACTORS, FACTOR_DELTAS)
            add = sender.add_events if is_of_ids else sender.delivery.add
            add(batch, [body])
            start += rows
        sender.work.notify_all()
        return receipt

    def _flushed(self, timeout: float | None) -> Plan[Position]:
        sender = self._sender
        with sender.lock:
            sender.check_usable()
            sender.queue_pending()
            sender.work.notify_all()
            batches = deque(sender.delivery.batches())

        def are_done() -> bool:
            while batches and batches[0].done:
                batches.popleft()
            return not batches

        if not (yield Until(sender.outcomes, are_done, timeout)):
            status = self.status
            raise FlushTimeout(
                f"{status.buffered_events} events are not acknowledged after {timeout} s"
                + (f" (waiting for {status.waiting_for})" if status.waiting_for else "")
            )
        with sender.lock:
            sender.raise_failures()
            return sender.position

    def _closed(self, timeout: float | None) -> Plan[None]:
        if not self._sender.lock.is_ours:
            return
        with self._sender.lock:
            if self._sender.closing:
                return
        try:
            yield from self._flushed(timeout)
        finally:
            yield Work(self._end)

    def _end(self) -> None:
        self._sender.shut()
        self._opens_with.close()

    # These put rows into batches, with the lock held.

    def _pushed(self, rows: RowColumns, readers: dict[str, TextReader]) -> Receipt:
        sender = self._sender
        self._take_labels(readers)
        receipt = Receipt(self._urge, sender.position)
        if len(rows.user_ids):
            pending = sender.pending
            self._take(rows, receipt)
            # Rows in the same pending batch are no news to the threads that send.
            if pending is None or pending is not sender.pending:
                sender.work.notify_all()
        return receipt

    def _take_labels(self, readers: dict[str, TextReader]) -> None:
        for side, reader in readers.items():
            if reader.new:
                self._labels[side].take(reader)

    def _take(self, rows: RowColumns, receipt: Receipt) -> None:
        sender, n, rows_max = self._sender, len(rows.user_ids), self.batch.rows_max(rows.row_bytes)
        if sender.pending is not None and sender.pending.present != rows.present:
            sender.queue_pending()
        start = 0
        while start < n:
            if sender.pending is None and n - start >= rows_max:
                batch = Batch(INTERACTIONS)
                batch.share(receipt, start, rows_max)
                sender.add_events(batch, interaction_parts(*rows.slice(start, start + rows_max)))
                start += rows_max
                continue
            if sender.pending is None:
                latency = self.batch.latency_ms_max
                deadline = float("inf") if latency is None else monotonic() + latency / 1e3
                sender.pending = PendingRows(rows, rows_max, deadline)
            stop = min(n, start + sender.pending.room)
            part = rows if stop - start == n else rows.slice(start, stop)
            sender.pending.add(part, receipt, start)
            start = stop
            if not sender.pending.room:
                sender.queue_pending()
        if self.batch.latency_ms_max == 0:
            sender.queue_pending()

    def _urge(self, is_pending: bool) -> None:
        """Called before somebody waits for a receipt. is_pending: its rows are in no batch yet."""
        self._sender.lock.check()
        if is_pending:
            with self._sender.lock:
                self._sender.queue_pending()
                self._sender.work.notify_all()
