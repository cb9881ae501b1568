"""Copies a record's columns to the device, with two pinned buffers in turn.

A buffer is reused only after the record before the last one is finished. At most two records are
therefore in progress, and a read never waits for more.
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
    """One buffer.

    `words`, `floats`, `keys` and `longs` are its device memory as uint32, float32, uint64 and
    int64.
    """

    def __init__(self) -> None:
        self.host = np.empty(0, np.uint8)
        self.memory: Buffer | None = None
        self.words: Any = None
        self.floats: Any = None
        self.keys: Any = None
        self.longs: Any = None
        self.done: Callable[[], None] = _at_once

    def reserve(self, device: Device, nbytes: int) -> None:
        """Provides at least `nbytes`."""
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
    """The bytes that a column of `nbytes` occupies in a buffer."""
    return -(-nbytes // _ALIGN) * _ALIGN


class Staging:
    """The two buffers of a model."""

    def __init__(self, device: Device, nbytes: int = 0) -> None:
        """Allocates buffers of at least `nbytes`.

        Raises MemoryError if the device has too little memory.
        """
        self._device = device
        self._slots = (Slot(), Slot())
        self._turn = 0
        for slot in self._slots:
            slot.reserve(device, nbytes)

    def wait_for_turn(self) -> None:
        """Waits until the next buffer may be written."""
        self._slots[1 - self._turn].done()

    def hold(self, nbytes: int) -> None:
        """Provides `nbytes` in the next buffer, which must be free.

        Raises MemoryError, with nothing lost, if the device has too little memory.
        """
        self.wait_for_turn()
        self._slots[1 - self._turn].reserve(self._device, nbytes)

    def send(self, columns: dict[str, np.ndarray]) -> tuple[Slot, dict[str, int]]:
        """Starts to copy columns to the device.

        It waits while both buffers are in use (`wait_for_turn`). The caller sets `done` of the slot
        after it has put the kernels that read it on the stream.

        Returns:
            The slot, and the offset of each column in bytes, a multiple of 8.
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
