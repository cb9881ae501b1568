"""Arrays of a GPU that grow in place: a range of addresses is held for all they may ever hold, and memory is
mapped into it piece by piece. Kernels see one contiguous array that never moves; growth copies nothing, needs
no second array at its peak, and waits for no kernel.
"""

from __future__ import annotations

import weakref
from typing import Any

from cuda.bindings import driver

from livefactor_kernels.device.buffers import Buffer

PIECE_BYTES_MAX = 256 << 20
"""The most that is mapped beyond what is asked for."""


class DriverError(RuntimeError):
    """The CUDA driver refused a call; the text names the call and the error."""


def _call(function: Any, *arguments: Any) -> Any:
    """Call the driver: what it returns beside the error, which is raised if it is one."""
    error, *values = function(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise DriverError(f"{function.__name__}: {error.name}")
    return values[0] if values else None


class _Range:
    """Addresses of the GPU and what is mapped there, given back when no array refers to them any more."""

    __slots__ = ("__weakref__", "address", "pieces", "size")

    def __init__(self, stream: Any, size: int) -> None:
        self.size = size
        self.address = int(_call(driver.cuMemAddressReserve, size, 0, 0, 0))
        self.pieces: list[tuple[int, int]] = []
        at_end = weakref.finalize(self, _give_back, stream, self.address, size, self.pieces)
        at_end.atexit = False  # the process's end gives all back, and the driver may be gone by then


class MappedArray:
    """`count` elements on the current GPU, of which the first `mapped` bytes have memory (`device.Growing`)."""

    def __init__(self, xp: Any, as_buffer: Any, stream: Any, count: int, dtype: Any) -> None:
        """Hold the addresses and map the first piece. as_buffer: makes a `Buffer` of an array of `xp` (CuPy)."""
        self._device = int(xp.cuda.Device().id)
        self._properties = _properties(self._device)
        self._piece = int(
            _call(
                driver.cuMemGetAllocationGranularity,
                self._properties,
                driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED,
            )
        )
        nbytes = count * xp.dtype(dtype).itemsize
        self._range = _Range(stream, self._rounded(max(1, nbytes)))
        self.mapped = 0
        if not self.grow(1):
            raise MemoryError("the GPU has no memory for an empty table")
        memory = xp.cuda.UnownedMemory(self._range.address, self._range.size, self._range, self._device)
        array = xp.ndarray((count,), dtype, xp.cuda.MemoryPointer(memory, 0))
        self.buffer: Buffer = as_buffer(array)

    def _rounded(self, nbytes: int) -> int:
        return -(-nbytes // self._piece) * self._piece

    def missing(self, nbytes: int) -> int:
        """Bytes that `grow(nbytes)` would take, at least."""
        return max(0, min(self._rounded(nbytes), self._range.size) - self.mapped)

    def grow(self, nbytes: int) -> bool:
        """Have memory for the first `nbytes` (at most the array's), and some beyond it if there is enough; False,
        with nothing changed, if the GPU has not so much."""
        needed = self.missing(nbytes)
        if not needed:
            return True
        ahead = self._rounded(max(needed, min(self.mapped // 4, PIECE_BYTES_MAX)))
        return self._map(min(ahead, self._range.size - self.mapped)) or self._map(needed)

    def _map(self, nbytes: int) -> bool:
        error, handle = driver.cuMemCreate(nbytes, self._properties, 0)
        if error == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            return False
        if error != driver.CUresult.CUDA_SUCCESS:
            raise DriverError(f"cuMemCreate: {error.name}")
        address = self._range.address + self.mapped
        try:
            _call(driver.cuMemMap, address, nbytes, 0, handle, 0)
        finally:
            _call(driver.cuMemRelease, handle)  # the mapping, if there is one, keeps the memory
        self._range.pieces.append((address, nbytes))
        access = driver.CUmemAccessDesc()
        access.location = self._properties.location
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        _call(driver.cuMemSetAccess, address, nbytes, [access], 1)
        self.mapped += nbytes
        return True


def _properties(device: int) -> Any:
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    return properties


def _give_back(stream: Any, address: int, size: int, pieces: list[tuple[int, int]]) -> None:
    """Unmap all pieces and give the addresses back, when no kernel uses them any more."""
    stream.synchronize()
    for at, nbytes in pieces:
        _call(driver.cuMemUnmap, at, nbytes)
    _call(driver.cuMemAddressFree, address, size)
