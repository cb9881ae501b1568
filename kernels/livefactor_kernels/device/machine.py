"""The machine of the GPU backend: its array module, streams, buffers and launches.

`CudaDevice` is a GPU: it has CuPy's arrays, a stream for kernels and one for copies.
`SimulatedDevice` is Numba's simulator on NumPy arrays, where all work is synchronous. Both have the
same methods, and the rest of the backend does not distinguish them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np

from livefactor_kernels.device.buffers import Buffer, Growing
from livefactor_kernels.device.warp import BLOCK_THREADS, SIMULATED, cuda
from livefactor_kernels.simd.memory import reserve


class Device(Protocol):
    """The operations that the backend needs. Each model has its own device object."""

    @property
    def name(self) -> str:
        """The name of the processor."""

    @property
    def xp(self) -> Any:
        """The array module, NumPy or CuPy."""

    @property
    def launches(self) -> int:
        """The number of kernels that `launch` and `launch_block` put on the stream."""

    def working(self) -> AbstractContextManager[Any]:
        """In this context, array operations run on the stream of the kernels."""

    def learning(self) -> AbstractContextManager[Any]:
        """Like `working`, but array operations take their temporary memory from a separate pool.

        Memory that one operation returns to the pool is available to the next one.
        """

    def launch(
        self, kernel: Any, threads: int, *arguments: Any, sides: int = 1, shared_bytes: int = 0
    ) -> None:
        """Puts a kernel with at least `threads` threads on the stream.

        `sides` is the number of blocks in the second dimension of the grid. `shared_bytes` is
        shared memory per block in addition to what the kernel declares.
        """

    def launch_block(self, kernel: Any, threads: int, *arguments: Any) -> None:
        """Puts a kernel with one block of `threads` threads on the stream, or fewer if need be."""

    def launch_together(self, kernel: Any, *arguments: Any) -> None:
        """Puts a kernel with as many blocks as can run at once on the stream.

        Its blocks may therefore wait for each other.
        """

    def empty(self, count: int, dtype: Any) -> Buffer:
        """Allocates `count` uninitialised elements."""

    def wrapped(self, array: Any) -> Buffer:
        """The buffer of an array of `xp`."""

    def put(self, array: np.ndarray) -> Buffer:
        """Copies an array of the host to the device, flat."""

    def copy(self, buffer: Buffer) -> Buffer:
        """A copy of a buffer, made on the stream of the kernels."""

    def view(self, buffer: Buffer, dtype: Any) -> Buffer:
        """The same memory with another element type."""

    def growing(self, count: int, dtype: Any) -> Growing:
        """Reserves an address range for `count` elements."""

    def free_bytes(self) -> int:
        """The free memory of the device in bytes."""

    def pinned(self, nbytes: int) -> np.ndarray:
        """Allocates uint8[nbytes] of pinned host memory, which the device copies by itself."""

    def send(self, source: np.ndarray, target: Buffer) -> None:
        """Copies pinned bytes to the start of a buffer of bytes, in parallel with kernels.

        Later kernels wait for it.
        """

    def fetch(self, arrays: list[Any]) -> Callable[[], list[np.ndarray]]:
        """Copies arrays to the host, in parallel with later kernels.

        The result is a function that waits for them.
        """

    def mark(self) -> Callable[[], None]:
        """Marks a point of the stream.

        The result is a function that waits for all work before it.
        """


def is_available() -> bool:
    """Whether the GPU backend can run: CuPy and Numba see a GPU, or Numba simulates one.

    Both libraries load without a driver. `backend.choose_backend` checks whether they are
    installed.
    """
    if SIMULATED:
        return True
    import cupy

    return bool(cupy.cuda.is_available() and cuda.is_available())


def open_device() -> Device:
    """Returns the GPU or the simulator.

    Raises RuntimeError with the findings if there is neither.
    """
    if SIMULATED:
        return SimulatedDevice()
    if not is_available():
        raise RuntimeError(f"backend cuda: no GPU answers ({found()})")
    return CudaDevice()


def found() -> str:
    """Which libraries see a GPU, as text."""
    import cupy

    answers = {"CuPy": cupy.cuda.is_available(), "Numba": cuda.is_available()}
    said = ", ".join(f"{name} {'sees' if yes else 'does not see'} one" for name, yes in answers.items())
    return f"{said}; is the NVIDIA driver installed?"


class SimulatedDevice:
    """Numba's simulator. Kernels are Python threads, and a process runs one kernel at a time."""

    name = "simulator"
    xp = np
    _one_at_a_time = threading.Lock()

    def __init__(self) -> None:
        self.launches = 0

    def working(self) -> AbstractContextManager[Any]:
        """See `Device.working`."""
        return nullcontext()

    def learning(self) -> AbstractContextManager[Any]:
        """See `Device.learning`."""
        return nullcontext()

    def launch(
        self, kernel: Any, threads: int, *arguments: Any, sides: int = 1, shared_bytes: int = 0
    ) -> None:
        """See `Device.launch`."""
        self.launches += 1
        with self._one_at_a_time:
            kernel[(-(-threads // BLOCK_THREADS), sides), BLOCK_THREADS, 0, shared_bytes](*arguments)

    def launch_block(self, kernel: Any, threads: int, *arguments: Any) -> None:
        """See `Device.launch_block`."""
        self.launch(kernel, 1, *arguments)

    def launch_together(self, kernel: Any, *arguments: Any) -> None:
        """See `Device.launch_together`. The simulator can run one block at once."""
        self.launch(kernel, 1, *arguments)

    def empty(self, count: int, dtype: Any) -> Buffer:
        """See `Device.empty`."""
        array = np.empty(count, dtype)
        return Buffer(array, array)

    def wrapped(self, array: Any) -> Buffer:
        """See `Device.wrapped`."""
        return Buffer(array, array)

    def put(self, array: np.ndarray) -> Buffer:
        """See `Device.put`."""
        copy = array.ravel().copy()
        return Buffer(copy, copy)

    def copy(self, buffer: Buffer) -> Buffer:
        """As `Device.copy`."""
        return self.put(buffer.array)

    def view(self, buffer: Buffer, dtype: Any) -> Buffer:
        """See `Device.view`."""
        array = buffer.array.view(dtype)
        return Buffer(array, array)

    def growing(self, count: int, dtype: Any) -> Growing:
        """See `Device.growing`."""
        return _SimulatedArray(count, dtype)

    def free_bytes(self) -> int:
        """See `Device.free_bytes`. It is more than any test needs."""
        return 1 << 40

    def pinned(self, nbytes: int) -> np.ndarray:
        """See `Device.pinned`."""
        return np.empty(nbytes, np.uint8)

    def send(self, source: np.ndarray, target: Buffer) -> None:
        """See `Device.send`."""
        target.array[: source.size] = source

    def fetch(self, arrays: list[Any]) -> Callable[[], list[np.ndarray]]:
        """See `Device.fetch`."""
        copies = []
        for array in arrays:
            # Like pinned memory, the copies start at multiples of 64 bytes.
            copies.append(reserve(array.shape, array.dtype))
            copies[-1][...] = array
        return lambda: copies

    def mark(self) -> Callable[[], None]:
        """See `Device.mark`."""
        return lambda: None


class _SimulatedArray:
    """An array whose pages are added by the operating system at the first write.

    Granted bytes are counted.
    """

    def __init__(self, count: int, dtype: Any) -> None:
        array = reserve((count,), dtype)
        self.buffer = Buffer(array, array)
        self.mapped = 0

    def missing(self, nbytes: int) -> int:
        return max(0, nbytes - self.mapped)

    def grow(self, nbytes: int) -> bool:
        self.mapped = max(self.mapped, nbytes)
        return True


class CudaDevice:
    """The current GPU of the process."""

    def __init__(self) -> None:
        import cupy
        import cupyx

        self.xp = cupy
        self._pinned = cupyx.empty_pinned
        self._pool = cupy.cuda.MemoryPool()
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        self.name = properties["name"].decode()
        self.launches = 0
        self._together: dict[Any, int] = {}
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._copies = cupy.cuda.Stream(non_blocking=True)
        self._numba_stream = cuda.external_stream(self._stream.ptr)

    def working(self) -> AbstractContextManager[Any]:
        """See `Device.working`."""
        return self._stream  # type: ignore[no-any-return]

    @contextmanager
    def learning(self) -> Iterator[None]:
        """See `Device.learning`."""
        with self._stream, self.xp.cuda.using_allocator(self._pool.malloc):
            yield

    def launch(
        self, kernel: Any, threads: int, *arguments: Any, sides: int = 1, shared_bytes: int = 0
    ) -> None:
        """See `Device.launch`."""
        self.launches += 1
        grid = -(-threads // BLOCK_THREADS), sides
        kernel[grid, BLOCK_THREADS, self._numba_stream, shared_bytes](*arguments)

    def launch_block(self, kernel: Any, threads: int, *arguments: Any) -> None:
        """See `Device.launch_block`."""
        self.launches += 1
        kernel[1, threads, self._numba_stream](*arguments)

    def launch_together(self, kernel: Any, *arguments: Any) -> None:
        """See `Device.launch_together`."""
        self.launches += 1
        blocks = self._together.get(kernel)
        if blocks is None:
            compiled = kernel.compile(tuple(kernel.typeof_pyval(argument) for argument in arguments))
            blocks = self._together[kernel] = int(compiled.max_cooperative_grid_blocks(BLOCK_THREADS))
        kernel[blocks, BLOCK_THREADS, self._numba_stream](*arguments)

    def empty(self, count: int, dtype: Any) -> Buffer:
        """See `Device.empty`. Raises cupy's OutOfMemoryError."""
        with self._stream:
            # An empty array has no address, so one element is allocated.
            memory = self.wrapped(self.xp.empty(max(1, count), dtype))
            buffer = Buffer(memory.array[:count], memory.argument)
        # The pool reuses memory in the order of the kernels' stream, so a copy must wait for that
        # stream.
        self._copies.wait_event(self._stream.record())
        return buffer

    def wrapped(self, array: Any) -> Buffer:
        """See `Device.wrapped`."""
        return Buffer(array, cuda.as_cuda_array(array, sync=False))

    def put(self, array: np.ndarray) -> Buffer:
        """See `Device.put`."""
        buffer = self.empty(array.size, array.dtype)
        with self._stream:
            buffer.array[:] = self.xp.asarray(array.ravel())
        return buffer

    def copy(self, buffer: Buffer) -> Buffer:
        """As `Device.copy`."""
        return self.put(buffer.array)

    def view(self, buffer: Buffer, dtype: Any) -> Buffer:
        """See `Device.view`."""
        return self.wrapped(buffer.array.view(dtype))

    def growing(self, count: int, dtype: Any) -> Growing:
        """See `Device.growing`."""
        from livefactor_kernels.device.memory import MappedArray

        return MappedArray(self.xp, self.wrapped, self._stream, count, dtype)

    def free_bytes(self) -> int:
        """See `Device.free_bytes`. It includes the unused memory in CuPy's pool."""
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return int(free) + int(self.xp.get_default_memory_pool().free_bytes())

    def pinned(self, nbytes: int) -> np.ndarray:
        """See `Device.pinned`."""
        memory: np.ndarray = self._pinned(nbytes, np.uint8)
        return memory

    def send(self, source: np.ndarray, target: Buffer) -> None:
        """See `Device.send`."""
        runtime = self.xp.cuda.runtime
        runtime.memcpyAsync(
            target.array.data.ptr,
            source.ctypes.data,
            source.nbytes,
            runtime.memcpyHostToDevice,
            self._copies.ptr,
        )
        self._stream.wait_event(self._copies.record())

    def fetch(self, arrays: list[Any]) -> Callable[[], list[np.ndarray]]:
        """See `Device.fetch`."""
        with self._stream:
            sources = [self.xp.ascontiguousarray(array) for array in arrays]
        self._copies.wait_event(self._stream.record())
        copies = [np.empty(source.shape, source.dtype) for source in sources]
        for number, source in enumerate(sources):
            if source.size:
                copies[number] = self._pinned(source.shape, source.dtype)
                source.get(stream=self._copies, out=copies[number], blocking=False)
        done = self._copies.record()

        def wait() -> list[np.ndarray]:
            done.synchronize()
            # Before this point the memory of the sources must not be reused.
            sources.clear()
            return copies

        return wait

    def mark(self) -> Callable[[], None]:
        """See `Device.mark`."""
        event = self._stream.record()
        return event.synchronize  # type: ignore[no-any-return]
