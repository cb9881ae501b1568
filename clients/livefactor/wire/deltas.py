"""The columns of a FactorDeltas message: deltas that are added to rows."""

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

_DeltasTwin = twin_of(updates_pb2.FactorDeltas)


@dataclass(frozen=True, slots=True)
class DeltaColumns:
    """Deltas of n ids of one side.

    side: a `livefactor.v1.Side` number. ids: uint64[n]. deltas: float32[n, dimension]. biases:
    float32[n], or None. weight: of the contribution; 0 stands for 1. body: the bytes.
    """

    side: int
    ids: npt.NDArray[np.uint64]
    deltas: npt.NDArray[np.float32]
    biases: npt.NDArray[np.float32] | None
    weight: float
    body: bytes

    def __len__(self) -> int:
        return len(self.ids)


def encode_deltas(
    side: int,
    ids: Ids,
    deltas: npt.NDArray[Any],
    biases: npt.NDArray[Any] | None = None,
    weight: float = 1.0,
) -> bytes:
    """The bytes of a FactorDeltas message.

    side: a `livefactor.v1.Side` number. ids: n ids. deltas: floats [n, dimension]. biases: floats
    [n]. Raises ColumnError for ids of a wrong type, and for another number of rows.
    """
    keys = as_keys("ids", ids)
    require_rows("deltas", deltas, len(keys), "ids")
    message = _DeltasTwin(side=side, ids=keys.tobytes(), dimension=deltas.shape[1], weight=weight)
    message.deltas = deltas.astype(FLOATS, copy=False).tobytes()
    if biases is not None:
        require_rows("biases", biases, len(keys), "ids")
        message.biases = biases.astype(FLOATS, copy=False).tobytes()
    return bytes(message.SerializeToString())


def decode_deltas(body: bytes) -> DeltaColumns:
    """Read a FactorDeltas message.

    Raises ColumnError if the bytes do not parse or the sizes differ.
    """
    twin, body = parse_body(_DeltasTwin, updates_pb2.FactorDeltas, body)
    ids, numbers = twin_column(twin, "ids", KEYS), twin_column(twin, "deltas", FLOATS)
    biases = twin_column(twin, "biases", FLOATS)
    if len(numbers) != len(ids) * twin.dimension:
        expected = f"{len(ids)} ids of dimension {twin.dimension}"
        raise ColumnError(f"deltas has {len(numbers)} numbers, expected those of {expected}")
    if len(biases) not in (0, len(ids)):
        raise ColumnError(f"biases has {len(biases)} rows, expected {len(ids)} (ids)")
    deltas = numbers.reshape(len(ids), twin.dimension)
    return DeltaColumns(twin.side, ids, deltas, biases if len(biases) else None, twin.weight, body)
