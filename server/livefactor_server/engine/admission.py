"""Admission: checks the sequence of a batch and the room for its rows before the log gets it.

The LOG stage is a few records ahead of the published state. `Admission` keeps the batches that are
admitted and not yet applied. They are part of no snapshot. Every logged record can be applied,
because admission refuses the others.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor_kernels.tables import NO_ROW
from livefactor_server.changes import NO_ROOM, Change, KeyedChange, LabelsChange, Rejects
from livefactor_server.engine.submission import Ack, Seal, Submission
from livefactor_server.model.producers import RING, Outcome
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import Refused, exhausted, exists, precondition

KEY_SLOT_BYTES = 32
"""Bytes per key in its map at the lowest load factor of the map."""


@dataclass(slots=True)
class _Lane:
    """The admitted epoch and sequence of a producer.

    They are ahead of the published table by the batches in flight.
    """

    epoch: int
    last_sequence: int


@dataclass(slots=True)
class Admission:
    """The state as the LOG stage sees it. The APPLY stage calls only `settle`.

    Attributes:
        state: the state of the model.
        memory_bytes_max: limit of the memory of used rows, key maps and labels, in bytes.
        seal: the hash of the log.
        hold_refusal: the refusal of batches with events while updates are on hold, else None.
    """

    state: ModelState
    memory_bytes_max: int
    seal: Seal
    hold_refusal: Callable[[], Refused | None]
    _lanes: dict[bytes, _Lane] = field(default_factory=dict)
    _flying: dict[tuple[bytes, int], Submission] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pending_entries: int = 0
    _pending_labels: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))
    _pending_bytes: int = 0
    _row_bytes: tuple[int, int] = (0, 0)
    _reserved: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        backend = self.state.backend
        self._row_bytes = (backend.users.row_bytes + KEY_SLOT_BYTES, backend.items.row_bytes + KEY_SLOT_BYTES)

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
            if not isinstance(item.change, KeyedChange) or not self.surely_fits(item.change, 0):
                self._make_fit(item)
        except Refused:
            self.withdraw([item])
            raise
        return True

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
                raise exhausted(f"producer: {RING} batches are already in flight")
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
            opening = sum(self.state.producers.get(key) is None for key in self._lanes)
            if len(self.state.producers) + opening >= limit:
                raise exhausted(f"producers: the model has reached its limit of {limit}")
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
        if self.seal(outcome.salt, b"", item.received_body) != outcome.received_hash:
            raise exists(f"sequence: {item.sequence} was used for another payload")
        item.finish(_duplicate_ack(outcome))

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
                self._count_pending(item.change, -1)

    def settle(self, item: Submission) -> list[Submission]:
        """Removes a published batch from the batches in flight. Returns its followers.

        The caller holds `lock`.
        """
        self._flying.pop((item.producer, item.sequence), None)
        self._count_pending(item.change, -1)
        return item.followers

    @property
    def lock(self) -> threading.Lock:
        """Guards the published table of producers together with the batches in flight."""
        return self._lock

    def surely_fits(self, change: Change, rows_ahead: int) -> bool:
        """Whether `change` fits even if all its ids are new and `rows_ahead` other new rows come
        first.

        If it fits, the backend reserves the memory for these rows.
        """
        if not isinstance(change, KeyedChange):
            return True
        limits, backend = self.state.spec.limits, self.state.backend
        worst = change.rows + rows_ahead
        users, items = backend.users.allocated + worst, backend.items.allocated + worst
        return (
            users <= limits.users_max
            and items <= limits.items_max
            and self._bytes_with(worst, worst) <= self.memory_bytes_max
            and self._reserve(users, items)
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

    def _bytes_with(self, new_users: int, new_items: int) -> int:
        backend = self.state.backend
        users, items = backend.users.allocated + new_users, backend.items.allocated + new_items
        names = sum(labels.nbytes for labels in self.state.labels) + self._pending_bytes
        return users * self._row_bytes[0] + items * self._row_bytes[1] + names

    def _make_fit(self, item: Submission) -> None:
        """Rejects the rows of a batch that would need a table row above a limit.

        The caller has placed all earlier rows.

        Raises:
            Refused: the memory is not sufficient, or a list of entries would exceed its limit.
        """
        change = item.change
        if isinstance(change, KeyedChange):
            self._fit_rows(item, change)
        elif isinstance(change, LabelsChange):
            self._fit_labels(item, change)
        elif change.room != NO_ROOM:
            self._fit_entries(change)

    def _fit_rows(self, item: Submission, change: KeyedChange) -> None:
        backend = self.state.backend
        user_ids, item_ids = change.keys
        new_users = backend.users.count_new(user_ids)
        new_items = backend.items.count_new(item_ids)
        if self._bytes_with(new_users, new_items) > self.memory_bytes_max:
            raise exhausted("memory: the batch would exceed the server's memory_bytes_max")
        limits = self.state.spec.limits
        room = (limits.users_max - backend.users.allocated, limits.items_max - backend.items.allocated)
        if not self._reserve(
            backend.users.allocated + min(new_users, room[0]),
            backend.items.allocated + min(new_items, room[1]),
        ):
            raise exhausted("memory: the backend has too little memory for the new rows")
        if new_users <= room[0] and new_items <= room[1]:
            return
        rejected = _rows_without_room(self.state, change, room)
        item.reject_more(rejected, change.without_rows([row for row, _ in rejected]))

    def _fit_labels(self, item: Submission, change: LabelsChange) -> None:
        """Rejects the labels that have no room.

        It never refuses the whole batch, so that the events after it do not wait.
        """
        with self._lock:
            if self._bytes_with(0, 0) + change.room.nbytes > self.memory_bytes_max:
                full = [row for row, text in enumerate(change.labels) if text]
            else:
                full = change.rows_without_room(self.state, self._pending_labels[change.side])
            if full:
                reason = int(updates_pb2.REJECT_REASON_LABELS_FULL)
                item.reject_more([(row, reason) for row in full], change.without_rows(full))
            self._count_pending(item.change, 1)

    def _fit_entries(self, change: Change) -> None:
        entries, limit = change.entries_in(self.state)
        with self._lock:
            self._count_pending(change, 1)
            pending = self._pending_entries
        if entries + pending > limit:
            raise exhausted(f"marks: the batch would exceed the model's limit of {limit}")
        if self._bytes_with(0, 0) > self.memory_bytes_max:
            raise exhausted("memory: the batch would exceed the server's memory_bytes_max")

    def _count_pending(self, change: Change, sign: int) -> None:
        room = change.room
        if isinstance(change, LabelsChange):
            pending = self._pending_labels[change.side]
            for key in change.ids.tolist():
                pending[key] += sign
                if not pending[key]:
                    del pending[key]
        else:
            self._pending_entries += sign * room.entries
        self._pending_bytes += sign * room.nbytes


def _duplicate_ack(outcome: Outcome) -> Ack:
    return Ack(
        outcome.revision, outcome.accepted, Rejects(outcome.rejected_count, outcome.rejects), duplicate=True
    )


def _rows_without_room(
    state: ModelState, change: KeyedChange, room: tuple[int, int]
) -> list[tuple[int, int]]:
    """(row, reason) of each row that would need a table row above a limit, decided in row order.

    `room` is the number of free rows of users and of items.
    """
    user_ids, item_ids = change.keys
    backend = state.backend
    unknown = (backend.users.find(user_ids, backend.users.allocated) == NO_ROW) | (
        backend.items.find(item_ids, backend.items.allocated) == NO_ROW
    )
    new: tuple[set[int], set[int]] = (set(), set())
    rejected: list[tuple[int, int]] = []
    for row in np.flatnonzero(unknown).tolist():
        keys = (int(user_ids[row]), int(item_ids[row]))
        needs = [
            key not in new[side] and _absent(table, key)
            for side, (key, table) in enumerate(zip(keys, (backend.users, backend.items), strict=True))
        ]
        if needs[0] and len(new[0]) >= room[0]:
            rejected.append((row, int(updates_pb2.REJECT_REASON_USERS_FULL)))
        elif needs[1] and len(new[1]) >= room[1]:
            rejected.append((row, int(updates_pb2.REJECT_REASON_ITEMS_FULL)))
        else:
            for side in (0, 1):
                if needs[side]:
                    new[side].add(keys[side])
    return rejected


def _absent(table: object, key: int) -> bool:
    found = table.find(np.array([key], np.uint64), table.allocated)  # type: ignore[attr-defined]
    return bool(found[0] == NO_ROW)
