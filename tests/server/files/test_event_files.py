"""Event files: what the content says, keys of ids, units of times, and where a fault stands."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from livefactor.errors import ColumnError
from livefactor.wire.ids import as_keys
from livefactor.wire.keys import key_of, keys_of
from livefactor_kernels.spec.presets import preset
from livefactor_server.challenging.rules import RULES
from livefactor_server.files.events import Batches, EventFileError, Events, open_file
from livefactor_server.tuning.events import EventFile, read_events

IDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=5),
    st.integers(0, (1 << 64) - 1).map(str),
)
NAMES = {"user_ids": "user", "item_ids": "item"}


def read(file: Path, text: str, **given: str) -> EventFile:
    file.write_text(text, encoding="utf-8")
    return read_events(file, given)


def events(file: Path, **options: Any) -> Events:
    names = {**NAMES, **options.pop("more", {})}
    return Events(open_file(file), names, **options)


def keys(file: Path, field: str = "user_ids", **options: Any) -> list[int]:
    return np.concatenate([rows.keys(field) for rows in events(file, **options)]).tolist()


def is_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and str(int(text)) == text and int(text) < 1 << 64


@given(
    st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12)
    | st.lists(st.tuples(*[st.integers(0, 1 << 65).map(str)] * 2), min_size=1, max_size=12),
    st.integers(1, 5),
    st.booleans(),
)
def test_a_column_of_ids_holds_integers_or_strings(
    tmp_path_factory, pairs, batch: int, as_text: bool
) -> None:
    """The size of the batches does not matter."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("user", "item"), *pairs])
    file = tmp_path_factory.mktemp("ids") / "events"
    file.write_bytes(gzip.compress(text.getvalue().encode()))
    cut = Batches(events(file, string_ids=as_text))
    assert len(cut.first()) == 1
    found = [*iter(lambda: cut.take(batch), None)]
    assert [len(rows) for rows in found[:-1]] == [batch] * (len(found) - 1)
    for at, field in enumerate(NAMES):
        ids = [pair[at] for pair in pairs]
        integers = not as_text and all(is_integer(text) for text in ids)
        expected = [int(text) for text in ids] if integers else keys_of(ids, b"salt").tolist()
        assert np.concatenate([rows.keys(field, b"salt") for rows in found]).tolist() == expected


@pytest.mark.parametrize(
    ("ids", "said", "decides"),
    [
        (["7", "8"], "user holds integers", None),
        (["7", "007"], "user holds strings, because line 3 has '007'", None),
        (["7", " 7"], "user holds strings, because line 3 has ' 7'", None),
        (["+7", "7"], "user holds strings, because line 2 has '+7'", None),
        (["7", "-7"], "user holds strings, because line 3 has '-7'", None),
        (["7", "1_0"], "user holds strings, because line 3 has '1_0'", None),
        (["7", str(1 << 64)], f"user holds strings, because line 3 has '{1 << 64}'", None),
        (["0", str((1 << 64) - 1)], "user holds integers", None),
        (["7", "a"], "user holds strings, because line 3 has 'a'", None),
    ],
)
def test_it_is_said_what_a_column_holds_and_which_line_decided(
    tmp_path: Path, ids: list[str], said: str, decides: None
) -> None:
    file, sentences = tmp_path / "events.csv", []
    file.write_text("user,item\n" + "".join(f"{one},x\n" for one in ids))
    found = keys(file, on_kinds=sentences.append)
    assert sentences == [said, "item holds strings, because line 2 has 'x'"]
    assert found == (list(map(int, ids)) if "integers" in said else keys_of(ids).tolist())


