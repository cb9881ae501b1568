"""Limits of the machine: how fast the rows of the stream can be moved, without any arithmetic.

For each event, both rows (256 bytes each) are read and written back, exchanged, in arrival order
and with prefetch. This is the memory traffic of the update kernel. Figures are medians of CPU
seconds in one thread, in turns with a copy of 256 MiB, which fits in no cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numba import njit

from benchmarks.speed.streams import ITEMS, USERS, K, zipf_ids
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, load16, prefetch, store16
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.tables import ITEMS as ITEM_SIDE
from livefactor_kernels.tables import USERS as USER_SIDE
from livefactor_kernels.tables.cpu import Table

BLOCKS = K // LANES
ROW_BYTES = 4 * K
AHEAD = 12
"""Number of events between the prefetch of a row and its use."""

EVENT_BYTES = 20
"""Bytes of an event that are received, hashed and logged: two 8-byte keys and a 4-byte value."""

KERNEL_BYTES = 2 * 2 * ROW_BYTES + 2 * 2 * 4 + 2 * 4 + 4
"""Bytes that the kernel reads and writes: two rows and two biases (read and written), two row
numbers and a value (read).
"""

KEYS_BYTES = KERNEL_BYTES + 2 * 8 + 2 * 64 + 2 * 4
"""The same with key look-ups: two keys and two buckets of the key map (a cache line each) are read,
and two row numbers are written.
"""

COPY_BYTES = 256 << 20


@njit(nogil=True, error_model="numpy")
def _exchange(users: Any, items: Any, user_rows: Any, item_rows: Any) -> None:
    """Exchanges rows.

    `users` and `items` are addresses of float32 rows; the row numbers are uint64[n].
    """
    size = np.uint64(ROW_BYTES)
    last = np.uint64(user_rows.size - 1)
    for t in range(np.uint64(user_rows.size)):
        ahead = min(t + np.uint64(AHEAD), last)
        for c in range(np.uint64(BLOCKS)):
            prefetch(users + user_rows[ahead] * size + c * VECTOR_BYTES)
            prefetch(items + item_rows[ahead] * size + c * VECTOR_BYTES)
        x, y = users + user_rows[t] * size, items + item_rows[t] * size
        for c in range(np.uint64(BLOCKS)):
            offset = c * VECTOR_BYTES
            left, right = load16(x, offset), load16(y, offset)
            store16(x, right, offset)
            store16(y, left, offset)


def _seconds(action: Callable[[], object]) -> float:
    started = time.thread_time()
    action()
    return time.thread_time() - started


def measure(events: int = 1_000_000, rounds: int = 7) -> dict[str, float]:
    """Events per second, GB/s and bytes by name."""
    spec, generator = ModelSpec(k=K), np.random.default_rng(7)
    tables = Table(spec, USER_SIDE), Table(spec, ITEM_SIDE)
    for table, count in zip(tables, (USERS, ITEMS), strict=True):
        table.allocate(np.arange(count, dtype=np.uint64))
    addresses = [np.uint64(table.factors.ctypes.data) for table in tables]
    rows = zipf_ids(generator, events, USERS), zipf_ids(generator, events, ITEMS)
    source, target = np.ones(COPY_BYTES // 8), np.zeros(COPY_BYTES // 8)
    actions: dict[str, Callable[[], object]] = {
        "rows": lambda: _exchange(*addresses, *rows),
        "copy": lambda: np.copyto(target, source),
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            seconds = _seconds(action)
            if number:
                taken[name].append(seconds)
    rate = events / median(taken["rows"])
    return {
        "limit_rows_events_per_s": rate,
        "limit_rows_gb_per_s": rate * 4 * ROW_BYTES / 1e9,
        "limit_memory_copy_gb_per_s": 2 * COPY_BYTES / median(taken["copy"]) / 1e9,
        "kernel_event_bytes": KERNEL_BYTES,
        "kernel_with_keys_event_bytes": KEYS_BYTES,
        "log_event_bytes": EVENT_BYTES,
    }


if __name__ == "__main__":
    for label, value in measure().items():
        print(f"{label:44} {value:16,.1f}")
