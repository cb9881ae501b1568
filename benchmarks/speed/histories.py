"""The memory that histories take beside what they remember, on the sets of benchmarks.quality.auto.

`python -m benchmarks.speed.histories FOLDER` writes the table of docs/operations.md. A remembered
event of a user is 16 bytes in a snapshot, and one of an item is 12. In the columns `with values`
no value is 1, as with ratings.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.pages import ROOT, write_between
from benchmarks.quality.auto.sets import SETS
from benchmarks.quality.data import Events
from livefactor_kernels.history.cpu import Recorder
from livefactor_kernels.spec.model import History, ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.update import Update

PAGE = ROOT / "docs" / "operations.md"
PLACES = 4096
EVENT_BYTES = (16, 12)
ROW_BYTES = 8
"""Bytes of a row that lead to its events (`tables.pages.Pages.ends`)."""


def memory(events: Events, with_values: bool) -> tuple[int, int]:
    """(bytes of the histories, bytes of what they remember) after all events."""
    spec = ModelSpec(k=1, history=History(PLACES, PLACES))
    tables = Table(spec, USERS), Table(spec, ITEMS)
    rows = [
        table.allocate(keys.astype(np.uint64))
        for table, keys in zip(tables, (events.users, events.items), strict=True)
    ]
    values = np.full(len(events), 2.0, np.float32) if with_values else None
    counts = tables[USERS].allocated, tables[ITEMS].allocated
    Recorder(spec, *tables).record(Update(1, *rows, values, None, *counts), 0, len(events))
    held = sum(table.page_bytes + ROW_BYTES * table.allocated for table in tables)
    seen = [table.history["seen_count"][: table.allocated] for table in tables]
    kept = sum(
        int(np.minimum(each, PLACES).sum()) * size for each, size in zip(seen, EVENT_BYTES, strict=True)
    )
    return held, kept


def main(folder: Path) -> None:
    """Measures the sets whose files are in the folder, and writes the table."""
    lines = ["| data | events | MB | ÷ what is remembered | with values |", "|---|---|---|---|---|"]
    for name, read in SETS.items():
        try:
            events = read(folder).learned
        except FileNotFoundError:
            continue
        held, kept = memory(events, False)
        rated = memory(events, True)[0]
        lines.append(
            f"| {name} | {len(events):,} | {held / 1e6:.2f} | {held / kept:.2f} | {rated / kept:.2f} |"
        )
    print("\n".join(lines))
    write_between(PAGE, "benchmarks.speed.histories", "\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
