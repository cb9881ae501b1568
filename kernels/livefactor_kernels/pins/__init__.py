"""Pins: a revision of a model that stays readable while the model continues to learn.

A pin refers to the state at one revision. Reads through it (top-k lists, long lists of candidates,
snapshots) need no lock against updates, and they see each row at that revision. While there are
pins, an update copies a row before it first changes the row. The row at a pin is its earliest copy
after the pin, or the live row if there is none. The reference backend copies all rows at once. A
pin also has copies of the state beside the rows from which scores are computed. Copies are removed
when no pin needs them. A writer waits if there are too many copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np

from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS, ring_length
from livefactor_kernels.tables.recent import Recent


class PinnedState(NamedTuple):
    """The state beside the rows at a pin.

    Attributes:
        revision: the pinned revision.
        counts: numbers of user rows and item rows published at it.
        state: copies of the sections from which scores are computed (`tables.state.ANSWERING`).
    """

    revision: int
    counts: tuple[int, int]
    state: dict[str, np.ndarray]


def remembered(pin: Pin, spec: ModelSpec) -> tuple[int, int]:
    """Numbers of events in the sections of events of both sides, with `history.paged`; else 0."""
    counts = [0, 0]
    for side in (USERS, ITEMS) if spec.history.paged else ():
        rows = np.arange(pin.counts[side], dtype=np.uint32)
        seen = pin.read(side, rows, ("seen_count",))["seen_count"]
        counts[side] = int(np.minimum(seen, ring_length(spec, side)).sum(dtype=np.int64))
    return counts[USERS], counts[ITEMS]


class View(Protocol):
    """One revision of a model, readable without the gate during updates. Reads change nothing."""

    @property
    def revision(self) -> int:
        """The pinned revision."""

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of user rows and item rows published at the revision."""

    @property
    def mean(self) -> np.float32:
        """Global mean of the values so far (squared loss), else 0."""

    def state(self) -> dict[str, np.ndarray]:
        """The sections from which scores are computed (`tables.state.ANSWERING`), at the revision.

        Do not write to them.
        """

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `backend.Backend.gather`, at the revision. Rows are below `counts`, or `NO_ROW`."""

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`, at the revision. Rows are below `counts`, or `NO_ROW`."""

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `backend.Backend.recent`, at the revision. Rows are below `counts`, or `NO_ROW`."""

    def top_k(
        self, user_factors: np.ndarray, user_bias: np.ndarray, k: int, common: np.ndarray | None = None,
        own: np.ndarray | None = None, own_offsets: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """The exact k best items of each user.

        Returns (rows uint32[m], scores float32[m], offsets int64[n + 1]). The results of user u are
        rows[offsets[u]:offsets[u + 1]], by descending score and then ascending item key. They are
        fewer than k if fewer items remain after the exclusions.

        Args:
            user_factors: float32[n, k_padded] from `gather` of this pin.
            user_bias: float32[n] from `gather` of this pin.
            k: maximum number of items per user.
            common: uint32[e], ascending rows that are excluded for all users.
            own: uint32[o], rows that are excluded for one user. Those of user u are
                own[own_offsets[u]:own_offsets[u + 1]], ascending. All excluded rows are below the
                pin's count.
            own_offsets: integers[n + 1].

        Raises:
            ValueError: k is negative, or the shapes do not fit.
        """

    def __enter__(self) -> View:
        """Returns the view."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the read."""


class Pin(View, Protocol):
    """A view that a model keeps until it is released. Release it after the read."""

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Copies of rows [start, stop) of a side, with the names and shapes of
        `backend.Backend.sections`.

        Raises:
            IndexError: the rows are not within the count of the side.
        """

    def release(self) -> None:
        """Releases the pin. Further calls do nothing."""

    def __enter__(self) -> Pin:
        """Returns the pin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the pin."""
