"""The rows of users and items: the sections of a row, and the creation of rows.

A table has the rows of one side (`USERS` or `ITEMS`). A key gets the next row when it first appears
in the log, and keeps it. A row has a fixed number of elements in each section of its side: the key,
the factors, the bias, the state of the optimiser and the history. `row_sections` declares the
sections. Tables, pins, snapshots and root hashes use them in its order. In memory, sections named
factor* have padding zeros up to a multiple of 16 elements per row. Outside the tables they have k
elements.

The factors of a new row are drawn from its key (`numbers.random.initial_factor`). Its bias is 0.
The state of the optimiser follows from the factors (`optimizers.initial_state`).

A table reserves address space once, for the maximum number of rows in the spec. The system provides
a page at the first write to it. So growth copies no rows and causes no pause. Only the LOG stage
allocates rows, and only the APPLY stage changes them. Readers may read any row below the published
count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.narrow import array_dtype
from livefactor_kernels.optimizers import optimizer_sections
from livefactor_kernels.spec.model import ITEMS, USERS, ModelSpec, Rule

__all__ = [
    "ITEMS",
    "NO_ROW",
    "RINGS",
    "STARTS",
    "USERS",
    "RowSection",
    "check_sections",
    "content_sections",
    "end_to_end",
    "has_starts",
    "history_sections",
    "read_rows",
    "ring_length",
    "row_sections",
    "unpadded",
]

RINGS = ("seen_rows", "seen_values", "seen_weights", "seen_visits")
"""The sections of events (`history/__init__.py`).

A row of them has H places in memory, and outside the tables too. But with `history.paged` such a
section is one-dimensional: it has the events of all rows end to end, in the order of rows and
places, min(seen_count, H) of a row.
"""
STARTS = ("factors_start", "start_events")
"""The sections of a row that begins with the factors of another model (`start.py`).

Users with a bag or a vector have them, too (`solve/features/__init__.py`).
"""
NO_ROW = 0xFFFFFFFF
"""Row number of an unknown key."""


class RowSection(NamedTuple):
    """A section: the type of its elements, and the shape of a row in memory."""

    dtype: np.dtype
    shape: tuple[int, ...]


def row_sections(spec: ModelSpec, side: int) -> dict[str, RowSection]:
    """The sections of the rows of one side, by name, in the order of the root hash."""
    floats, factors = np.dtype(np.float32), array_dtype(spec.factor_dtype)
    sections = {
        "keys": RowSection(np.dtype(np.uint64), ()),
        "factors": RowSection(factors, (spec.k_padded,)),
        "bias": RowSection(floats, ()),
    }
    sections |= {name: RowSection(floats, shape) for name, shape in optimizer_sections(spec).items()}
    sections |= history_sections(spec, side) | content_sections(spec, side)
    if has_starts(spec, side):
        shapes = (spec.k_padded,), ()
        sections |= {name: RowSection(floats, shape) for name, shape in zip(STARTS, shapes, strict=True)}
    return sections


def has_starts(spec: ModelSpec, side: int) -> bool:
    """Whether the rows of a side have the sections `STARTS`."""
    is_told = side == USERS and (spec.features.prior_events > 0 or spec.embeddings.user_dimension > 0)
    return spec.rule == Rule.SOLVE and (spec.solve.start_events > 0 or is_told)


def content_sections(spec: ModelSpec, side: int) -> dict[str, RowSection]:
    """Those of `row_sections` that belong to embeddings (`solve/prior/__init__.py`) and to features
    (`solve/features/__init__.py`).
    """
    embeddings, sections = spec.embeddings, {}
    dimension = embeddings.dimension if side == ITEMS else embeddings.user_dimension
    if dimension:
        sections["embedding"] = RowSection(np.dtype(np.float16), (dimension,))
        sections["described"] = RowSection(np.dtype(np.uint8), ())
    if spec.features.size:
        sections["bag"] = RowSection(np.dtype(np.uint32), (spec.features.per_id,))
        sections["bag_weights"] = RowSection(np.dtype(np.float32), (spec.features.per_id,))
        sections["bagged"] = RowSection(np.dtype(np.uint8), ())
    return sections


def history_sections(spec: ModelSpec, side: int) -> dict[str, RowSection]:
    """Those of `row_sections` that belong to histories (`history/__init__.py`)."""
    words, floats = np.dtype(np.uint32), np.dtype(np.float32)
    sections: dict[str, RowSection] = {}
    if not spec.history.users:
        return sections
    length = ring_length(spec, side)
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
    if side == ITEMS and spec.mix.learning_rate:
        sections["popularity"] = RowSection(floats, (2,) if spec.mix.recent_half_life else ())
    return sections


def ring_length(spec: ModelSpec, side: int) -> int:
    """H, the number of places of a ring of one side."""
    return spec.history.users if side == USERS else spec.history.items


def end_to_end(spec: ModelSpec, sections: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sections of rows, in which rings have all places, in their form outside the tables."""
    if not spec.history.paged:
        return sections
    return {
        name: array[np.arange(array.shape[1]) < sections["seen_count"][:, None]] if name in RINGS else array
        for name, array in sections.items()
    }


def check_sections(views: dict[str, np.ndarray], sections: dict[str, np.ndarray]) -> None:
    """Checks that `sections` has the names, shapes and dtypes of a table's `views`.

    Raises:
        ValueError: they differ.
    """
    if set(views) != set(sections):
        raise ValueError(f"load_sections: expected {sorted(views)}, got {sorted(sections)}")
    for name, view in views.items():
        if sections[name].shape != view.shape or sections[name].dtype != view.dtype:
            raise ValueError(f"load_sections: {name}: expected {view.dtype}{list(view.shape)}")


def unpadded(name: str, rows: np.ndarray, k: int) -> np.ndarray:
    """A view of rows of section `name` without the padding columns."""
    return rows[:, :k] if name.startswith("factor") else rows


def read_rows(
    arrays: Mapping[str, np.ndarray], rows: np.ndarray, names: Sequence[str], k: int
) -> dict[str, np.ndarray]:
    """Copies of the sections `names` of rows uint32[n], without padding.

    `arrays` has the padded sections. Rows that are `NO_ROW` give zeros.
    """
    known = rows != NO_ROW
    out = {}
    for name in names:
        part = np.zeros((len(rows), *arrays[name].shape[1:]), arrays[name].dtype)
        part[known] = arrays[name][rows[known]]
        out[name] = unpadded(name, part, k)
    return out
