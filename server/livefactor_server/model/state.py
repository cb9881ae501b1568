"""The whole state of a model at one revision: the tables of its backend and the state beside them.

`livefactor_server.changes` defines the effect of each kind of record on it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from livefactor.wire.limits import FEATURE_NAME_BYTES_MAX
from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.sgd.adaptive import RATES, STEP, multiple
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_server.model import eviction, spec_codec
from livefactor_server.model import producers as producer_codec
from livefactor_server.model.availability import FrozenMarks, Marks
from livefactor_server.model.eviction import Touches
from livefactor_server.model.labels import ENTRY_BYTES, FrozenLabels, Labels
from livefactor_server.model.ledger import Ledger
from livefactor_server.model.producers import FrozenProducer, ProducerTable
from livefactor_server.model.quarantine import Quarantine
from livefactor_server.model.sightings import Sightings

NO_IDS = np.empty(0, np.uint64), np.empty(0, np.uint64)
"""No ids of users and of items."""


def feature_row_bytes(k: int) -> int:
    """Memory of a feature's number and row, which may be copied while the rows grow."""
    return 100 + 8 * k


def context_row_bytes(k: int) -> int:
    """Memory of a feature of context: its place and its name, reserved for all of them."""
    return 100 + 8 * (k + 2) + ENTRY_BYTES + FEATURE_NAME_BYTES_MAX


