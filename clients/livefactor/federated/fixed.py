"""Numbers as whole numbers modulo 2**32: their sum has one value, whatever the order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError

_HALF = 1 << 31


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """A code for the numbers of at most `terms` vectors, each within +-`bound`.

    A number is rounded to the nearest multiple of `resolution`, half to even. No sum of the terms
    leaves the range.
    """

    bound: float
    terms: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.bound) and self.bound > 0):
            raise ValueError(f"bound: expected a number above 0, got {self.bound}")
        if not 1 <= self.terms <= 1 << 16:
            raise ValueError(f"terms: expected 1..65536, got {self.terms}")

    @property
    def resolution(self) -> float:
        """The distance of two neighbours."""
        return self.bound * self.terms / (_HALF - 1 - self.terms)

    def encode(self, numbers: npt.ArrayLike) -> npt.NDArray[np.uint32]:
        """The code uint32[n] of numbers. Raises ColumnError for one beyond the bound, or NaN."""
        values = np.asarray(numbers, np.float64)
        bad = np.flatnonzero(~(np.abs(values) <= self.bound))
        if bad.size:
            raise ColumnError.at("numbers", int(bad[0]), f"expected a number within +-{self.bound:g}")
        whole = np.rint(values / self.resolution).astype(np.int64)
        return whole.astype(np.uint32)

    def decode(self, total: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
        """The sum float64[n] from the sum of the codes."""
        signed: npt.NDArray[Any] = total.view(np.int32)
        return signed * self.resolution
