"""A snapshot in one encrypted file. Its plain bytes are those of the files of a plain snapshot.

The snapshot is written in pieces, in any order of the tensors. Each piece is a frame of its own,
and the last frame is the index. AES-256-GCM encrypts the frames with a key that is derived from the
given one and the random id of the file. So the number of a frame can be its nonce. The index has
a nonce that no frame has.

    magic, 8 bytes │ id of the key, 4 │ id of the file, 16 │ frames │ index frame
    bytes of the index frame, 8 │ magic, 8

A frame is its ciphertext and a tag of 16 bytes. What a frame holds is authenticated with it.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import format as fmt
from livefactor.snapshots.files import CHANGES_FILE, SEALED_FILE, open_file
from livefactor.snapshots.format import Layout, Place
from livefactor_server.log.sealing import NONCE_BYTES, TAG_BYTES, Key, present
from livefactor_server.snapshots.safetensors_writer import SYNC_BYTES

_MAGIC = b"lvfsnap1"
_HEAD = struct.Struct("<8s4s16s")
_END = struct.Struct("<Q8s")
_INDEX, _INDEX_NONCE = "index", b"\xff" * NONCE_BYTES
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
FRAME_BYTES = 1 << 20
"""Bytes of an incremental snapshot that a frame has, at least, but the last one."""


class Frame(NamedTuple):
    """Where the bytes of a file of the snapshot stand: `size` of them, from byte `offset` on.

    They are frame `number`, which starts at byte `at` of the encrypted file.
    """

    file: str
    offset: int
    size: int
    number: int
    at: int


def _nonce(number: int) -> bytes:
    return number.to_bytes(NONCE_BYTES, "little")


def _facts(head: bytes, file: str, offset: int) -> bytes:
    return head + f"{file}:{offset}".encode()


class SealedFiles:
    """Writes a snapshot to one encrypted file. It has the methods of `TensorFiles`."""

    def __init__(self, folder: Path, key: Key, layout: Layout | None = None) -> None:
        """Creates the file, with the headers of a layout if there is one. Raises OSError."""
        file_id = os.urandom(16)
        self._cipher = key.cipher("snapshot", file_id)
        self._head = _HEAD.pack(_MAGIC, key.id, file_id)
        self._file = os.open(folder / SEALED_FILE, _CREATE, 0o644)
        self._frames: list[Frame] = []
        self._end = self._unsynced = 0
        try:
            self._append(self._head)
            for name, header in layout.headers.items() if layout is not None else ():
                self.add(name, 0, header)
        except BaseException:
            os.close(self._file)
            raise

    def write(self, place: Place, offset: int, data: memoryview) -> None:
        """Writes bytes of a section, `offset` bytes after its beginning."""
        assert offset + data.nbytes <= place.nbytes, (place, offset, data.nbytes)
        if data.nbytes:
            self.add(place.file, place.offset + offset, data)

    def finish(self, manifest: bytes) -> None:
        """Writes the manifest and the index, and makes everything durable."""
        self.add(fmt.MANIFEST_FILE, 0, manifest)
        self.end()

    def end(self) -> None:
        """Writes the index, and makes everything durable."""
        index = json.dumps([list(frame) for frame in self._frames]).encode()
        sealed = self._cipher.encrypt(_INDEX_NONCE, index, _facts(self._head, _INDEX, 0))
        self._append(sealed + _END.pack(len(sealed), _MAGIC))
        os.fsync(self._file)

    def add(self, file: str, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes of a file of the snapshot, from byte `offset` on."""
        number, at = len(self._frames), self._end
        sealed = self._cipher.encrypt(_nonce(number), data, _facts(self._head, file, offset))
        self._append(sealed)
        self._frames.append(Frame(file, offset, len(sealed) - TAG_BYTES, number, at))

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left.nbytes:
            written = os.pwrite(self._file, left, self._end)
            left, self._end = left[written:], self._end + written
            self._unsynced += written
        if self._unsynced >= SYNC_BYTES:
            os.fsync(self._file)
            self._unsynced = 0

    def __enter__(self) -> SealedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


