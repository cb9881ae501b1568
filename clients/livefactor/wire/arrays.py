"""Convert the data of callers to column arrays of the contract's dtypes.

Callers pass lists, NumPy arrays, pandas columns or Arrow arrays. This module never imports pandas
or pyarrow: it calls the `to_numpy` of an object that has one. Every function returns a
C-contiguous, little-endian array. A value that does not fit raises a ColumnError, which names the
column, the row and the value. No value is wrapped, truncated or guessed. ids.py and times.py do the
same for ids and times.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError

KEYS = np.dtype("<u8")
FLOATS = np.dtype("<f4")
HALVES = np.dtype("<f2")
NUMBERS = np.dtype("<u4")
TIMES = np.dtype("<i8")

_RANGES = {dtype: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in (KEYS, NUMBERS, TIMES)}


def as_floats(name: str, values: Any, n: int) -> npt.NDArray[np.float32]:
    """Convert numbers to float32[n]. One number stands for all n rows.

    A missing number becomes NaN. NaN and numbers out of range pass through; the server rejects
    their rows. Raises ColumnError for another type or length.
    """
    if isinstance(values, float):
        return np.full(n, values, FLOATS)
    array = _broadcast(name, values, n)
    if array.dtype == FLOATS:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        if array.dtype.kind in "iufb":
            return np.ascontiguousarray(array, FLOATS)
        return np.array([_float(name, row, one) for row, one in enumerate(_objects(values, array))], FLOATS)


def _float(name: str, row: int, value: Any) -> float:
    if is_missing(value):
        return float("nan")
    if not isinstance(value, int | float | Decimal | np.number | np.bool_):
        raise ColumnError.at(name, row, f"expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def as_numbers(name: str, values: Any, n: int) -> npt.NDArray[np.uint32]:
    """Convert whole numbers of 0..2**32-1 to uint32[n]. One number stands for all n rows.

    Raises ColumnError for another type, number or length.
    """
    return as_whole(name, values, n, NUMBERS)


def as_whole(name: str, values: Any, n: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert whole numbers to `dtype`[n], which is KEYS, NUMBERS or TIMES. One number stands for
    all n rows.

    Raises ColumnError for another type, number or length.
    """
    row = first_missing(values)
    if row is not None:
        raise ColumnError.at(name, row, "the number is missing")
    array = _broadcast(name, values, n)
    if array.dtype.kind not in "iub":
        for row, value in enumerate(_objects(values, array)):
            if not isinstance(value, int | np.integer):
                raise ColumnError.at(name, row, f"expected a whole number, got {value!r}")
            if not _RANGES[dtype][0] <= value <= _RANGES[dtype][1]:
                raise _out_of_range(name, row, value, dtype)
    return whole(name, array, dtype)


def require_rows(name: str, array: npt.NDArray[Any], n: int, like: str = "user_ids") -> None:
    """Raise ColumnError unless `array` has n rows. like: the column that has n rows."""
    if len(array) != n:
        raise ColumnError(f"{name} has {len(array)} rows, expected {n} ({like})")


def to_numpy(name: str, values: Any) -> npt.NDArray[Any]:
    """`values` as an array of at most one dimension. Raises ColumnError if it has more."""
    if isinstance(values, np.ndarray):
        array = values
    elif hasattr(values, "to_numpy"):
        try:
            array = np.asarray(values.to_numpy(zero_copy_only=False))
        except TypeError:
            # pandas and old chunked Arrow arrays do not have this argument.
            array = np.asarray(values.to_numpy())
    else:
        try:
            array = np.asarray(values)
        except (ValueError, OverflowError) as error:
            raise ColumnError(f"{name}: expected one value for each row ({error})") from error
    if array.ndim > 1:
        raise ColumnError(f"{name}: expected one dimension, got shape {array.shape}")
    return array


def whole(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert integers to `dtype`. ColumnError names the first value outside its range."""
    if array.dtype != dtype and array.size and array.dtype.kind in "iu":
        low, high = _RANGES[dtype]
        own = np.iinfo(array.dtype)
        if (own.min < low and int(array.min()) < low) or (own.max > high and int(array.max()) > high):
            values = array.tolist()
            row = next(row for row, value in enumerate(values) if not low <= value <= high)
            raise _out_of_range(name, row, values[row], dtype)
    return np.ascontiguousarray(array, dtype)


def first_true(mask: npt.NDArray[np.bool_]) -> int | None:
    """The first row where `mask` (bool[n]) is true. None if there is none."""
    return int(mask.argmax()) if mask.any() else None


def first_missing(column: Any) -> int | None:
    """The first row of an Arrow array or a pandas column without a value. None if there is none.

    NumPy would turn the other integers of such a column into floats.
    """
    if getattr(column, "null_count", None) and hasattr(column, "is_null"):
        return first_true(to_numpy("", column.is_null()).astype(bool))
    if hasattr(column, "isna"):
        return first_true(np.asarray(column.isna()))
    return None


def is_missing(value: Any) -> bool:
    """Whether a Python value stands for a missing one: None, NaN, or pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating | np.datetime64) and bool(value != value)


def _out_of_range(name: str, row: int, value: Any, dtype: np.dtype[Any]) -> ColumnError:
    low, high = _RANGES[dtype]
    return ColumnError.at(name, row, f"expected {low}..{high}, got {value}")


def _broadcast(name: str, values: Any, n: int) -> npt.NDArray[Any]:
    array = to_numpy(name, values)
    if array.ndim == 0:
        return np.full(n, array)
    require_rows(name, array, n)
    return array


def _objects(values: Any, array: npt.NDArray[Any]) -> list[Any]:
    """The values of a caller as Python objects, for a check one by one.

    array: what NumPy made of them. NumPy turns a list with one string into strings.
    """
    return list(values) if isinstance(values, list | tuple) else array.tolist()
