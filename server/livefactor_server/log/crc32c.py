"""CRC32C of short byte strings: google-crc32c where it is installed, otherwise tables in NumPy.

The CRC is affine over GF(2). For strings of one length, it is the XOR of one table entry per
(position, byte) and a constant. The fallback is therefore one gather and one XOR reduction. Its
tables are built for the first string of each length. It serves the headers of the log, which all
have the same length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78
# The tables take 1 KiB per byte of the string, which is too much for long strings.
_LENGTHS_MAX = 4096


def byte_table() -> np.ndarray:
    """The CRC register after one byte, starting from 0: uint32[256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@cache
def _tables(length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the tables for strings of `length` bytes.

    Returns:
        The flat table, uint32[length * 256]; the offset of each position in it, int64[length]; and
        the constant.

    Raises:
        ValueError: `length` is over 4,096.
    """
    if length > _LENGTHS_MAX:
        raise ValueError(f"the CRC32C fallback takes at most {_LENGTHS_MAX} bytes, got {length}")
    step = byte_table()
    table = np.empty((length, 256), np.uint32)
    row = step
    for position in range(length - 1, -1, -1):
        table[position] = row
        row = step[row & 0xFF] ^ (row >> 8)
    register = 0xFFFFFFFF
    for _ in range(length):
        register = int(step[register & 0xFF]) ^ (register >> 8)
    return table.ravel(), np.arange(length, dtype=np.int64) * 256, register ^ 0xFFFFFFFF


def crc32c_fallback(data: bytes) -> int:
    """CRC32C of `data`. Raises ValueError if `data` has more than 4,096 bytes."""
    table, offsets, constant = _tables(len(data))
    picked = table[offsets + np.frombuffer(data, np.uint8)]
    return int(np.bitwise_xor.reduce(picked)) ^ constant


try:
    from google_crc32c import value
except ImportError:
    value = crc32c_fallback

crc32c: Callable[[bytes], int] = value
"""CRC32C of a byte string."""
