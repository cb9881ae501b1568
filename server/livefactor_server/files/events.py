"""Reads events from csv and parquet and converts them by the rule for all ways in.

The rule stands in `livefactor.wire.ids` and `livefactor.wire.times`. A parquet file has typed
columns. A csv file has text, so it is decided for each column of ids whether it holds integers or
strings: integers where every id of the file is written as one. Errors name the line or row and the
column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livefactor.errors import ColumnError
from livefactor.wire.arrays import as_floats, as_numbers, first_true
from livefactor.wire.bags import bags_of_columns
from livefactor.wire.ids import as_keys
from livefactor.wire.keys import keys_of
from livefactor.wire.times import UNITS, as_times
from livefactor_server.files.delimited import Delimited, are_integers
from livefactor_server.files.features import divided
from livefactor_server.files.parquet import Parquet
from livefactor_server.files.sources import EventFileError, Source

__all__ = ["Batches", "EventFileError", "Events", "Rows", "open_file"]

IDS = ("user_ids", "item_ids")
CONTEXT = "context:"
"""A field that begins so has the texts of a column of context, whose name follows."""
_FLOAT_TEXT = re.compile(r"\d+\.0*")
_UNIT_REMEDY = "--time-unit {unit}"

Column = Any
"""Ids: uint64[n] of integers, or an Arrow array of n strings. Times: datetime64[us][n]. Context: an
Arrow array of n strings. Others: a NumPy array of n values of the contract's dtype.
"""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive events.

    Attributes:
        first: the number of the first one in the file, from 0.
        columns: n values for each field (user_ids, item_ids, values, weights, event_types, times),
            and for columns of context (`CONTEXT`).
    """

    first: int
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def slice(self, start: int, stop: int) -> Rows:
        """Views of the events start..stop."""
        return Rows(self.first + start, {name: column[start:stop] for name, column in self.columns.items()})

    def pushed(self, separator: str = "") -> dict[str, Any]:
        """The arguments of `Producer.push`. `separator` divides the texts of context."""
        columns = {field: column for field, column in self.columns.items() if not field.startswith(CONTEXT)}
        texts = {
            field.removeprefix(CONTEXT): column.to_pylist()
            for field, column in self.columns.items()
            if field.startswith(CONTEXT)
        }
        if not texts:
            return columns
        if separator:
            texts = {name: [divided(text, separator) for text in column] for name, column in texts.items()}
        return columns | {"context": bags_of_columns(texts)}

    def keys(self, field: str, secret: bytes = b"") -> np.ndarray:
        """The 64-bit keys of a field of ids, uint64[n]."""
        return as_keys(field, self.columns[field], lambda texts: keys_of(texts, secret))


def open_file(path: Path) -> Delimited | Parquet:
    """Opens a file or a stream. Its content says which format it has.

    path: "-" is standard input.

    Raises:
        EventFileError: the file cannot be read.
        OSError: the file cannot be opened.
    """
    source = Source(path)
    return Parquet(source) if source.is_parquet else Delimited(source)


