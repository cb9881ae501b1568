"""What every kind of change has, and the record that carries one to the state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes.rejects import Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid


class ReplayError(Exception):
    """A record does not fit the state before it. The text says what was expected and what was found."""


@dataclass(slots=True)
class Header:
    """What applying a record needs beside its change. `hash` and `previous` are chain hashes of 32 bytes."""

    revision: int
    producer: bytes
    epoch: int
    sequence: int
    salt: bytes
    received_hash: bytes
    rejects: Rejects
    hash: bytes
    previous: bytes


@dataclass(slots=True)
class Placement:
    """Rows of a record's keys: uint32[n] each; and the sizes of the tables once these rows are allocated."""

    user_rows: np.ndarray
    item_rows: np.ndarray
    user_count: int
    item_count: int


class Room(NamedTuple):
    """Memory that a change may take beside the tables: entries of a list with a limit, and bytes."""

    entries: int = 0
    nbytes: int = 0


NO_ROOM = Room()


class Change(ABC):
    """What one record asks of a model. Each subclass is one kind of record and stands in one file.

    kind: the number in the record's header. field: of the `change` oneof of an ApplyUpdatesRequest, None for a change
    that no such request carries. reject_texts: what the reasons of its rejected rows mean.
    has_events: the model learns from its rows, so they are counted as events and a hold refuses them.
    opens_producer: the record opens an epoch and consumes no sequence.
    """

    kind: ClassVar[Kind]
    field: ClassVar[str | None] = None
    reject_texts: ClassVar[Mapping[int, str]] = {}
    has_events: ClassVar[bool] = False
    opens_producer: ClassVar[bool] = False

    body: bytes
    """What the log keeps: the bytes as they were received, unless a row was rejected."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows of the change, as the record's header counts them."""

    @classmethod
    @abstractmethod
    def from_log(cls, body: bytes) -> Self:
        """The change of a logged body. It was checked before it was logged: ValueError or a subclass means damage."""

    @classmethod
    @abstractmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Apply consecutive records of this kind. The caller holds the gate, and publishes the revision afterwards."""

    @abstractmethod
    def describe(self) -> str:
        """What `log show` says of the change, in a few words."""

    @property
    def room(self) -> Room:
        """What admission reserves for the change beside rows of the tables."""
        return NO_ROOM

    def entries_in(self, state: ModelState) -> tuple[int, int]:
        """(entries in the list that the change adds to, the spec's limit of that list)."""
        return 0, 0


class WireChange(Change):
    """A change that an ApplyUpdatesRequest carries, in the field of the same name."""

    @classmethod
    @abstractmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[Self, Rejects]:
        """The change of a received message without its bad rows, and those. Raises ColumnError, Refused."""


class KeyedChange(WireChange):
    """A change whose rows name users and items. Keys that are new get rows of the tables before it is applied."""

    @property
    @abstractmethod
    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """(user ids, item ids), uint64[rows] each."""

    @abstractmethod
    def without_rows(self, rows: np.ndarray | list[int]) -> Self:
        """The change without the rows of these numbers."""


class Record(NamedTuple):
    """A durable record on its way to the tables. placement: of a `KeyedChange`, else None."""

    header: Header
    change: Change
    placement: Placement | None


def require_rows(rows: int, rows_max: int) -> None:
    """Raises Refused (INVALID_ARGUMENT) unless a message has 1 to `rows_max` rows."""
    if not rows:
        raise invalid("batch: no rows")
    if rows > rows_max:
        raise invalid(f"batch: at most {rows_max} rows, got {rows}")
