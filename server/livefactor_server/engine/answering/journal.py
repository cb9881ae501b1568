"""The file of kept answers, so that a restart finds them (`served.py`).

    <folder>/<number>    magic, key id, salt │ entry │ entry ...
    an entry             bytes, CRC32 │ a kept call, or an outcome that was claimed

Entries are written as they come, and not synced: they survive the end of the process, and a power
cut may take the last ones. A file is removed when its last call is gone, and a new one begins at
each start and after some bytes. With a key for data at rest (`log/sealing.py`) each entry is
encrypted. The entries are no part of a state, and prove nothing.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import Counter

from livefactor_server.log.format import NO_KEY
from livefactor_server.log.sealing import NONCE_BYTES, present

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

UNWRITTEN = Counter(
    "livefactor_served_unwritten", "Entries of kept answers that could not be written to their file."
)

_MAGIC = b"LFSERVE1"
_SALT_BYTES = 16
_HEADER_BYTES = len(_MAGIC) + len(NO_KEY) + _SALT_BYTES
_FRAME = struct.Struct("<II")
_CALL = struct.Struct("<BQdHI")
_CLAIM = struct.Struct("<BQQQIQIHH")
PIECE_BYTES = 1 << 20
"""Bytes that are written at a time, at most about."""

_ZEROS = bytes(PIECE_BYTES)

logger = logging.getLogger(__name__)


class KeptCall(NamedTuple):
    """A kept call: both messages, and when it was answered (seconds since 1970)."""

    score_id: int
    time_s: float
    model: str
    request: bytes
    answer: bytes

    def to_bytes(self) -> bytes:
        """The bytes of the entry."""
        model = self.model.encode()
        head = _CALL.pack(0, self.score_id, self.time_s, len(model), len(self.request))
        return b"".join((head, model, self.request, self.answer))


class Claim(NamedTuple):
    """An outcome of a kept call (user, item, type), and the event that had it first: its producer
    and sequence, the hash of its batch, and its row.
    """

    score_id: int
    outcome: tuple[int, int, int]
    owner: tuple[bytes, int, bytes, int]

    def to_bytes(self) -> bytes:
        """The bytes of the entry."""
        producer, sequence, digest, row = self.owner
        sizes = len(producer), len(digest)
        return _CLAIM.pack(1, self.score_id, *self.outcome, sequence, row, *sizes) + producer + digest


def _entry_of(data: bytes) -> KeptCall | Claim:
    """Reads an entry. Raises ValueError, which may be a subclass, or struct.error."""
    if data[0] == 0:
        _, score_id, time_s, model, request = _CALL.unpack_from(data)
        at = _CALL.size + model
        return KeptCall(
            score_id, time_s, data[_CALL.size : at].decode(), data[at : at + request], data[at + request :]
        )
    _, score_id, user, item, kind, sequence, row, producer, _ = _CLAIM.unpack_from(data)
    at = _CLAIM.size + producer
    owner = data[_CLAIM.size : at], sequence, data[at:], row
    return Claim(score_id, (user, item, kind), owner)


class Journal:
    """Writes and reads the files of one folder. One thread at a time uses it."""

    def __init__(self, folder: Path, file_bytes: int) -> None:
        """A further file begins after `file_bytes` bytes."""
        self._folder, self._file_bytes = folder, file_bytes
        self._file: FileIO | None = None
        self._cipher: AESGCM | None = None
        self._numbers = sorted(int(each.name) for each in folder.glob("[0-9]*") if each.name.isdigit())
        self._next = self._numbers[-1] + 1 if self._numbers else 1
        self._left = 0
        # Entries that are not written yet, and their number.
        self._pending, self._waiting = bytearray(), 0

    def read(self) -> Iterator[tuple[int, KeptCall | Claim]]:
        """Yields the number of each file with each entry in it, in order. A file that is damaged is
        read up to there.
        """
        for number in list(self._numbers):
            path = self._folder / str(number)
            try:
                data = path.read_bytes()
                for entry in _entries(data):
                    yield number, entry
            except (OSError, ValueError, struct.error) as error:
                logger.warning("kept answers: %s is read up to where it is damaged: %s", path, error)

    def write(self, entry: KeptCall | Claim) -> int:
        """Takes an entry for the file, at the latest at `flush`. Returns the number of the file."""
        data = entry.to_bytes()
        try:
            if self._left <= 0:
                self._begin()
        except OSError as error:
            self._fail(error, 1)
            return self.last
        if self._cipher is not None:
            nonce = os.urandom(NONCE_BYTES)
            data = nonce + self._cipher.encrypt(nonce, data, b"")
        self._pending += _FRAME.pack(len(data), zlib.crc32(data)) + data
        self._waiting += 1
        if len(self._pending) >= PIECE_BYTES:
            self.flush()
        return self.last

    def flush(self) -> None:
        """Writes what was taken. If the disk refuses, it is counted and dropped."""
        if not self._pending:
            return
        assert self._file is not None
        try:
            if self._file.write(self._pending) != len(self._pending):
                raise OSError("a short write")
            self._left -= len(self._pending)
        except OSError as error:
            self._fail(error, self._waiting)
        self._pending.clear()
        self._waiting = 0

    def _fail(self, error: OSError, entries: int) -> None:
        logger.warning("kept answers: %d entries are not written to %s: %s", entries, self._folder, error)
        # What follows a torn entry could not be read, so another file begins.
        self._left = 0
        UNWRITTEN.inc(entries)

    def _begin(self) -> None:
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        key, salt = present(), os.urandom(_SALT_BYTES)
        self._cipher = None if key is None else key.cipher("served", salt)
        file = open(self._folder / str(self._next), "xb", buffering=0)  # noqa: SIM115
        self._file = file
        self._numbers.append(self._next)
        self._next += 1
        file.write(_MAGIC + (NO_KEY if key is None else key.id) + salt)
        self._left = self._file_bytes

    @property
    def last(self) -> int:
        """The number of the newest file."""
        return self._numbers[-1] if self._numbers else 0

    def drop_before(self, number: int) -> None:
        """Removes the files before this one."""
        while self._numbers and self._numbers[0] < number:
            (self._folder / str(self._numbers.pop(0))).unlink(missing_ok=True)

    def destroy(self) -> None:
        """Overwrites all files with zeros, and removes them.

        Raises:
            OSError: the disk reports an error.
        """
        self.close()
        for number in list(self._numbers):
            path = self._folder / str(number)
            with path.open("r+b", buffering=0) as file:
                left = path.stat().st_size
                while left > 0:
                    left -= file.write(_ZEROS[:left]) or 0
                os.fsync(file.fileno())
            path.unlink()
            self._numbers.remove(number)

    def close(self) -> None:
        """Closes the file. A further entry begins another one."""
        self.flush()
        if self._file is not None:
            self._file.close()
        self._file, self._left = None, 0


def _entries(data: bytes) -> Iterator[KeptCall | Claim]:
    """The entries of a file.

    Raises:
        ValueError: it is damaged, or it needs another key. It may be a subclass.
        struct.error: it is cut.
    """
    key, at = present(), _HEADER_BYTES
    key_id, salt = data[len(_MAGIC) : len(_MAGIC) + len(NO_KEY)], data[at - _SALT_BYTES : at]
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin as a file of kept answers")
    if key_id != (NO_KEY if key is None else key.id):
        raise ValueError("it needs another key for data at rest, or none")
    cipher = None if key is None else key.cipher("served", salt)
    while at < len(data):
        size, checksum = _FRAME.unpack_from(data, at)
        piece = data[at + _FRAME.size : at + _FRAME.size + size]
        if not piece or len(piece) != size or zlib.crc32(piece) != checksum:
            raise ValueError(f"the entry at byte {at} is torn")
        if cipher is not None:
            from cryptography.exceptions import InvalidTag

            try:
                piece = cipher.decrypt(piece[:NONCE_BYTES], piece[NONCE_BYTES:], b"")
            except InvalidTag:
                raise ValueError(f"the entry at byte {at} was changed") from None
        yield _entry_of(piece)
        at += _FRAME.size + size
