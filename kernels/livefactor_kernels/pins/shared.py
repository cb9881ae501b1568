"""The present revision of a model of another process (`tables/shared.py`), as a pin.

Nothing keeps this revision: each read looks at the version of the tables afterwards, and raises
`Changed` if rows have changed since the pin. So all reads that end are of one revision. What the
caller computes from them needs no further look.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np

from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.recent import Recent
from livefactor_kernels.tables.shared import SharedModel
from livefactor_kernels.tables.state import mean_of

_NO_ROWS = np.empty(0, np.uint32)


class SharedPin:
    """A revision of a model of another process, for one answer (`pins.View`)."""

    def __init__(self, model: SharedModel) -> None:
        """Takes the present revision.

        Raises:
            Changed: rows change at this moment.
        """
        self._model, self._version = model, model.head.version()
        self.revision, self.counts = model.head.revision, model.head.counts
        self._state = {name: array.copy() for name, array in model.state.items()}
        self.mean = mean_of(self._state["mean"])
        self.check()

    def check(self) -> None:
        """Raises Changed if rows have changed since the pin."""
        self._model.head.check(self._version)

    def state(self) -> dict[str, np.ndarray]:
        """See `pins.View.state`."""
        return self._state

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `pins.View.gather`. Raises Changed."""
        return scoring.gather_pinned(self, side, self._model.table(side), rows)

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `pins.View.read`. Raises Changed."""
        found = self._model.table(side).read(rows, names)
        self.check()
        return found

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `pins.View.recent`. Raises Changed."""
        found = self._model.table(side).recent(rows, most)
        self.check()
        return found

    def top_k(
        self, user_factors: np.ndarray, user_bias: np.ndarray, k: int, common: np.ndarray | None = None,
        own: np.ndarray | None = None, own_offsets: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """See `pins.View.top_k`. Raises Changed."""
        items = self._model.table(ITEMS)
        return scoring.top_k(self, items, user_factors, user_bias, k, common, own, own_offsets)

    def copies(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `scoring.cpu.PinView.copies`: no row has changed since the pin. Raises Changed."""
        self.check()
        width = self._model.table(side).factors.shape[1]
        return _NO_ROWS, np.empty((0, width), np.float32), np.empty(0, np.float32)

    def __enter__(self) -> SharedPin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Does nothing: nothing is kept for the pin."""
