"""Vectors of items, as the bodies of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.pushing.batching import BatchSettings
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import encode_embeddings
from livefactor.wire.limits import EMBEDDING_NUMBERS_MAX


def as_vectors(vectors: Any, n: int) -> npt.NDArray[np.float16]:
    """Convert n vectors, or the one vector of one id, to float16[n, dimension].

    Raises ColumnError for another shape or type, and for a number that is NaN, infinite or beyond
    float16.
    """
    try:
        array = np.asarray(vectors)
        if array.dtype.kind not in "fiu":
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ColumnError(f"vectors: expected numbers, {n} rows of equal length ({error})") from error
    if array.ndim == 1 and n == 1:
        array = array[None]
    if array.ndim != 2 or not array.shape[1]:
        raise ColumnError(f"vectors: expected one row of numbers for each id, got shape {array.shape}")
    if len(array) != n:
        raise ColumnError(f"vectors has {len(array)} rows, expected {n} (item_ids)")
    with np.errstate(over="ignore"):
        halves = array.astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(halves).all(axis=1))
    if bad.size:
        raise ColumnError.at("vectors", int(bad[0]), "a number is NaN, infinite or beyond float16 (65504)")
    return halves


def embedding_bodies(
    keys: npt.NDArray[np.uint64], vectors: npt.NDArray[np.float16], batch: BatchSettings
) -> list[tuple[int, bytes]]:
    """The rows and the body of each batch.

    keys: uint64[n]. vectors: float16[n, dimension]. Raises ColumnError for a vector that no batch
    can hold.
    """
    dimension = vectors.shape[1]
    rows_max = min(batch.rows_max(8 + 2 * dimension), EMBEDDING_NUMBERS_MAX // dimension)
    if rows_max < 1:
        raise ColumnError(f"vectors: expected at most {EMBEDDING_NUMBERS_MAX} numbers a row, got {dimension}")
    parts = (slice(start, start + rows_max) for start in range(0, len(keys), rows_max))
    return [
        (len(keys[part]), encode_embeddings(updates_pb2.SIDE_ITEM, keys[part], vectors[part]))
        for part in parts
    ]
