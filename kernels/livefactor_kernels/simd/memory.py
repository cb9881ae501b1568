"""Memory of large arrays: its pages are taken from the system when they are first written."""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np

# Linux's number; the mmap module names it only in newer Pythons.
_MAP_NORESERVE = 0x4000


def reserve(shape: tuple[int, ...], dtype: str | type | np.dtype) -> np.ndarray:
    """A zeroed array of `shape` whose pages take memory when first written; page-aligned; huge pages are
    asked for."""
    count = math.prod(shape)
    size = max(1, count * np.dtype(dtype).itemsize)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages: slower, not wrong
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, count).reshape(shape)
