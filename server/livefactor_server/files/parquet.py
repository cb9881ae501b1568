"""Reads columns of a parquet file in blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from livefactor_server.files.sources import EventFileError, Source

BLOCK_ROWS = 1 << 16


class Parquet:
    """A parquet file. Its columns have types.

    Attributes:
        columns: their names.
        rows: the number of rows.
    """

    is_stream = False
    """A copy of a stream is read as often as a file."""

    def __init__(self, source: Source) -> None:
        """Reads the metadata.

        Raises:
            EventFileError: the file is damaged.
            OSError: the file cannot be opened.
        """
        try:
            self._file = parquet.ParquetFile(_seekable(source))
        except pa.ArrowException as error:
            raise EventFileError(f"{error}") from None
        self.columns: list[str] = list(self._file.schema_arrow.names)
        self.rows: int = self._file.metadata.num_rows

    def blocks(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the columns with these names, in blocks.

        Raises:
            EventFileError: the file is damaged.
        """
        try:
            yield from self._file.iter_batches(BLOCK_ROWS, columns=names)
        except (pa.ArrowException, OSError) as error:
            raise EventFileError(f"{error}") from None

    def places(self, rows: Sequence[int]) -> list[str]:
        """Where rows (numbered from 0) stand: "row 8"."""
        return [f"row {row + 1}" for row in rows]


def _seekable(source: Source) -> Any:
    """The file. A stream is copied to a temporary file, because parquet is read from its end."""
    if not source.is_stream:
        return source.path
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    with source.open() as stream:
        while data := stream.read(1 << 20):
            copy.write(data)
    copy.seek(0)
    return copy
