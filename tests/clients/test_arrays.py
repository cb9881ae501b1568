"""The types of columns that the client accepts, and the ones that it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
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
from livefactor.wire.arrays import as_floats, as_numbers
from livefactor.wire.ids import as_keys, ids_of_texts, original_ids
from livefactor.wire.keys import key_of, keys_of
from livefactor.wire.times import as_times

TEXTS = ["ann", "bob", "ann", "é"]
WHOLE = [0, 1, 2**63, 2**64 - 1]
MOMENT = datetime(2011, 12, 9, 12, 50, 0, 250_000, tzinfo=UTC)


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
        pd.Series(TEXTS, dtype="string"),
        pd.CategoricalIndex(TEXTS),
        pa.chunked_array([pa.array(TEXTS[:2]).dictionary_encode(), pa.array(TEXTS[2:]).dictionary_encode()]),
        np.array(TEXTS, np.dtypes.StringDType()),
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


MIXED = [901, "zoe"]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("box", [list, tuple, lambda ids: np.array(ids, object), pd.Series, pd.Index])
def test_a_mixture_of_integers_and_strings_is_refused_with_its_row(box: Any, order: int) -> None:
    """NumPy would make the string "901" of the integer."""
    ids = [MIXED[0], *MIXED, MIXED[1]][::order]
    text = rf"u\[2\]: expected an? \w+ as in row 0, got {ids[2]!r}: the ids of a column are all"
    with pytest.raises(ColumnError, match=text) as refused:
        as_keys("u", box(ids))
    assert (refused.value.column, refused.value.row) == ("u", 2)


def test_the_key_of_an_id_does_not_depend_on_its_neighbours_or_its_look() -> None:
    assert as_keys("u", ["7", "007", " 7", "+7", "nan", "1_0"]).tolist() == [
        key_of(text) for text in ("7", "007", " 7", "+7", "nan", "1_0")
    ]
    assert as_keys("u", [7, 10]).tolist() == [7, 10]


@pytest.mark.parametrize(
    ("texts", "ids"),
    [
        (["7", "0"], [7, 0]),
        ([str(2**64 - 1)], [2**64 - 1]),
        *(
            (texts, texts)
            for texts in (["7", "ann"], ["7", "007"], [str(2**64)], ["-1"], ["٣"], ["1_0"], [""])
        ),
    ],
)
def test_text_without_types_is_integers_only_if_every_text_is_one(texts: list[str], ids: list[Any]) -> None:
    assert ids_of_texts(texts) == ids


@pytest.mark.parametrize("ids", ["ann", 7, [7], [], ["7", "7"], range(3), np.array(["7", "é"])])
def test_original_ids_are_those_of_the_caller(ids: Any) -> None:
    expected = [ids] if isinstance(ids, str | int) else list(ids)
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
        ([1, 2**64], r"u\[1\]: expected 0\.\."),
        ([2**63, -1], r"u\[1\]: expected 0\.\."),
        ([2**63, 1.0], r"u\[1\]: expected an integer or a string, got a float \(1\.0\); pandas makes floats"),
        ([1.5], r"u\[0\]: .* got a float"),
        (42.0, r"u\[0\]: .* got a float"),
        (np.array([42.0, np.nan]), r"u\[0\]: .* got a float \(42\.0\); .*Int64"),
        (pd.Series([1, None]), r"u\[1\]: the id is missing"),
        (pd.Series([1, None], dtype="Int64"), r"u\[1\]: the id is missing"),
        (pa.array([1, None]), r"u\[1\]: the id is missing"),
        (pa.chunked_array([[1], [None]], pa.int64()), r"u\[1\]: the id is missing"),
        (pa.array([1.0, None]), r"u\[1\]: the id is missing"),
        (pa.nulls(2), r"u\[0\]: the id is missing"),
        (["a", None], r"u\[1\]: the id is missing: expected a string, got None"),
        (["a", ""], r"u\[1\]: the id is missing: the string is empty"),
        (pa.array(["a", "a", "", "a"]), r"u\[2\]: the id is missing: the string is empty"),
        (["a", pd.NA], r"u\[1\]: the id is missing"),
        ([3, 4, 2.5], r"u\[2\]: expected an integer or a string, got a float"),
        (pd.Series(["a", None], dtype=object), r"u\[1\]: the id is missing"),
        (["a", "\ud800"], r"u\[1\]: .* cannot be encoded as UTF-8"),
        (pa.array(["a", None]), r"u\[1\]: the id is missing"),
        (pa.array(["a", None]).dictionary_encode(), r"u\[1\]: the id is missing"),
        (pd.Series(["a", None]).astype("category"), r"u\[1\]: the id is missing"),
        (np.array([True, False]), r"u\[0\]: .* got a bool"),
        (pa.array([True]), r"u\[0\]: .* got a bool"),
        ([True], r"u\[0\]: .* got a bool"),
        ([1, True], r"u\[1\]: .* got a bool"),
        ([b"ann"], r"u\[0\]: .* got bytes \(b'ann'\); decode them"),
        (b"ann", r"u\[0\]: .* got bytes"),
        (np.array([b"ann"]), r"u\[0\]: .* got bytes"),
        (pa.array([b"ann"]), r"u\[0\]: .* got bytes"),
        ([Decimal(7)], r"u\[0\]: .* got a decimal"),
        (pa.array([Decimal(7)]), r"u\[0\]: .* got a decimal"),
        (pa.array([MOMENT]), r"u\[0\]: expected integers or strings, got a column of the type timestamp"),
        (None, r"u\[0\]: the id is missing"),
        ([[1, 2], [3, 4]], r"u\[0\]: .* got a value of type list"),
        (np.zeros((2, 2), int), r"u: expected one dimension, got shape \(2, 2\)"),
        (np.array([1, "a", True], object), r"u\[1\]: expected an integer as in row 0, got 'a'"),
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
    assert np.isnan(as_floats("values", [None, 1.0], 2)[0]), "missing: the server rejects the row"
    assert as_floats("values", pa.array([Decimal("1.5")]), 1).tolist() == [1.5]
    for mixed in ([1, "2"], np.array([1, "2"], object)):
        with pytest.raises(ColumnError, match=r"values\[1\]: expected a number, got '2'"):
            as_floats("values", mixed, 2)


def test_event_types_are_whole_numbers_of_32_bits() -> None:
    assert as_numbers("event_types", [0, 2**32 - 1], 2).tolist() == [0, 2**32 - 1]
    assert as_numbers("event_types", 3, 2).tolist() == [3, 3]
    for bad, text in (
        ([2**32, 1], r"event_types\[0\]: expected 0\.\.4294967295"),
        ([1, 2.0], r"event_types\[1\]: expected a whole number, got 2\.0"),
        ([1, "2"], r"event_types\[1\]: expected a whole number, got '2'"),
        (np.array([1.0, 2.0]), r"event_types\[0\]: expected a whole number, got 1\.0"),
    ):
        with pytest.raises(ColumnError, match=text):
            as_numbers("event_types", bad, 2)


MICROSECONDS = 1_323_435_000_250_000


@pytest.mark.parametrize(
    "times",
    [
        MOMENT,
        [MOMENT],
        [MOMENT.replace(tzinfo=None)],
        [MOMENT.astimezone(timezone(timedelta(hours=-8)))],
        [MOMENT.isoformat()],
        MOMENT.isoformat(),
        ["2011-12-09 12:50:00.25"],
        ["2011-12-09T13:50:00.25+01:00"],
        pa.array(["2011-12-09T12:50:00.25Z"]),
        np.array(["2011-12-09T12:50:00.25Z"]),
        np.datetime64(MICROSECONDS, "us"),
        pa.array([MICROSECONDS], pa.timestamp("us")),
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


def test_a_date_is_its_first_moment() -> None:
    midnight = [MICROSECONDS - (12 * 60 + 50) * 60_000_000 - 250_000]
    for dates in (
        [MOMENT.date()],
        pa.array([MOMENT.date()]),
        ["2011-12-09"],
        np.array(["2011-12-09"], "datetime64[D]"),
    ):
        assert as_times("times", dates, 1).tolist() == midnight


def test_integers_count_seconds_or_the_unit_that_is_named() -> None:
    second = MICROSECONDS // 1_000_000
    for unit, per_second in (("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)):
        times = np.array([second * per_second, 0])
        assert as_times("times", times, 2, unit).tolist() == [second * 1_000_000, 0], "0 is unknown"
    assert as_times("times", second, 2).tolist() == [second * 1_000_000] * 2
    assert as_times("times", np.array([second], np.int32), 1).tolist() == [second * 1_000_000]


@given(st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC)))
def test_datetimes_are_exact(moment: datetime) -> None:
    (microseconds,) = as_times("times", [moment], 1).tolist()
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds) == moment


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ([1323435000.5], r"times\[0\]: expected whole numbers, datetimes or ISO 8601, got 1323435000\.5"),
        (np.array(["2020-01-01", "NaT"], "datetime64[us]"), r"times\[1\]: the time is missing"),
        ([MOMENT, None], r"times\[1\]: the time is missing: got None"),
        ([MOMENT, pd.NaT], r"times\[1\]: the time is missing: got NaT"),
        (pa.array([MOMENT, None]), r"times\[1\]: the time is missing"),
        ([MICROSECONDS], r"times\[0\]: .* in us it is 2011-12-09: pass them as datetime64\[us\]"),
        ([5, 1_323_435_000], r"times\[0\]: expected a time of 1990\.\.2099, got 5 s$"),
        ([1_323_435_000, 1_323_435_000_000], r"times\[1\]: .* in ms it is 2011-12-09"),
        (np.array([2**63], np.uint64), r"times\[0\]: expected a time of"),
        (["2020-01-01", "yesterday"], r"times\[1\]: expected a time in ISO 8601, got 'yesterday'"),
        ([datetime(1971, 1, 1)], r"times\[0\]: expected a time of 1990\.\.2099, got 1971-01-01T"),
        ([True], r"times\[0\]: expected whole numbers, datetimes or ISO 8601, got True"),
    ],
)
def test_invalid_times_are_refused(times: Any, text: str) -> None:
    with pytest.raises(ColumnError, match=text):
        as_times("times", times, len(times))