def test_the_whole_file_decides_and_not_its_first_block(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("livefactor_server.files.delimited.BLOCK_BYTES", 64)
    file = tmp_path / "events.csv"
    file.write_text("user,item\n" + "7,8\n" * 100 + "ann,8\n")
    assert keys(file) == [key_of("7")] * 100 + [key_of("ann")]
    assert keys(file, "item_ids") == [8] * 101


COLUMNS: list[Any] = [
    pa.array([42.0, None]),
    pa.array([42.0, 43.0]),
    pa.array([b"ann", b"bob"]),
    pa.array([True, False]),
    pa.array([Decimal(1), Decimal(2)]),
    pa.array([1, None]),
    pa.array(["ann", None]),
    pa.array(["ann", ""]),
    pa.array([-1, 2]),
    pa.array(["007", "7"]),
    pa.array(["nan", "NULL"]),
    pa.array([7, 8], pa.uint64()),
    pa.array([7, 8], pa.int8()),
    pa.array(["a", "b"], pa.large_string()),
    pa.array(["a", "b"]).dictionary_encode(),
    pa.array([7, 8]).dictionary_encode(),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.type}")
@pytest.mark.parametrize("box", [lambda one: one, lambda one: one.to_pylist(), lambda one: one.to_pandas()])
def test_a_file_and_python_have_one_rule(tmp_path: Path, column: pa.Array, box: Callable[[Any], Any]) -> None:
    file = tmp_path / "events"
    parquet.write_table(pa.table({"user": column, "item": [1, 2]}), file)
    try:
        expected = as_keys("user_ids", box(column)).tolist()
    except ColumnError as refused:
        with pytest.raises(EventFileError, match="column user: ") as error:
            keys(file)
        assert refused.row is not None
        if box(column) is column:
            assert f"row {refused.row + 1}, column user" in str(error.value)
        return
    assert keys(file) == expected


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_are_recognised_and_empty_lines_are_skipped(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "events.csv"
    lines = [
        "",
        separator.join(("user", "item")),
        "",
        separator.join("12"),
        "",
        "   ",
        separator.join("34"),
        "",
        "",
    ]
    file.write_text("\r\n".join(lines))
    assert (keys(file), keys(file, "item_ids")) == ([1, 3], [2, 4])
    file.write_text("\n".join([*lines, separator.join(("5", ""))]))
    with pytest.raises(EventFileError, match="line 10, column item: the id is missing"):
        keys(file)


PLAIN = b"user,item\n1,2\n"


@pytest.mark.parametrize("name", ["events.csv", "events.txt", "events.pq", "events"])
@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        gzip.compress(PLAIN),
        gzip.compress(PLAIN[:-3]) + gzip.compress(PLAIN[-3:]),
        bz2.compress(PLAIN),
        pa.compress(PLAIN, "zstd", asbytes=True),
        b"\xef\xbb\xbf" + PLAIN,
    ],
    ids=["plain", "gzip", "two gzips", "bz2", "zstd", "byte order mark"],
)
def test_the_content_says_how_a_file_is_packed(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert keys(tmp_path / name) == [1]


@pytest.mark.parametrize("name", ["events.PARQUET", "events.csv", "events"])
def test_the_content_says_that_a_file_is_parquet(tmp_path: Path, name: str) -> None:
    parquet.write_table(pa.table({"user": ["a"], "item": [2]}), tmp_path / name)
    assert keys(tmp_path / name) == [key_of("a")]


def through_a_pipe(tmp_path: Path, data: bytes) -> Path:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(data), daemon=True).start()
    return pipe


@pytest.mark.parametrize("packed", [False, True])
def test_a_stream_is_read_once(tmp_path: Path, packed: bool) -> None:
    text = b"user,item\n1,a\n\n3,4\n"
    found = events(through_a_pipe(tmp_path, gzip.compress(text) if packed else text))
    (rows,) = found
    assert found.is_stream and rows.keys("user_ids").tolist() == [1, 3]
    assert rows.keys("item_ids").tolist() == [key_of("a"), key_of("4")]


def test_a_stream_of_parquet_is_read(tmp_path: Path) -> None:
    packed = io.BytesIO()
    parquet.write_table(pa.table({"user": [5], "item": [2]}), packed)
    assert keys(through_a_pipe(tmp_path, packed.getvalue())) == [5]


