"""Ids of callers become 64-bit keys. This is the one rule, whatever way the ids come in.

An integer of 0..2**64-1 is its own key. A string is hashed (keys.py), whatever its characters: "7"
and "007" are two strings, and neither is the integer 7. The ids of a column are all integers or all
strings. A mixture is refused with its row, and so are a missing id, an empty string, a bool, a
float, a decimal and bytes.

Types are checked before NumPy sees the values, because NumPy would make two strings of
`[901, "zoe"]`. This module never imports pandas or pyarrow: it knows their columns by their
attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.wire.arrays import KEYS, first_missing, first_true, is_missing, to_numpy, whole
from livefactor.wire.keys import keys_of

_KEY_MAX = int(np.iinfo(KEYS).max)

Ids = Any
"""The ids of a caller: one int or str, or several as a sequence, NumPy array, pandas Series or
Arrow array. Several ids have one dimension, and are all integers or all strings.
"""

HashTexts = Callable[[Sequence[str]], npt.NDArray[np.uint64]]
"""A function that turns n string ids into uint64[n] keys.

It raises ColumnError for a string that cannot be encoded as UTF-8.
"""

_INTEGER, _STRING, _MISSING, _FLOAT = "an integer", "a string", "nothing", "a float"
_REMEDIES = {
    _FLOAT: "pandas makes floats of integers that stand beside missing ones: drop the rows without an id, "
    "and store the column as Int64",
    "a bool": "an id is an integer or a string",
    "a decimal": "store whole decimals as integers",
    "bytes": "decode them to strings",
}


def as_keys(name: str, ids: Ids, hash_texts: HashTexts = keys_of) -> npt.NDArray[np.uint64]:
    """Convert n ids to keys, uint64[n]. A single id gives n = 1.

    name: what errors call the column. hash_texts: turns strings into keys. Raises ColumnError for a
    value that is no id; it names the row where it can.
    """
    if isinstance(ids, np.ndarray):
        return _array_keys(name, ids, hash_texts)
    if isinstance(ids, list | tuple):
        return _list_keys(name, ids, hash_texts)
    ids = _one_chunk(ids)
    _require_ids(name, first_missing(ids))
    if _is_dictionary(ids):
        return _dictionary_keys(name, ids, hash_texts)
    if hasattr(ids, "null_count") and hasattr(ids, "type"):
        return _arrow_keys(name, ids, hash_texts)
    if hasattr(ids, "to_numpy"):
        return _array_keys(name, to_numpy(name, ids), hash_texts)
    if isinstance(ids, Sequence) and not isinstance(ids, str | bytes | bytearray):
        return _list_keys(name, list(ids), hash_texts)
    if hasattr(ids, "__array__") and not isinstance(ids, np.generic):
        return _array_keys(name, to_numpy(name, ids), hash_texts)
    return _list_keys(name, [ids], hash_texts)


def ids_of_texts(texts: Sequence[str]) -> list[int] | list[str]:
    """The ids of a column of text without types, such as the arguments of a command.

    They are integers if every text is written as one: digits without a leading zero, below 2**64.
    Otherwise they are strings.
    """
    return [int(text) for text in texts] if all(map(_is_integer, texts)) else list(texts)


def _is_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text[0] != "0" or text == "0") and int(text) <= _KEY_MAX


def original_ids(ids: Ids, keys: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """The ids that the caller passed to `as_keys`: `keys` for integers, else an object array of
    str.

    keys: uint64[n], the result of `as_keys` for `ids`.
    """
    values = _listed(ids)
    if not values or not isinstance(values[0], str):
        return keys
    originals = np.empty(len(values), object)
    originals[:] = values
    return originals


def _listed(ids: Ids) -> Sequence[Any]:
    """The ids as a sequence of Python values. Integers may be left out."""
    if isinstance(ids, str):
        return [ids]
    if isinstance(ids, list | tuple):
        return ids
    ids = _one_chunk(ids)
    if _is_dictionary(ids):
        table, codes = _dictionary(ids)
        values = _listed(table)
        return values and [values[code] for code in to_numpy("ids", codes).tolist()]
    if isinstance(ids, Sequence):
        return list(ids)
    array = np.atleast_1d(to_numpy("ids", ids))
    return [] if array.dtype.kind in "iu" else array.tolist()


def _kind(one: type) -> str:
    """What a type of Python or NumPy is called here. None and the types that pandas has for missing
    values are `_MISSING`.
    """
    names: tuple[tuple[str, tuple[type, ...]], ...] = (
        ("a bool", (bool, np.bool_)),
        (_INTEGER, (int, np.integer)),
        (_STRING, (str,)),
        ("bytes", (bytes, bytearray, memoryview)),
        (_FLOAT, (float, np.floating)),
        ("a decimal", (Decimal,)),
        (_MISSING, (type(None),)),
    )
    for name, types in names:
        if issubclass(one, types):
            return name
    return _MISSING if one.__name__ in ("NAType", "NaTType") else f"a value of type {one.__name__}"


def _list_keys(name: str, values: Sequence[Any], hash_texts: HashTexts) -> npt.NDArray[np.uint64]:
    kinds = {_kind(one) for one in set(map(type, values))}
    if not kinds:
        return np.empty(0, KEYS)
    if kinds == {_INTEGER}:
        if min(values) < 0 or max(values) > _KEY_MAX:
            row = next(row for row, value in enumerate(values) if not 0 <= value <= _KEY_MAX)
            raise ColumnError.at(name, row, f"expected 0..{_KEY_MAX}, got {values[row]}")
        return np.array(values, KEYS)
    if kinds != {_STRING}:
        raise _refusal(name, values)
    if "" in values:
        raise ColumnError.at(name, values.index(""), "the id is missing: the string is empty")
    try:
        return hash_texts(values)
    except ColumnError as error:
        row = 0 if error.row is None else error.row
        raise ColumnError.at(name, row, error.reason or str(error)) from error


def _refusal(name: str, values: Sequence[Any]) -> ColumnError:
    """The error for the first row whose value is no id, or is of another kind than those before."""
    first = _kind(type(values[0]))
    for row, value in enumerate(values):
        kind = _kind(type(value))
        if is_missing(value):
            return ColumnError.at(name, row, f"the id is missing: expected {_expected(first)}, got {value!r}")
        if kind not in (_INTEGER, _STRING):
            remedy = f"; {_REMEDIES[kind]}" if kind in _REMEDIES else ""
            return ColumnError.at(
                name, row, f"expected an integer or a string, got {kind} ({value!r}){remedy}"
            )
        if kind != first:
            return ColumnError.at(
                name,
                row,
                f"expected {first} as in row 0, got {value!r}: the ids of a column are all integers or all strings",
            )
    raise AssertionError("no row is wrong")


def _expected(first: str) -> str:
    return first if first in (_INTEGER, _STRING) else f"{_INTEGER} or {_STRING}"


def _array_keys(name: str, array: npt.NDArray[Any], hash_texts: HashTexts) -> npt.NDArray[np.uint64]:
    if array.ndim > 1:
        raise ColumnError(f"{name}: expected one dimension, got shape {array.shape}")
    array = np.atleast_1d(array)
    if array.dtype.kind in "iu":
        return whole(name, array, KEYS)
    if not array.size:
        return np.empty(0, KEYS)
    return _list_keys(name, array.tolist(), hash_texts)


def _require_ids(name: str, row: int | None) -> None:
    """Refuses a column whose id is missing in `row`."""
    if row is not None:
        raise ColumnError.at(name, row, "the id is missing")


def _one_chunk(ids: Any) -> Any:
    """A chunked Arrow array as one array. Anything else is returned as it came."""
    if hasattr(ids, "unify_dictionaries"):
        return ids.unify_dictionaries().combine_chunks()
    return ids


def _arrow_keys(name: str, ids: Any, hash_texts: HashTexts) -> npt.NDArray[np.uint64]:
    kind = str(ids.type)
    if kind in ("string", "large_string"):
        return _dictionary_keys(name, ids.dictionary_encode(), hash_texts)
    array = to_numpy(name, ids)
    # An Arrow column of binary or decimals gives objects, which are refused by their types.
    if array.dtype.kind not in "iuObf":
        raise ColumnError.at(name, 0, f"expected integers or strings, got a column of the type {kind}")
    return _array_keys(name, array, hash_texts)


def _is_dictionary(ids: Any) -> bool:
    """Whether `ids` is an Arrow DictionaryArray or a categorical column or index of pandas."""
    arrow = hasattr(ids, "dictionary") and hasattr(ids, "indices")
    index = hasattr(ids, "categories") and hasattr(ids, "codes")
    return arrow or index or hasattr(getattr(ids, "cat", None), "codes")


def _dictionary(ids: Any) -> tuple[Any, Any]:
    """The distinct values, and the index of each row's value among them."""
    if hasattr(ids, "dictionary"):
        return ids.dictionary, ids.indices
    column = ids if hasattr(ids, "categories") else ids.cat
    return column.categories, column.codes


def _dictionary_keys(name: str, ids: Any, hash_texts: HashTexts) -> npt.NDArray[np.uint64]:
    table, indices = _dictionary(ids)
    codes = to_numpy(name, indices)
    _require_ids(name, first_true(codes < 0))
    if not codes.size:
        return np.empty(0, KEYS)
    values = to_numpy(name, table)
    used = np.zeros(len(values), bool)
    used[codes] = True
    # A dictionary may hold many more ids than these rows use. Only the ids of the rows are hashed.
    keys: npt.NDArray[np.uint64] = np.zeros(len(values), KEYS)
    try:
        keys[used] = as_keys(name, values[used], hash_texts)
    except ColumnError as error:
        if error.row is None:
            raise
        # The error must name the row and not the place in the dictionary.
        code = np.flatnonzero(used)[error.row]
        row = first_true(codes == code)
        raise ColumnError.at(name, error.row if row is None else row, error.reason) from error
    return np.ascontiguousarray(keys[codes])
