"""Memory that other processes read at the same addresses.

One process makes an arena and takes arrays from it. Others attach to it and can only read. The
arena is a file in memory that every process maps at `ADDRESS`, so an address means the same in all
of them, also an address that stands in the memory itself.

Addresses are never handed out twice. What is freed reads as zeros from then on. So a reader that
comes too late reads zeros, and never another array.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import weakref
from functools import cache
from threading import Lock

import numpy as np

ADDRESS = 1 << 44
"""Linux places nothing here by itself: programs lie above, and what it maps lies far above."""

BYTES = 1 << 46
"""Size of the address space. It takes memory only where something is written."""

_PAGE = mmap.PAGESIZE
_MAP_FIXED_NOREPLACE, _MAP_NORESERVE = 0x100000, 0x4000
_MADV_REMOVE, _MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 9, 14, 15
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Block:
    """The memory of an array, as NumPy takes it."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


class Arena:
    """The arena of this process, which makes it. Thread-safe.

    Attributes:
        file: descriptor of the file in memory, for `attach` in another process.
    """

    def __init__(self) -> None:
        """Makes the arena.

        Raises:
            OSError: the system refuses the memory at this address. A process has one arena.
        """
        self.file = os.memfd_create("livefactor")
        try:
            os.ftruncate(self.file, BYTES)
            _map(self.file, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:
            os.close(self.file)
            raise
        self._lock, self._next = Lock(), ADDRESS

    def reserve(
        self, shape: tuple[int, ...], dtype: str | type | np.dtype, is_kept: bool = False, huge: bool = True
    ) -> np.ndarray | None:
        """A zeroed, page-aligned array, or None if the arena has no addresses left.

        Its memory is freed with the array, unless `is_kept`. It asks for huge pages, if `huge`.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        whole = max(_PAGE, -(-size // _PAGE) * _PAGE)
        with self._lock:
            address = self._next
            if address + whole > ADDRESS + BYTES:
                return None
            self._next += whole
        _libc.madvise(address, whole, _MADV_HUGEPAGE if huge else _MADV_NOHUGEPAGE)
        block = _Block(address, size)
        if not is_kept:
            weakref.finalize(block, _free, address, whole).atexit = False
        return np.asarray(block).view(dtype).reshape(shape)


@cache
def arena_of_process() -> Arena:
    """The arena of this process, which the first call makes. Raises OSError as `Arena`."""
    return Arena()


def attach(file: int) -> None:
    """Maps the arena of another process. A write to it ends this process.

    Raises:
        OSError: the system refuses the memory at this address.
    """
    _map(file, mmap.PROT_READ)


def view(address: int, shape: tuple[int, ...], dtype: str | type | np.dtype) -> np.ndarray:
    """The array at an address of an attached arena.

    NumPy takes it for writeable, because kernels are compiled for such arrays.
    """
    block = _Block(address, math.prod(shape) * np.dtype(dtype).itemsize)
    return np.asarray(block).view(dtype).reshape(shape)


def is_shared(array: np.ndarray) -> bool:
    """Whether an array lies in the arena."""
    address: int = array.__array_interface__["data"][0]
    return ADDRESS <= address < ADDRESS + BYTES


def _map(file: int, protection: int) -> None:
    flags = mmap.MAP_SHARED | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE
    found = _libc.mmap(ADDRESS, BYTES, protection, flags, file, 0)
    if found == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"shared memory: {os.strerror(error)}")
    if found != ADDRESS:
        # An old kernel takes the address for a wish.
        _libc.munmap(found, BYTES)
        raise OSError("shared memory: its addresses are in use")


def _free(address: int, size: int) -> None:
    _libc.madvise(address, size, _MADV_REMOVE)
