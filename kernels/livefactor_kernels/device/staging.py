"""A record's columns on their way to the device: two pinned buffers in turn, each with its twin on the device.

A buffer is written again only when the record before the last one is done: so at most two records are under
way, and a read never queues behind more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from livefactor_kernels.device.buffers import Buffer
from livefactor_kernels.device.machine import Device

_ALIGN = 8
_BYTES_MIN = 1 << 16
WORD_BYTES = 4
KEY_BYTES = 8


class Slot:
    """One buffer. words, floats, keys, longs: the device's side as kernels take it, uint32, float32, uint64 and int64 of the
    same memory."""

    def __init__(self) -> None:
        self.host = np.empty(0, np.uint8)
        self.memory: Buffer | None = None
        self.words: Any = None
        self.floats: Any = None
        self.keys: Any = None
        self.longs: Any = None
        self.done: Callable[[], None] = _at_once

    def reserve(self, device: Device, nbytes: int) -> None:
        """Hold at least `nbytes`."""
        if nbytes <= self.host.size:
            return
        size = max(_BYTES_MIN, 1 << (nbytes - 1).bit_length())
        keys = device.empty(size // KEY_BYTES, np.uint64)
        views = [device.view(keys, dtype) for dtype in (np.uint8, np.uint32, np.float32, np.int64)]
        self.host, self.memory = device.pinned(size), views[0]
        self.words, self.floats, self.longs = (view.argument for view in views[1:])
        self.keys = keys.argument


def _at_once() -> None:
    pass


def aligned(nbytes: int) -> int:
    """Bytes that a column of `nbytes` takes in a buffer."""
    return -(-nbytes // _ALIGN) * _ALIGN


class Staging:
    """The two buffers of a model."""

    def __init__(self, device: Device, nbytes: int = 0) -> None:
        """Buffers of at least `nbytes`; MemoryError if the device has not so much."""
        self._device = device
        self._slots = (Slot(), Slot())
        self._turn = 0
        for slot in self._slots:
            slot.reserve(device, nbytes)

    def wait_for_turn(self) -> None:
        """Block until the next buffer may be written."""
        self._slots[1 - self._turn].done()

    def hold(self, nbytes: int) -> None:
        """Have `nbytes` in the next buffer, when it may be written; MemoryError, with nothing lost, if the device has
        not so much."""
        self.wait_for_turn()
        self._slots[1 - self._turn].reserve(self._device, nbytes)

    def send(self, columns: dict[str, np.ndarray]) -> tuple[Slot, dict[str, int]]:
        """Start copying columns to the device: where they will be, and the offset of each in bytes, multiples of 8.

        Blocks while both buffers are in use (`wait_for_turn`). The caller sets `done` of the slot when it has put the kernels that
        read it on the stream.
        """
        self._turn = 1 - self._turn
        slot = self._slots[self._turn]
        slot.done()
        offsets, end = {}, 0
        for name, column in columns.items():
            offsets[name] = end
            end += aligned(column.nbytes)
        slot.reserve(self._device, end)
        for name, column in columns.items():
            at = offsets[name]
            slot.host[at : at + column.nbytes] = np.ascontiguousarray(column).view(np.uint8)
        if end:
            assert slot.memory is not None
            self._device.send(slot.host[:end], slot.memory)
        return slot, offsets
