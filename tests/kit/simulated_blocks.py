"""How Numba's simulator runs a block, without polling: who waits at a barrier sleeps until the last
one is there.

The simulator's own main thread looks at every thread again and again until all wait, which takes
most of its time, and each block starts new threads. Here the threads stay. They run as freely as
there, in any order, so a missing barrier is seen.
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
    """A thread of the simulator: it knows its place, and its block as `_manager`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._go = threading.Lock()
        self._go.acquire()
        self.start()

    def begin(self, block: Block, block_point: tuple[int, ...], thread_point: tuple[int, ...]) -> None:
        """Run the block's kernel at this place."""
        self._manager = block
        place = cuda.simulator.kernelapi.Dim3
        self.blockIdx, self.threadIdx = place(*block_point), place(*thread_point)
        # Of the meetings of `warp`.
        self.turn = 0
        self.go()

    def go(self) -> None:
        """Let it run on."""
        self._go.release()

    def run(self) -> None:
        """One kernel after the other."""
        while True:
            self._go.acquire()
            try:
                self._manager.target()
            except BaseException as error:
                self._manager.failed(error)
            self._manager.leave(self)

    def syncthreads(self) -> None:
        """Wait for the block's other threads; those that have ended are not waited for."""
        if not self._manager.is_last(self):
            self._go.acquire()
        if self._manager.error is not None:
            raise RuntimeError("another thread of the block has failed")


class Block:
    """In the place of the simulator's `BlockManager`."""

    _pool: ClassVar[list[Lane]] = []

    def __init__(self, function: Callable[..., None], grid_dim: Any, block_dim: Any, debug: bool) -> None:
        self._function, self._shape = function, block_dim
        self._lock, self._over = threading.Lock(), threading.Lock()
        self._waiting: list[Lane] = []
        self.error: BaseException | None = None

    def run(self, grid_point: tuple[int, ...], *arguments: Any) -> None:
        """Until all threads have ended; raises the first error of any."""
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
        """A thread has raised: the others are to end at their next barrier."""
        with self._lock:
            self.error = self.error or error

    def is_last(self, lane: Lane) -> bool:
        """Whether all others wait already: then they run on."""
        with self._lock:
            if len(self._waiting) + 1 < self._alive:
                self._waiting.append(lane)
                return False
            self._release()
            return True

    def leave(self, lane: Lane) -> None:
        """A thread has ended."""
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


def install() -> None:
    """From now on, in this process."""
    sys.setswitchinterval(SWITCH_S)
    cuda.simulator.kernel.BlockManager = Block
