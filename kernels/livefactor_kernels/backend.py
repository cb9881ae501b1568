"""The verbs every backend has, and the one place that chooses a backend.

A server speaks to a model through `Backend`, and reads it at one revision through `Pin`; where the tables lie
(in memory, on a device) shows in neither. The gate is the caller's lock: whoever holds it knows that no
`apply`, `advance`, `load_state` or `load_sections` is running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.pins import Pin
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
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
    """A map from key to row, as far as its size is of interest."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""


class RowTable(Protocol):
    """Which key has which row of one side: what a backend's `users` and `items` have in common.

    The LOG stage allocates rows, ahead of what is published; any thread may look them up.
    """

    @property
    def keys(self) -> np.ndarray:
        """Keys by row, uint64[allocated or more]."""

    @property
    def capacity(self) -> int:
        """Rows that the spec allows."""

    @property
    def allocated(self) -> int:
        """Rows given out."""

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes in all arrays, its place in `keymap` not counted."""

    @property
    def keymap(self) -> RowMap:
        """The map behind `find`."""

    def allocate(self, keys: np.ndarray) -> np.ndarray:
        """Rows uint32[n] of `keys` uint64[n]; unknown keys get the next rows in order of first appearance.

        OverflowError, with nothing changed, if the new keys do not fit the table.
        """

    def count_new(self, keys: np.ndarray) -> int:
        """Distinct keys of uint64[n] that have no row yet."""

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """Rows uint32[n] of `keys` uint64[n]; `NO_ROW` where unknown or at or past `published`."""


class Backend(Protocol):
    """A model that learns: the verbs of `cpu.CpuModel`. Sides are `tables.USERS` and `tables.ITEMS`."""

    spec: ModelSpec
    revision: int
    published: tuple[int, int]

    @property
    def users(self) -> RowTable:
        """The users' rows."""

    @property
    def items(self) -> RowTable:
        """The items' rows."""

    @property
    def mean(self) -> np.float32:
        """Global mean of the values seen."""

    def state(self) -> dict[str, np.ndarray]:
        """State beside the rows by section name, in the order of the root hash, each one-dimensional (`tables/state.py`). Do
        not write to the arrays; later updates may change them. The caller holds the gate."""

    def load_state(self, sections: Mapping[str, np.ndarray]) -> None:
        """Restore what `state` gives, after the rows of both sides. sections: those, and events uint64[1], the number of
        events that the model has learned from; others are ignored."""

    def reserve(self, user_rows: int, item_rows: int) -> bool:
        """Make sure that there is memory for tables of so many rows (each at most the side's capacity).

        The LOG stage asks before it appends: what it lets in can be applied. False, with nothing changed, if
        there is not enough. What was granted stays; asking for less changes nothing. Rows that come without
        asking (replay, restore) take their memory as they come: MemoryError if there is none.
        """

    def wait_for_room(self, update_rows: int) -> None:
        """Block while pins hold so many copies that an update of `update_rows` events must wait. The writer
        calls it before it takes the gate."""

    def apply(self, update: Update) -> None:
        """Learn from one interactions record. The caller holds the gate."""

    def apply_all(self, updates: Sequence[Update]) -> None:
        """Learn from consecutive interactions records, to the same bits; only the last revision becomes visible."""

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """Move to a revision that changes no rows."""

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """Restore an empty table."""

    def sections(self, side: int, count: int) -> dict[str, np.ndarray]:
        """The first `count` rows of a side as arrays of the host, unpadded: keys uint64[count], factors [count, k]
        as stored (float32, float16, or uint16: the bits of bfloat16), bias float32[count], with AdaGrad
        factor_g, bias_g float32 of the same shapes, and the history's (`tables.row_sections`).

        Views where the tables are in memory: do not write to them. The caller holds the gate as long as it
        looks at them.
        """

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(factors float32[n, kp], bias float32[n]) of rows uint32[n] at the current revision; zeros where a
        row is `NO_ROW`. The caller holds the gate.

        New arrays of the host, C-contiguous; factors begin at a multiple of 64 bytes.
        """

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Copies of the sections `names` (as `sections` has them) of rows uint32[n], zeros where a row is `NO_ROW`.
        The caller holds the gate."""

    def pin(self) -> Pin:
        """Keep the current revision readable. The caller holds the gate."""


def _cuda_model(spec: ModelSpec) -> Backend:
    from livefactor_kernels.cuda import CudaModel  # loading it takes a second and more

    return CudaModel(spec)


_BACKENDS: dict[str, Callable[[ModelSpec], Backend]] = {
    "cpu": CpuModel,
    "cuda": _cuda_model,
    "reference": ReferenceModel,
}
BACKEND_NAMES = tuple(_BACKENDS)
AUTO = "auto"
"""Stands for `cuda` where a GPU answers, else for `cpu`."""


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot run on this machine; the text says what was found."""


def choose_backend(name: str) -> str:
    """The backend that `name`, one of `BACKEND_NAMES` or `AUTO`, stands for here.

    BackendUnavailable if it is `cuda` and no GPU answers, ValueError for another name. Nothing of the GPU's
    libraries is loaded for the others.
    """
    if name not in (*BACKEND_NAMES, AUTO):
        raise ValueError(f"backend: expected one of {', '.join((*BACKEND_NAMES, AUTO))}, got {name!r}")
    if name not in ("cuda", AUTO):
        return name
    missing = [library for library in ("cupy", "numba_cuda") if find_spec(library) is None]
    if missing:
        found = f"not installed: {', '.join(missing)}; see docs/gpu.md"
    else:
        from livefactor_kernels.device import machine as device

        if device.is_available():
            return "cuda"
        found = device.found()
    if name == AUTO:
        return "cpu"
    raise BackendUnavailable(f"backend cuda: no GPU answers ({found})")


def create_backend(name: str, spec: ModelSpec) -> Backend:
    """An empty model of backend `name` (one of `BACKEND_NAMES`); ValueError for another name, SpecError for a
    bad spec."""
    if name not in _BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKEND_NAMES)}, got {name!r}")
    return _BACKENDS[name](check(spec))


def state_sections(backend: Backend) -> dict[str, np.ndarray]:
    """The tables' share of a model's state at its revision, in the order in which the root hash takes it.

    By name: users.keys, users.factors, ..., items.bias_g, of the published rows as `Backend.sections` gives
    them, then the sections of `Backend.state`.
    """
    sections: dict[str, np.ndarray] = {}
    for name, side in (("users", USERS), ("items", ITEMS)):
        part = backend.sections(side, backend.published[side])
        sections |= {f"{name}.{section}": array for section, array in part.items()}
    return sections | backend.state()
