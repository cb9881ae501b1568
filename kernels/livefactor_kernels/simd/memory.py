"""Memory of large arrays: its pages are taken from the system when they are first written."""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np

from livefactor_kernels.simd.arena import Arena
from livefactor_kernels.simd.sparing import is_sparing

# The number of Linux. Older Pythons have no name for it in the module mmap.
_MAP_NORESERVE = 0x4000

_arena: Arena | None = None


def share_from(arena: Arena | None) -> None:
    """Has `reserve_shared` take memory from an arena from now on. None ends this."""
    global _arena
    _arena = arena


def is_sharing() -> bool:
    """Whether `reserve_shared` takes memory from an arena."""
    return _arena is not None


def reserve(shape: tuple[int, ...], dtype: str | type | np.dtype, huge: bool = True) -> np.ndarray:
    """A zeroed, page-aligned array of `shape`. A page takes memory when it is first written.

    It asks for huge pages, or for pages of 4 KiB if not `huge` or if the process is sparing.
    """
    count = math.prod(shape)
    size = max(1, count * np.dtype(dtype).itemsize)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Without transparent huge pages the array is slower, but usable.
        is_huge = huge and not is_sparing()
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE if is_huge else mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def reserve_shared(
    shape: tuple[int, ...], dtype: str | type | np.dtype, is_kept: bool = False, huge: bool = True
) -> np.ndarray:
    """As `reserve`, in the arena if there is one and it has addresses left. Other processes can
    read it there (`simd/arena.py`). With `is_kept` its memory there is never freed.
    """
    shared = _arena.reserve(shape, dtype, is_kept, huge) if _arena is not None else None
    return reserve(shape, dtype, huge) if shared is None else shared