def test_standard_input_is_a_stream() -> None:
    code = (
        "from pathlib import Path\nfrom livefactor_server.files.events import *\n"
        "for path in ('-',):\n"
        "    found = Events(open_file(Path(path)), {'user_ids': 'user', 'item_ids': 'item'})\n"
        "    print([rows.keys('user_ids').tolist() for rows in found], found.is_stream)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=PLAIN, capture_output=True, check=True)
    assert done.stdout == b"[[1]] True\n"


def test_a_stream_whose_later_rows_are_no_integers_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("livefactor_server.files.delimited.BLOCK_BYTES", 64)
    text = b"user,item\n" + b"1,2\n" * 100 + b"ann,2\n"
    with pytest.raises(
        EventFileError, match="row 101, column user: expected an integer as in the rows before"
    ):
        keys(through_a_pipe(tmp_path, text))


def times(file: Path, column: Any, **options: Any) -> list[int]:
    if isinstance(column, list):
        file.write_text("user,item,at\n" + "".join(f'1,2,"{one}"\n' for one in column))
    else:
        parquet.write_table(
            pa.table({"user": [1] * len(column), "item": [2] * len(column), "at": column}), file
        )
    found = events(file, more={"times": "at"}, **options)
    return [time for rows in found for time in rows.columns["times"].view(np.int64).tolist()]


SECOND = 1_323_435_000


@pytest.mark.parametrize(
    "column",
    [
        [f"{SECOND}"],
        ["2011-12-09T12:50:00Z"],
        ["2011-12-09 13:50:00+01:00"],
        ["2011-12-09 12:50"],
        ["20111209T125000Z"],
        pa.array([SECOND]),
        pa.array([SECOND], pa.uint32()),
        *(pa.array([SECOND * n], pa.timestamp(unit)) for unit, n in (("s", 1), ("ms", 10**3), ("ns", 10**9))),
        pa.array([SECOND * 10**6], pa.timestamp("us", "Asia/Tokyo")),
        pa.array(["2011-12-09T12:50:00Z"]),
    ],
    ids=str,
)
def test_times_say_their_unit_or_count_seconds(tmp_path: Path, column: Any) -> None:
    assert times(tmp_path / "events", column) == [SECOND * 10**6]


def test_integers_count_the_unit_that_is_named(tmp_path: Path) -> None:
    assert times(tmp_path / "events", [f"{SECOND}500"], time_unit="ms") == [SECOND * 10**6 + 500_000]
    with pytest.raises(ValueError, match="time unit: expected s, ms, us, ns, got 'h'"):
        times(tmp_path / "events", ["1"], time_unit="h")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([SECOND, f"{SECOND}000"], r"line 3, column at: .* in ms it is 2011-12-09: --time-unit ms"),
        (pa.array([SECOND * 10**9]), r"row 1, column at: .* in ns it is 2011-12-09: --time-unit ns"),
        (["2011-12-09", "yesterday"], "line 3, column at: expected a time in ISO 8601, got 'yesterday'"),
        ([f"{SECOND}.5"], "line 2, column at: expected a time in ISO 8601"),
        (["12"], r"line 2, column at: expected a time of 1990\.\.2099, got 12 s$"),
        (["1970-02-03"], r"line 2, column at: expected a time of 1990\.\.2099"),
        ([""], "line 2, column at: the time is missing"),
        (pa.array([float(SECOND)]), "row 1, column at: expected whole numbers, datetimes or ISO 8601"),
        (pa.array([SECOND, None]), "row 2, column at: the time is missing"),
    ],
    ids=str,
)
def test_wrong_times_are_refused(tmp_path: Path, column: Any, said: str) -> None:
    with pytest.raises(EventFileError, match=said):
        times(tmp_path / "events", column)