class Meanings:
    """What values, weights and types of events mean under a spec, for whole columns."""

    def __init__(self, spec: ModelSpec) -> None:
        ordered = sorted(spec.event_types, key=lambda each: each.type)
        self._only_signs = spec.auto.ratings_events > 0
        self._types = np.array([each.type for each in ordered], np.uint32)
        self._weights = np.array([*(each.weight for each in ordered), 1.0], np.float32)
        self._negative = np.array([*(each.negative for each in ordered), False])

    def applied(
        self, events: int, types: np.ndarray | None, values: np.ndarray | None, weights: np.ndarray | None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(values, weights) float32[events] that the model learns.

        The arguments are the columns of a record. `types` is uint32[events]; None means type 0 for
        all. In values and weights None means 1 for all.
        """
        if values is not None and self._only_signs:
            values = (values > 0).astype(np.float32)
        if not self._types.size:
            return values, weights
        types = np.zeros(events, np.uint32) if types is None else types
        place = np.searchsorted(self._types, types)
        is_known = self._types[np.minimum(place, self._types.size - 1)] == types
        # The last entry has weight 1 and is not negative.
        place = np.where(is_known, place, self._types.size)
        weighted = self._weights[place] if weights is None else self._weights[place] * weights
        negative = self._negative[place]
        if negative.any():
            values = np.ones(events, np.float32) if values is None else values
            values = np.where(negative, np.float32(0.0), values)
        return values, weighted


@dataclass(slots=True)
class ModelState:
    """The state of one model.

    The APPLY stage owns `revision` and all other state. Only the allocation of table rows belongs
    to the LOG stage.

    Attributes:
        spec_body: the logged bytes of the spec.
        spec_id: the id of the spec (`spec_codec.id_of`).
        log_hash: chain hash of the log at `revision`, 32 bytes.
        events: number of applied events.
        labels: of users and of items.
        features: the names of the features of users and of items, by key.
        context: the names of the features of context, by key.
        marks: the unavailable items.
        sightings: of ids without rows, with `admission.sightings`. `placed` is the same after the
            last record whose keys have rows, and belongs to the LOG stage.
        ledger: what of the budget of differential privacy is spent.
        touches: when rows had their last events, with `eviction.idle_events`.
        evicted: the revision of the last EVICT record since the start, else 0, and the ids of users
            and of items that left with it.
        quarantine: the batches that wait for a decision.
        skipped: revisions whose records change no table, as pairs (first, last).
        erasures: what the state is without: pairs of a revision and the subjects that records
            before it may not name (`changes/history/erase.py`).
    """

    spec: ModelSpec
    spec_body: bytes
    lineage: uuid.UUID
    backend: Backend
    backend_name: str
    revision: int = 0
    log_hash: bytes = b""
    events: int = 0
    producers: ProducerTable = field(default_factory=ProducerTable)
    labels: tuple[Labels, Labels] = field(default_factory=lambda: (Labels(), Labels(shared=True)))
    features: tuple[Labels, Labels] = field(default_factory=lambda: (Labels(), Labels()))
    context: Labels = field(default_factory=Labels)
    ledger: Ledger = field(init=False)
    quarantine: Quarantine = field(default_factory=Quarantine)
    evicted: tuple[int, tuple[np.ndarray, np.ndarray]] = (0, NO_IDS)
    skipped: tuple[tuple[int, int], ...] = ()
    erasures: tuple[tuple[int, Any], ...] = ()
    spec_id: str = field(init=False)
    meanings: Meanings = field(init=False)
    marks: Marks = field(init=False)
    placed: Sightings | None = field(init=False)
    sightings: Sightings | None = field(init=False)
    touches: Touches | None = field(init=False)
    _map_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.spec_id = spec_codec.id_of(self.spec_body)
        self.meanings = Meanings(self.spec)
        self.marks = Marks(self.backend)
        self.ledger = Ledger(self.spec.privacy)
        needed = self.spec.admission.sightings
        self.sightings, self.placed = (Sightings(needed) if needed > 1 else None for _ in range(2))
        self.touches = Touches(self.spec) if self.spec.eviction.idle_events else None
        learned = self.backend.state().items()
        self._map_bytes = sum(
            array.nbytes for name, array in learned if name.startswith(("prior.", "user_prior."))
        )

    @classmethod
    def empty(
        cls, spec: ModelSpec, spec_body: bytes, lineage: uuid.UUID, backend: str, log_hash: bytes
    ) -> ModelState:
        """The state at revision 0, which has only the spec."""
        return cls(spec, spec_body, lineage, create_backend(backend, spec), backend, log_hash=log_hash)

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of memory of each part: used rows with their key map, and the state beside them."""
        rows = {
            name: table.row_bytes * table.allocated + table.page_bytes + table.keymap.nbytes
            for name, table in (("users", self.backend.users), ("items", self.backend.items))
        }
        return rows | self._beside()

    def _beside(self) -> dict[str, int]:
        labels = sum(labels.nbytes for labels in self.labels)
        producers = self.producers.nbytes + self.quarantine.nbytes
        parts = {"labels": labels, "marks": self.marks.nbytes, "producers": producers}
        if self.sightings is not None:
            parts["sightings"] = 2 * self.sightings.nbytes
        if self.touches is not None:
            parts["touches"] = 8 * sum(self.backend.published)
        if self._map_bytes:
            parts["embeddings"] = self._map_bytes
        if self.spec.features.size:
            parts["features"] = sum(
                names.nbytes + len(names) * feature_row_bytes(self.spec.k) for names in self.features
            )
        if self.spec.context.size:
            parts["context"] = self.spec.context.size * context_row_bytes(self.spec.k)
        return parts

    @property
    def bytes_beside(self) -> int:
        """Bytes of memory of the state beside the rows: the parts that records make grow, and the
        map of embeddings.
        """
        return sum(self._beside().values())

    @property
    def adapted_rate(self) -> float | None:
        """Present factor on the learning rates of the spec. None without an adaptive rate.

        The caller holds the gate.
        """
        if not self.spec.adaptive_rate.window:
            return None
        return float(multiple(int(self.backend.state()[RATES][STEP])))

    def evict(self, revision: int, idle_events: int) -> None:
        """Takes out the rows that were not touched for `idle_events` events.

        `revision` is that of the EVICT record. A second call for it does nothing. Labels stay.
        """
        if self.touches is None or self.evicted[0] == revision:
            return
        leaves = eviction.idle(self.backend, self.touches, self.events, idle_events)
        self.evicted = revision, NO_IDS
        if not (leaves[USERS].any() or leaves[ITEMS].any()):
            return
        unavailable = self.marks.freeze().keys()
        self.backend, self.touches, ids = eviction.evicted(
            self.spec, self.backend_name, self.backend, self.touches, self.events, leaves
        )
        self.evicted = revision, ids
        self.marks = Marks(self.backend)
        self.marks.load(unavailable)

    def freeze_small(self) -> FrozenSections:
        """The present state beside the table rows, which later records do not change.

        The caller holds the gate.
        """
        return FrozenSections(
            self.spec_body,
            {name: array.copy() for name, array in self.backend.state().items()}
            | (self.sightings.arrays() if self.sightings is not None else {})
            | (self.ledger.arrays() if self.spec.privacy.epsilon else {})
            | (self.touches.arrays(self.backend.published) if self.touches is not None else {}),
            self.events,
            self.producers.freeze(),
            self.quarantine.encode(),
            (self.labels[0].freeze(), self.labels[1].freeze()),
            self.marks.freeze(),
            self._frozen_names(),
        )

    def _frozen_names(self) -> dict[str, FrozenLabels]:
        return {name: names.freeze() for name, names in named_features(self).items()}


@dataclass(slots=True)
class FrozenSections:
    """Frozen state beside the table rows.

    `learned` is a copy of the backend's state (`Backend.state`), of sightings, of the ledger and of
    touches. `names` are those of `named_features`.
    """

    spec_body: bytes
    learned: dict[str, np.ndarray]
    events: int
    producers: list[FrozenProducer]
    quarantine: bytes
    labels: tuple[FrozenLabels, FrozenLabels]
    marks: FrozenMarks
    names: dict[str, FrozenLabels] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors by name, as the snapshot format defines them."""
        small: dict[str, np.ndarray] = {
            "events": np.array([self.events], np.uint64),
            "producers": np.frombuffer(producer_codec.encode(self.producers) + self.quarantine, np.uint8),
            "spec": np.frombuffer(self.spec_body, np.uint8),
            "unavailable": self.marks.keys(),
        }
        small |= self.learned
        for side, frozen in zip(("user", "item"), self.labels, strict=True):
            for name, array in frozen.arrays().items():
                small[f"labels.{side}.{name}"] = array
        for owner, frozen in self.names.items():
            for name, array in frozen.arrays().items():
                small[f"{owner}.labels.{name}"] = array
        return small


def named_features(state: ModelState) -> dict[str, Labels]:
    """The names of features that the spec has, by the beginning of the names of their sections."""
    found = {}
    if state.spec.features.size:
        found = {f"features.{side}": state.features[at] for at, side in enumerate(("user", "item"))}
    if state.spec.context.size:
        found["context"] = state.context
    return found


def restored(
    spec: ModelSpec,
    spec_body: bytes,
    lineage: uuid.UUID,
    backend: str,
    revision: int,
    log_hash: bytes,
    tensors: Mapping[str, np.ndarray],
) -> ModelState:
    """The state of a verified snapshot.

    `tensors` has the names of `FrozenSections.arrays`, and "users.*" and "items.*".
    """
    state = ModelState.empty(spec, spec_body, lineage, backend, log_hash)
    for number, name in enumerate(("users", "items")):
        sections = {
            key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(name + ".")
        }
        state.backend.load_sections(number, sections, len(sections["keys"]))
    state.backend.load_state(tensors)
    for sketch in (state.sightings, state.placed):
        if sketch is not None:
            sketch.load(tensors["sightings"], tensors["sightings.since"])
    if spec.privacy.epsilon:
        state.ledger.load(tensors["privacy"])
    if state.touches is not None:
        state.touches.load(tensors)
    state.events = int(tensors["events"][0])
    state.producers, waiting = producer_codec.decode(tensors["producers"].tobytes())
    state.quarantine = Quarantine.decode(waiting)
    for book, side in zip(state.labels, ("user", "item"), strict=True):
        book.load({key: tensors[f"labels.{side}.{key}"] for key in ("keys", "offsets", "text")})
    for owner, book in named_features(state).items():
        book.load({key: tensors[f"{owner}.labels.{key}"] for key in ("keys", "offsets", "text")})
    state.revision = revision
    state.backend.advance(revision, state.backend.users.allocated, state.backend.items.allocated)
    state.marks.load(tensors["unavailable"])
    return state
