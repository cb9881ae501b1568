"""Reads text with separators (csv) as columns of strings, and finds the line of a row.

Arrow reads the text in blocks. It skips empty lines, so a row is found in the file by its line only
in a second pass, which runs after a fault.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from livefactor_server.files.sources import EventFileError, Source

SEPARATORS = ",;\t|"
MISSING = ["", "NULL", "null", "NaN", "nan", "None", "NA", "N/A", r"\N"]
"""Fields without quotes that stand for a missing value."""

BLOCK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELD_BYTES_MAX = 1 << 24


class Delimited:
    """A csv file or stream.

    Attributes:
        columns: the names in the header. Empty if there is none.
        separator: the one of `SEPARATORS` that gives the header the most columns.
        is_stream: the rows can be read once.
    """

    def __init__(self, source: Source) -> None:
        """Reads the header.

        Raises:
            EventFileError: the header is not UTF-8, or the file is damaged.
            OSError: the file cannot be opened.
        """
        self._source = source
        self.is_stream = source.is_stream
        self._rest: IO[bytes] | None = source.open()
        self.columns, self.separator = _header(self._rest)

    @property
    def rows(self) -> int:
        """The number of rows, which a csv file does not say."""
        return 0

    def blocks(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the columns with these names as strings, in blocks. `MISSING` becomes null.

        A stream can be read once.

        Raises:
            EventFileError: a line has another number of fields, or the file is damaged.
        """
        for name in names:
            if self.columns.count(name) > 1:
                raise EventFileError(f"the header has the column {name!r} twice")
        text = self._rest
        if text is None:
            text = self._source.open()
            _header(text)
        self._rest = None
        read, wrong = 0, []

        def on_wrong(row: Any) -> str:
            if not row.text.strip():
                return "skip"
            wrong.append(row)
            return "error"

        try:
            with text:
                for block in _open(text, self.columns, self.separator, names, on_wrong):
                    read += block.num_rows
                    yield block
        except (pa.ArrowInvalid, OSError) as error:
            if wrong:
                # Arrow parses ahead, so the wrong line may lie behind the blocks that were read.
                where = self._wrong_line() or f"row {wrong[0].number or read + 1}"
                got = f"expected {wrong[0].expected_columns} fields, got {wrong[0].actual_columns}"
                raise EventFileError(f"{where}: {got}") from None
            if "UTF8" in str(error) and (line := self._line_not_utf8()):
                raise EventFileError(f"line {line}: it is not UTF-8") from None
            raise EventFileError(
                f"after {self.places([read - 1])[0] if read else 'the header'}: {error}"
            ) from None

    def places(self, rows: Sequence[int]) -> list[str]:
        """Where rows (numbered from 0) stand: "line 7". In a stream "row 5"."""
        found = {row: f"row {row + 1}" for row in rows}
        last = max(rows, default=-1)
        if rows and not self.is_stream:
            for number, (line, _) in enumerate(self._lines()):
                if number in found:
                    found[number] = f"line {line}"
                if number >= last:
                    break
        return [found[row] for row in rows]

    def _wrong_line(self) -> str:
        """The first line with another number of fields than the header. "" if it is not found."""
        if self.is_stream:
            return ""
        expected = len(self.columns)
        return next((f"line {line}" for line, fields in self._lines() if fields != expected), "")

    def _line_not_utf8(self) -> int:
        """The first line that is not UTF-8. 0 if it is not found."""
        if self.is_stream:
            return 0
        with self._source.open() as text:
            for number, line in enumerate(text, 1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    return number
        return 0

    def _lines(self) -> Iterator[tuple[int, int]]:
        """Yields (first line, number of fields) of each row, in a second pass over the file."""
        with io.TextIOWrapper(self._source.open(), "utf-8-sig", errors="replace", newline="") as text:
            before = csv.field_size_limit(_FIELD_BYTES_MAX)
            try:
                reader = csv.reader(text, delimiter=self.separator)
                last, is_header = 0, True
                for fields in reader:
                    line, last = last + 1, reader.line_num
                    if not any(field.strip() for field in fields) and len(fields) <= 1:
                        continue
                    if not is_header:
                        yield line, len(fields)
                    is_header = False
            except (csv.Error, OSError):
                return
            finally:
                csv.field_size_limit(before)


def _open(
    text: IO[bytes], columns: list[str], separator: str, names: list[str], on_wrong: Any
) -> Iterator[pa.RecordBatch]:
    try:
        yield from arrow_csv.open_csv(
            text,
            arrow_csv.ReadOptions(column_names=columns, block_size=BLOCK_BYTES, use_threads=False),
            arrow_csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=on_wrong
            ),
            arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=names,
                null_values=MISSING,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            raise


def _header(text: IO[bytes]) -> tuple[list[str], str]:
    """Reads the first line that is not empty. Returns the names in it, and the separator."""
    try:
        line = text.readline().removeprefix(_BYTE_ORDER_MARK)
        while line and not line.strip():
            line = text.readline()
        # A quoted name may contain line ends.
        while line.count(b'"') % 2 and (more := text.readline()):
            line += more
        header = line.decode()
    except (UnicodeDecodeError, pa.ArrowInvalid, OSError) as error:
        raise EventFileError(f"the header cannot be read: {error}") from None
    found = {separator: next(csv.reader([header], delimiter=separator), []) for separator in SEPARATORS}
    best = max(SEPARATORS, key=lambda separator: len(found[separator]))
    return [name.strip("\r\n") for name in found[best]] if header.strip() else [], best


def are_integers(texts: pa.StringArray) -> pa.BooleanArray:
    """For each text, whether it is written as an integer id: digits, no leading zero, below 2**64.

    Missing texts count as integers.
    """
    digits = pc.and_(
        pc.ascii_is_decimal(texts),
        pc.or_(pc.equal(pc.binary_length(texts), 1), pc.invert(pc.starts_with(texts, "0"))),
    )
    # 20 digits are compared as text, because their number may not fit.
    length = pc.binary_length(texts)
    fits = pc.or_(
        pc.less(length, 20), pc.and_(pc.equal(length, 20), pc.less_equal(texts, str((1 << 64) - 1)))
    )
    return pc.fill_null(pc.and_(digits, fits), True)
