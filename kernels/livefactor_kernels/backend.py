"""The protocol of all backends, and the choice of one.

A server uses a model through `Backend`, and reads it at one revision through `Pin`. Both hide
whether the tables are in host memory or on a device. The gate is a lock of the caller. Its holder
knows that no `apply`, `advance`, `load_state` or `load_sections` is running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from livefactor_kernels.pins import Pin
from livefactor_kernels.reading.context import Moves, Statistics
from livefactor_kernels.scoring import Candidates
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.solve.prior.sums import MapSums
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import ModelSpec, SpecError
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.deltas import Deltas
from livefactor_kernels.tables.recent import Recent
from livefactor_kernels.tables.start import Start
from livefactor_kernels.update import Update

__all__ = [
    "AUTO",
    "BACKEND_NAMES",
    "Backend",
    "BackendUnavailable",
    "Pin",
    "RowTable",
    "Update",
    "choose_backend",
    "create_backend",
    "state_sections",
]


class RowMap(Protocol):
    """A map from keys to rows. The protocol has only its size."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the map."""


class RowTable(Protocol):
    """The keys and rows of one side: the common part of the tables of all backends.

    The LOG stage allocates rows, ahead of the published ones. Any thread may look rows up.
    """

    @property
    def keys(self) -> np.ndarray:
        """Keys by row, uint64[allocated or more]."""

    @property
    def capacity(self) -> int:
        """Maximum number of rows, from the spec."""

    @property
    def allocated(self) -> int:
        """Number of allocated rows."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in all arrays, without its slot in `keymap`."""

    @property
    def page_bytes(self) -> int:
        """Bytes of the histories of all rows, if they are not in `row_bytes`."""

    @property
    def keymap(self) -> RowMap:
        """The map that `find` uses."""

    def allocate(self, keys: np.ndarray) -> np.ndarray:
        """Rows uint32[n] of `keys` uint64[n]. New keys get the next rows in order of first
        appearance.

        Raises:
            OverflowError: the new keys do not fit the table. Nothing has changed.
        """

    def count_new(self, keys: np.ndarray) -> int:
        """Number of distinct keys of uint64[n] that have no row yet."""

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """Rows uint32[n] of `keys` uint64[n]. `NO_ROW` for unknown keys and rows from `published`
        on.
        """


