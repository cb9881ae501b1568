"""The base classes of changes, and the record that carries a change to the state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Self

import numpy as np

from livefactor.wire.limits import over
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import NO_ROW, USERS
from livefactor_server.changes.rejects import Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid


class ReplayError(Exception):
    """A record does not fit the state before it.

    The text has the expected and the actual value.
    """


@dataclass(slots=True)
class Header:
    """The fields of a record's header that its application needs.

    `hash` and `previous` are chain hashes of 32 bytes. `time_us` is when the record arrived, in
    microseconds since 1970; 0 if it is unknown. No state may depend on it. `accepted` is the number
    of rows that were acknowledged, if rows were erased since (`history/erase.py`); else None.
    `is_held` says that the batch went into quarantine (`history/quarantine.py`).
    """

    revision: int
    producer: bytes
    epoch: int
    sequence: int
    salt: bytes
    received_hash: bytes
    rejects: Rejects
    hash: bytes
    previous: bytes
    time_us: int = 0
    accepted: int | None = None
    is_held: bool = False


class Places(NamedTuple):
    """Table rows of the keys of m consecutive records.

    Attributes:
        user_ends, item_ends: numbers of keys up to and with each record, int64[m].
        user_rows, item_rows: uint32[any].
        user_counts, item_counts: sizes of the tables after each record, int64[m].
        ids: the keys of both sides, uint64[any] each, if some have no row (NO_ROW); else None.
    """

    user_ends: np.ndarray
    item_ends: np.ndarray
    user_rows: np.ndarray
    item_rows: np.ndarray
    user_counts: np.ndarray
    item_counts: np.ndarray
    ids: tuple[np.ndarray, np.ndarray] | None = None


class Placement(NamedTuple):
    """Table rows of a record's keys.

    Attributes:
        places: the rows of this record and of others that were placed with it.
        number: the number of this record in `places`.
        users, items: its keys among those of `places`.
    """

    places: Places
    number: int
    users: slice
    items: slice

    @property
    def user_rows(self) -> np.ndarray:
        """Rows of the users, uint32[any]."""
        return self.places.user_rows[self.users]

    @property
    def item_rows(self) -> np.ndarray:
        """Rows of the items, uint32[any]."""
        return self.places.item_rows[self.items]

    @property
    def learned(self) -> np.ndarray | None:
        """Which events the model learns, bool[n]: those whose ids have rows. None means all."""
        if self.places.ids is None:
            return None
        learned: np.ndarray = (self.user_rows != NO_ROW) & (self.item_rows != NO_ROW)
        return learned

    @property
    def user_count(self) -> int:
        """Number of users after this record."""
        return int(self.places.user_counts[self.number])

    @property
    def item_count(self) -> int:
        """Number of items after this record."""
        return int(self.places.item_counts[self.number])


class Room(NamedTuple):
    """The room that a change may take beside the tables, at most.

    Attributes:
        kept_in: name of the limited list that the change extends, "" for none.
        keys: the keys of its new entries.
        nbytes: memory in bytes.
    """

    kept_in: str = ""
    keys: Sequence[int] = ()
    nbytes: int = 0


NO_ROOM = Room()


@dataclass(slots=True)
class Pending:
    """New entries of a limited list that are admitted and not yet applied: how many batches have
    them, and how often each key occurs.
    """

    batches: int = 0
    keys: Counter[int] = field(default_factory=Counter)

    def add(self, keys: Sequence[int]) -> None:
        """Adds the entries of a batch."""
        self.batches += 1
        self.keys.update(keys)

    def remove(self, keys: Sequence[int]) -> None:
        """Removes those of a batch that is applied or withdrawn."""
        self.batches -= 1
        if not self.batches:
            self.keys.clear()
            return
        for key in keys:
            self.keys[key] -= 1
            if not self.keys[key]:
                del self.keys[key]


class Change(ABC):
    """The contents of one record. Each subclass is one kind of record and has its own file.

    Attributes:
        kind: the number in the record's header.
        field: the field in the `change` oneof of an ApplyUpdatesRequest. None if no request carries
            the change.
        reject_texts: reason of a rejection -> text for people.
        work_of_row: how much longer than an event a row may hold the gate.
        has_events: the model learns from the rows. They count as events, and a hold refuses them.
        opens_producer: the record opens an epoch and takes no sequence.
        is_wrapped: the body has more than what was received.
    """

    kind: ClassVar[Kind]
    field: ClassVar[str | None] = None
    reject_texts: ClassVar[Mapping[int, str]] = {}
    work_of_row: ClassVar[int] = 1
    has_events: ClassVar[bool] = False
    opens_producer: ClassVar[bool] = False
    is_wrapped: ClassVar[bool] = False

    body: bytes
    """The bytes in the log: the received bytes, unless a row was rejected."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Number of rows, which is also in the record's header."""

    @classmethod
    @abstractmethod
    def from_log(cls, body: bytes) -> Self:
        """Decodes a logged body.

        The body was checked before it was logged, so an error means damage.

        Raises:
            ValueError: the body is damaged. It may be a subclass.
        """

    @classmethod
    @abstractmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Applies consecutive records of this kind.

        The caller holds the gate, and publishes the revision afterwards.
        """

    @abstractmethod
    def describe(self) -> str:
        """A few words about the change for `log show`."""

    @property
    def room(self) -> Room:
        """The room that admission reserves for the change, without table rows."""
        return NO_ROOM


class WireChange(Change):
    """A change that the field `field` of an ApplyUpdatesRequest carries."""

    @classmethod
    @abstractmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[Self, Rejects]:
        """Decodes a received message. Returns the change without its bad rows, and the rejects.

        `rows_max` is the maximum number of rows.

        Raises:
            ColumnError: the message is malformed.
            Refused: the message as a whole is invalid.
        """

    @abstractmethod
    def without_rows(self, rows: np.ndarray | list[int]) -> Self:
        """The change without the rows with these numbers."""

    @property
    def named_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """The user ids and the item ids of the rows, uint64[rows] each, or uint64[0] for a side
        that no row names.
        """
        return _NO_IDS, _NO_IDS

    def rows_outside(self, spec: ModelSpec) -> list[tuple[int, int]]:
        """(row, reason) of each row that `spec` does not accept.

        It is for a change that was checked against an earlier spec.

        Raises:
            Refused: the change as a whole is invalid.
        """
        return []

    def rows_without_room(
        self, state: ModelState, pending: Mapping[int, int], free_bytes: int
    ) -> list[tuple[int, int]]:
        """(row, reason) of each row that would exceed the limit of the list `room.kept_in`, or the
        memory.

        `pending` maps the keys of the list whose entries are admitted and not yet applied to their
        number. `free_bytes` is the memory that the change may take. It is below 0 if the model
        holds more than it may.
        """
        return []


class KeyedChange(WireChange):
    """A change whose rows contain users and items.

    New keys get table rows before the change is applied. `is_sighting` says that a spec may ask for
    several such changes before a key gets its row.
    """

    is_sighting: ClassVar[bool] = False

    @property
    @abstractmethod
    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """(user ids, item ids), uint64[rows] each, or uint64[0] for a side without ids."""

    @property
    def named_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """See `WireChange.named_ids`."""
        return self.keys


class Record(NamedTuple):
    """A durable record on its way to the tables. Only a `KeyedChange` has a placement."""

    header: Header
    change: Change
    placement: Placement | None


def require_rows(rows: int, rows_max: int) -> None:
    """Checks that a message has 1 to `rows_max` rows.

    Raises:
        Refused: INVALID_ARGUMENT if it has not.
    """
    if not rows:
        raise invalid("batch: it has no rows")
    if rows > rows_max:
        raise invalid(over("batch", rows_max, rows, "rows"))


def require_finite(name: str, numbers: np.ndarray) -> None:
    """Checks that rows of numbers [rows, any] are finite.

    Raises:
        Refused: INVALID_ARGUMENT if one is not. The text names the column and the row.
    """
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if bad.size:
        more = f" and {bad.size - 1} further rows" if bad.size > 1 else ""
        raise invalid(f"{name}: row {bad[0]}{more}: a number is NaN or infinite")


def require_once(ids: np.ndarray) -> None:
    """Checks that no id of uint64[rows] occurs twice.

    Raises:
        Refused: INVALID_ARGUMENT if one does. The text names the row.
    """
    _, first = np.unique(ids, return_index=True)
    if len(first) < len(ids):
        row = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        raise invalid(f"ids: row {row} has the id of an earlier row ({ids[row]})")


_NO_IDS = np.empty(0, np.uint64)


def keys_of_side(side: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys of a change that names ids of one side, USERS or ITEMS. The other side has none."""
    return (ids, _NO_IDS) if side == USERS else (_NO_IDS, ids)
