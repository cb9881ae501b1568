"""Rows of users and items: which sections a row has, and how rows come into being.

A table holds the rows of one side (`USERS` or `ITEMS`). A key gets the next row when it first appears in the log, and keeps
it. A row has a fixed number of elements in each of its side's sections (`row_sections`): the key, the factors, the bias, the
state of the optimizer and what the row remembers of its events. `row_sections` is the one declaration of these sections:
tables, pins, snapshots and root hashes follow from it, in its order. Rows of sections named factor* are padded with zeros
in memory to a multiple of 16 elements; outside the tables they have k elements.

A new row's factors are drawn from its key (`numbers.random.initial_factor`), its bias is 0, and the optimizer's state
follows from the factors (`optimizers.initial_state`).

Memory is reserved once for the spec's maximum of rows and backed by the system as rows are first written: growth copies
nothing and pauses nobody. Only the LOG stage allocates rows; only the APPLY stage changes rows; readers may look at any
row below the published count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.narrow import array_dtype
from livefactor_kernels.optimizers import optimizer_sections
from livefactor_kernels.spec.model import ITEMS, USERS, ModelSpec

__all__ = [
    "ITEMS",
    "NO_ROW",
    "USERS",
    "RowSection",
    "check_sections",
    "history_sections",
    "read_rows",
    "row_sections",
    "unpadded",
]

NO_ROW = 0xFFFFFFFF
"""Row number of a key that is unknown."""


class RowSection(NamedTuple):
    """An array of a table: its elements, and the shape of a row of it in memory."""

    dtype: np.dtype
    shape: tuple[int, ...]


def row_sections(spec: ModelSpec, side: int) -> dict[str, RowSection]:
    """Sections of one side's rows by name, in the order of the root hash."""
    floats, factors = np.dtype(np.float32), array_dtype(spec.factor_dtype)
    sections = {
        "keys": RowSection(np.dtype(np.uint64), ()),
        "factors": RowSection(factors, (spec.k_padded,)),
        "bias": RowSection(floats, ()),
    }
    sections |= {name: RowSection(floats, shape) for name, shape in optimizer_sections(spec).items()}
    return sections | history_sections(spec, side)


def history_sections(spec: ModelSpec, side: int) -> dict[str, RowSection]:
    """Those of `row_sections` that hold what a row remembers of its events (`history/__init__.py`)."""
    words, floats = np.dtype(np.uint32), np.dtype(np.float32)
    sections: dict[str, RowSection] = {}
    if not spec.history.users:
        return sections
    length = spec.history.users if side == USERS else spec.history.items
    if length:
        sections["seen_rows"] = RowSection(words, (length,))
        sections["seen_values"] = RowSection(floats, (length,))
        sections["seen_weights"] = RowSection(floats, (length,))
    if side == USERS:
        sections["seen_visits"] = RowSection(words, (length,))
        sections["visits"] = RowSection(words, ())
        sections["last_time"] = RowSection(np.dtype(np.int64), ())
    sections["seen_count"] = RowSection(words, ())
    if side == ITEMS and spec.counts.neighbors:
        sections["neighbor_rows"] = RowSection(words, (spec.counts.neighbors,))
        sections["neighbor_counts"] = RowSection(floats, (spec.counts.neighbors,))
    return sections


def check_sections(views: dict[str, np.ndarray], sections: dict[str, np.ndarray]) -> None:
    """ValueError if `sections` differ from a table's `views` in a name, a shape or a dtype."""
    if set(views) != set(sections):
        raise ValueError(f"load_sections: expected {sorted(views)}, got {sorted(sections)}")
    for name, view in views.items():
        if sections[name].shape != view.shape or sections[name].dtype != view.dtype:
            raise ValueError(f"load_sections: {name}: expected {view.dtype}{list(view.shape)}")


def unpadded(name: str, rows: np.ndarray, k: int) -> np.ndarray:
    """A view of rows of section `name` without the columns that only fill up their last vector."""
    return rows[:, :k] if name.startswith("factor") else rows


def read_rows(
    arrays: Mapping[str, np.ndarray], rows: np.ndarray, names: Sequence[str], k: int
) -> dict[str, np.ndarray]:
    """Copies of rows uint32[n] of the sections `names` of padded `arrays`, unpadded; zeros where a row is `NO_ROW`."""
    known = rows != NO_ROW
    out = {}
    for name in names:
        part = np.zeros((len(rows), *arrays[name].shape[1:]), arrays[name].dtype)
        part[known] = arrays[name][rows[known]]
        out[name] = unpadded(name, part, k)
    return out
