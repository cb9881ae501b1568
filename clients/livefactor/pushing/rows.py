"""The rows of a push, in the dtypes of the contract."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from livefactor.wire.arrays import as_floats, as_numbers, require_rows
from livefactor.wire.ids import HashTexts, Ids, as_keys
from livefactor.wire.times import as_times


class RowColumns(NamedTuple):
    """The columns of n interactions in the contract's dtypes. An empty column is None."""

    user_ids: npt.NDArray[np.uint64]
    item_ids: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32] | None
    weights: npt.NDArray[np.float32] | None
    event_types: npt.NDArray[np.uint32] | None
    times_us: npt.NDArray[np.int64] | None

    @property
    def present(self) -> tuple[bool, ...]:
        """For each column, whether it holds rows."""
        return tuple(column is not None for column in self)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all columns."""
        return sum(column.itemsize for column in self if column is not None)

    def slice(self, start: int, stop: int) -> RowColumns:
        """Views of the rows start..stop."""
        return RowColumns(*(None if column is None else column[start:stop] for column in self))  # type: ignore[arg-type]


def row_columns(
    user_ids: Ids,
    item_ids: Ids,
    values: Any,
    weights: Any,
    event_types: Any,
    times: Any,
    hash_users: HashTexts,
    hash_items: HashTexts,
) -> RowColumns:
    """Convert a caller's columns to the contract's dtypes.

    ids.py, arrays.py and times.py list the types that they accept. hash_users, hash_items:
    functions that turn n string ids into uint64[n] keys. Raises ColumnError for another type or for
    columns of unequal length.
    """
    users = as_keys("user_ids", user_ids, hash_users)
    n = len(users)
    items = as_keys("item_ids", item_ids, hash_items)
    require_rows("item_ids", items, n)
    return RowColumns(
        users,
        items,
        None if values is None else as_floats("values", values, n),
        None if weights is None else as_floats("weights", weights, n),
        None if event_types is None else as_numbers("event_types", event_types, n),
        None if times is None else as_times("times", times, n),
    )
