"""The columns of a Factors message: factors of another model, with which rows begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.v1 import updates_pb2
from livefactor.wire.arrays import FLOATS, KEYS, require_rows
from livefactor.wire.columns import parse_body
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.twins import twin_column, twin_of

_FactorsTwin = twin_of(updates_pb2.Factors)


@dataclass(frozen=True, slots=True)
class FactorColumns:
    """Factors of n ids of one side.

    side: a `livefactor.v1.Side` number. ids: uint64[n]. factors: float32[n, dimension]. biases:
    float32[n], or None. body: the bytes of the message.
    """

    side: int
    ids: npt.NDArray[np.uint64]
    factors: npt.NDArray[np.float32]
    biases: npt.NDArray[np.float32] | None
    body: bytes

    def __len__(self) -> int:
        return len(self.ids)


def encode_factors(
    side: int, ids: Ids, factors: npt.NDArray[Any], biases: npt.NDArray[Any] | None = None
) -> bytes:
    """The bytes of a Factors message.

    side: a `livefactor.v1.Side` number. ids: n ids. factors: floats [n, dimension]. biases: floats
    [n]. Raises ColumnError for ids of a wrong type, and for another number of rows.
    """
    keys = as_keys("ids", ids)
    require_rows("factors", factors, len(keys), "ids")
    message = _FactorsTwin(side=side, ids=keys.tobytes(), dimension=factors.shape[1])
    message.factors = factors.astype(FLOATS, copy=False).tobytes()
    if biases is not None:
        require_rows("biases", biases, len(keys), "ids")
        message.biases = biases.astype(FLOATS, copy=False).tobytes()
    return bytes(message.SerializeToString())


def decode_factors(body: bytes) -> FactorColumns:
    """Read a Factors message.

    Raises ColumnError if the bytes do not parse or the sizes differ.
    """
    twin, body = parse_body(_FactorsTwin, updates_pb2.Factors, body)
    ids, numbers, biases = (
        twin_column(twin, name, dtype)
        for name, dtype in (("ids", KEYS), ("factors", FLOATS), ("biases", FLOATS))
    )
    if len(numbers) != len(ids) * twin.dimension:
        expected = f"{len(ids)} ids of dimension {twin.dimension}"
        raise ColumnError(f"factors has {len(numbers)} numbers, expected those of {expected}")
    if len(biases) not in (0, len(ids)):
        raise ColumnError(f"biases has {len(biases)} rows, expected {len(ids)} (ids)")
    factors = numbers.reshape(len(ids), twin.dimension)
    return FactorColumns(twin.side, ids, factors, biases if len(biases) else None, body)
