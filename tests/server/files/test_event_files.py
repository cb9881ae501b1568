"""Event files: the names of columns, the keys of ids, and errors with row and column."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livefactor.wire.keys import key_of, keys_of
from livefactor_kernels.spec.presets import preset
from livefactor_server.files.events import Conversion, EventFileError, header, open_events
from livefactor_server.tuning.events import EventFile, read_events
from livefactor_server.tuning.rules import RULES

IDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=5),
    st.integers(0, (1 << 64) - 1).map(str),
)


def read(file: Path, text: str, **given: str) -> EventFile:
    file.write_text(text, encoding="utf-8")
    return read_events(file, given, Conversion())


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12), st.integers(1, 5), st.booleans())
def test_an_id_has_one_key_wherever_it_stands(tmp_path_factory, pairs, batch: int, as_text: bool) -> None:
    """The size of the batches does not matter.

    An id of digits gives its number. Any other id is hashed, as in a client.
    """
    text = io.StringIO()
    csv.writer(text).writerows([("user", "item"), *pairs])
    file = tmp_path_factory.mktemp("ids") / "events.csv.gz"
    file.write_bytes(gzip.compress(text.getvalue().encode()))
    _, batches = open_events(file, {"user_ids": "user", "item_ids": "item"}, batch)
    parts = [Conversion(as_text, b"salt").columns(rows) for rows in batches]
    for at, field in enumerate(("user_ids", "item_ids")):
        ids = [pair[at] for pair in pairs]
        hashed = keys_of(ids, b"salt")
        expected = [
            int(text) if text.isdecimal() and not as_text else int(key)
            for text, key in zip(ids, hashed, strict=True)
        ]
        assert np.concatenate([part[field] for part in parts]).tolist() == expected


def test_columns_are_found_by_their_usual_names_and_ordered_by_time(tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    found = read(file, "time,item,user,rating\n3,a,7,1.5\n1,b,8,2\n3,c,9,4\n2,d,9,5\n")
    assert found.stream.user_keys.tolist() == [8, 9, 7, 9]
    assert found.stream.item_keys.tolist() == [key_of(name) for name in "bdac"]
    assert found.stream.values.tolist() == [2, 5, 1.5, 4] and found.stream.weights is None
    assert found.places.tolist() == [3, 5, 2, 4]
    named = read(file, "time,item,user,rating\n3,a,7,1.5\n1,b,8,2\n", user_ids="item", item_ids="user")
    assert named.stream.item_keys.tolist() == [8, 7]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text("user,item\n1,2\n", encoding="utf-8-sig")
    assert header(file) == ["user", "item"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column user_id or user"),
        ("a,b\n1,2\n", "no column user_id or user, and none was given; the columns are a, b"),
        ("user,item\n", "no events"),
        ("user,item\n1,2\n1\n", "line 3: expected 2 fields, got 1"),
        ("user,item\n1,2\n,2\n", "line 3, column user: expected an id"),
        (f"user,item\n1,{1 << 64}\n", "line 2, column item: expected an id"),
        ("user,item,value\n1,2,3\n1,2,four\n", "line 3, column value: expected a number, got 'four'"),
        ("user,item,value\n1,2,3\n1,2,nan\n", "line 3, column value: expected a finite number, got 'nan'"),
        ('user,item,weight\n"1\n",2,3\n1,2,0\n', "line 4, column weight: expected a finite number above 0"),
        ("user,item,time\n1,2,3\n1,2,2024-01-01\n", "line 3, column time: expected a whole number"),
        ("user,item,type\n1,2,-1\n", "line 2, column type: expected a whole number"),
        ('user,item\n1,2\n"1\0,2\n', "line"),
    ],
)
def test_errors_name_row_and_column(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EventFileError, match=said):
        read(tmp_path / "events.csv", text)


@pytest.mark.parametrize(
    "data", [b"no gzip", gzip.compress(b"user,item\n1,2\n" * 999)[:40]], ids=["no archive", "cut off"]
)
def test_a_damaged_archive_is_a_fault_of_the_file(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "events.csv.gz"
    file.write_bytes(data)
    with pytest.raises(EventFileError, match="after line"):
        read_events(file, {}, Conversion())


def test_parquet_gives_what_csv_gives_and_names_rows(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"user": [1, 2, 3], "item": ["a", "7", "b"], "value": [1.0, 2.0, 5.0]}
    file = tmp_path / "events.parquet"
    parquet.write_table(arrow.table(columns), file)
    packed = read_events(file, {}, Conversion())
    plain = read(tmp_path / "events.csv", "user,item,value\n1,a,1\n2,7,2\n3,b,5\n")
    assert packed.digest == plain.digest
    assert (packed.places.tolist(), packed.unit) == ([1, 2, 3], "row")
    parquet.write_table(arrow.table({**columns, "item": ["a", None, "b"]}), file)
    with pytest.raises(EventFileError, match="row 2, column item: expected an id"):
        read_events(file, {}, Conversion())
    file.write_bytes(b"no parquet")
    with pytest.raises(EventFileError):
        read_events(file, {}, Conversion())


@pytest.mark.parametrize(
    ("values", "task", "left_out"),
    [
        ("1 1 1", "purchases", []),
        ("1 0 1", "clicks", ["bpr-sgd", "bpr-adagrad"]),
        ("1 0 3", "ratings", []),
    ],
)
def test_the_task_is_guessed_and_rules_that_would_reject_rows_are_left_out(
    tmp_path: Path, values: str, task: str, left_out: list[str]
) -> None:
    lines = "".join(f"1,2,{value}\n" for value in values.split())
    found = read(tmp_path / "events.csv", "user,item,value\n" + lines)
    assert found.task() == task
    taken, others = found.rules(task, [])
    assert others == left_out
    assert {*taken, *others} == {name for name, rule in RULES.items() if task in rule.tasks}
    with pytest.raises(ValueError, match="rule: expected one of"):
        found.rules(task, ["unheard-of"])


def test_a_task_that_would_reject_rows_names_the_first(tmp_path: Path) -> None:
    found = read(tmp_path / "events.csv", "user,item,value,time\n1,2,1,9\n1,2,3,8\n1,2,4,7\n")
    with pytest.raises(
        EventFileError, match=r"line 3, column value: preset clicks rejects the value 3 \(2 such"
    ):
        found.rules("clicks", [])
    with pytest.raises(EventFileError, match="line 3, column value: logistic-sgd"):
        found.rules("purchases", ["logistic-sgd"])
    found.check(preset("purchases"), "")
