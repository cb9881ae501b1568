"""The machine that the GPU backend runs on: its array module, streams, buffers and launches, in one place.

`CudaDevice` is a GPU: CuPy's arrays, a stream for kernels and one for copies. `SimulatedDevice` is Numba's
simulator on NumPy arrays, where everything happens at once. Both have the same verbs; nothing else in the
backend knows which of them it runs on.
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
    """What the backend asks of the machine. One model has one of its own."""

    @property
    def name(self) -> str:
        """What computes."""

    @property
    def xp(self) -> Any:
        """The array module: NumPy or CuPy."""

    @property
    def launches(self) -> int:
        """Kernels that were put on the stream by `launch` and `launch_block`."""

    def working(self) -> AbstractContextManager[Any]:
        """Array operations inside are put on the stream of the kernels."""

    def learning(self) -> AbstractContextManager[Any]:
        """As `working`, but memory that array operations take by themselves comes out of a pool of its own: what one
        of them has given back is there for the next."""

    def launch(
        self, kernel: Any, threads: int, *arguments: Any, sides: int = 1, shared_bytes: int = 0
    ) -> None:
        """Put a kernel of at least `threads` threads on the stream; `sides`: blocks in the grid's second
        dimension; `shared_bytes`: shared memory that a block gets beside what the kernel asks for."""

    def launch_block(self, kernel: Any, threads: int, *arguments: Any) -> None:
        """Put a kernel of one block on the stream, of `threads` threads where blocks may be so large."""

    def launch_together(self, kernel: Any, *arguments: Any) -> None:
        """Put a kernel on the stream of as many blocks as the device can run at once: they may wait for each
        other."""

    def empty(self, count: int, dtype: Any) -> Buffer:
        """`count` elements, not initialised."""

    def wrapped(self, array: Any) -> Buffer:
        """An array of `xp` as a buffer."""

    def put(self, array: np.ndarray) -> Buffer:
        """A copy of a host's array, flat."""

    def copy(self, buffer: Buffer) -> Buffer:
        """A copy of a buffer, made on the stream of the kernels."""

    def view(self, buffer: Buffer, dtype: Any) -> Buffer:
        """The same memory as elements of another type."""

    def growing(self, count: int, dtype: Any) -> Growing:
        """Address space for `count` elements."""

    def free_bytes(self) -> int:
        """Memory that is left."""

    def pinned(self, nbytes: int) -> np.ndarray:
        """uint8[nbytes] of the host, from and to which the device copies by itself."""

    def send(self, source: np.ndarray, target: Buffer) -> None:
        """Copy pinned bytes to the start of a buffer of bytes, beside the kernels; later ones wait for it."""

    def fetch(self, arrays: list[Any]) -> Callable[[], list[np.ndarray]]:
        """Copy arrays to the host, beside later kernels; call the result to wait for them."""

    def mark(self) -> Callable[[], None]:
        """A point of the stream; call the result to wait until all work before it is done."""


def is_available() -> bool:
    """Whether the GPU backend can run here: a GPU answers CuPy and Numba, or Numba simulates one.

    Both load without a driver. Whether they are installed is for `backend.choose_backend` to find out.
    """
    if SIMULATED:
        return True
    import cupy

    return bool(cupy.cuda.is_available() and cuda.is_available())


def open_device() -> Device:
    """The GPU, or the simulator; RuntimeError, naming what was found, if there is neither."""
    if SIMULATED:
        return SimulatedDevice()
    if not is_available():
        raise RuntimeError(f"backend cuda: no GPU answers ({found()})")
    return CudaDevice()


def found() -> str:
    """Who sees a GPU and who does not, in words."""
    import cupy

    answers = {"CuPy": cupy.cuda.is_available(), "Numba": cuda.is_available()}
    said = ", ".join(f"{name} {'sees' if yes else 'does not see'} one" for name, yes in answers.items())
    return f"{said}; is the NVIDIA driver installed?"


