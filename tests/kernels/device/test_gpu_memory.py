"""Arrays that grow in place on a GPU: their calls to a driver that checks each call."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("cuda.bindings")

from cuda.bindings import driver as real

from livefactor_kernels.device import memory as device_memory
from livefactor_kernels.device.memory import DriverError, MappedArray

PIECE = 2 << 20


class Driver:
    """Addresses, memory and mappings of a GPU with `total` bytes. It asserts that each call is
    correct.
    """

    CUresult = real.CUresult
    CUmemAllocationProp = real.CUmemAllocationProp
    CUmemAllocationType = real.CUmemAllocationType
    CUmemLocationType = real.CUmemLocationType
    CUmemAccessDesc = real.CUmemAccessDesc
    CUmemAccess_flags = real.CUmemAccess_flags
    CUmemAllocationGranularity_flags = real.CUmemAllocationGranularity_flags

    def __init__(self, total: int) -> None:
        self.total, self.taken, self.next = total, 0, 1 << 40
        self.ranges: dict[int, int] = {}
        self.handles: dict[int, int] = {}
        self.mapped: dict[int, int] = {}
        self.readable: set[int] = set()

    def cuMemGetAllocationGranularity(self, properties, option):
        assert properties.location.id == 3
        assert properties.type == real.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        return real.CUresult.CUDA_SUCCESS, PIECE

    def cuMemAddressReserve(self, size, alignment, address, flags):
        assert size > 0 and size % PIECE == 0
        self.ranges[self.next] = size
        self.next += size
        return real.CUresult.CUDA_SUCCESS, self.next - size

    def cuMemCreate(self, size, properties, flags):
        assert size > 0 and size % PIECE == 0
        if self.taken + size > self.total:
            return real.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        self.taken += size
        self.handles[len(self.handles) + 1] = size
        return real.CUresult.CUDA_SUCCESS, len(self.handles)

    def cuMemMap(self, address, size, offset, handle, flags):
        assert self.handles[handle] == size and offset == 0
        assert any(
            base <= address and address + size <= base + length for base, length in self.ranges.items()
        )
        assert all(address + size <= at or at + length <= address for at, length in self.mapped.items())
        self.mapped[address] = size
        return (real.CUresult.CUDA_SUCCESS,)

    def cuMemRelease(self, handle):
        assert handle in self.handles
        return (real.CUresult.CUDA_SUCCESS,)

    def cuMemSetAccess(self, address, size, descriptions, count):
        assert self.mapped[address] == size and len(descriptions) == count == 1
        assert descriptions[0].location.id == 3
        self.readable.add(address)
        return (real.CUresult.CUDA_SUCCESS,)

    def cuMemUnmap(self, address, size):
        assert self.mapped[address] == size
        self.taken -= self.mapped.pop(address)
        return (real.CUresult.CUDA_SUCCESS,)

    def cuMemAddressFree(self, address, size):
        assert self.ranges.pop(address) == size
        assert not any(address <= at < address + size for at in self.mapped)
        return (real.CUresult.CUDA_SUCCESS,)


class Stream:
    """An event that counts the waits."""

    waits = 0

    def synchronize(self) -> None:
        self.waits += 1


XP = SimpleNamespace(
    dtype=np.dtype,
    ndarray=lambda shape, dtype, pointer: SimpleNamespace(shape=shape, dtype=dtype, pointer=pointer),
    cuda=SimpleNamespace(
        Device=lambda: SimpleNamespace(id=3),
        UnownedMemory=lambda address, size, owner, device: (address, size, device),
        MemoryPointer=lambda memory, offset: (*memory, offset),
    ),
)


@pytest.fixture
def driver(monkeypatch) -> Driver:
    monkeypatch.setattr(device_memory, "driver", Driver(64 * PIECE))
    return device_memory.driver


def mapped(count: int, stream: Stream | None = None) -> MappedArray:
    return MappedArray(XP, lambda array: array, stream or Stream(), count, np.float32)


def test_it_grows_in_place_by_whole_pieces(driver) -> None:
    array = mapped(100 * PIECE // 4)
    base = array.buffer.pointer[0]
    assert array.buffer.pointer == (base, 100 * PIECE, 3, 0) and array.buffer.shape == (100 * PIECE // 4,)
    # The driver then knows the address.
    assert array.mapped == driver.taken == PIECE
    assert array.missing(PIECE) == 0 and array.missing(PIECE + 1) == PIECE
    assert array.grow(10 * PIECE - 5)
    assert array.mapped == 10 * PIECE and array.missing(10 * PIECE) == 0
    assert array.grow(10 * PIECE + 1)
    # Memory is mapped ahead, because each growth takes one to four calls.
    assert array.mapped == 13 * PIECE
    assert sorted(driver.mapped) == sorted(driver.readable)
    assert min(driver.mapped) == base and sum(driver.mapped.values()) == array.mapped
    assert array.buffer.pointer[0] == base


def test_it_takes_what_is_there_and_refuses_more(driver) -> None:
    array = mapped(200 * PIECE // 4)
    assert array.grow(60 * PIECE)
    # There is no memory for a quarter more, but there is for this.
    assert array.grow(62 * PIECE)
    assert not array.grow(65 * PIECE)
    assert array.mapped == driver.taken == 62 * PIECE
    assert array.grow(64 * PIECE)


def test_the_last_piece_is_not_past_the_end(driver) -> None:
    array = mapped(3 * PIECE // 4 + 1)
    assert array.grow(3 * PIECE + 4)
    assert array.mapped == 4 * PIECE and array.missing(3 * PIECE + 4) == 0


def test_memory_goes_back_when_no_kernel_uses_it(driver) -> None:
    stream = Stream()
    array = mapped(8 * PIECE, stream)
    array.grow(5 * PIECE)
    del array
    gc.collect()
    assert (driver.taken, driver.mapped, driver.ranges, stream.waits) == (0, {}, {}, 1)


def test_a_gpu_without_memory_for_a_table_says_so(driver) -> None:
    driver.total = 0
    with pytest.raises(MemoryError, match="no memory"):
        mapped(10)


def test_another_refusal_of_the_driver_is_named(driver, monkeypatch) -> None:
    array = mapped(8 * PIECE)

    def cuMemMap(*_arguments):
        return (real.CUresult.CUDA_ERROR_INVALID_VALUE,)

    monkeypatch.setattr(driver, "cuMemMap", cuMemMap)
    with pytest.raises(DriverError, match="cuMemMap: CUDA_ERROR_INVALID_VALUE"):
        array.grow(4 * PIECE)
    monkeypatch.setattr(driver, "cuMemCreate", lambda *_: (real.CUresult.CUDA_ERROR_UNKNOWN, None))
    with pytest.raises(DriverError, match="cuMemCreate: CUDA_ERROR_UNKNOWN"):
        array.grow(4 * PIECE)
