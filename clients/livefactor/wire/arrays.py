"""Convert the data of callers to column arrays of the contract's dtypes.

Callers pass lists, NumPy arrays, pandas columns or Arrow arrays, with integers, strings or
datetimes. This module never imports pandas or pyarrow: it calls the `to_numpy` of an object that
has one. Every function returns a C-contiguous, little-endian array. A value that does not fit
raises a ColumnError, which names the column, the row and the value. No value is wrapped, truncated
or guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.wire.keys import keys_of

KEYS = np.dtype("<u8")
FLOATS = np.dtype("<f4")
NUMBERS = np.dtype("<u4")
TIMES = np.dtype("<i8")

_RANGES = {dtype: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in (KEYS, NUMBERS, TIMES)}
_KEY_MAX = _RANGES[KEYS][1]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Ids = Any
"""The ids of a caller: one int or str, or several as a sequence, NumPy array, pandas Series or
Arrow array.

Several ids have one dimension. Lists and object arrays may mix integers and strings.
"""

HashTexts = Callable[[Sequence[str | bytes]], npt.NDArray[np.uint64]]
"""A function that turns n string ids into uint64[n] keys.

It raises ColumnError for any other type.
"""


def as_keys(name: str, ids: Ids, hash_texts: HashTexts = keys_of) -> npt.NDArray[np.uint64]:
    """Convert n ids to keys, uint64[n]. A single id gives n = 1.

    An integer of 0..2**64-1 is its own key. hash_texts: turns strings into keys. Raises ColumnError
    for another type or number.
    """
    if isinstance(ids, np.ndarray) and ids.dtype == KEYS and ids.ndim == 1:
        return np.ascontiguousarray(ids)
    if isinstance(ids, str | bytes):
        return hash_texts([ids])
    if type(ids) is int and 0 <= ids <= _KEY_MAX:
        return np.array([ids], KEYS)
    if _is_dictionary(ids):
        return _dictionary_keys(name, ids, hash_texts)
    if _is_text_list(ids):
        return _object_keys(name, ids, hash_texts)
    array = np.atleast_1d(_to_numpy(name, ids))
    if array.size == 0:
        return np.empty(0, KEYS)
    if array.dtype.kind in "iu":
        return _whole(name, array, KEYS)
    if isinstance(ids, list | tuple):
        # NumPy turns a list into floats if it has integers on both sides of 2**63, and into strings
        # if it has one string.
        if array.dtype.kind in "OUS" or all(isinstance(value, int) for value in ids):
            return _object_keys(name, ids, hash_texts)
    elif array.dtype.kind in "OUST":
        return _object_keys(name, array.tolist(), hash_texts)
    raise ColumnError(f"{name}: expected integers or strings, got {array.dtype}{_missing_hint(array)}")


def original_ids(ids: Ids, keys: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """The ids that the caller passed to `as_keys`: `keys` for integers, else an object array of str
    and int.

    keys: uint64[n], the result of `as_keys` for `ids`. Bytes become str if they are UTF-8, else
    their key.
    """
    if isinstance(ids, str | bytes):
        values = [ids]
    elif _is_dictionary(ids):
        table, codes = _dictionary(ids)
        codes = _to_numpy("ids", codes)
        return original_ids(table, as_keys("ids", table))[codes] if len(codes) else keys
    else:
        values = list(ids) if isinstance(ids, list | tuple) else np.atleast_1d(_to_numpy("ids", ids)).tolist()
    if not any(isinstance(value, str | bytes) for value in values):
        return keys
    originals = np.empty(len(values), object)
    originals[:] = [_as_text(value, key) for value, key in zip(values, keys.tolist(), strict=True)]
    return originals


def _as_text(value: Any, key: int) -> str | int:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return key
    return value if isinstance(value, str) else key


def as_floats(name: str, values: Any, n: int) -> npt.NDArray[np.float32]:
    """Convert numbers to float32[n]. One number stands for all n rows.

    NaN and numbers out of range pass through; the server rejects their rows. Raises ColumnError for
    another type or length.
    """
    if isinstance(values, float):
        return np.full(n, values, FLOATS)
    array = _broadcast(name, values, n)
    if array.dtype == FLOATS:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "iufb":
        raise ColumnError(f"{name}: expected numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, FLOATS)


def as_numbers(name: str, values: Any, n: int) -> npt.NDArray[np.uint32]:
    """Convert whole numbers of 0..2**32-1 to uint32[n]. One number stands for all n rows.

    Raises ColumnError for another type, number or length.
    """
    array = _broadcast(name, values, n)
    if array.dtype.kind not in "iub":
        raise ColumnError(f"{name}: expected whole numbers, got {array.dtype}")
    return _whole(name, array, NUMBERS)


def as_times(name: str, times: Any, n: int) -> npt.NDArray[np.int64]:
    """Convert times to int64[n] microseconds since 1970-01-01 UTC. One time stands for all n rows.

    Integers are such microseconds already. datetime64 of any unit and datetimes are converted. A
    time without a zone counts as UTC. Raises ColumnError for another type or length, or for a
    missing time.
    """
    if isinstance(times, datetime):
        times = [times] * n
    has_dtype = "datetime64" in str(getattr(times, "dtype", ""))
    if has_dtype and not isinstance(times, np.ndarray) and hasattr(times, "to_numpy"):
        # Without the dtype, a pandas column with a zone would give objects.
        times = times.to_numpy(dtype="datetime64[us]")
    array = _broadcast(name, times, n)
    if array.dtype.kind == "O":
        array = np.array([_microseconds(name, row, time) for row, time in enumerate(array.tolist())], TIMES)
    elif array.dtype.kind == "M":
        missing = np.isnat(array)
        if missing.any():
            raise ColumnError(f"{name}[{int(missing.argmax())}]: not a time")
        array = array.astype("datetime64[us]").view(np.int64)
    elif array.dtype.kind not in "iu":
        raise ColumnError(f"{name}: expected datetimes or whole microseconds, got {array.dtype}")
    return _whole(name, array, TIMES)


def require_rows(name: str, array: npt.NDArray[Any], n: int, like: str = "user_ids") -> None:
    """Raise ColumnError unless `array` has n rows. like: the column that has n rows."""
    if len(array) != n:
        raise ColumnError(f"{name} has {len(array)} rows, expected {n} ({like})")


def _to_numpy(name: str, values: Any) -> npt.NDArray[Any]:
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


def _broadcast(name: str, values: Any, n: int) -> npt.NDArray[Any]:
    array = _to_numpy(name, values)
    if array.ndim == 0:
        return np.full(n, array)
    require_rows(name, array, n)
    return array


def _whole(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert integers to `dtype`. ColumnError names the first value outside its range."""
    if array.dtype != dtype and array.size:
        low, high = _RANGES[dtype]
        own = np.iinfo(array.dtype) if array.dtype.kind != "b" else np.iinfo(np.uint8)
        if (own.min < low and int(array.min()) < low) or (own.max > high and int(array.max()) > high):
            values = array.tolist()
            row = next(row for row, value in enumerate(values) if not low <= value <= high)
            raise ColumnError(f"{name}[{row}]: expected {low}..{high}, got {values[row]}")
    return np.ascontiguousarray(array, dtype)


