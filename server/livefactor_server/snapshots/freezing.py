"""Freezes the state of a model at one revision, for snapshots and root hashes.

`freeze` is for a live model: it reads rows through a pin, and updates continue. `freeze_idle` is
for a model that does not change, for example a replayed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from livefactor_kernels.backend import Backend
from livefactor_kernels.pins import remembered
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import FrozenSections, ModelState
from livefactor_server.snapshots.store import FrozenState, RowReader
from livefactor_server.statuses import no_memory


@contextmanager
def freeze(
    name: str, state_of: Callable[[], ModelState], log_hash_name: str, gate: Gate
) -> Iterator[FrozenState]:
    """The state in force at its published revision. Updates continue meanwhile.

    Raises:
        Refused: RESOURCE_EXHAUSTED if the backend has too little memory for the pin or for reading
            the rows.
    """
    try:
        with gate.reading():
            # Under the gate, because an eviction may put another state in its place.
            state = state_of()
            pin = state.backend.pin()
            revision, log_hash, small = state.revision, state.log_hash, state.freeze_small()
        with pin:
            events = remembered(pin, state.spec)
            yield _frozen(name, state, revision, log_hash, log_hash_name, pin, events, small)
    except MemoryError:
        raise no_memory("reading all rows") from None


def freeze_idle(name: str, state: ModelState, log_hash_name: str) -> FrozenState:
    """The state of a model that does not change while the caller reads the result."""
    with state.backend.pin() as pin:
        rows, events = _IdleRows(state.backend, pin.counts), remembered(pin, state.spec)
    small = state.freeze_small()
    return _frozen(name, state, state.revision, state.log_hash, log_hash_name, rows, events, small)


@dataclass(frozen=True, slots=True)
class _IdleRows:
    """Rows of a backend that learns nothing, read piece by piece, since rings take room."""

    backend: Backend
    counts: tuple[int, int]

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        with self.backend.pin() as pin:
            return pin.read_rows(side, start, stop)


def _frozen(
    name: str,
    state: ModelState,
    revision: int,
    log_hash: bytes,
    log_hash_name: str,
    rows: RowReader,
    events: tuple[int, int],
    small: FrozenSections,
) -> FrozenState:
    return FrozenState(
        revision,
        state.lineage,
        state.spec_body,
        log_hash,
        log_hash_name,
        time.time_ns() // 1000,
        state.spec.kernel_semantics,
        name,
        rows,
        small.arrays(),
        events,
    )
