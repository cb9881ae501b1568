"""Vectors of items, and factors of users and items, as the bodies of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.pushing.batching import BatchSettings
from livefactor.wire.columns import encode_embeddings
from livefactor.wire.factors import encode_factors
from livefactor.wire.limits import EMBEDDING_NUMBERS_MAX, SHA256_BYTES


def as_rows(name: str, rows: Any, n: int) -> npt.NDArray[Any]:
    """Convert n rows of numbers, or the one row of one id, to an array [n, dimension].

    Raises ColumnError for another shape or type.
    """
    try:
        array = np.asarray(rows)
        if array.dtype.kind not in "fiu":
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ColumnError(f"{name}: expected numbers, {n} rows of equal length ({error})") from error
    if array.ndim == 1 and n == 1:
        array = array[None]
    if array.ndim != 2 or not array.shape[1]:
        raise ColumnError(f"{name}: expected one row of numbers for each id, got shape {array.shape}")
    if len(array) != n:
        raise ColumnError(f"{name} has {len(array)} rows, expected {n} (item_ids)")
    return array


def _checked(name: str, array: npt.NDArray[Any], dtype: type[Any], limit: str) -> npt.NDArray[Any]:
    """The numbers as `dtype`. Raises ColumnError for one that is not finite in it."""
    with np.errstate(over="ignore"):
        numbers = array.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1))
    if bad.size:
        raise ColumnError.at(name, int(bad[0]), f"a number is NaN, infinite or beyond {limit}")
    return numbers


def as_vectors(vectors: Any, n: int) -> npt.NDArray[np.float16]:
    """Convert n vectors, or the one vector of one id, to float16[n, dimension].

    Raises ColumnError for another shape or type, and for a number that is NaN, infinite or beyond
    float16.
    """
    return _checked("vectors", as_rows("vectors", vectors, n), np.float16, "float16 (65504)")


def as_factors(
    factors: Any, biases: Any, n: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """Convert the factors of n ids to float32[n, dimension], and their biases to float32[n].

    Raises ColumnError as `as_vectors` does.
    """
    rows = _checked("factors", as_rows("factors", factors, n), np.float32, "float32")
    if biases is None:
        return rows, None
    column = as_rows("biases", np.reshape(np.asarray(biases), (-1, 1)), n)
    return rows, _checked("biases", column, np.float32, "float32")[:, 0]


def embedding_bodies(
    side: int,
    keys: npt.NDArray[np.uint64],
    vectors: npt.NDArray[np.float16],
    batch: BatchSettings,
    encoder_hash: bytes = b"",
) -> list[tuple[int, bytes]]:
    """The rows and the body of each batch.

    side: a `livefactor.v1.Side` number. keys: uint64[n]. vectors: float16[n, dimension].
    encoder_hash: each body has it. Raises ColumnError for a vector that no batch can hold, and for
    a hash that is no SHA-256 hash.
    """
    if len(encoder_hash) not in (0, SHA256_BYTES):
        raise ColumnError(f"encoder_hash: expected {SHA256_BYTES} bytes or none, got {len(encoder_hash)}")
    rows_max = _rows_max("vectors", vectors.shape[1], 2, batch)
    parts = (slice(start, start + rows_max) for start in range(0, len(keys), rows_max))
    return [
        (len(keys[part]), encode_embeddings(side, keys[part], vectors[part], encoder_hash)) for part in parts
    ]


def factor_bodies(
    side: int,
    keys: npt.NDArray[np.uint64],
    factors: npt.NDArray[np.float32],
    biases: npt.NDArray[np.float32] | None,
    batch: BatchSettings,
) -> list[tuple[int, bytes]]:
    """The rows and the body of each batch.

    side: a `livefactor.v1.Side` number. keys: uint64[n]. factors: float32[n, dimension]. biases:
    float32[n]. Raises ColumnError for a row that no batch can hold, and for an id that comes twice.
    """
    _, first = np.unique(keys, return_index=True)
    if len(first) < len(keys):
        row = int(np.setdiff1d(np.arange(len(keys)), first)[0])
        raise ColumnError.at("ids", row, "it has the id of an earlier row")
    rows_max = _rows_max("factors", factors.shape[1], 4, batch)
    bodies = []
    for start in range(0, len(keys), rows_max):
        part = slice(start, start + rows_max)
        own = None if biases is None else biases[part]
        bodies.append((len(keys[part]), encode_factors(side, keys[part], factors[part], own)))
    return bodies


def _rows_max(name: str, dimension: int, size: int, batch: BatchSettings) -> int:
    """The number of rows of a batch. A number takes `size` bytes."""
    rows_max = min(batch.rows_max(12 + size * dimension), EMBEDDING_NUMBERS_MAX // dimension)
    if rows_max < 1:
        raise ColumnError(f"{name}: expected at most {EMBEDDING_NUMBERS_MAX} numbers a row, got {dimension}")
    return rows_max
