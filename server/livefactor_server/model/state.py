"""A model's whole state, and the one function that a log record goes through: live, on restart and in an audit alike.

`state(r) = apply(spec, log[1..r])`: `ModelState.place` is what the LOG stage does with records (keys to rows),
`ModelState.apply` what the APPLY stage does. Replay calls one after the other. Both take any number of consecutive
records at once, which changes no bit: it saves calls.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np

from livefactor_kernels.backend import Backend, RowTable, Update, create_backend
from livefactor_kernels.sgd.adaptive import RATES, STEP, multiple
from livefactor_kernels.spec.model import EventType, Loss, ModelSpec
from livefactor_server.changes import (
    AvailabilityChange,
    Change,
    InteractionsChange,
    LabelsChange,
    OpenProducerChange,
    Rejects,
)
from livefactor_server.model import producers as producer_codec
from livefactor_server.model.labels import FrozenLabels, Labels
from livefactor_server.model.producers import Outcome, ProducerTable


@dataclass(slots=True)
class Placed:
    """Rows of an interactions record, and the table sizes after its allocation."""

    user_rows: np.ndarray  # uint32[n]
    item_rows: np.ndarray  # uint32[n]
    user_count: int
    item_count: int


@dataclass(slots=True)
class Header:
    """What `apply` needs of a record beside its change."""

    revision: int
    producer: bytes
    epoch: int
    sequence: int
    salt: bytes
    received_hash: bytes
    rejects: Rejects
    hash: bytes


class TypeMeanings:
    """What the spec says of event types, laid over the columns of a record."""

    def __init__(self, event_types: tuple[EventType, ...]) -> None:
        ordered = sorted(event_types, key=lambda each: each.type)
        self._types = np.array([each.type for each in ordered], np.uint32)
        self._weights = np.array([*(each.weight for each in ordered), 1.0], np.float32)
        self._negative = np.array([*(each.negative for each in ordered), False])

    def applied(
        self, events: int, types: np.ndarray | None, values: np.ndarray | None, weights: np.ndarray | None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(values, weights) float32[events] of events of `types` uint32[events] (None: all 0); None: all 1."""
        if not self._types.size:
            return values, weights
        types = np.zeros(events, np.uint32) if types is None else types
        place = np.searchsorted(self._types, types)
        is_known = self._types[np.minimum(place, self._types.size - 1)] == types
        place = np.where(is_known, place, self._types.size)  # the last place: weight 1, not negative
        weighted = self._weights[place] if weights is None else self._weights[place] * weights
        negative = self._negative[place]
        if negative.any():
            values = np.ones(events, np.float32) if values is None else values
            values = np.where(negative, np.float32(0.0), values)
        return values, weighted


class Logged(NamedTuple):
    """A durable record on its way to the tables; `placed` of interactions only."""

    header: Header
    change: Change
    placed: Placed | None


NO_KEYS = np.empty(0, np.uint64)


@dataclass(slots=True)
class ModelState:
    """State of one model. `revision` and everything in it but the tables' allocation belong to the APPLY stage."""

    spec: ModelSpec
    spec_body: bytes
    lineage: uuid.UUID
    backend: Backend
    backend_name: str
    revision: int = 0
    log_hash: bytes = b""
    events: int = 0
    producers: ProducerTable = field(default_factory=ProducerTable)
    labels: tuple[Labels, Labels] = field(default_factory=lambda: (Labels(), Labels()))
    event_types: TypeMeanings = field(init=False)
    unavailable: np.ndarray = field(
        default_factory=lambda: NO_KEYS
    )  # uint64, ascending; replaced, never written in place

    def __post_init__(self) -> None:
        self.event_types = TypeMeanings(self.spec.event_types)

    @classmethod
    def empty(
        cls, spec: ModelSpec, spec_body: bytes, lineage: uuid.UUID, backend: str, log_hash: bytes
    ) -> ModelState:
        """The state at revision 0: nothing but the spec."""
        return cls(spec, spec_body, lineage, create_backend(backend, spec), backend, log_hash=log_hash)

    def place(self, changes: Sequence[Change]) -> list[Placed | None]:
        """Keys to rows, in order; new keys get rows in first-appearance order. None for changes without rows.

        LOG stage; the caller has checked that they fit.
        """
        learned = [change for change in changes if isinstance(change, InteractionsChange)]
        placed = iter(self._place(learned) if learned else ())
        return [next(placed) if isinstance(change, InteractionsChange) else None for change in changes]

    def _place(self, changes: Sequence[InteractionsChange]) -> list[Placed]:
        ends = np.cumsum([change.rows for change in changes])
        starts = np.concatenate(([0], ends[:-1]))
        users, items = (
            _allocated(table, [getattr(change.columns, ids) for change in changes], starts)
            for table, ids in ((self.backend.users, "user_ids"), (self.backend.items, "item_ids"))
        )
        return [
            Placed(users[0][start:end], items[0][start:end], user_count, item_count)
            for start, end, user_count, item_count in zip(
                starts.tolist(), ends.tolist(), users[1], items[1], strict=True
            )
        ]

    def apply(self, records: Sequence[Logged]) -> None:
        """Apply consecutive records. APPLY stage; the caller holds the gate: nobody reads between them."""
        assert records[0].header.revision == self.revision + 1, (records[0].header.revision, self.revision)
        for are_learned, run in groupby(records, lambda record: record.placed is not None):
            if are_learned:
                self._learn(list(run))
            else:
                for record in run:
                    self._note(record)

    def _learn(self, records: list[Logged]) -> None:
        self.backend.apply_all([self._update(record) for record in records])
        for record in records:
            self.events += record.change.rows
            self._settle(record)

    def _note(self, record: Logged) -> None:
        change = record.change
        if isinstance(change, LabelsChange):
            self.labels[change.side].put(change.ids, change.labels)
        elif isinstance(change, AvailabilityChange):
            self.unavailable = _marked(self.unavailable, change)
        self.backend.advance(record.header.revision)
        self._settle(record)

    def _settle(self, record: Logged) -> None:
        header = record.header
        if isinstance(record.change, OpenProducerChange):
            self.producers.open(header.producer, header.epoch)
        elif header.producer:
            self.producers.record(header.producer, _outcome(header, record.change))
        self.revision = header.revision
        self.log_hash = header.hash

    def _update(self, record: Logged) -> Update:
        change, placed = record.change, record.placed
        assert isinstance(change, InteractionsChange) and placed is not None
        columns = change.columns
        values = None if self.spec.loss == Loss.BPR else columns.values
        values, weights = self.event_types.applied(change.rows, columns.event_types, values, columns.weights)
        times = columns.times_us if self.spec.history.users else None
        return Update(
            record.header.revision,
            placed.user_rows,
            placed.item_rows,
            values,
            weights,
            placed.user_count,
            placed.item_count,
            times,
        )

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of rows in use and of key maps, by table."""
        return {
            name: table.row_bytes * table.allocated + table.keymap.nbytes
            for name, table in (("users", self.backend.users), ("items", self.backend.items))
        }

    @property
    def adapted_rate(self) -> float | None:
        """What an adaptive rate multiplies the spec's learning rates by now; None without one. The caller holds the gate."""
        if not self.spec.adaptive_rate.window:
            return None
        return float(multiple(int(self.backend.state()[RATES][STEP])))

    def freeze_small(self) -> FrozenSections:
        """What is not in the tables, as of now; later records do not change it. Taken under the gate."""
        return FrozenSections(
            self.spec_body,
            {name: array.copy() for name, array in self.backend.state().items()},
            self.events,
            self.producers.freeze(),
            (self.labels[0].freeze(), self.labels[1].freeze()),
            self.unavailable,
        )


