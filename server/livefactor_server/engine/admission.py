"""Admission: checks the sequence of a batch and the room for its rows before the log gets it.

The LOG stage is a few records ahead of the published state. `Admission` keeps the batches that are
admitted and not yet applied. They are part of no snapshot. Every logged record can be applied,
because admission refuses the others.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor_kernels.backend import RowTable
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.changes import Change, HeldChange, InteractionsChange, KeyedChange, Rejects, WireChange
from livefactor_server.changes.change import Pending
from livefactor_server.engine.new_ids import NewIds, UserRows
from livefactor_server.engine.submission import Ack, Seal, Submission
from livefactor_server.judging.screening import Screen
from livefactor_server.log.format import NO_HASH
from livefactor_server.model.producers import RING
from livefactor_server.model.quarantine import HELD_MAX
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import Refused, busy, exhausted, exists, precondition

logger = logging.getLogger(__name__)

KEY_SLOT_BYTES = 32
"""Bytes per key in its map at the lowest load factor of the map."""

SPARE_SHARE = 1 / 32
"""Share of the memory that a second state leaves to updates, so that it makes no row rejected."""


@dataclass(slots=True)
class _Lane:
    """The admitted epoch and sequence of a producer.

    They are ahead of the published table by the batches in flight.
    """

    epoch: int
    last_sequence: int


class _Room(NamedTuple):
    """The room for new rows.

    Attributes:
        users, items: the numbers of rows below the limits of the spec.
        granted: the numbers for which the backend has memory.
        nbytes: the memory for rows, in bytes.
        new_ids: the number of users and items together that the producer may still add.
    """

    users: int
    items: int
    granted: tuple[int, int]
    nbytes: int
    new_ids: float = math.inf


@dataclass(slots=True)
class Admission:
    """The state as the LOG stage sees it. The APPLY stage calls only `settle`.

    Attributes:
        state: the state of the model.
        memory_bytes_max: limit of the memory of the model, in bytes.
        seal: the hash of the log.
        hold_refusal: the refusal of batches with events while updates are on hold, else None.
        judge_item_bytes: memory that the judge takes for each item.
        new_ids: how many users and items a producer may add. None for any number.
        user_rows: how many events a user may have. None for any number.
        screen: decides which batches wait in quarantine. None holds none.
    """

    state: ModelState
    memory_bytes_max: int
    seal: Seal
    hold_refusal: Callable[[], Refused | None]
    judge_item_bytes: int = 0
    new_ids: NewIds | None = None
    user_rows: UserRows | None = None
    screen: Screen | None = None
    _lanes: dict[bytes, _Lane] = field(default_factory=dict)
    _flying: dict[tuple[bytes, int], Submission] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _producers: int = 0
    _pending: dict[str, Pending] = field(default_factory=dict)
    _pending_bytes: int = 0
    _held_ahead: tuple[int, int] = (0, 0)
    _row_bytes: tuple[int, int] = (0, 0)
    _reserved: tuple[int, int] = (0, 0)
    _sure_rows: int = 0
    _states: int = 1
    _second_pages: Callable[[], int] = int

    def __post_init__(self) -> None:
        self._producers = len(self.state.producers)
        self._count_row_bytes()

    def _count_row_bytes(self, second: Sequence[int] = (0, 0), states: int = 1) -> None:
        users, items = (
            table.row_bytes + more + KEY_SLOT_BYTES * states
            for table, more in zip(self._tables, second, strict=True)
        )
        self._states, self._row_bytes = states, (users, items + self.judge_item_bytes)

    @contextmanager
    def with_second_state(self, row_bytes: tuple[int, int], page_bytes: Callable[[], int]) -> Iterator[None]:
        """Counts the memory of a second state, which a promotion builds.

        Rows of users and of items have `row_bytes` in it. `page_bytes` tells the bytes of its
        pages. Any thread may call it.

        Raises:
            Refused: RESOURCE_EXHAUSTED if the memory does not suffice for both.
        """
        self._second_pages = page_bytes
        self._count_row_bytes(row_bytes, 2)
        try:
            self.check_second_state()
            yield
        finally:
            self._second_pages = int
            self._count_row_bytes()

    def warn_if_full(self, name: str) -> None:
        """Logs a warning if a model holds more than it may."""
        if self.free_bytes < 0:
            logger.warning(
                "model %s: it holds %d MiB, which is more than memory_bytes_max (%d MiB); it serves, and "
                "it rejects new users, items, labels and marks",
                name, (self.memory_bytes_max - self.free_bytes) >> 20, self.memory_bytes_max >> 20,
            )  # fmt: skip

    def check_second_state(self) -> None:
        """Checks that the memory suffices for a second state, and for updates meanwhile.

        Raises:
            Refused: RESOURCE_EXHAUSTED if it does not.
        """
        missing = int(self.memory_bytes_max * SPARE_SHARE) - self.free_bytes
        if missing > 0:
            raise exhausted(
                f"memory: both states need {(missing >> 20) + 1} MiB more than memory_bytes_max "
                f"({self.memory_bytes_max >> 20} MiB)"
            )

    def admit(self, item: Submission) -> bool:
        """Decides whether a batch enters the log.

        Returns True for a new batch, which the caller then logs. Returns False for a duplicate,
        which gets its answer now or together with the batch in flight. Retries of acknowledged
        batches get their answer also during a hold. A refused batch changes nothing.

        Raises:
            Refused: the sequence is wrong, updates are on hold, or a limit is reached.
        """
        if not self.sequence(item):
            return False
        try:
            refusal = self.hold_refusal() if item.change.has_events else None
            if refusal is not None:
                raise refusal
            if item.claim is not None:
                item.claim(item)
            if item.spec is not None and item.spec is not self.state.spec:
                self._check_again(item)
            if item.guard is not None:
                item.guard()
            elif self.screen is not None and isinstance(item.change, InteractionsChange):
                self._judge(item, item.change, self.screen)
            self._make_fit(item)
        except Refused:
            self.withdraw([item])
            raise
        return True

    def _judge(self, item: Submission, change: InteractionsChange, screen: Screen) -> None:
        """Puts a batch that is unlike the others in quarantine."""
        if (found := screen.outlier(change)) is None:
            return
        held = HeldChange.of(change, found.note)
        waiting, (batches, nbytes) = self.state.quarantine, self._held_ahead
        if (
            len(waiting) + batches >= HELD_MAX
            or waiting.body_bytes + nbytes + len(held.body) > screen.settings.bytes_max
        ):
            raise exhausted("quarantine: it is full, and this batch is an outlier; accept or drop batches")
        item.replace(held)

    def sequence(self, item: Submission) -> bool:
        """Checks the epoch and the sequence of a batch, and records them if the batch is new.

        Returns True for a new batch and False for a duplicate, as `admit` does.

        Raises:
            Refused: the producer is not open, its epoch is fenced, the sequence has a gap or
                another payload, or a limit is reached.
        """
        if item.change.opens_producer:
            self._open(item)
            return True
        if not item.producer:
            return True
        lane = self._lane(item.producer)
        if lane is None:
            raise precondition("producer: it is not open; call OpenProducer first")
        if item.epoch != lane.epoch:
            raise precondition(f"producer: epoch {item.epoch} is fenced; the current epoch is {lane.epoch}")
        if item.sequence > lane.last_sequence + 1 or item.sequence < 1:
            raise precondition(f"sequence: expected {lane.last_sequence + 1}, got {item.sequence}")
        if item.sequence <= lane.last_sequence:
            self._answer_duplicate(item)
            return False
        with self._lock:
            published = self.state.producers.get(item.producer)
            if published and lane.last_sequence - published.last_sequence >= RING:
                raise busy(f"producer: {RING} batches are already in flight")
            lane.last_sequence = item.sequence
            self._flying[item.producer, item.sequence] = item
        return True

    def _lane(self, producer_id: bytes) -> _Lane | None:
        lane = self._lanes.get(producer_id)
        if lane is None:
            with self._lock:
                published = self.state.producers.get(producer_id)
                if published is None:
                    return None
                lane = self._lanes[producer_id] = _Lane(published.epoch, published.last_sequence)
        return lane

    def _open(self, item: Submission) -> None:
        lane = self._lane(item.producer)
        if lane is None:
            limit = self.state.spec.limits.producers_max
            if self._producers >= limit:
                raise exhausted(f"producers: the model has reached its limit of {limit}")
            self._producers += 1
            lane = self._lanes[item.producer] = _Lane(0, 0)
        lane.epoch += 1
        item.epoch, item.sequence = lane.epoch, lane.last_sequence

    def _answer_duplicate(self, item: Submission) -> None:
        with self._lock:
            flying = self._flying.get((item.producer, item.sequence))
            if flying is not None:
                if flying.received_body != item.received_body:
                    raise exists(f"sequence: {item.sequence} is in flight with another payload")
                flying.followers.append(item)
                return
            producer = self.state.producers.get(item.producer)
            assert producer is not None
            outcome = producer.outcome(item.sequence)
        if outcome is None:
            item.finish(Ack(self.state.revision, 0, Rejects(), duplicate=True))
            return
        is_known = outcome.received_hash != NO_HASH
        # The hash is destroyed if rows of the batch were erased.
        if is_known and self.seal(outcome.salt, b"", item.received_body) != outcome.received_hash:
            raise exists(f"sequence: {item.sequence} was used for another payload")
        rejects = Rejects(outcome.rejected_count, outcome.rejects)
        item.finish(Ack(outcome.revision, outcome.accepted, rejects, True, is_held=outcome.is_held))

    def withdraw(self, items: list[Submission]) -> None:
        """Reverts the admission of a group that was not logged.

        The sequences of its batches are free again. Followers get the same refusal as their batch.
        """
        with self._lock:
            for item in reversed(items):
                if item.producer and self._flying.pop((item.producer, item.sequence), None) is item:
                    self._lanes[item.producer].last_sequence = item.sequence - 1
                elif item.change.opens_producer:
                    lane = self._lanes[item.producer]
                    lane.epoch -= 1
                    if not lane.epoch:
                        del self._lanes[item.producer]
                        self._producers -= 1
                self._count_pending(item.change, -1)

    def settle(self, item: Submission) -> list[Submission]:
        """Removes a published batch from the batches in flight. Returns its followers.

        The caller holds `lock`.
        """
        self._flying.pop((item.producer, item.sequence), None)
        self._count_pending(item.change, -1)
        return item.followers

    def waiting(self) -> Counter[bytes]:
        """The number of batches in flight of each producer. The caller holds `lock`."""
        return Counter(producer for producer, _ in self._flying)

    @property
    def lock(self) -> threading.Lock:
        """Guards the published table of producers together with the batches in flight."""
        return self._lock

    def expect(self, rows: int, rows_ahead: int) -> None:
        """Checks once for a whole group whether all its rows fit, even if all ids are new.

        `rows` are those of its batches. `rows_ahead` are those of the batches before that have no
        table rows yet. Then `surely_fits` needs no further check for them.
        """
        if self.new_ids is not None:
            self.new_ids.forget_placed(not rows_ahead)
        rows += rows_ahead
        self._sure_rows = rows if self._rows_fit(rows) else 0

    def surely_fits(self, item: Submission, rows_ahead: int) -> bool:
        """Whether a batch fits even if all its ids are new and `rows_ahead` other new rows come
        first.

        If it fits, the backend reserves the memory for these rows.
        """
        change = item.change
        if not isinstance(change, KeyedChange):
            return True
        worst = change.rows + rows_ahead
        if worst > self._sure_rows and not self._rows_fit(worst):
            return False
        return self.new_ids is None or item.guard is not None or self.new_ids.admits(item, change)

    def _rows_fit(self, rows: int) -> bool:
        """Whether so many new users and as many new items fit."""
        limits, (users, items) = self.state.spec.limits, self._tables
        return (
            users.allocated + rows <= limits.users_max
            and items.allocated + rows <= limits.items_max
            and rows * sum(self._row_bytes) <= self.free_bytes
            and self._reserve(users.allocated + rows, items.allocated + rows)
        )

    def _reserve(self, users: int, items: int) -> bool:
        """Whether the backend has memory for tables of these sizes.

        The backend is called only for sizes above those that it has granted already.
        """
        granted_users, granted_items = self._reserved
        if users <= granted_users and items <= granted_items:
            return True
        wanted = max(users, granted_users), max(items, granted_items)
        if not self.state.backend.reserve(*wanted):
            return False
        self._reserved = wanted
        return True

    @property
    def _tables(self) -> tuple[RowTable, RowTable]:
        return self.state.backend.users, self.state.backend.items

    @property
    def free_bytes(self) -> int:
        """The memory that admitted batches may still take, in bytes.

        It is below 0 if the model holds more than `memory_bytes_max`.
        """
        rows = sum(
            table.allocated * nbytes + table.page_bytes
            for table, nbytes in zip(self._tables, self._row_bytes, strict=True)
        )
        beside = self.state.bytes_beside + self._pending_bytes
        return self.memory_bytes_max - rows - beside * self._states - self._second_pages()

    def _check_again(self, item: Submission) -> None:
        """Checks a batch that was checked against an earlier spec."""
        change = item.change
        if isinstance(change, WireChange) and (rejected := change.rows_outside(self.state.spec)):
            item.reject_rows(rejected)

    def _make_fit(self, item: Submission) -> None:
        """Rejects the rows of a batch that have no room, so that the other rows need not wait.

        If the batch may not fit, all earlier new rows are placed.
        """
        if self.user_rows is not None and item.change.has_events and item.guard is None:
            self.user_rows.limit(item, self._tables[USERS])
        change = item.change
        if isinstance(change, KeyedChange):
            if self.surely_fits(item, 0):
                item.new_rows = change.rows
            else:
                self._fit_rows(item, change)
        change = item.change
        if isinstance(change, WireChange) and (change.room.kept_in or not isinstance(change, KeyedChange)):
            self._fit_entries(item, change)
        if isinstance(change, KeyedChange) and self.new_ids is not None and item.guard is None:
            self.new_ids.take(item)

    def _fit_rows(self, item: Submission, change: KeyedChange) -> None:
        new = tuple(table.count_new(keys) for table, keys in zip(self._tables, change.keys, strict=True))
        room = self._room_for(*new)
        if self.new_ids is not None and item.guard is None:
            room = room._replace(new_ids=self.new_ids.left(item.payer))
        if (
            new[USERS] <= min(room.users, room.granted[USERS])
            and new[ITEMS] <= min(room.items, room.granted[ITEMS])
            and new[USERS] * self._row_bytes[USERS] + new[ITEMS] * self._row_bytes[ITEMS] <= room.nbytes
            and sum(new) <= room.new_ids
        ):
            item.new_rows = max(new)
            return
        rejected, item.new_rows = self._rows_without_room(change, room)
        item.reject_rows(rejected)

    def _room_for(self, new_users: int, new_items: int) -> _Room:
        """The room for this many new rows. The backend reserves what it can of it."""
        (users, items), limits, free = self._tables, self.state.spec.limits, max(0, self.free_bytes)
        room = limits.users_max - users.allocated, limits.items_max - items.allocated
        wanted = tuple(
            min(new, rows, free // nbytes)
            for new, rows, nbytes in zip((new_users, new_items), room, self._row_bytes, strict=True)
        )
        if self._reserve(users.allocated + wanted[USERS], items.allocated + wanted[ITEMS]):
            return _Room(*room, (wanted[USERS], wanted[ITEMS]), free)
        granted = self._reserved[USERS] - users.allocated, self._reserved[ITEMS] - items.allocated
        return _Room(*room, granted, free)

    def _rows_without_room(self, change: KeyedChange, room: _Room) -> tuple[list[tuple[int, int]], int]:
        """The rows that would need a table row above a limit, decided in row order.

        Returns:
            (row, reason) of each of them, and the most rows that the others add to a table.
        """
        # A side without ids has no unknown ones.
        keys = [each if len(each) else np.zeros(change.rows, np.uint64) for each in change.keys]
        unknown = [
            (table.find(each, table.allocated) == NO_ROW) & (len(own) > 0)
            for table, each, own in zip(self._tables, keys, change.keys, strict=True)
        ]
        rows = np.flatnonzero(unknown[USERS] | unknown[ITEMS])
        columns = [column[rows].tolist() for column in (*keys, *unknown)]
        new_users: set[int] = set()
        new_items: set[int] = set()
        free, rejected = room.nbytes, []
        for row, user, item, no_user, no_item in zip(rows.tolist(), *columns, strict=True):
            needs_user, needs_item = no_user and user not in new_users, no_item and item not in new_items
            users, items = len(new_users) + needs_user, len(new_items) + needs_item
            cost = needs_user * self._row_bytes[USERS] + needs_item * self._row_bytes[ITEMS]
            if needs_user and users > room.users:
                rejected.append((row, int(updates_pb2.REJECT_REASON_USERS_FULL)))
            elif needs_item and items > room.items:
                rejected.append((row, int(updates_pb2.REJECT_REASON_ITEMS_FULL)))
            elif (
                cost > free
                or (needs_user and users > room.granted[USERS])
                or (needs_item and items > room.granted[ITEMS])
            ):
                rejected.append((row, int(updates_pb2.REJECT_REASON_MEMORY_FULL)))
            elif needs_user + needs_item and users + items > room.new_ids:
                rejected.append((row, int(updates_pb2.REJECT_REASON_NEW_IDS)))
            else:
                free -= cost
                if needs_user:
                    new_users.add(user)
                if needs_item:
                    new_items.add(item)
        return rejected, max(len(new_users), len(new_items))

    def _fit_entries(self, item: Submission, change: WireChange) -> None:
        """Rejects the rows of a change whose entries have no room in their list."""
        with self._lock:
            room = change.room
            if room.kept_in:
                pending = self._pending.get(room.kept_in)
                keys = pending.keys if pending else Counter[int]()
                rejected = change.rows_without_room(self.state, keys, self.free_bytes)
                if rejected:
                    item.reject_rows(rejected)
            self._count_pending(item.change, 1)

    def _count_pending(self, change: Change, sign: int) -> None:
        room = change.room
        if room.kept_in:
            pending = self._pending.setdefault(room.kept_in, Pending())
            if sign > 0:
                pending.add(room.keys)
            else:
                pending.remove(room.keys)
        if isinstance(change, HeldChange):
            batches, nbytes = self._held_ahead
            self._held_ahead = batches + sign, nbytes + sign * len(change.body)
        self._pending_bytes += sign * room.nbytes
        if sign > 0 and room.nbytes:
            # It takes memory that `expect` may have counted on.
            self._sure_rows = 0
