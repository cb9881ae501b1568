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
    message = _FactorsTwin(side=side, ids=keys.tobytes())
    fill_rows(message, "factors", factors, biases, len(keys))
    return bytes(message.SerializeToString())


def decode_factors(body: bytes) -> FactorColumns:
    """Read a Factors message.

    Raises ColumnError if the bytes do not parse or the sizes differ.
    """
    twin, body = parse_body(_FactorsTwin, updates_pb2.Factors, body)
    return FactorColumns(twin.side, *read_rows(twin, "factors"), body)


def fill_rows(
    message: Any, name: str, numbers: npt.NDArray[Any], biases: npt.NDArray[Any] | None, rows: int
) -> None:
    """Set the dimension, the field `name` and the biases of a message with `rows` ids.

    numbers: floats [rows, dimension]. biases: floats [rows]. Raises ColumnError for another number
    of rows.
    """
    require_rows(name, numbers, rows, "ids")
    message.dimension = numbers.shape[1]
    setattr(message, name, numbers.astype(FLOATS, copy=False).tobytes())
    if biases is not None:
        require_rows("biases", biases, rows, "ids")
        message.biases = biases.astype(FLOATS, copy=False).tobytes()


def read_rows(
    twin: Any, name: str
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """The ids, uint64[n], the field `name`, float32[n, dimension], and the biases of a message,
    float32[n] or None.

    Raises ColumnError if the sizes differ.
    """
    ids, numbers = twin_column(twin, "ids", KEYS), twin_column(twin, name, FLOATS)
    biases = twin_column(twin, "biases", FLOATS)
    if len(numbers) != len(ids) * twin.dimension:
        expected = f"{len(ids)} ids of dimension {twin.dimension}"
        raise ColumnError(f"{name} has {len(numbers)} numbers, expected those of {expected}")
    if len(biases) not in (0, len(ids)):
        raise ColumnError(f"biases has {len(biases)} rows, expected {len(ids)} (ids)")
    return ids, numbers.reshape(len(ids), twin.dimension), biases if len(biases) else None