class SimulatedDevice:
    """Numba's simulator: kernels are Python threads, one kernel at a time in the process."""

    name = "simulator"
    xp = np
    _one_at_a_time = threading.Lock()

    def __init__(self) -> None:
        self.launches = 0

    def working(self) -> AbstractContextManager[Any]:
        """As `Device.working`."""
        return nullcontext()

    def learning(self) -> AbstractContextManager[Any]:
        """As `Device.learning`."""
        return nullcontext()

    def launch(
        self, kernel: Any, threads: int, *arguments: Any, sides: int = 1, shared_bytes: int = 0
    ) -> None:
        """As `Device.launch`."""
        self.launches += 1
        with self._one_at_a_time:
            kernel[(-(-threads // BLOCK_THREADS), sides), BLOCK_THREADS, 0, shared_bytes](*arguments)

    def launch_block(self, kernel: Any, threads: int, *arguments: Any) -> None:
        """As `Device.launch_block`."""
        self.launch(kernel, 1, *arguments)

    def launch_together(self, kernel: Any, *arguments: Any) -> None:
        """As `Device.launch_together`: the simulator can run one block at once."""
        self.launch(kernel, 1, *arguments)

    def empty(self, count: int, dtype: Any) -> Buffer:
        """As `Device.empty`."""
        array = np.empty(count, dtype)
        return Buffer(array, array)

    def wrapped(self, array: Any) -> Buffer:
        """As `Device.wrapped`."""
        return Buffer(array, array)

    def put(self, array: np.ndarray) -> Buffer:
        """As `Device.put`."""
        copy = array.ravel().copy()
        return Buffer(copy, copy)

    def copy(self, buffer: Buffer) -> Buffer:
        """As `Device.copy`."""
        return self.put(buffer.array)

    def view(self, buffer: Buffer, dtype: Any) -> Buffer:
        """As `Device.view`."""
        array = buffer.array.view(dtype)
        return Buffer(array, array)

    def growing(self, count: int, dtype: Any) -> Growing:
        """As `Device.growing`."""
        return _SimulatedArray(count, dtype)

    def free_bytes(self) -> int:
        """As `Device.free_bytes`; more than any test asks for."""
        return 1 << 40

    def pinned(self, nbytes: int) -> np.ndarray:
        """As `Device.pinned`."""
        return np.empty(nbytes, np.uint8)

    def send(self, source: np.ndarray, target: Buffer) -> None:
        """As `Device.send`."""
        target.array[: source.size] = source

    def fetch(self, arrays: list[Any]) -> Callable[[], list[np.ndarray]]:
        """As `Device.fetch`."""
        copies = []
        for array in arrays:
            copies.append(reserve(array.shape, array.dtype))  # at a multiple of 64 bytes, as pinned memory is
            copies[-1][...] = array
        return lambda: copies

    def mark(self) -> Callable[[], None]:
        """As `Device.mark`."""
        return lambda: None


class _SimulatedArray:
    """Pages come when they are first written; what was granted is counted all the same."""

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
        """As `Device.working`."""
        return self._stream  # type: ignore[no-any-return]

    @contextmanager
    def learning(self) -> Iterator[None]:
        """As `Device.learning`."""
        with self._stream, self.xp.cuda.using_allocator(self._pool.malloc):
            yield

    def launch(
        self, kernel: Any, threads: int, *arguments: Any, sides: int = 1, shared_bytes: int = 0
    ) -> None:
        """As `Device.launch`."""
        self.launches += 1
        grid = -(-threads // BLOCK_THREADS), sides
        kernel[grid, BLOCK_THREADS, self._numba_stream, shared_bytes](*arguments)

    def launch_block(self, kernel: Any, threads: int, *arguments: Any) -> None:
        """As `Device.launch_block`."""
        self.launches += 1
        kernel[1, threads, self._numba_stream](*arguments)

    def launch_together(self, kernel: Any, *arguments: Any) -> None:
        """As `Device.launch_together`."""
        self.launches += 1
        blocks = self._together.get(kernel)
        if blocks is None:
            compiled = kernel.compile(tuple(kernel.typeof_pyval(argument) for argument in arguments))
            blocks = self._together[kernel] = int(compiled.max_cooperative_grid_blocks(BLOCK_THREADS))
        kernel[blocks, BLOCK_THREADS, self._numba_stream](*arguments)

    def empty(self, count: int, dtype: Any) -> Buffer:
        """As `Device.empty`; cupy's OutOfMemoryError if there is none."""
        with self._stream:
            memory = self.wrapped(self.xp.empty(max(1, count), dtype))  # nothing has no address
            buffer = Buffer(memory.array[:count], memory.argument)
        # The pool gives memory back in the order of the kernels' stream: a copy must not come before them.
        self._copies.wait_event(self._stream.record())
        return buffer

    def wrapped(self, array: Any) -> Buffer:
        """As `Device.wrapped`."""
        return Buffer(array, cuda.as_cuda_array(array, sync=False))

    def put(self, array: np.ndarray) -> Buffer:
        """As `Device.put`."""
        buffer = self.empty(array.size, array.dtype)
        with self._stream:
            buffer.array[:] = self.xp.asarray(array.ravel())
        return buffer

    def copy(self, buffer: Buffer) -> Buffer:
        """As `Device.copy`."""
        return self.put(buffer.array)

    def view(self, buffer: Buffer, dtype: Any) -> Buffer:
        """As `Device.view`."""
        return self.wrapped(buffer.array.view(dtype))

    def growing(self, count: int, dtype: Any) -> Growing:
        """As `Device.growing`."""
        from livefactor_kernels.device.memory import MappedArray

        return MappedArray(self.xp, self.wrapped, self._stream, count, dtype)

    def free_bytes(self) -> int:
        """As `Device.free_bytes`, with what CuPy's pool holds and does not use."""
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return int(free) + int(self.xp.get_default_memory_pool().free_bytes())

    def pinned(self, nbytes: int) -> np.ndarray:
        """As `Device.pinned`."""
        memory: np.ndarray = self._pinned(nbytes, np.uint8)
        return memory

    def send(self, source: np.ndarray, target: Buffer) -> None:
        """As `Device.send`."""
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
        """As `Device.fetch`."""
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
            sources.clear()  # until now their memory may not be used for anything else
            return copies

        return wait

    def mark(self) -> Callable[[], None]:
        """As `Device.mark`."""
        event = self._stream.record()
        return event.synchronize  # type: ignore[no-any-return]
