"""The columns of a MapSums message: sums over users that others computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import parse_body
from livefactor.wire.twins import twin_column, twin_of

DOUBLES = np.dtype("<f8")
_MapSumsTwin = twin_of(updates_pb2.MapSums)


@dataclass(frozen=True, slots=True)
class MapSumColumns:
    """Sums over users with vectors of `dimension` numbers d.

    gram: the numbers of A on and above its diagonal, row by row, float64[(d + 1)(d + 2) / 2]. rows:
    those of B, float64[d + 1, k]. weight: of the contribution; 0 stands for 1. body: the bytes.
    """

    dimension: int
    gram: npt.NDArray[np.float64]
    rows: npt.NDArray[np.float64]
    weight: float
    body: bytes

    def __len__(self) -> int:
        return self.dimension + 1

    @property
    def square(self) -> npt.NDArray[np.float64]:
        """A as float64[d + 1, d + 1]."""
        n = self.dimension + 1
        square: npt.NDArray[np.float64] = np.zeros((n, n))
        square[np.triu_indices(n)] = self.gram
        return square + np.triu(square, 1).T


def encode_map_sums(gram: npt.NDArray[Any], rows: npt.NDArray[Any], weight: float = 1.0) -> bytes:
    """The bytes of a MapSums message.

    gram: A, floats [d + 1, d + 1], of which the numbers on and above the diagonal are taken. rows:
    B, floats [d + 1, k].
    """
    upper = gram[np.triu_indices(len(gram))]
    message = _MapSumsTwin(
        dimension=len(gram) - 1,
        gram=upper.astype(DOUBLES, copy=False).tobytes(),
        rows=np.ascontiguousarray(rows, DOUBLES).tobytes(),
        weight=weight,
    )
    return bytes(message.SerializeToString())


def decode_map_sums(body: bytes) -> MapSumColumns:
    """Read a MapSums message.

    Raises ColumnError if the bytes do not parse or the sizes differ.
    """
    twin, body = parse_body(_MapSumsTwin, updates_pb2.MapSums, body)
    gram, rows = twin_column(twin, "gram", DOUBLES), twin_column(twin, "rows", DOUBLES)
    n = twin.dimension + 1
    if len(gram) != n * (n + 1) // 2:
        raise ColumnError(f"gram has {len(gram)} numbers, expected those of dimension {twin.dimension}")
    if len(rows) % n or not len(rows):
        raise ColumnError(f"rows has {len(rows)} numbers, expected {n} rows of equal length")
    return MapSumColumns(twin.dimension, gram, rows.reshape(n, -1), twin.weight, body)
