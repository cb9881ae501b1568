"""Read snapshots.

Everything in a snapshot is checked before it is used, and nothing in it is executed. A snapshot
holds JSON integers, texts of fixed forms, and arrays at places that follow from the spec. `verify`
checks every byte of every file. `load` does the same and maps the arrays. `save` stores a fetched
snapshot. Each file is opened once and never through a link, so the mapped bytes are the checked
bytes. Nobody may write to the folder while it is loaded.

A verified snapshot has exactly the root hash that its manifest names. This does not prove who made
it. Compare the root hash with one that you trust (`root_hash=`), such as that of a replay or of an
earlier checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import digest
from livefactor.snapshots import format as fmt
from livefactor.snapshots.content import check_content
from livefactor.snapshots.format import Manifest, Place, Tensor
from livefactor.snapshots.loaded import LoadedSnapshot, without_bfloat16

__all__ = [
    "Saving",
    "SnapshotInvalid",
    "Verification",
    "load",
    "open_file",
    "read_manifest",
    "save",
    "verify",
]

# Opening follows no link and does not wait for the writer of a pipe. A platform may lack these
# flags.
_OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

StrPath = str | os.PathLike[str]

SEALED_FILE = "snapshot.sealed"
"""The only file of a snapshot that a server encrypted. The server and its commands can read it."""

CHANGES_FILE = "changes.bin"
"""The file of an incremental snapshot, beside the manifest. The server and its commands read it."""


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """The result for a valid snapshot.

    bytes_checked: size of all files. blocks_checked: number of hashed blocks.
    """

    manifest: Manifest
    bytes_checked: int
    blocks_checked: int

    def __repr__(self) -> str:
        snapshot_id = self.manifest.snapshot_id
        return (
            f"Verification({snapshot_id} valid, {self.bytes_checked:,} bytes, {self.blocks_checked} blocks)"
        )


def verify(
    path: StrPath, root_hash: bytes | None = None, files: Mapping[str, io.FileIO] | None = None
) -> Verification:
    """Check every byte of the snapshot folder `path`. This needs no server and no network.

    root_hash: the root hash that the snapshot must have (32 bytes); None for any. files: the open
    files by name, which this closes; None for those of the folder. SnapshotInvalid names the bad
    file, tensor and block.
    """
    with _Folder(Path(path), root_hash, files) as folder:
        folder.tensors()
        return Verification(
            folder.manifest,
            sum(folder.layout.sizes.values()) + folder.manifest_bytes,
            sum(len(tensor.blocks) for tensor in folder.manifest.tensors),
        )


def load(
    path: StrPath, root_hash: bytes | None = None, files: Mapping[str, io.FileIO] | None = None
) -> LoadedSnapshot:
    """Verify the snapshot folder `path` and map its arrays.

    `verify` explains arguments and errors.
    """
    with _Folder(Path(path), root_hash, files) as folder:
        return LoadedSnapshot(Path(path), folder.manifest, folder.tensors())


def read_manifest(path: StrPath) -> Manifest:
    """Read the manifest of a snapshot folder and check it, also against the sizes of the files.

    The tensors are not read. Raises SnapshotInvalid.
    """
    with _Folder(Path(path), None) as folder:
        return folder.manifest


def open_file(folder: StrPath, name: str) -> io.FileIO:
    """Open one file of a snapshot for reading.

    Raises SnapshotInvalid for a link or a special file.
    """
    if name not in (*fmt.FILES, SEALED_FILE, CHANGES_FILE):
        raise SnapshotInvalid("", f"{name[:64]!r} is not a file of a snapshot")
    path = Path(folder) / name
    try:
        # A platform may lack O_NOFOLLOW.
        if path.is_symlink():
            raise SnapshotInvalid(name, "is a link")
        file = io.FileIO(os.open(path, _OPEN), "rb", closefd=True)
    except OSError as error:
        raise SnapshotInvalid(name, f"cannot be opened: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise SnapshotInvalid(name, "is not a regular file")
    return file


class _Folder:
    """The open files of a snapshot. Opening checks everything except the tensors."""

    def __init__(
        self, path: Path, root_hash: bytes | None, files: Mapping[str, io.FileIO] | None = None
    ) -> None:
        self._stack = contextlib.ExitStack()
        if files is None:
            _check_names(path)
        try:
            self.files = {
                name: self._stack.enter_context(open_file(path, name) if files is None else files[name])
                for name in fmt.FILES
            }
            sizes = {name: os.fstat(file.fileno()).st_size for name, file in self.files.items()}
            self.manifest_bytes = sizes.pop(fmt.MANIFEST_FILE)
            self.manifest = self._manifest(sum(sizes.values()))
            self.layout = self.manifest.layout
            for name, size in self.layout.sizes.items():
                if sizes[name] != size:
                    raise SnapshotInvalid(name, f"expected {size} bytes, got {sizes[name]}")
            if root_hash not in (None, self.manifest.root_hash):
                raise SnapshotInvalid(fmt.MANIFEST_FILE, "root_hash differs from the expected one")
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _manifest(self, tensor_bytes: int) -> Manifest:
        bound = fmt.manifest_bytes_max(tensor_bytes)
        if self.manifest_bytes > bound:
            raise SnapshotInvalid(
                fmt.MANIFEST_FILE, f"expected at most {bound} bytes, got {self.manifest_bytes}"
            )
        data = bytearray(self.manifest_bytes)
        _read_at(self.files[fmt.MANIFEST_FILE], fmt.MANIFEST_FILE, 0, memoryview(data))
        try:
            return Manifest.from_json(bytes(data))
        except ValueError as error:
            raise SnapshotInvalid(fmt.MANIFEST_FILE, str(error)) from None

    def tensors(self) -> dict[str, np.ndarray]:
        """Check headers and blocks, map the files, and check the content of the arrays."""
        for name, header in self.layout.headers.items():
            found = bytearray(len(header))
            _read_at(self.files[name], name, 0, memoryview(found))
            if found != header:
                raise SnapshotInvalid(name, "its header differs from the one that the manifest describes")
        buffer = memoryview(bytearray(digest.BLOCK_BYTES))
        for tensor in self.manifest.tensors:
            _check_blocks(self.files[tensor.place.file], tensor, buffer)
        maps = {
            name: mmap.mmap(self.files[name].fileno(), 0, access=mmap.ACCESS_READ)
            for name in fmt.TENSOR_FILES
        }
        tensors = {t.place.name: _mapped(maps[t.place.file], t.place) for t in self.manifest.tensors}
        check_content(self.manifest, tensors)
        return tensors


def _check_names(path: Path) -> None:
    try:
        names = set(os.listdir(path))
    except OSError as error:
        raise SnapshotInvalid("", f"cannot be listed: {os.strerror(error.errno or 0)}") from None
    if SEALED_FILE in names:
        raise SnapshotInvalid(SEALED_FILE, "is encrypted; fetch the snapshot from its server")
    if CHANGES_FILE in names:
        raise SnapshotInvalid(CHANGES_FILE, "is incremental; fetch the snapshot from its server")
    for name in sorted(set(fmt.FILES) - names):
        raise SnapshotInvalid(name, "is missing")
    for name in sorted(names - set(fmt.FILES)):
        raise SnapshotInvalid("", f"holds {name[:64]!r}, which is not a file of a snapshot")


def _read_at(file: io.FileIO, name: str, offset: int, into: memoryview) -> None:
    try:
        file.seek(offset)
        while into.nbytes:
            count = file.readinto(into)
            if not count:
                raise SnapshotInvalid(name, "ends early")
            into = into[count:]
    except OSError as error:
        raise SnapshotInvalid(name, f"cannot be read: {os.strerror(error.errno or 0)}") from None


def _check_blocks(file: io.FileIO, tensor: Tensor, buffer: memoryview) -> None:
    place = tensor.place
    for number, expected in enumerate(tensor.blocks):
        begin = number * digest.BLOCK_BYTES
        block = buffer[: min(digest.BLOCK_BYTES, place.nbytes - begin)]
        _read_at(file, place.file, place.offset + begin, block)
        if hashlib.sha256(block).digest() != expected:
            raise SnapshotInvalid(place.file, "the bytes differ from the hashed ones", place.name, number)
        if place.dtype in ("F64", "F32", "F16", "BF16"):
            values = np.frombuffer(block, fmt.NUMPY_DTYPES[place.dtype])
            if not np.isfinite(without_bfloat16(values)).all():
                raise SnapshotInvalid(place.file, "holds NaN or infinity", place.name, number)


def _mapped(data: mmap.mmap, place: Place) -> np.ndarray:
    dtype = np.dtype(fmt.NUMPY_DTYPES[place.dtype])
    if not place.nbytes:
        array = np.empty(place.shape, dtype)
        array.flags.writeable = False
        return array
    count = place.nbytes // dtype.itemsize
    return np.frombuffer(data, dtype, count, place.offset).reshape(place.shape)


def save(
    pieces: Iterable[tuple[str, int, int, bytes]], path: StrPath, root_hash: bytes | None = None
) -> Verification:
    """Store a fetched snapshot in the new folder `path`.

    The folder appears only once it is verified. pieces: (file name, offset, file size, data) in the
    order of the server's stream. The pieces of a file begin at offset 0 and have no gaps.
    root_hash: the root hash that the snapshot must have; None for any. Raises SnapshotInvalid,
    FileExistsError or OSError. After an error no file is left.
    """
    with Saving(path, root_hash) as saving:
        for piece in pieces:
            saving.add(*piece)
        return saving.finish()


class Saving:
    """A snapshot that is being stored, as `save` does it, piece by piece.

    Leaving its `with` block removes what was not finished.
    """

    def __init__(self, path: StrPath, root_hash: bytes | None = None) -> None:
        self._final, self._root_hash = Path(path), root_hash
        if os.path.lexists(self._final):
            raise FileExistsError(f"{self._final} exists")
        self._temporary = self._final.with_name(f".tmp-{uuid.uuid4().hex}")
        self._temporary.mkdir(parents=True)
        self._files: dict[str, io.BufferedWriter] = {}
        self._ends: dict[str, int] = {}

    def add(self, name: str, offset: int, size: int, data: bytes) -> None:
        """Store a piece. Raises SnapshotInvalid for one that does not belong there."""
        if name not in fmt.FILES:
            raise SnapshotInvalid("", f"{name[:64]!r} is not a file of a snapshot")
        end = self._ends.get(name, 0)
        if offset != end or offset + len(data) > size:
            raise SnapshotInvalid(name, f"expected a piece at offset {end} within {size} bytes, got {offset}")
        if name not in self._files:
            self._files[name] = io.BufferedWriter(io.FileIO(self._temporary / name, "xb"))
        self._files[name].write(data)
        self._ends[name] = offset + len(data)

    def finish(self) -> Verification:
        """Verify what was stored, and let the folder appear. Raises SnapshotInvalid or OSError."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        verification = verify(self._temporary, self._root_hash)
        os.rename(self._temporary, self._final)
        return verification

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
