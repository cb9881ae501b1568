"""Writes lists of recommendations as csv or parquet: one row for each place of each user's list."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from livefactor.results.answers import Recommendations

PARQUET_SUFFIXES = (".parquet", ".pq")


class ListWriter:
    """Writes a file with the columns user_id, rank (from 1), item_id, score and revision.

    The ids of users have the type that they have in the first lists. The ids of items are text. The
    file appears when the `with` block ends without an error.
    """

    def __init__(self, file: Path) -> None:
        """`file` is parquet if its name ends so, otherwise csv."""
        self._file = file
        self._temporary = file.with_name(file.name + ".tmp")
        self._writer: Any = None
        self.rows = 0

    def write(self, lists: Recommendations) -> None:
        """Appends the lists of some users."""
        offsets = lists.offsets.astype(np.int64)
        counts: np.ndarray = offsets[1:] - offsets[:-1]
        starts = np.repeat(offsets[:-1], counts)
        rows = pa.table({
            "user_id": pa.array(np.repeat(lists.user_ids, counts)),
            "rank": pa.array(np.arange(len(lists.item_ids)) - starts + 1, pa.int32()),
            "item_id": pa.array([str(item) for item in lists.item_ids.tolist()], pa.string()),
            "score": pa.array(lists.scores),
            "revision": pa.array(np.repeat(lists.revisions, counts), pa.uint64()),
        })  # fmt: skip
        if self._writer is None:
            is_parquet = self._file.suffix.lower() in PARQUET_SUFFIXES
            new = parquet.ParquetWriter if is_parquet else arrow_csv.CSVWriter
            self._writer = new(self._temporary, rows.schema)
        self._writer.write_table(rows)
        self.rows += rows.num_rows

    def __enter__(self) -> ListWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.close()
        if error is None:
            self._temporary.replace(self._file)
        else:
            self._temporary.unlink()
