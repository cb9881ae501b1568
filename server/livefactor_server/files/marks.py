"""How much of a file was pushed: a mark that the server keeps with the file's producer.

A file is known by its content. Its producer is named after its first event. Before certain batches
the pusher leaves a mark with the server: the sequence of the batch, the row at which it begins, and
the digest of all rows before it. A later push of the file reads the mark, compares the digest with
that of its own rows, and has the server compare the batches that came after the mark. So a file
that has grown goes on where it ended, a file that was changed is found out, and no state is kept
beside the file.
"""

from __future__ import annotations

import json
import struct
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from livefactor_server.files.events import IDS, Rows

MARK_EVERY = 32
"""Batches between two marks. The server can compare the last 64 batches of a producer."""

_VERSION = b"push1"
_MARK = struct.Struct("<5sQQII32s")


class Mark(NamedTuple):
    """What is known about a file in front of the batch `sequence`.

    Attributes:
        sequence: of the batch.
        row: the first row of the batch, from 0.
        rows: how many rows the batch has.
        batch: how many rows each batch after it has, until the next mark.
        digest: of all rows before `row`, 32 bytes.
    """

    sequence: int
    row: int
    rows: int
    batch: int
    digest: bytes

    def encode(self) -> bytes:
        """The note that a producer keeps."""
        return _MARK.pack(_VERSION, *self)

    @classmethod
    def decode(cls, note: bytes) -> Mark:
        """Reads a note. Raises ValueError if it is no mark of this version."""
        if len(note) != _MARK.size or not note.startswith(_VERSION):
            raise ValueError("the producer's note was not left by a push of a file")
        return cls(*_MARK.unpack(note)[1:])


class Digest:
    """The digest of rows. It does not depend on how they are cut into batches.

    secret: the key of string ids. It keys the digest, too.
    """

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret
        self._columns: dict[str, list[Any]] = {}

    def add(self, rows: Rows) -> None:
        """Adds the next rows."""
        for field, column in rows.columns.items():
            parts = _parts(column)
            if field not in self._columns:
                self._columns[field] = [blake2b(digest_size=32, key=self._secret) for _ in parts]
            for digest, part in zip(self._columns[field], parts, strict=True):
                digest.update(part)

    def value(self) -> bytes:
        """The digest of all rows so far, 32 bytes."""
        whole = blake2b(digest_size=32, key=self._secret)
        for field, digests in sorted(self._columns.items()):
            whole.update(b"%s %d " % (field.encode(), len(digests)))
            for digest in digests:
                whole.update(digest.digest())
        return whole.digest()


def _parts(column: Any) -> list[bytes | memoryview]:
    """The content of a column: its numbers, or the lengths and the characters of its strings."""
    if isinstance(column, np.ndarray):
        return [np.ascontiguousarray(column).view(np.uint8).data]
    _, offsets, text = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    characters = memoryview(text)[bounds[0] : bounds[-1]] if text is not None else b""
    return [np.diff(bounds).tobytes(), characters]


def producer_of(first: Rows, secret: bytes = b"") -> str:
    """The producer id of a file, named after its first event.

    It does not depend on whether the ids are read as integers or as strings.
    """
    ids = [str(first.columns[field][0]) for field in IDS]
    name = blake2b(json.dumps(ids).encode(), digest_size=12, key=secret)
    return f"push-{name.hexdigest()}"
