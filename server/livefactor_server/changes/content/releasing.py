"""The step of differential privacy: contributions become a noisy sum, and only that is logged.

    contribute ─▶ clip ─▶ whole numbers ─▶ sum (memory) ─▶ noise ─▶ RELEASE record ─▶ rows

All items that have rows when a release begins take part, so what is released does not tell which of
them a user has touched. A sum is one of whole numbers: multiples of clip / 2**GRID_BITS, rounded
towards zero, so no norm grows. The noise is rounded to the same grid. So the low bits of a float
tell nothing of the sum (Mironov, CCS 2012). The random bits are those of the operating system, and
nothing keeps them.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire.deltas import DeltaColumns
from livefactor.wire.limits import DELTA_NUMBERS_MAX
from livefactor_kernels.spec.model import Privacy
from livefactor_kernels.tables import ITEMS
from livefactor_server.changes.change import Change, require_finite, require_once, require_rows
from livefactor_server.changes.content.release import ReleaseChange, release_misfit
from livefactor_server.model.gate import Gate
from livefactor_server.model.ledger import BudgetSpent, Ledger
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import exhausted, invalid, precondition

GRID_BITS = 20
CONTRIBUTIONS_MAX = 1 << 18
"""Maximum number of contributions of a release. Their ids take about 20 MB."""


class Writer(Protocol):
    """What a releaser needs of an engine."""

    state: ModelState
    gate: Gate

    @property
    def revision(self) -> int:
        """The published revision."""

    def append(self, change: Change) -> int:
        """Logs a change and applies it. Returns its revision."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What of a budget is spent. `window` is that of now."""

    privacy: Privacy
    window: int
    releases: int
    releases_max: int
    all_releases: int


@dataclass(slots=True)
class _Pending:
    """A release that is being collected: the sum int64[items, numbers of a row], and who is in it.

    `keys` are those of the items, ascending.
    """

    number: int
    keys: np.ndarray
    sums: np.ndarray
    users: set[int] = field(default_factory=set)

    def add(self, columns: DeltaColumns, numbers: np.ndarray) -> None:
        """Adds whole numbers int64[rows, any]. Rows of unknown items are left out."""
        at = np.minimum(np.searchsorted(self.keys, columns.ids), len(self.keys) - 1)
        is_there = self.keys[at] == columns.ids
        self.sums[at[is_there]] += numbers[is_there]


