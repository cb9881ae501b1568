"""The rows of a few users and items in one call.

Placing a small record takes two look-ups. The call for each side costs more than the look-ups, and
who releases the GIL for a call waits for it afterwards. So one call looks up both sides and keeps
the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.entries import entry_of
from livefactor_kernels.tables.keymap import NO_ROW, KeyMap, find_kernel
from livefactor_kernels.tables.keys import RowKeys

KEYS_MAX = 8_192
"""Maximum number of keys of a call, which takes up to a tenth of a millisecond."""


def known_rows(
    users: object, items: object, user_keys: np.ndarray, item_keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows uint32[n] and uint32[m] of few keys uint64[n] and uint64[m] that all have rows.

    They may be rows that are not published yet. None if a key has no row, if there are more than
    `KEYS_MAX` keys, or if the tables are no `RowKeys`. Then the caller allocates rows.
    """
    if not (isinstance(users, RowKeys) and isinstance(items, RowKeys)):
        return None
    if user_keys.size + item_keys.size > KEYS_MAX or not (_is_plain(user_keys) and _is_plain(item_keys)):
        return None
    rows = np.empty(user_keys.size, np.uint32), np.empty(item_keys.size, np.uint32)
    # The references keep all blocks alive until the kernel returns.
    blocks = users.keymap.blocks, items.keymap.blocks
    known = _entry()(blocks[0].address, blocks[1].address, user_keys, item_keys, *rows)
    return rows if known else None


def _is_plain(keys: np.ndarray) -> bool:
    return keys.dtype == np.uint64 and keys.flags.c_contiguous and keys.flags.aligned


@cache
def _entry() -> Callable[..., Any]:
    keys, rows, blocks = np.zeros(1, np.uint64), np.empty(1, np.uint32), KeyMap(0).blocks
    return entry_of(_pairs_kernel, blocks.address, blocks.address, keys, keys, rows, rows)


@compiled(nogil=False)
def _pairs_kernel(
    user_directory: Any, item_directory: Any, user_keys: Any, item_keys: Any, user_rows: Any, item_rows: Any
) -> Any:
    """Writes the rows of both columns of keys. Returns whether every key has a row.

    The directories are addresses. The keys are contiguous and aligned.
    """
    find_kernel(user_directory, np.uint64(user_keys.ctypes.data), user_rows)
    find_kernel(item_directory, np.uint64(item_keys.ctypes.data), item_rows)
    known = True
    for rows in (user_rows, item_rows):
        for i in range(rows.size):
            known &= rows[i] != np.uint32(NO_ROW)
    return known


def compile_kernels() -> None:
    """Compiles the kernel, or loads it from Numba's cache."""
    _entry()
