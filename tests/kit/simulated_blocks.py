"""A faster way to run a block in Numba's simulator, without polling.

The simulator's own main thread polls every thread until all wait, which takes most of its time. It
also starts new threads for each block. Here a thread that waits at a barrier sleeps until the last
thread arrives, and the threads are used again. The threads still run in any order, so a test
notices a missing barrier.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from livefactor_kernels.device.warp import cuda

SWITCH_S = 1e-3
"""How long a thread runs before another may, in seconds; Python's own 5 ms would let most reach
their barrier undisturbed.
"""


class Lane(threading.Thread):
    """A thread of the simulator. It knows its position. `_manager` is its block."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._go = threading.Lock()
        self._go.acquire()
        self.start()

    def begin(self, block: Block, block_point: tuple[int, ...], thread_point: tuple[int, ...]) -> None:
        """Run the block's kernel at this position."""
        self._manager = block
        place = cuda.simulator.kernelapi.Dim3
        self.blockIdx, self.threadIdx = place(*block_point), place(*thread_point)
        # Counts the meetings of `warp`.
        self.turn = 0
        self.go()

    def go(self) -> None:
        """Let the thread run on."""
        self._go.release()

    def run(self) -> None:
        """Run one kernel after the other."""
        while True:
            self._go.acquire()
            try:
                self._manager.target()
            except BaseException as error:
                self._manager.failed(error)
            self._manager.leave(self)

    def syncthreads(self) -> None:
        """Wait for the block's other threads that have not ended."""
        if not self._manager.is_last(self):
            self._go.acquire()
        if self._manager.error is not None:
            raise RuntimeError("another thread of the block has failed")


class Block:
    """A block of threads. It replaces the simulator's `BlockManager`."""

    _pool: ClassVar[list[Lane]] = []

    def __init__(self, function: Callable[..., None], grid_dim: Any, block_dim: Any, debug: bool) -> None:
        self._function, self._shape = function, block_dim
        self._lock, self._over = threading.Lock(), threading.Lock()
        self._waiting: list[Lane] = []
        self.error: BaseException | None = None

    def run(self, grid_point: tuple[int, ...], *arguments: Any) -> None:
        """Run all threads until they have ended, and raise the first error that one of them met."""
        self.target = lambda: self._function(*arguments)
        points = list(np.ndindex(*self._shape))
        self._alive = len(points)
        while len(self._pool) < len(points):
            self._pool.append(Lane())
        self._over.acquire()
        for lane, point in zip(self._pool, points, strict=False):
            lane.begin(self, grid_point, point)
        self._over.acquire()
        if self.error is not None:
            raise self.error

    def failed(self, error: BaseException) -> None:
        """Keep the error of a thread. The other threads end at their next barrier."""
        with self._lock:
            self.error = self.error or error

    def is_last(self, lane: Lane) -> bool:
        """Return whether all other threads wait already. If so, let them run on."""
        with self._lock:
            if len(self._waiting) + 1 < self._alive:
                self._waiting.append(lane)
                return False
            self._release()
            return True

    def leave(self, lane: Lane) -> None:
        """Note that a thread has ended."""
        with self._lock:
            self._alive -= 1
            if not self._alive:
                self._over.release()
            elif len(self._waiting) == self._alive:
                self._release()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for lane in waiting:
            lane.go()


def shared_array(self: Any, shape: int, dtype: Any) -> np.ndarray:
    """Return the block's array of the calling line. It replaces `FakeCUDAShared.array`.

    The simulator's own method looks an array up and adds it in two steps. If a thread runs between
    them, two threads of a block get different arrays.
    """
    if shape == 0:
        # The launch has reserved this memory.
        return _dynamic_array(self, shape, dtype)
    caller = sys._getframe(1)
    with _shared_lock:
        place = caller.f_code.co_filename, caller.f_lineno
        if place not in self._allocations:
            self._allocations[place] = np.empty(shape, cuda.simulator.kernelapi.numpy_support.as_dtype(dtype))
        return self._allocations[place]


_dynamic_array = cuda.simulator.kernelapi.FakeCUDAShared.array
_shared_lock = threading.Lock()


def install() -> None:
    """Replace the simulator's blocks and shared arrays for the rest of this process."""
    sys.setswitchinterval(SWITCH_S)
    cuda.simulator.kernel.BlockManager = Block
    cuda.simulator.kernelapi.FakeCUDAShared.array = shared_array
