"""Deltas of rows, and sums of a map, as the body of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.wire.deltas import encode_deltas
from livefactor.wire.limits import DELTA_NUMBERS_MAX, MAP_NUMBERS_MAX
from livefactor.wire.map_sums import encode_map_sums


def delta_body(
    side: int, keys: npt.NDArray[np.uint64], deltas: Any, biases: Any, weight: float
) -> tuple[int, bytes]:
    """The rows and the body of one batch, because a batch is one contribution.

    side: a `livefactor.v1.Side` number. keys: uint64[n]. deltas: numbers [n, k]. biases: numbers
    [n], or None. Raises ColumnError for another shape or type, for a number that is not finite in
    float32, for an id that comes twice, and for more numbers than a batch may have.
    """
    n = len(keys)
    rows = _numbers("deltas", deltas, n, 2)
    if rows.size > DELTA_NUMBERS_MAX:
        raise ColumnError(f"deltas: expected at most {DELTA_NUMBERS_MAX} numbers, got {rows.size}")
    _check_weight(weight)
    _, first = np.unique(keys, return_index=True)
    if len(first) < n:
        row = int(np.setdiff1d(np.arange(n), first)[0])
        raise ColumnError.at("ids", row, "it has the id of an earlier row")
    own = None if biases is None else _numbers("biases", biases, n, 1)
    return n, encode_deltas(side, keys, rows, own, weight)


def map_sums_body(gram: Any, rows: Any, weight: float) -> tuple[int, bytes]:
    """The rows and the body of one batch with sums of a map.

    gram: numbers [d + 1, d + 1], symmetric. rows: numbers [d + 1, k]. Raises ColumnError for other
    shapes, for a number that is not finite, and for more numbers than a batch may have.
    """
    a, b = np.asarray(gram, np.float64), np.asarray(rows, np.float64)
    n = len(b)
    if b.ndim != 2 or n < 2 or a.shape != (n, n):
        raise ColumnError(f"sums: expected shapes (d + 1, d + 1) and (d + 1, k), got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ColumnError("sums: a number is NaN or infinite")
    if not np.array_equal(a, a.T):
        raise ColumnError("gram: expected a symmetric matrix")
    if (count := n * (n + 1) // 2 + b.size) > MAP_NUMBERS_MAX:
        raise ColumnError(f"sums: expected at most {MAP_NUMBERS_MAX} numbers, got {count}")
    _check_weight(weight)
    return n, encode_map_sums(a, b, weight)


def _check_weight(weight: float) -> None:
    if not np.isfinite(np.float32(weight)) or not weight > 0:
        raise ColumnError(f"weight: expected a number above 0, got {weight!r}")


def _numbers(name: str, numbers: Any, n: int, dimensions: int) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(numbers, np.float64)
    except (TypeError, ValueError) as error:
        raise ColumnError(f"{name}: expected numbers, {n} rows of equal length ({error})") from error
    if array.ndim != dimensions or len(array) != n or not array.size:
        expected = f"({n}, k)" if dimensions == 2 else f"({n},)"
        raise ColumnError(f"{name}: expected shape {expected}, got {array.shape}")
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(found).reshape(n, -1).all(axis=1))
    if bad.size:
        raise ColumnError.at(name, int(bad[0]), "a number is NaN, infinite or beyond float32")
    return found