class Backend(Protocol):
    """A model that learns. Sides are `tables.USERS` and `tables.ITEMS`.

    Attributes:
        spec: the spec of the model.
        revision: the present revision.
        published: numbers of the user rows and item rows that are visible at `revision`.
    """

    spec: ModelSpec
    revision: int
    published: tuple[int, int]

    @property
    def users(self) -> RowTable:
        """The table of users."""

    @property
    def items(self) -> RowTable:
        """The table of items."""

    @property
    def mean(self) -> np.float32:
        """Global mean float32 of the values so far (squared loss), else 0."""

    def state(self) -> dict[str, np.ndarray]:
        """State beside the rows, by section name, in the order of the root hash
        (`tables/state.py`).

        The arrays are one-dimensional. Do not write to them. Later updates may change them. The
        caller holds the gate.
        """

    def load_state(self, sections: Mapping[str, np.ndarray]) -> None:
        """Restores the result of `state`. Call it after the rows of both sides are restored.

        `sections` also has events uint64[1], the number of events that the model has learned from.
        Other sections are ignored.
        """

    def reserve(self, user_rows: int, item_rows: int) -> bool:
        """Reserves memory for tables of these sizes, each at most the capacity of its side.

        Returns False if the memory is not sufficient. Nothing has changed then. The LOG stage calls
        it before it appends records, so that every logged record can be applied. Reserved memory
        stays reserved, and a call with smaller sizes does nothing. Rows of a replay or a restore
        need no call before. They take memory when they come, and raise MemoryError if there is too
        little.
        """

    def wait_for_room(self, update_rows: int) -> None:
        """Waits while pins hold too many copies for an update of `update_rows` events.

        The writer calls it before it takes the gate.
        """

    def apply(self, update: Update) -> None:
        """Learns from one interactions record. The caller holds the gate.

        Raises:
            ValueError: a column is malformed.
            MemoryError: the backend has too little memory.
        """

    def apply_all(self, updates: Sequence[Update]) -> None:
        """Learns from consecutive interactions records, with the bits of one `apply` per record.

        Only the last revision becomes visible.
        """

    def begin(self, start: Start) -> None:
        """Gives rows the factors of another model (`tables/start.py`), then sets the revision.

        The caller holds the gate. A model of rule SOLVE needs `solve.start_events`, and squared
        loss has no starts.
        """

    def add(self, deltas: Deltas) -> None:
        """Adds a record of deltas to its rows (`tables/deltas.py`), then sets the revision.

        The caller holds the gate. Only a model that merges (`spec.merge`) has it.
        """

    def clear(self, side: int, rows: np.ndarray, revision: int) -> None:
        """Clears distinct rows uint32[n] of a side (`tables/clearing.py`), then sets the revision.

        The caller holds the gate. The backend cuda lacks this part.
        """

    def set_embeddings(
        self, side: int, rows: np.ndarray, vectors: np.ndarray, revision: int, count: int
    ) -> None:
        """Sets the vectors float16[n, d] of rows uint32[n] of a side, in order.

        Then it sets the revision and the number of rows of the side.

        The caller holds the gate. Only a model with embeddings (`spec.embeddings`) has it.
        """

    def add_map_sums(self, sums: MapSums) -> None:
        """Adds sums to the map of users (`solve/prior/sums.py`), then sets the revision.

        The caller holds the gate. Only a model with vectors of users that merges has it.
        """

    def set_features(self, side: int, rows: np.ndarray, bags: Bags, revision: int, count: int) -> None:
        """Sets the bags of rows uint32[n] of a side, and the revision.

        `count` is the number of rows of the side then. The caller holds the gate. Only a model with
        features (`spec.features`) has it.
        """

    def drop_features(self, side: int, keys: np.ndarray, revision: int) -> None:
        """Takes the features of keys uint64[n] out of all bags of a side, and sets the revision.

        The caller holds the gate. Only a model with features (`spec.features`) has it.
        """

    def learn_context(self, item_rows: np.ndarray, bags: Bags) -> Moves:
        """Learns the context of events with item rows uint32[n], after their record is learned.

        The caller holds the gate. Only a model with context (`spec.context`) has it.
        """

    def drop_context(self, keys: np.ndarray, revision: int) -> None:
        """Forgets the features of context with keys uint64[n], and sets the revision.

        The caller holds the gate. Only a model with context (`spec.context`) has it.
        """

    def context(self, keys: np.ndarray) -> Statistics:
        """What the model has learned of the features of context with keys uint64[m].

        The caller holds the gate. Only a model with context (`spec.context`) has it.
        """

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """Sets a revision that changes no rows. Counts that are not None become the published
        ones.
        """

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """Restores `count` rows into an empty table. `sections` has the names and shapes of
        `sections`.

        Raises:
            ValueError: the sections do not fit.
        """

    def sections(self, side: int, count: int) -> dict[str, np.ndarray]:
        """The first `count` rows of a side as host arrays without padding (`tables.row_sections`).

        They are for example keys uint64[count], factors [count, k] in their stored type (float32,
        float16, or uint16 for bfloat16), and bias float32[count]. They may be views of the tables:
        do not write to them. The caller holds the gate while it reads them.
        """

    def try_score(
        self, user_keys: np.ndarray, item_keys: np.ndarray, offsets: np.ndarray | None
    ) -> Candidates | None:
        """The scores of candidates by keys, at the present revision or one that is just published.

        None if rows changed meanwhile. With the gate held that is an error of an earlier update. A
        backend that cannot read beside its writer always returns None.

        Args:
            user_keys: uint64[n].
            item_keys: uint64[any].
            offsets: user u's candidates are item_keys[offsets[u]:offsets[u + 1]]; uint32[n + 1],
                ascending from 0 to the number of keys, which is not checked. With None every user
                has all of them.
        """

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(factors float32[n, k_padded], bias float32[n]) of rows uint32[n] at the present
        revision.

        Both are 0 where a row is `NO_ROW`. They are new C-contiguous host arrays. The factors begin
        at a multiple of 64 bytes. The caller holds the gate.
        """

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Copies of the sections `names` of rows uint32[n], zeros where a row is `NO_ROW`.

        The shapes are those of `sections`. But sections of events may end after the last place
        that has an event in any of the rows. The caller holds the gate.
        """

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """The last `most` events of rows uint32[n], none where a row is `NO_ROW`.

        The model has histories of the side. The caller holds the gate.
        """

    def pin(self) -> Pin:
        """Pins the present revision, so that it stays readable. The caller holds the gate."""


