"""What events are read from: a file or a stream, plain or compressed.

The content says what it is, and not the name. A file can be read several times. A stream (standard
input, a pipe, `<(...)`) is read once.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

STANDARD_INPUT = "-"
PARQUET_MAGIC = b"PAR1"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
"""The codec by the first bytes of a compressed file."""

_MAGIC_BYTES = 4


class EventFileError(ValueError):
    """The file cannot be read as events. The text names the row and the column if possible."""


@dataclass(slots=True)
class Source:
    """A file or a stream of events.

    Attributes:
        path: the file, or "-" for standard input.
        is_stream: it can be read only once.
    """

    path: Path
    is_stream: bool = field(init=False)
    _head: bytes = field(init=False, default=b"")
    _stream: IO[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Looks at the first bytes. Raises OSError if the file cannot be opened."""
        is_standard_input = str(self.path) == STANDARD_INPUT
        raw = sys.stdin.buffer if is_standard_input else self.path.open("rb")
        self.is_stream = is_standard_input or not stat.S_ISREG(os.fstat(raw.fileno()).st_mode)
        self._head = raw.read(_MAGIC_BYTES)
        if self.is_stream:
            self._stream = raw
        else:
            raw.close()

    @property
    def is_parquet(self) -> bool:
        """Whether the content is parquet. Otherwise it is text with separators."""
        return self._head == PARQUET_MAGIC

    def open(self) -> IO[bytes]:
        """The decompressed bytes from the start. A stream can be opened once.

        Raises OSError.
        """
        raw: Any
        if not self.is_stream:
            raw = self.path.open("rb")
        else:
            assert self._stream is not None, "a stream is read once"
            raw, self._stream = io.BufferedReader(_Joined(self._head, self._stream)), None
        codec = next((codec for magic, codec in COMPRESSED.items() if self._head.startswith(magic)), None)
        if codec is None:
            return raw  # type: ignore[no-any-return]
        return io.BufferedReader(pa.CompressedInputStream(raw, codec), 1 << 20)


class _Joined(io.RawIOBase):
    """The first bytes of a stream, which were read already, and then the rest."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads into `buffer` and returns the number of bytes, 0 at the end."""
        # The rest is buffered: `read1` returns what a slow writer has sent so far.
        data = self._head[: len(buffer)] or self._rest.read1(len(buffer))  # type: ignore[attr-defined]
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)