def _allocated(
    table: RowTable, columns: list[np.ndarray], starts: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Rows of the records' keys, and the table's size after each record."""
    before = table.allocated
    rows = table.allocate(np.concatenate(columns) if len(columns) > 1 else columns[0])
    sizes = np.full(len(columns), before)
    filled = np.array(
        [column.size > 0 for column in columns]
    )  # nothing is left of a batch whose rows were all rejected
    if rows.size:
        sizes[filled] = np.maximum.reduceat(rows, starts[filled]).astype(np.int64) + 1
    return rows, np.maximum(np.maximum.accumulate(sizes), before).tolist()


def _outcome(header: Header, change: Change) -> Outcome:
    rejects = header.rejects
    return Outcome(
        header.sequence,
        header.revision,
        change.rows,
        rejects.count,
        rejects.listed,
        header.salt,
        header.received_hash,
    )


def _marked(unavailable: np.ndarray, change: AvailabilityChange) -> np.ndarray:
    if change.available:
        return np.setdiff1d(unavailable, change.item_ids)
    return np.union1d(unavailable, change.item_ids)


@dataclass(slots=True)
class FrozenSections:
    """State beside the rows, frozen. learned: of the backend (`Backend.state`), copied. `arrays` turns it into a snapshot's tensors."""

    spec_body: bytes
    learned: dict[str, np.ndarray]
    events: int
    producers: list[tuple[bytes, int, int, tuple[Outcome, ...]]]
    labels: tuple[FrozenLabels, FrozenLabels]
    unavailable: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Tensors by name, as the snapshot format lists them."""
        small: dict[str, np.ndarray] = {
            "events": np.array([self.events], np.uint64),
            "producers": np.frombuffer(producer_codec.encode(self.producers), np.uint8),
            "spec": np.frombuffer(self.spec_body, np.uint8),
            "unavailable": self.unavailable,
        }
        small |= self.learned
        for side, frozen in zip(("user", "item"), self.labels, strict=True):
            for name, array in frozen.arrays().items():
                small[f"labels.{side}.{name}"] = array
        return small


def restored(
    spec: ModelSpec,
    spec_body: bytes,
    lineage: uuid.UUID,
    backend: str,
    revision: int,
    log_hash: bytes,
    tensors: Mapping[str, np.ndarray],
) -> ModelState:
    """The state of a verified snapshot's tensors (names as `FrozenSections.arrays` and "users.*", "items.*")."""
    state = ModelState.empty(spec, spec_body, lineage, backend, log_hash)
    for number, name in enumerate(("users", "items")):
        sections = {
            key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(name + ".")
        }
        state.backend.load_sections(number, sections, len(sections["keys"]))
    state.backend.load_state(tensors)
    state.events = int(tensors["events"][0])
    state.producers = producer_codec.decode(tensors["producers"].tobytes())
    state.unavailable = np.array(tensors["unavailable"], np.uint64)
    for book, side in zip(state.labels, ("user", "item"), strict=True):
        book.load({key: tensors[f"labels.{side}.{key}"] for key in ("keys", "offsets", "text")})
    state.revision = revision
    state.backend.advance(revision, state.backend.users.allocated, state.backend.items.allocated)
    return state
