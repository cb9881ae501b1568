"""Events in csv and parquet files: columns by name, ids to keys, faults named by row and column."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livefactor.wire.keys import key_of

TIME_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds of a unit of the time column."""
IDS = ("user_ids", "item_ids")


class EventFileError(ValueError):
    """A file that cannot be read as events; the text names row and column where there are any."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive events as they stand in a file.

    columns: n values of each field (user_ids, item_ids, values, weights, event_types, times), text or numbers.
    names: the file's name of each field's column. places: each event's line (csv) or row, counted from 1
    (parquet); unit says which.
    """

    columns: dict[str, list[Any]]
    names: dict[str, str]
    places: Sequence[int]
    unit: str

    def __len__(self) -> int:
        return len(self.places)

    def fault(self, at: int, field: str, expected: str) -> EventFileError:
        """What is wrong with a field of the event `at`."""
        value = self.columns[field][at]
        where = f"{self.unit} {self.places[at]}, column {self.names[field]}"
        return EventFileError(f"{where}: expected {expected}, got {value!r}")


def header(file: Path) -> list[str]:
    """Names of a file's columns. Raises EventFileError, OSError."""
    if file.suffix == ".parquet":
        return list(_parquet(file).schema_arrow.names)
    return next(_csv_lines(file), (0, []))[1]


def open_events(file: Path, names: dict[str, str], batch: int) -> tuple[int, Iterator[Rows]]:
    """(events, or 0 where only reading tells; the events, `batch` at a time) of a csv, csv.gz or parquet file.

    names: the column of each field that is wanted. Raises EventFileError, also while the rows are taken.
    """
    have = header(file)
    for name in names.values():
        if name not in have:
            raise EventFileError(f"there is no column {name!r}; there are {', '.join(have)}")
    if file.suffix == ".parquet":
        source = _parquet(file)
        return source.metadata.num_rows, _parquet_rows(source, names, batch)
    return 0, _csv_rows(file, names, batch)


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of each line; a line that quotes an end of line is counted by its last one."""
    opener: Any = gzip.open if file.suffix == ".gz" else open
    number = 0
    try:
        # Spreadsheets write a byte order mark.
        with opener(file, "rt", encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            for line in reader:
                number = reader.line_num
                yield number, line
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise EventFileError(f"after line {number}: {error}") from None


def _csv_rows(file: Path, names: dict[str, str], batch: int) -> Iterator[Rows]:
    lines = _csv_lines(file)
    _, have = next(lines)
    wanted = [have.index(name) for name in names.values()]
    taken: list[list[str]] = []
    places: list[int] = []

    def rows() -> Rows:
        columns = {field: [line[at] for line in taken] for field, at in zip(names, wanted, strict=True)}
        return Rows(columns, names, places, "line")

    for number, line in lines:
        if len(line) != len(have):
            raise EventFileError(f"line {number}: expected {len(have)} fields, got {len(line)}")
        taken.append(line)
        places.append(number)
        if len(taken) == batch:
            yield rows()
            taken, places = [], []
    if taken:
        yield rows()


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ModuleNotFoundError:
        raise EventFileError('reading parquet needs pyarrow: pip install "livefactor[parquet]"') from None
    try:
        return parquet.ParquetFile(file)
    except ArrowInvalid as error:
        raise EventFileError(f"{error}") from None


def _parquet_rows(source: Any, names: dict[str, str], batch: int) -> Iterator[Rows]:
    first = 1
    for part in source.iter_batches(batch, columns=list(names.values())):
        columns = {field: part.column(name).to_pylist() for field, name in names.items()}
        yield Rows(columns, names, range(first, first + part.num_rows), "row")
        first += part.num_rows


@dataclass(frozen=True, slots=True)
class Conversion:
    """Text and numbers of a file to the columns that `Producer.push` takes.

    string_ids: hash every id as text; else an id of digits alone is the number, and only others are hashed.
    secret: key of the hash. time_unit: one of `TIME_UNITS`.
    """

    string_ids: bool = False
    secret: bytes = b""
    time_unit: str = "s"

    def check(self) -> Conversion:
        """Return self; ValueError for a bad secret or time unit."""
        if self.time_unit not in TIME_UNITS:
            raise ValueError(f"time unit: expected {', '.join(TIME_UNITS)}, got {self.time_unit!r}")
        key_of("", self.secret)
        return self

    def columns(self, rows: Rows) -> dict[str, np.ndarray]:
        """The columns of n events: uint64 ids, float32 values and weights, uint32 event_types, int64 times
        (microseconds). Raises EventFileError."""
        return {field: self._column(rows, field) for field in rows.columns}

    def columns_with_texts(self, rows: Rows) -> dict[str, Any]:
        """The same, but with ids that a Producer has yet to hash. Raises EventFileError."""
        return {
            field: self.ids(rows, field) if field in IDS else self._column(rows, field)
            for field in rows.columns
        }

    def ids(self, rows: Rows, field: str) -> list[int | str]:
        """The ids of a column before hashing: int where `columns` takes the number, else the text. Raises
        EventFileError."""
        made = _made(rows, field, self._id, object, "an id, below 2**64 if it is a number")
        return made.tolist()  # type: ignore[no-any-return]

    def _column(self, rows: Rows, field: str) -> np.ndarray:
        if field in IDS:
            return _made(rows, field, self._key, np.uint64, "an id, below 2**64 if it is a number")
        if field == "times":
            return _made(rows, field, self._time, np.int64, f"a whole number ({self.time_unit} since 1970)")
        if field == "event_types":
            return _made(rows, field, _event_type, np.uint32, "a whole number, 0..2**32-1")
        # What float32 cannot hold becomes infinite: a row to be rejected, like one that says so.
        with np.errstate(over="ignore"):
            return _made(rows, field, float, np.float64, "a number").astype(np.float32)

    def _key(self, value: Any) -> int:
        one = self._id(value)
        return key_of(one, self.secret) if isinstance(one, str) else one

    def _id(self, value: Any) -> int | str:
        text = str(value)
        if value is None or not text:
            raise ValueError
        if self.string_ids or not text.isdecimal():
            # Text that cannot be hashed is a fault of this row.
            text.encode()
            return text
        if int(text) >> 64:
            raise ValueError
        return int(text)

    def _time(self, value: Any) -> int:
        microseconds = int(value) * TIME_UNITS[self.time_unit]
        if not -(1 << 63) <= microseconds < 1 << 63:
            raise ValueError
        return microseconds


def _event_type(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 1 << 32:
        raise ValueError
    return number


def _made(rows: Rows, field: str, make: Callable[[Any], Any], dtype: Any, expected: str) -> np.ndarray:
    """`make` of each value, once for equal ones; an EventFileError where it fails first."""
    values = rows.columns[field]
    made: dict[Any, Any] = {}
    for at, value in enumerate(values):
        try:
            if value not in made:
                made[value] = make(value)
        except (ValueError, TypeError, OverflowError):
            raise rows.fault(at, field, expected) from None
    return np.fromiter(map(made.__getitem__, values), dtype, len(values))