def test_columns_are_found_by_their_usual_names_and_ordered_by_time(tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    at = [f"{SECOND + n}" for n in range(4)]
    found = read(
        file, f"time,item,user,rating\n{at[3]},a,7,1.5\n{at[1]},b,8,2\n{at[3]},c,9,4\n{at[2]},d,9,5\n"
    )
    assert found.stream.user_keys.tolist() == [8, 9, 7, 9]
    assert found.stream.item_keys.tolist() == [key_of(name) for name in "bdac"]
    assert found.stream.values.tolist() == [2, 5, 1.5, 4] and found.stream.weights is None
    assert [found.place(row) for row in found.rows.tolist()] == ["line 3", "line 5", "line 2", "line 4"]
    named = read(file, "item,user\na,7\nb,8\n", user_ids="item", item_ids="user")
    assert named.stream.item_keys.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column user_id or user"),
        ("a,b\n1,2\n", "no column user_id or user, and none was given; the columns are a, b"),
        ("user,item\n", "no events"),
        ("user,item,user\n1,2,3\n", "the header has the column 'user' twice"),
        ("user,item\n1,2\n1\n", "line 3: expected 2 fields, got 1"),
        ("user,item\n1,2\n\n1,2,3\n", "line 4: expected 2 fields, got 3"),
        ("user,item\n1,2\n,2\n", "line 3, column user: the id is missing"),
        ("user,item\nann,2\nNULL,2\n", "line 3, column user: the id is missing"),
        ("user,item\n1,2\nnan,2\n", "line 3, column user: the id is missing"),
        ("user,item\n7.0,2\n,2\n", "line 2, column user: expected an id, got '7.0'.*Int64.*--string-ids"),
        ("user,item,value\n1,2,3\n1,2,four\n", "line 3, column value: expected a number, got 'four'"),
        ("user,item,value\n1,2,3\n1,2,1_0\n", "line 3, column value: expected a number, got '1_0'"),
        ("user,item,value\n1,2,3\n1,2,nan\n", "line 3, column value: expected a finite number, got nan"),
        ('user,item,weight\n"a\n",2,3\n1,2,0\n', "line 4, column weight: expected a finite number above 0"),
        ("user,item,type\n1,2,-1\n", r"line 2, column type: expected 0\.\.4294967295, got -1"),
        ("user,item,type\n1,2,x\n", "line 2, column type: expected a whole number, got 'x'"),
        ('user,item\n1,2\n"1\0,2\n', "line"),
    ],
)
def test_errors_name_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EventFileError, match=said):
        read(tmp_path / "events.csv", text)


def test_a_quoted_null_is_a_string(tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text('user,item\n"NULL",1\n')
    assert keys(file) == [key_of("NULL")]


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes(b"user,item\n1,2\n\xff,2\n")
    with pytest.raises(EventFileError, match="line 3: it is not UTF-8"):
        keys(tmp_path / "events.csv")


@pytest.mark.parametrize(
    "data",
    [gzip.compress(b"user,item\n1,2\n" * 999)[:40], b"PAR1 and no parquet"],
    ids=["cut off", "no parquet"],
)
def test_a_damaged_file_is_a_fault_of_the_file(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "events.csv.gz"
    file.write_bytes(data)
    with pytest.raises(EventFileError):
        read_events(file, {})


def test_parquet_gives_what_csv_gives_and_names_rows(tmp_path: Path) -> None:
    columns = {"user": [1, 2, 3], "item": ["a", "7", "b"], "value": [1.0, 2.0, 5.0]}
    file = tmp_path / "events.parquet"
    parquet.write_table(pa.table(columns), file)
    packed = read_events(file, {})
    plain = read(tmp_path / "events.csv", "user,item,value\n1,a,1\n2,7,2\n3,b,5\n")
    assert packed.digest == plain.digest
    assert [packed.place(row) for row in packed.rows.tolist()] == ["row 1", "row 2", "row 3"]


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
    found = read(
        tmp_path / "events.csv",
        "user,item,value,time\n"
        + "".join(f"1,2,{value},{SECOND - at}\n" for at, value in enumerate((1, 3, 4))),
    )
    with pytest.raises(
        EventFileError, match=r"line 3, column value: preset clicks rejects the value 3 \(2 such"
    ):
        found.rules("clicks", [])
    with pytest.raises(EventFileError, match="line 3, column value: logistic-sgd"):
        found.rules("purchases", ["logistic-sgd"])
    found.check(preset("purchases"), "")