class Events:
    """The events of a file or stream, in order. Iterate for `Rows`, once for a stream.

    Attributes:
        total: the number of events, 0 if it is unknown (csv).
        is_stream: the events can be read once.
    """

    def __init__(
        self,
        file: Delimited | Parquet,
        names: dict[str, str],
        string_ids: bool = False,
        time_unit: str = "s",
        on_kinds: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Finds the columns.

        Args:
            file: what `open_file` returned.
            names: the column name for each field to read.
            string_ids: read all ids as strings.
            time_unit: the unit of times that are integers, one of `UNITS`.
            on_kinds: called with a sentence about a column of ids of a csv file once it is decided.

        Raises:
            EventFileError: a column is missing. The iterator raises it for a wrong value and for a
                damaged file.
            ValueError: the time unit is unknown.
        """
        if time_unit not in UNITS:
            raise ValueError(f"time unit: expected {', '.join(UNITS)}, got {time_unit!r}")
        self._reader = file
        for name in names.values():
            if name not in self._reader.columns:
                have = ", ".join(self._reader.columns)
                raise EventFileError(f"there is no column {name!r}; the columns are {have}")
        self._names, self._string_ids, self._time_unit = names, string_ids, time_unit
        self._on_kinds = on_kinds
        self.total, self.is_stream = file.rows, file.is_stream
        self._integers: dict[str, bool] = {}

    def __iter__(self) -> Iterator[Rows]:
        is_text = isinstance(self._reader, Delimited)
        if is_text and not self.is_stream and not self._integers:
            self._decide(self._reader.blocks(self._id_columns()))
        first = 0
        for block in self._reader.blocks([*dict.fromkeys(self._names.values())]):
            if is_text and not self._integers:
                self._decide(iter([block]))
            arrays = {field: block.column(name) for field, name in self._names.items()}
            yield Rows(
                first, {field: self._converted(field, array, first) for field, array in arrays.items()}
            )
            first += block.num_rows

    def place(self, row: int) -> str:
        """Where row number `row` (from 0) stands in the file: "line 7" or "row 6"."""
        return self.places([row])[0]

    def places(self, rows: Sequence[int]) -> list[str]:
        """Where rows stand in the file, in one pass."""
        return self._reader.places(rows)

    def fault(self, row: int, field: str, reason: str) -> EventFileError:
        """The error for a wrong value of `field` in row number `row`, from 0."""
        return EventFileError(f"{self.place(row)}, column {self._names[field]}: {reason}")

    def _id_columns(self) -> list[str]:
        return [*dict.fromkeys(self._names[field] for field in IDS if field in self._names)]

    def _decide(self, blocks: Iterator[pa.RecordBatch]) -> None:
        """Decides for each column of ids whether it holds integers or strings."""
        fields = [field for field in IDS if field in self._names]
        open_fields = [] if self._string_ids else list(fields)
        found: dict[str, tuple[int, str]] = {}
        first = 0
        for block in blocks:
            for field in list(open_fields):
                texts = block.column(self._names[field])
                row = first_true(~are_integers(texts).to_numpy(zero_copy_only=False))
                if row is not None:
                    found[field] = (first + row, texts[row].as_py())
                    open_fields.remove(field)
            first += block.num_rows
            if not open_fields:
                break
        for field in fields:
            self._integers[field] = field in open_fields
            row_text = found.get(field)
            if row_text is not None and _FLOAT_TEXT.fullmatch(row_text[1]):
                raise self.fault(row_text[0], field, _float_reason(row_text[1]))
            what = "integers" if field in open_fields else "strings"
            why = f", because {self.place(row_text[0])} has {row_text[1]!r}" if row_text else ""
            self._on_kinds(f"{self._names[field]} holds {what}{why}")

    def _converted(self, field: str, array: pa.Array, first: int) -> Column:
        try:
            if field.startswith(CONTEXT):
                return pc.fill_null(array.cast(pa.string()), "")
            if isinstance(self._reader, Delimited):
                return self._from_text(field, array)
            return self._from_types(field, array)
        except ColumnError as error:
            if error.row is None:
                raise EventFileError(f"column {self._names[field]}: {error}") from None
            raise self.fault(first + error.row, field, error.reason) from None

    def _from_types(self, field: str, array: pa.Array) -> Column:
        if field not in IDS:
            return self._values(field, array)
        if self._string_ids and pa.types.is_integer(array.type):
            array = array.cast(pa.string())
        is_dictionary = pa.types.is_dictionary(array.type)
        kind = array.type.value_type if is_dictionary else array.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
            return _checked_texts(field, array.cast(pa.string()))
        return as_keys(field, array)

    def _from_text(self, field: str, texts: pa.StringArray) -> Column:
        if field in IDS:
            if not self._integers[field]:
                return _checked_texts(field, texts)
            row = first_true(~are_integers(texts).to_numpy(zero_copy_only=False))
            if row is not None:
                raise ColumnError.at(field, row, _late_text(texts[row].as_py()))
            return as_keys(field, texts.cast(pa.uint64()))
        texts = pc.utf8_trim_whitespace(texts)
        if field == "times":
            return self._values(field, _parsed_times(texts))
        kind = pa.int64() if field == "event_types" else pa.float64()
        try:
            return self._values(field, texts.cast(kind))
        except pa.ArrowInvalid:
            row = _first_unreadable(texts, kind)
            expected = "a whole number" if field == "event_types" else "a number"
            raise ColumnError.at(field, row, f"expected {expected}, got {texts[row].as_py()!r}") from None

    def _values(self, field: str, array: pa.Array) -> np.ndarray:
        n = len(array)
        if field == "times":
            times = as_times(field, array, n, self._time_unit, _UNIT_REMEDY)
            return times.view("datetime64[us]")
        if field == "event_types":
            return as_numbers(field, array, n)
        return as_floats(field, array, n)


class Batches:
    """Cuts events into batches."""

    def __init__(self, events: Iterable[Rows]) -> None:
        self._blocks = iter(events)
        self._left: Rows | None = None

    def first(self) -> Rows:
        """The first event, which stays to be taken. Raises EventFileError if there is none."""
        self._fill(1)
        if self._left is None:
            raise EventFileError("the file has no events")
        return self._left.slice(0, 1)

    def take(self, size: int) -> Rows | None:
        """The next `size` events, or those that are left. None if none are left."""
        self._fill(size)
        left = self._left
        if left is None:
            return None
        self._left = left.slice(size, len(left)) if len(left) > size else None
        return left.slice(0, min(size, len(left)))

    def _fill(self, size: int) -> None:
        while self._left is None or len(self._left) < size:
            block = next(self._blocks, None)
            if block is None:
                return
            if len(block):
                self._left = block if self._left is None else _joined(self._left, block)


def _joined(left: Rows, right: Rows) -> Rows:
    def join(one: Column, other: Column) -> Column:
        if isinstance(one, np.ndarray):
            return np.concatenate((one, other))
        return pa.concat_arrays([one, other])

    return Rows(left.first, {name: join(left.columns[name], right.columns[name]) for name in left.columns})


def _checked_texts(field: str, texts: pa.StringArray) -> pa.StringArray:
    """Refuses a missing or empty text."""
    empty = pc.fill_null(pc.equal(pc.binary_length(texts), 0), True)
    row = first_true(empty.to_numpy(zero_copy_only=False))
    if row is not None:
        raise ColumnError.at(field, row, "the id is missing")
    return texts


def _parsed_times(texts: pa.StringArray) -> pa.Array:
    """Integers, or timestamps of texts in the usual forms of ISO 8601.

    `as_times` reads other texts one by one, which is slow.
    """
    for kind in (pa.int64(), pa.timestamp("us", "UTC"), pa.timestamp("us")):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    return texts


def _first_unreadable(texts: pa.StringArray, kind: pa.DataType) -> int:
    for row in range(len(texts)):
        try:
            texts[row : row + 1].cast(kind)
        except pa.ArrowInvalid:
            return row
    raise AssertionError("every text can be read")


def _float_reason(text: str) -> str:
    return (
        f"expected an id, got {text!r}. It looks like a float that pandas made of an integer beside missing"
        " ones: store the column as Int64 and drop the rows without an id. --string-ids takes it as it stands"
    )


def _late_text(text: str) -> str:
    return (
        f"expected an integer as in the rows before it, got {text!r}. A stream is read once, so its first rows"
        " decide; --string-ids reads all ids as strings"
    )
