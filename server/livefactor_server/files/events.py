"""Reads events from csv and parquet files, finds columns by name, and converts ids to keys.

Error messages name the row and the column.
"""

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
"""Microseconds per unit of the time column."""
IDS = ("user_ids", "item_ids")


class EventFileError(ValueError):
    """The file cannot be read as events. The text names the row and the column if possible."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive events with the values of the file.

    Attributes:
        columns: n values, text or numbers, for each field (user_ids, item_ids, values, weights,
            event_types, times).
        names: the column name in the file for each field.
        places: the line (csv) or the row (parquet) of each event, counted from 1.
        unit: "line" or "row".
    """

    columns: dict[str, list[Any]]
    names: dict[str, str]
    places: Sequence[int]
    unit: str

    def __len__(self) -> int:
        return len(self.places)

    def fault(self, at: int, field: str, expected: str) -> EventFileError:
        """The error for a wrong value of `field` in the event `at`."""
        value = self.columns[field][at]
        where = f"{self.unit} {self.places[at]}, column {self.names[field]}"
        return EventFileError(f"{where}: expected {expected}, got {value!r}")


def header(file: Path) -> list[str]:
    """The column names of a file. Raises EventFileError, OSError."""
    if file.suffix == ".parquet":
        return list(_parquet(file).schema_arrow.names)
    return next(_csv_lines(file), (0, []))[1]


def open_events(file: Path, names: dict[str, str], batch: int) -> tuple[int, Iterator[Rows]]:
    """Opens a csv, csv.gz or parquet file.

    Args:
        file: the file.
        names: the column name for each field to read.
        batch: number of events per batch.

    Returns:
        The number of events (0 if unknown, as in csv), and an iterator of batches.

    Raises:
        EventFileError: a column is missing, or the file cannot be read. The iterator raises it,
            too.
        OSError: the file cannot be opened.
    """
    have = header(file)
    for name in names.values():
        if name not in have:
            raise EventFileError(f"there is no column {name!r}; the columns are {', '.join(have)}")
    if file.suffix == ".parquet":
        source = _parquet(file)
        return source.metadata.num_rows, _parquet_rows(source, names, batch)
    return 0, _csv_rows(file, names, batch)


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (number, fields) of each line.

    If a quoted field contains line ends, the number is that of the last line.
    """
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
    chosen: list[list[str]] = []
    places: list[int] = []

    def rows() -> Rows:
        columns = {field: [line[at] for line in chosen] for field, at in zip(names, wanted, strict=True)}
        return Rows(columns, names, places, "line")

    for number, line in lines:
        if len(line) != len(have):
            raise EventFileError(f"line {number}: expected {len(have)} fields, got {len(line)}")
        chosen.append(line)
        places.append(number)
        if len(chosen) == batch:
            yield rows()
            chosen, places = [], []
    if chosen:
        yield rows()


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ModuleNotFoundError:
        raise EventFileError('parquet files need pyarrow: pip install "livefactor[parquet]"') from None
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
    """Converts text and numbers of a file to the columns that `Producer.push` accepts.

    Attributes:
        string_ids: hash every id as text. Otherwise an id of digits is used as the number, and
            other ids are hashed.
        secret: the key of the hash.
        time_unit: one of `TIME_UNITS`.
    """

    string_ids: bool = False
    secret: bytes = b""
    time_unit: str = "s"

    def check(self) -> Conversion:
        """Returns self. Raises ValueError if the secret or the time unit is invalid."""
        if self.time_unit not in TIME_UNITS:
            raise ValueError(f"time unit: expected {', '.join(TIME_UNITS)}, got {self.time_unit!r}")
        key_of("", self.secret)
        return self

    def columns(self, rows: Rows) -> dict[str, np.ndarray]:
        """Converts n events.

        Returns:
            Arrays of n values: uint64 ids, float32 values and weights, uint32 event_types, and
            int64 times (microseconds).

        Raises:
            EventFileError: a value cannot be converted.
        """
        return {field: self._column(rows, field) for field in rows.columns}

    def columns_with_texts(self, rows: Rows) -> dict[str, Any]:
        """Converts n events as `columns` does, but leaves the ids for a Producer to hash.

        Raises:
            EventFileError: a value cannot be converted.
        """
        return {
            field: self.ids(rows, field) if field in IDS else self._column(rows, field)
            for field in rows.columns
        }

    def ids(self, rows: Rows, field: str) -> list[int | str]:
        """Reads n ids without hashing them: the number where `columns` uses it, else the text.

        Raises:
            EventFileError: a value is not an id.
        """
        ids = _convert(rows, field, self._id, object, "an id, below 2**64 if it is a number")
        return ids.tolist()  # type: ignore[no-any-return]

    def _column(self, rows: Rows, field: str) -> np.ndarray:
        if field in IDS:
            return _convert(rows, field, self._key, np.uint64, "an id, below 2**64 if it is a number")
        if field == "times":
            return _convert(
                rows, field, self._time, np.int64, f"a whole number ({self.time_unit} since 1970)"
            )
        if field == "event_types":
            return _convert(rows, field, _event_type, np.uint32, "a whole number, 0..2**32-1")
        # A value beyond float32 becomes infinite. The server rejects its row, like one with an
        # infinite value in the file.
        with np.errstate(over="ignore"):
            return _convert(rows, field, float, np.float64, "a number").astype(np.float32)

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


def _convert(rows: Rows, field: str, function: Callable[[Any], Any], dtype: Any, expected: str) -> np.ndarray:
    """Calls `function` once for each distinct value of a field.

    Raises EventFileError at the first failure.
    """
    values = rows.columns[field]
    converted: dict[Any, Any] = {}
    for at, value in enumerate(values):
        try:
            if value not in converted:
                converted[value] = function(value)
        except (ValueError, TypeError, OverflowError):
            raise rows.fault(at, field, expected) from None
    return np.fromiter(map(converted.__getitem__, values), dtype, len(values))
