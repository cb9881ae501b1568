"""Pins of the reference: copies of all rows (semantics: `pins/__init__.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.numbers.sums import dot
from livefactor_kernels.pins import PinnedState
from livefactor_kernels.scoring.cpu import check_top_k
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS, end_to_end, read_rows, ring_length, unpadded
from livefactor_kernels.tables.recent import RECENT, Recent, recent_of
from livefactor_kernels.tables.reference import ReferenceTables
from livefactor_kernels.tables.state import mean_of


def gather(factors: np.ndarray, bias: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(factors[rows], bias[rows]), zeros where a row is `NO_ROW`.

    The memory is aligned as in `backend.Backend.gather`.
    """
    known = rows != NO_ROW
    out, out_bias = reserve((len(rows), factors.shape[1]), np.float32), np.zeros(len(rows), np.float32)
    out[known], out_bias[known] = widened(factors[rows[known]]), bias[rows[known]]
    return out, out_bias


class ReferencePin:
    """Copies of a model's rows (`pins.Pin`)."""

    def __init__(self, tables: ReferenceTables, frozen: PinnedState) -> None:
        self.revision, self.counts, self._state = frozen
        self.mean = mean_of(self._state["mean"])
        self._spec, self._k = tables.spec, tables.spec.k
        self._rows = tables.users.copy(self.counts[USERS]), tables.items.copy(self.counts[ITEMS])

    def state(self) -> dict[str, np.ndarray]:
        """See `pins.Pin.state`."""
        return self._state

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `pins.Pin.gather`."""
        return gather(self._rows[side]["factors"], self._rows[side]["bias"], rows)

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `pins.Pin.read`."""
        return read_rows(self._rows[side], rows, names, self._k)

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `pins.Pin.recent`."""
        return recent_of(self.read(side, rows, RECENT), ring_length(self._spec, side), most)

    def top_k(
        self, user_factors: np.ndarray, user_bias: np.ndarray, k: int, common: np.ndarray | None = None,
        own: np.ndarray | None = None, own_offsets: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """See `pins.Pin.top_k`. It scores and sorts all items that are not excluded, and takes
        k.
        """
        items = self._rows[ITEMS]
        item_factors = widened(items["factors"])
        own, ends = check_top_k(user_factors, user_bias, item_factors.shape[1], k, own, own_offsets)
        offsets, rows, scores = [0], np.empty(0, np.uint32), np.empty(0, np.float32)
        for user, (x, bias) in enumerate(zip(user_factors, user_bias, strict=True)):
            products = dot(x[:, None], item_factors.T)
            user_scores = scalar.score(self.mean, bias, items["bias"], products)
            left = np.ones(len(user_scores), bool)
            left[own[int(ends[user]) : int(ends[user + 1])]] = False
            if common is not None:
                left[common] = False
            found = np.flatnonzero(left).astype(np.uint32)
            best = found[np.lexsort((items["keys"][found], -user_scores[found]))][:k]
            rows, scores = np.append(rows, best), np.append(scores, user_scores[best])
            offsets.append(len(rows))
        return rows, scores, np.array(offsets, np.int64)

    def read_rows(self, side: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """See `pins.Pin.read_rows`."""
        if not 0 <= start <= stop <= self.counts[side]:
            raise IndexError(f"rows {start}..{stop}: expected within 0..{self.counts[side]}")
        parts = {name: array[start:stop] for name, array in self._rows[side].items()}
        copies = {name: unpadded(name, part, self._k).copy() for name, part in parts.items()}
        return end_to_end(self._spec, copies)

    def release(self) -> None:
        """Releases the copies."""
        self._rows = {}, {}

    def __enter__(self) -> ReferencePin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
