"""The verbs every backend has, and the one place that chooses a backend."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .cpu import CpuModel
from .pins import PinBoard
from .reference import ReferenceModel
from .spec import ModelSpec
from .tables import Table
from .update import Update

__all__ = ["BACKEND_NAMES", "Backend", "Update", "create_backend", "state_sections"]


class Backend(Protocol):
    """A model that learns: the verbs of `cpu.CpuModel`."""

    spec: ModelSpec
    revision: int
    published: tuple[int, int]
    pins: PinBoard  # the reference has none: it is replayed, not served

    @property
    def users(self) -> Table:
        """The users' table."""

    @property
    def items(self) -> Table:
        """The items' table."""

    @property
    def mean(self) -> np.float32:
        """Global mean of the values seen."""

    @property
    def mean_sum(self) -> int:
        """Its fixed-point sum."""

    @property
    def mean_count(self) -> int:
        """Its number of events."""

    def set_mean(self, total: int, count: int) -> None:
        """Restore the mean."""

    def apply(self, update: Update) -> None:
        """Learn from one interactions record."""

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """Move to a revision that changes no rows."""

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """Restore an empty table."""


_BACKENDS: dict[str, type] = {"cpu": CpuModel, "reference": ReferenceModel}
BACKEND_NAMES = tuple(_BACKENDS)


def create_backend(name: str, spec: ModelSpec) -> Backend:
    """An empty model of backend `name` (one of `BACKEND_NAMES`); ValueError for another name, SpecError for a
    bad spec."""
    if name not in _BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKEND_NAMES)}, got {name!r}")
    backend: Backend = _BACKENDS[name](spec.check())
    return backend


def state_sections(backend: Backend) -> dict[str, np.ndarray]:
    """The tables' share of a model's state at its revision, in the order in which the root hash takes it.

    Views by name: users.keys, users.factors, ..., items.bias_g, of the published rows, and mean int64[2]
    (sum, count).
    """
    sections: dict[str, np.ndarray] = {}
    for side, table, count in zip(
        ("users", "items"), (backend.users, backend.items), backend.published, strict=True
    ):
        sections |= {f"{side}.{name}": view for name, view in table.sections(count).items()}
    sections["mean"] = np.array([backend.mean_sum, backend.mean_count], np.int64)
    return sections