class SealedChanges(SealedFiles):
    """An incremental snapshot in one encrypted file. It has the methods of `ChangesFile`."""

    def __init__(self, folder: Path, key: Key) -> None:
        super().__init__(folder, key)
        self._waiting = bytearray()
        self._written = 0

    def append(self, data: bytes | memoryview) -> None:
        """Writes the next bytes, in frames of about a megabyte. Raises OSError."""
        self._waiting += data
        if len(self._waiting) >= FRAME_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self.add(CHANGES_FILE, self._written, bytes(self._waiting))
            self._written += len(self._waiting)
            self._waiting.clear()

    def finish(self, manifest: bytes) -> None:
        """Writes the manifest and the index, and makes everything durable."""
        self._flush()
        super().finish(manifest)

    def __enter__(self) -> SealedChanges:
        return self


def is_sealed(folder: Path) -> bool:
    """Whether the folder holds an encrypted snapshot."""
    return os.path.lexists(folder / SEALED_FILE)


class SealedSnapshot:
    """Reads an encrypted snapshot. It is a context manager, which closes the file."""

    def __init__(self, folder: Path) -> None:
        """Opens the file and reads its index.

        Raises:
            SnapshotInvalid: it is damaged, or it needs another key.
        """
        if names := sorted(set(os.listdir(folder)) - {SEALED_FILE}):
            raise SnapshotInvalid("", f"holds {names[0][:64]!r}, which is not a file of a snapshot")
        self._file = open_file(folder, SEALED_FILE)
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._head = self._read(0, _HEAD.size)
            magic, key_id, file_id = _HEAD.unpack(self._head)
            key = present()
            if magic != _MAGIC:
                raise SnapshotInvalid(SEALED_FILE, "is no encrypted snapshot")
            if key is None or key.id != key_id:
                given = "no key is given" if key is None else f"the given key is {key.id.hex()}"
                raise SnapshotInvalid(SEALED_FILE, f"is encrypted with the key {key_id.hex()}, and {given}")
            self._cipher = key.cipher("snapshot", file_id)
            self._frames = self._index()
        except BaseException:
            self._file.close()
            raise

    def _index(self) -> list[Frame]:
        end = self._size - _END.size
        size, magic = _END.unpack(self._read(end, _END.size))
        if magic != _MAGIC or size > end:
            raise SnapshotInvalid(SEALED_FILE, "has no whole index")
        index = self._open(_INDEX_NONCE, self._read(end - size, size), _INDEX, 0)
        return [Frame(*each) for each in json.loads(index)]

    def _read(self, at: int, size: int) -> bytes:
        found = os.pread(self._file.fileno(), size, at) if at >= 0 else b""
        if len(found) != size:
            raise SnapshotInvalid(SEALED_FILE, "ends early")
        return found

    def _open(self, nonce: bytes, sealed: bytes, file: str, offset: int) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(nonce, sealed, _facts(self._head, file, offset))
        except InvalidTag:
            raise SnapshotInvalid(SEALED_FILE, f"the bytes of {file} do not match their tag") from None

    def size(self, file: str) -> int:
        """The plain bytes of a file of the snapshot."""
        return max((frame.offset + frame.size for frame in self._frames if frame.file == file), default=0)

    def pieces(self, file: str) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, plain bytes) of a file of the snapshot, in order and without gaps.

        Raises:
            SnapshotInvalid: the file is damaged.
        """
        end = 0
        for frame in sorted((frame for frame in self._frames if frame.file == file), key=_offset):
            if frame.offset != end:
                raise SnapshotInvalid(SEALED_FILE, f"the index of {file} has gaps")
            sealed = self._read(frame.at, frame.size + TAG_BYTES)
            yield frame.offset, self._open(_nonce(frame.number), sealed, file, frame.offset)
            end += frame.size

    def manifest(self) -> bytes:
        """The manifest's JSON. Raises SnapshotInvalid."""
        return b"".join(data for _, data in self.pieces(fmt.MANIFEST_FILE))

    def files(self) -> dict[str, io.FileIO]:
        """The plain files of the snapshot in memory, by name. They take its size, and the caller
        closes them.

        Raises:
            SnapshotInvalid: the file is damaged.
        """
        made: dict[str, io.FileIO] = {}
        try:
            for name in fmt.FILES:
                made[name] = io.FileIO(os.memfd_create(name, os.MFD_CLOEXEC), "r+b")
                for _, data in self.pieces(name):
                    _write_all(made[name], data)
        except BaseException:
            for file in made.values():
                file.close()
            raise
        return made

    def __enter__(self) -> SealedSnapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _offset(frame: Frame) -> int:
    return frame.offset


def _write_all(file: io.FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left.nbytes:
        left = left[file.write(left) :]