class Releaser:
    """Collects the contributions of a model, and makes its releases. Thread-safe."""

    def __init__(self, engine: Writer) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._pending: _Pending | None = None

    def standing(self) -> Standing:
        """What of the budget is spent.

        Raises:
            Refused: FAILED_PRECONDITION if the model has no privacy.
        """
        ledger = self._ledger()
        with self._engine.gate.reading():
            window = ledger.window_at(time.time())
            return Standing(
                ledger.privacy, window, ledger.released_in(window), ledger.releases_max, ledger.all_releases
            )

    def contribute(self, number: int, user: int, columns: DeltaColumns) -> bool:
        """Adds a contribution to the next release. False if the user has contributed to it already.

        Raises:
            Refused: as the RPC Contribute.
        """
        privacy = self._ledger().privacy
        self._check(columns)
        numbers = columns.deltas
        if self._has_biases:
            biases = np.zeros(len(columns), np.float32) if columns.biases is None else columns.biases
            numbers = np.column_stack([numbers, biases])
        whole = clipped(numbers, privacy.clip)
        with self._lock:
            pending = self._collecting(number)
            if user in pending.users:
                return False
            if len(pending.users) >= CONTRIBUTIONS_MAX:
                raise exhausted(f"release: it has its limit of {CONTRIBUTIONS_MAX} contributions")
            pending.users.add(user)
            pending.add(columns, whole)
            return True

    def make(self, number: int) -> tuple[int, bool]:
        """Makes the next release. Returns its revision, and whether it was made before.

        Raises:
            Refused: as the RPC MakeRelease.
        """
        with self._lock:
            ledger = self._ledger()
            if 0 < number <= ledger.all_releases:
                return self._engine.revision, True
            pending = self._collecting(number)
            window = ledger.window_at(time.time())
            try:
                ledger.check(window, number)
            except BudgetSpent as error:
                raise precondition(str(error)) from None
            noisy = released(pending.sums, ledger.privacy)
            k = self._engine.state.spec.k
            biases = noisy[:, k] if self._has_biases else None
            revision = self._engine.append(
                ReleaseChange.of(window, number, pending.keys, noisy[:, :k], biases)
            )
            self._pending = None
            return revision, False

    @property
    def _has_biases(self) -> bool:
        return self._engine.state.spec.optimizer.bias_learning_rate > 0

    def _ledger(self) -> Ledger:
        ledger = self._engine.state.ledger
        if not ledger.privacy.epsilon:
            raise precondition("model: it has no privacy (privacy.epsilon is 0)")
        return ledger

    def _check(self, columns: DeltaColumns) -> None:
        if columns.side != updates_pb2.SIDE_ITEM:
            raise invalid(f"deltas: side: expected SIDE_ITEM, got {columns.side}")
        if columns.weight not in (0.0, 1.0):
            raise invalid(f"deltas: weight: expected 0 or 1, got {columns.weight:g}")
        if reason := release_misfit(self._engine.state.spec, columns):
            raise invalid(f"deltas: {reason}")
        require_rows(len(columns), DELTA_NUMBERS_MAX // self._engine.state.spec.k)
        for name, numbers in (("deltas", columns.deltas), ("biases", columns.biases)):
            if numbers is not None:
                require_finite(name, numbers.reshape(len(columns), -1))
        require_once(columns.ids)

    def _collecting(self, number: int) -> _Pending:
        state = self._engine.state
        following = state.ledger.all_releases + 1
        if number != following:
            raise precondition(f"release: expected {following}, which is the next one, got {number}")
        if self._pending is None or self._pending.number != number:
            with self._engine.gate.reading():
                keys = np.sort(state.backend.items.keys[: state.backend.published[ITEMS]])
            most = DELTA_NUMBERS_MAX // state.spec.k
            if not 1 <= len(keys) <= most:
                raise precondition(f"model: expected 1 to {most} items for a release, got {len(keys)}")
            width = state.spec.k + self._has_biases
            self._pending = _Pending(number, keys, np.zeros((len(keys), width), np.int64))
        return self._pending


def clipped(numbers: np.ndarray, clip: float) -> np.ndarray:
    """Finite numbers [rows, any] as multiples of clip / 2**GRID_BITS, of a norm up to clip.

    Returns int64[rows, any].
    """
    wide = numbers.astype(np.float64)
    norm = float(np.sqrt(np.sum(wide * wide)))
    # A sum of squares has rounding errors, which the last factor covers.
    scale = min(1.0, clip / norm) * (1 - 1e-9) if norm > 0 else 1.0
    return np.trunc(wide * (scale / clip * 2.0**GRID_BITS)).astype(np.int64)


def released(sums: np.ndarray, privacy: Privacy) -> np.ndarray:
    """The sums int64[rows, any] with noise, float32."""
    noise = np.rint(normal(sums.size) * (privacy.noise * 2.0**GRID_BITS)).astype(np.int64)
    return ((sums + noise.reshape(sums.shape)) * (privacy.clip / 2.0**GRID_BITS)).astype(np.float32)


def normal(count: int) -> np.ndarray:
    """Numbers float64[count] of the standard normal distribution, from the system's random bytes.

    Box and Muller's method with 53 bits gives no number beyond 8.6, which has a probability of
    1e-17.
    """
    half = (count + 1) // 2
    bits = np.frombuffer(os.urandom(16 * half), np.uint64).reshape(2, half) >> np.uint64(11)
    radius = np.sqrt(-2.0 * np.log((bits[0] + np.uint64(1)) * 2.0**-53))
    angle = bits[1] * (2.0**-53 * 2.0 * np.pi)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
