"""Pins: a revision of a model that stays readable while the model goes on learning.

A pin names the state at the moment it was taken. Whoever reads through it (top-k lists, long lists of candidates, snapshots)
needs no lock against updates, and sees each row as it was then. While a pin is held, an update copies a row before it first
changes it; a row as of the pin is its earliest copy made after the pin, else the live row. The reference copies all
rows at once. State beside the rows that answers depend on is copied when the pin is taken. Copies are dropped when no pin
needs them any more, and a writer waits where there are too many of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np


class PinnedState(NamedTuple):
    """What a pin keeps beside the rows: the revision, rows of users and items published at it, and copies of the sections that
    answers depend on (`tables.state.ANSWERING`)."""

    revision: int
    counts: tuple[int, int]
    state: dict[str, np.ndarray]


class Pin(Protocol):
    """One revision of a model, readable without the gate while updates go on. Release it after the read.

    revision: the model's, when it was pinned. counts: rows of users and items. mean: the global mean.
    Reads change nothing.
    """

    @property
    def revision(self) -> int:
        """The model's revision at the pin."""

    @property
    def counts(self) -> tuple[int, int]:
        """Rows of users and items published at the pin."""

    @property
    def mean(self) -> np.float32:
        """Global mean of the values seen (squared loss), else 0."""

    def state(self) -> dict[str, np.ndarray]:
        """Sections of `backend.Backend.state` that answers depend on (`tables.state.ANSWERING`), as of the pin. Do not write to
        them."""

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `backend.Backend.gather`, as of the pin. Rows must be below `counts`, or `NO_ROW`."""

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """As `backend.Backend.read`, as of the pin. Rows must be below `counts`, or `NO_ROW`."""

    def top_k(
        self, user_factors: np.ndarray, user_bias: np.ndarray, k: int, common: np.ndarray | None = None,
        own: np.ndarray | None = None, own_offsets: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """The k best items of each user, exact: (rows uint32[m], scores float32[m], offsets int64[n + 1]).

        user_factors float32[n, kp], user_bias float32[n]: as this pin's `gather` gives them. common
        uint32[e]: ascending rows left out for everybody. own uint32[o], own_offsets integers[n + 1]: user u's
        own exclusions are own[own_offsets[u]:own_offsets[u + 1]], ascending. All of them are below the pin's
        count. User u's results are rows[offsets[u]:offsets[u + 1]], by score descending, then item key
        ascending; fewer than k if fewer items are left. ValueError if k is negative or shapes do not fit.
        """

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Copies of rows [start, stop) of a side, named and shaped as `backend.Backend.sections`; IndexError past
        its count."""

    def release(self) -> None:
        """Give the pin up; calling it again does nothing."""

    def __enter__(self) -> Pin:
        """The pin itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it."""