# Each backend imports many kernels. A command that only reads a log needs none of them.


def _cpu_model(spec: ModelSpec) -> Backend:
    from livefactor_kernels.cpu import CpuModel

    return CpuModel(spec)


def _reference_model(spec: ModelSpec) -> Backend:
    from livefactor_kernels.reference import ReferenceModel

    return ReferenceModel(spec)


def _cuda_model(spec: ModelSpec) -> Backend:
    from livefactor_kernels.cuda import CudaModel

    return CudaModel(spec)


_BACKENDS: dict[str, Callable[[ModelSpec], Backend]] = {
    "cpu": _cpu_model,
    "cuda": _cuda_model,
    "reference": _reference_model,
}
BACKEND_NAMES = tuple(_BACKENDS)
AUTO = "auto"
"""Name of the choice: `cuda` if a GPU is available, else `cpu`."""


class BackendUnavailable(RuntimeError):
    """The backend cannot run on this machine. The text has the reason."""


def choose_backend(name: str, spec: ModelSpec | None = None) -> str:
    """The backend for `name`, which is one of `BACKEND_NAMES` or `AUTO`.

    For `AUTO` it is not `cuda` if `cuda` lacks a part of `spec`. It loads GPU libraries only for
    `cuda` and `AUTO`.

    Raises:
        BackendUnavailable: `name` is `cuda`, and no GPU is available.
        ValueError: the name is unknown.
    """
    if name not in (*BACKEND_NAMES, AUTO):
        raise ValueError(f"backend: expected one of {', '.join((*BACKEND_NAMES, AUTO))}, got {name!r}")
    if name not in ("cuda", AUTO):
        return name
    if name == AUTO and spec is not None and not is_on_cuda(spec):
        return "cpu"
    missing = [library for library in ("cupy", "numba_cuda") if find_spec(library) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}; see docs/gpu.md"
    else:
        from livefactor_kernels.device import machine as device

        if device.is_available():
            return "cuda"
        reason = device.found()
    if name == AUTO:
        return "cpu"
    raise BackendUnavailable(f"backend cuda: no GPU answers ({reason})")


def is_on_cuda(spec: ModelSpec) -> bool:
    """Whether the backend cuda has all parts of a valid spec."""
    try:
        check_cuda(spec)
    except SpecError:
        return False
    return True


def create_backend(name: str, spec: ModelSpec) -> Backend:
    """An empty model on the backend `name`, which is one of `BACKEND_NAMES`.

    Raises:
        ValueError: the name is unknown.
        SpecError: the spec is invalid.
    """
    if name not in _BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKEND_NAMES)}, got {name!r}")
    return _BACKENDS[name](check(spec))


def state_sections(backend: Backend) -> dict[str, np.ndarray]:
    """The state of the tables at the present revision, by name, in the order of the root hash.

    The names are users.keys, users.factors, ... for the published rows of `Backend.sections`. After
    them come the sections of `Backend.state`.
    """
    sections: dict[str, np.ndarray] = {}
    for name, side in (("users", USERS), ("items", ITEMS)):
        part = backend.sections(side, backend.published[side])
        sections |= {f"{name}.{section}": array for section, array in part.items()}
    return sections | backend.state()
