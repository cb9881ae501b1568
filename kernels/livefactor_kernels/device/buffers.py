"""Memory of the device, as array operations and as kernels take it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Buffer(NamedTuple):
    """Memory of the device. array: of the device's array module. argument: the same, as kernels take it."""

    array: Any
    argument: Any


class Growing(Protocol):
    """An array whose address space is held and whose memory is added as it grows: nothing is ever copied.

    mapped: bytes that have memory."""

    buffer: Buffer
    mapped: int

    def grow(self, nbytes: int) -> bool:
        """Have memory for the first `nbytes`; False if the device has not so much."""

    def missing(self, nbytes: int) -> int:
        """Bytes that `grow(nbytes)` would take."""
