"""GPU arrays that grow in place.

An address range is reserved for the maximum size, and memory is mapped into it in pieces. Kernels
see one contiguous array that never moves. Growth copies nothing, needs no second array, and waits
for no kernel.
"""

from __future__ import annotations

import weakref
from typing import Any

from cuda.bindings import driver

from livefactor_kernels.device.buffers import Buffer

PIECE_BYTES_MAX = 256 << 20
"""Maximum number of bytes that are mapped beyond the requested size."""


class DriverError(RuntimeError):
    """The CUDA driver refused a call. The text names the call and the error."""


def _call(function: Any, *arguments: Any) -> Any:
    """Calls the driver and returns its results. Raises DriverError if it reports an error."""
    error, *values = function(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise DriverError(f"{function.__name__}: {error.name}")
    return values[0] if values else None


class _Range:
    """An address range of the GPU with its mapped memory.

    Both are released with the last array that refers to them.
    """

    __slots__ = ("__weakref__", "address", "pieces", "size")

    def __init__(self, stream: Any, size: int) -> None:
        self.size = size
        self.address = int(_call(driver.cuMemAddressReserve, size, 0, 0, 0))
        self.pieces: list[tuple[int, int]] = []
        at_end = weakref.finalize(self, _give_back, stream, self.address, size, self.pieces)
        # At the end of the process everything is released, and the driver may be gone.
        at_end.atexit = False


class MappedArray:
    """`count` elements on the current GPU.

    The first `mapped` bytes have memory (`machine.Growing`).
    """

    def __init__(self, xp: Any, as_buffer: Any, stream: Any, count: int, dtype: Any) -> None:
        """Reserves the addresses and maps the first piece.

        `as_buffer` makes a `Buffer` of an array of `xp` (CuPy). Raises MemoryError if the GPU has
        too little memory.
        """
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
        """The minimum number of bytes that `grow(nbytes)` would add."""
        return max(0, min(self._rounded(nbytes), self._range.size) - self.mapped)

    def grow(self, nbytes: int) -> bool:
        """Provides memory for the first `nbytes`, and for some more if there is enough.

        Returns False, with nothing changed, if the GPU has too little memory.
        """
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
            # An existing mapping keeps the memory.
            _call(driver.cuMemRelease, handle)
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
    """Unmaps all pieces and releases the addresses after the last kernel that uses them."""
    stream.synchronize()
    for at, nbytes in pieces:
        _call(driver.cuMemUnmap, at, nbytes)
    _call(driver.cuMemAddressFree, address, size)