def _is_text_list(ids: Any) -> bool:
    return isinstance(ids, list | tuple) and bool(ids) and isinstance(ids[0], str | bytes)


def _object_keys(name: str, values: Sequence[Any], hash_texts: HashTexts) -> npt.NDArray[np.uint64]:
    """The keys of Python strings, integers, or both."""
    try:
        if isinstance(values[0], str | bytes):
            return hash_texts(values)
    except ColumnError as error:
        if all(isinstance(value, str | bytes) for value in values):
            raise ColumnError(f"{name}: {error}") from error
    texts = [value for value in values if isinstance(value, str | bytes)]
    if not texts:
        return _object_integers(name, values)
    keys = np.empty(len(values), KEYS)
    is_text = np.fromiter((isinstance(value, str | bytes) for value in values), bool, len(values))
    keys[~is_text] = _object_integers(name, values)
    try:
        keys[is_text] = hash_texts(texts)
    except ColumnError as error:
        raise ColumnError(f"{name}: {error}") from error
    return keys


def _object_integers(name: str, values: Sequence[Any]) -> npt.NDArray[np.uint64]:
    """The integers among `values`, in order.

    Strings are skipped. ColumnError names any other value.
    """
    limits = np.iinfo(KEYS)
    integers = []
    for row, value in enumerate(values):
        if isinstance(value, str | bytes):
            continue
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not limits.min <= value <= limits.max:
            raise ColumnError(
                f"{name}[{row}]: expected an integer 0..{limits.max} or a string, got {value!r}"
            )
        integers.append(value)
    return np.array(integers, KEYS)


def _is_dictionary(ids: Any) -> bool:
    """Whether `ids` is an Arrow DictionaryArray or a pandas categorical column."""
    arrow = hasattr(ids, "dictionary") and hasattr(ids, "indices")
    return arrow or hasattr(getattr(ids, "cat", None), "codes")


def _dictionary(ids: Any) -> tuple[Any, Any]:
    """The distinct values, and the index of each row's value among them."""
    if hasattr(ids, "dictionary"):
        return ids.dictionary, ids.indices
    return ids.cat.categories, ids.cat.codes


def _dictionary_keys(name: str, ids: Any, hash_texts: HashTexts) -> npt.NDArray[np.uint64]:
    table, indices = _dictionary(ids)
    codes = _to_numpy(name, indices)
    if codes.dtype.kind == "f" or (codes.size and int(codes.min()) < 0):
        bad = np.isnan(codes) if codes.dtype.kind == "f" else codes < 0
        raise ColumnError(f"{name}[{int(bad.argmax())}]: expected an id, got none")
    if not codes.size:
        return np.empty(0, KEYS)
    values = _to_numpy(name, table)
    used = np.zeros(len(values), bool)
    used[codes] = True
    # A dictionary may hold many more ids than these rows use. Only the ids of the rows are hashed.
    keys: npt.NDArray[np.uint64] = np.zeros(len(values), KEYS)
    keys[used] = as_keys(name, values[used], hash_texts)
    return np.ascontiguousarray(keys[codes])


def _microseconds(name: str, row: int, time: Any) -> int:
    if not isinstance(time, datetime) or time != time:
        raise ColumnError(f"{name}[{row}]: expected a datetime, got {time!r}")
    zoned = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    since = zoned - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _missing_hint(array: npt.NDArray[Any]) -> str:
    if array.dtype.kind == "f" and np.isnan(array).any():
        return f" (row {int(np.isnan(array).argmax())} has no id)"
    return ""
