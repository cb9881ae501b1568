"""A model's whole state at one revision: the tables of its backend and what stands beside them.

`livefactor_server.changes` says what each kind of record does to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.sgd.adaptive import RATES, STEP, multiple
from livefactor_kernels.spec.model import EventType, ModelSpec
from livefactor_server.model import producers as producer_codec
from livefactor_server.model.labels import FrozenLabels, Labels
from livefactor_server.model.producers import Outcome, ProducerTable


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
