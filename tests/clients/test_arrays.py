"""The types of columns that the client accepts, and the ones that it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livefactor.errors import ColumnError
from livefactor.wire.arrays import as_floats, as_keys, as_numbers, as_times, original_ids
from livefactor.wire.keys import key_of, keys_of

TEXTS = ["ann", "bob", "ann", "é"]
WHOLE = [0, 1, 2**63, 2**64 - 1]


def test_a_key_is_blake2b_of_the_utf8_bytes_read_little_endian() -> None:
    assert key_of("ann") == int.from_bytes(bytes.fromhex("8d3adf6abf23f3a5"), "little"), (
        "what b2sum -l 64 says"
    )
    assert key_of("é") == key_of("é".encode()) != key_of("e\u0301"), "no normalisation"
    keyed = int.from_bytes(blake2b(b"ann", digest_size=8, key=b"pepper").digest(), "little")
    assert key_of("ann", b"pepper") == keyed != key_of("ann")


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)))), st.binary(max_size=64))
def test_keys_of_is_key_of_each(texts: list[str], secret: bytes) -> None:
    keys = keys_of(texts, secret)
    assert keys.dtype == np.uint64
    assert keys.tolist() == [key_of(text, secret) for text in texts]


@pytest.mark.parametrize("secret", [b"x" * 65, "text"])
def test_a_bad_secret_is_refused(secret: Any) -> None:
    with pytest.raises(ValueError, match="secret: expected at most 64 bytes"):
        keys_of(["a"], secret)


@pytest.mark.parametrize(
    "ids",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        pd.Series(TEXTS),
        pd.Series(TEXTS, dtype=object),
        pd.Series(TEXTS).astype("category"),
        pd.Index(TEXTS),
        pa.array(TEXTS),
        pa.chunked_array([TEXTS[:2], TEXTS[2:]]),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.large_string()),
        [text.encode() for text in TEXTS],
    ],
    ids=lambda ids: f"{type(ids).__name__}-{getattr(ids, 'dtype', '')}",
)
def test_strings_in_any_container_become_keys(ids: Any) -> None:
    assert as_keys("user_ids", ids, partial(keys_of, secret=b"s")).tolist() == [
        key_of(text, b"s") for text in TEXTS
    ]


@pytest.mark.parametrize(
    "ids",
    [
        WHOLE,
        np.array(WHOLE, np.uint64),
        np.array(WHOLE, object),
        np.array(WHOLE, np.uint64).byteswap().view(">u8"),
        np.array([WHOLE, WHOLE], np.uint64).T[:, 0],
        pd.Series(WHOLE, dtype="uint64"),
        pd.Series(WHOLE, dtype="UInt64"),
        pa.array(WHOLE, pa.uint64()),
        pa.chunked_array([WHOLE[:1], WHOLE[1:]], pa.uint64()),
    ],
    ids=lambda ids: f"{type(ids).__name__}-{getattr(ids, 'dtype', '')}",
)
def test_whole_numbers_in_any_container_are_not_changed(ids: Any) -> None:
    keys = as_keys("user_ids", ids)
    assert (keys.tolist(), keys.dtype, keys.flags.c_contiguous) == (WHOLE, np.dtype("<u8"), True)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("box", [list, tuple, lambda ids: np.array(ids, object)])
def test_integers_and_strings_may_be_mixed(box: Any, order: int) -> None:
    ids = [7, "7", 2**64 - 1, b"ann"][::order]
    keys = [7, key_of("7"), 2**64 - 1, key_of("ann")][::order]
    assert as_keys("user_ids", box(ids)).tolist() == keys


@pytest.mark.parametrize(
    "ids", [[7, "7", b"ann"], np.array([7, "7", "ann"], object), "ann", 7, [7], [], ["7", "7"]]
)
def test_original_ids_are_those_of_the_caller(ids: Any) -> None:
    expected = [ids] if isinstance(ids, str | int) else ["ann" if one == b"ann" else one for one in ids]
    assert original_ids(ids, as_keys("ids", ids)).tolist() == expected


@pytest.mark.parametrize(
    "pack", [lambda ids: pd.Series(ids).astype("category"), lambda ids: pa.array(ids).dictionary_encode()]
)
@pytest.mark.parametrize("ids", [TEXTS, [5, 6, 5]])
def test_original_ids_of_dictionaries_are_those_of_the_caller(pack: Any, ids: list[Any]) -> None:
    packed = pack(ids)
    assert original_ids(packed, as_keys("ids", packed)).tolist() == ids


def test_only_the_used_ids_of_a_dictionary_are_hashed() -> None:
    seen: list[Any] = []

    def hash_texts(ids: Any) -> Any:
        seen.extend(ids)
        return keys_of(ids)

    rows = pa.array(TEXTS).dictionary_encode()[1:2]
    assert as_keys("user_ids", rows, hash_texts).tolist() == [key_of("bob")]
    assert seen == ["bob"]


def test_arrays_of_the_contracts_type_are_not_copied() -> None:
    ids, values = np.arange(9, dtype=np.uint64), np.zeros(9, np.float32)
    assert as_keys("user_ids", ids) is ids
    assert np.shares_memory(as_floats("values", values, 9), values)


@pytest.mark.parametrize(("one", "keys"), [(7, [7]), ("ann", [key_of("ann")]), ([], []), (np.empty(0), [])])
def test_a_single_id_is_one_row_and_an_empty_list_is_none(one: Any, keys: list[int]) -> None:
    assert as_keys("user_ids", one).tolist() == keys


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([1, -2], r"u\[1\]: expected 0\.\.18446744073709551615, got -2"),
        (np.array([3, -1]), r"u\[1\]: expected 0\.\..*, got -1"),
        ([1, 2**64], r"u\[1\]: expected an integer 0\.\."),
        ([2**63, -1], r"u\[1\]: expected an integer 0\.\."),
        ([2**63, 1.0], "u: expected integers or strings, got float64"),
        ([1.5], "u: expected integers or strings, got float64"),
        (pd.Series([1, None]), r"u: expected integers or strings, got float64 \(row 1 has no id\)"),
        (["a", None], r"u\[1\]: expected an integer 0\.\..* or a string, got None"),
        ([3, "a", 2.5], r"u\[2\]: expected an integer 0\.\..* or a string, got 2\.5"),
        (pd.Series(["a", None], dtype=object), r"u\[1\]: expected an integer 0\.\..* or a string, got"),
        (["a", "\ud800"], r"u: ids\[1\]: .* cannot be encoded as UTF-8"),
        (pa.array(["a", None]), r"u\[1\]: expected an integer 0\.\..* or a string, got None"),
        (pa.array(["a", None]).dictionary_encode(), r"u\[1\]: expected an id, got none"),
        (pd.Series(["a", None]).astype("category"), r"u\[1\]: expected an id, got none"),
        (np.array([True, False]), "u: expected integers or strings, got bool"),
        ([[1, 2], [3, 4]], r"u: expected one dimension, got shape \(2, 2\)"),
        ([[1], [2, 3]], "u: expected one value for each row"),
        (np.array([1, "a", True], object), "u"),
    ],
)
def test_invalid_ids_are_refused(ids: Any, text: str) -> None:
    with pytest.raises(ColumnError, match=text):
        as_keys("u", ids)


def test_numbers_become_float32_and_one_number_fills_all_rows() -> None:
    for values in ([1, 2.5, True], np.array([1, 2.5, 1]), pd.Series([1, 2.5, 1]), pa.array([1, 2.5, 1.0])):
        column = as_floats("values", values, 3)
        assert (column.tolist(), column.dtype) == ([1.0, 2.5, 1.0], np.dtype("<f4"))
    assert as_floats("values", 4, 3).tolist() == [4.0, 4.0, 4.0]
    assert np.isinf(as_floats("values", [1e39], 1)).all(), "too large for float32: the server rejects the row"
    assert np.isnan(as_floats("values", pd.Series([None, 1.0]), 2)[0])
    with pytest.raises(ColumnError, match=r"values has 2 rows, expected 3 \(user_ids\)"):
        as_floats("values", [1, 2], 3)
    with pytest.raises(ColumnError, match="values: expected numbers, got"):
        as_floats("values", ["1"], 1)


def test_event_types_are_whole_numbers_of_32_bits() -> None:
    assert as_numbers("event_types", [0, 2**32 - 1], 2).tolist() == [0, 2**32 - 1]
    assert as_numbers("event_types", 3, 2).tolist() == [3, 3]
    for bad, text in (
        ([2**32, 1], r"event_types\[0\]: expected 0\.\.4294967295"),
        ([1.0, 2.0], "whole numbers, got float64"),
    ):
        with pytest.raises(ColumnError, match=text):
            as_numbers("event_types", bad, 2)


MOMENT = datetime(2011, 12, 9, 12, 50, 0, 250_000, tzinfo=UTC)
MICROSECONDS = 1_323_435_000_250_000


@pytest.mark.parametrize(
    "times",
    [
        MOMENT,
        [MOMENT],
        [MOMENT.replace(tzinfo=None)],
        [MOMENT.astimezone(timezone(timedelta(hours=-8)))],
        [MICROSECONDS],
        MICROSECONDS,
        np.array([MOMENT.replace(tzinfo=None)], "datetime64[us]"),
        np.array([MOMENT.replace(tzinfo=None)], "datetime64[ms]"),
        pd.Series([MOMENT.replace(tzinfo=None)]),
        pd.Series([MOMENT]),
        pd.Series([MOMENT]).dt.tz_convert("Asia/Tokyo"),
        pd.Series([MOMENT]).dt.as_unit("ns"),
        pa.array([MOMENT], pa.timestamp("us", "UTC")),
        pa.chunked_array([[MOMENT]], pa.timestamp("ns")),
        pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ms")),
    ],
    ids=lambda times: f"{type(times).__name__}-{getattr(times, 'dtype', getattr(times, 'type', ''))}",
)
def test_times_become_microseconds_utc(times: Any) -> None:
    column = as_times("times", times, 1)
    assert (column.tolist(), column.dtype) == ([MICROSECONDS], np.dtype("<i8"))


@given(st.datetimes(timezones=st.just(UTC)))
def test_datetimes_are_exact(moment: datetime) -> None:
    (microseconds,) = as_times("times", [moment], 1).tolist()
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds) == moment


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ([1.5], "times: expected datetimes or whole microseconds, got float64"),
        (np.array(["2020-01-01", "NaT"], "datetime64[us]"), r"times\[1\]: not a time"),
        ([MOMENT, None], r"times\[1\]: expected a datetime, got None"),
        ([MOMENT, pd.NaT], r"times\[1\]: expected a datetime, got NaT"),
        (np.array([2**63], np.uint64), r"times\[0\]: expected"),
        (["2020-01-01"], "times: expected datetimes"),
    ],
)
def test_invalid_times_are_refused(times: Any, text: str) -> None:
    with pytest.raises(ColumnError, match=text):
        as_times("times", times, len(times))
