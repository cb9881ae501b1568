"""The columns of a FactorDeltas message: deltas that are added to rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.v1 import updates_pb2
from livefactor.wire.columns import parse_body
from livefactor.wire.factors import fill_rows, read_rows
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.twins import twin_of

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
    message = _DeltasTwin(side=side, ids=keys.tobytes(), weight=weight)
    fill_rows(message, "deltas", deltas, biases, len(keys))
    return bytes(message.SerializeToString())


def decode_deltas(body: bytes) -> DeltaColumns:
    """Read a FactorDeltas message.

    Raises ColumnError if the bytes do not parse or the sizes differ.
    """
    twin, body = parse_body(_DeltasTwin, updates_pb2.FactorDeltas, body)
    return DeltaColumns(twin.side, *read_rows(twin, "deltas"), twin.weight, body)
