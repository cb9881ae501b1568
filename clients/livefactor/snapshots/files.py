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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import digest
from livefactor.snapshots import format as fmt
from livefactor.snapshots.content import check_content
from livefactor.snapshots.format import Manifest, Place, Tensor
from livefactor.snapshots.sections import SIDES, optimizer_state, parse_spec
from livefactor.v1 import models_pb2

__all__ = [
    "Labels",
    "LoadedSnapshot",
    "SnapshotInvalid",
    "Verification",
    "load",
    "open_file",
    "read_manifest",
    "save",
    "verify",
]

LANES = 16
_FIXED_POINT_ONE = float(1 << 20)
# Opening follows no link and does not wait for the writer of a pipe. A platform may lack these
# flags.
_OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

StrPath = str | os.PathLike[str]
Pieces = Iterable[tuple[str, int, int, bytes]]


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


class Labels(Mapping[int, str]):
    """The labels of one side's ids: a mapping from id to text over the arrays of the snapshot."""

    def __init__(self, keys: np.ndarray, offsets: np.ndarray, text: np.ndarray) -> None:
        self._keys, self._offsets, self._text = keys, offsets, text

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys.tolist())

    def __getitem__(self, key: int) -> str:
        row = int(np.searchsorted(self._keys, np.uint64(key)))
        if row == len(self._keys) or self._keys[row] != key:
            raise KeyError(key)
        return self._text[int(self._offsets[row]) : int(self._offsets[row + 1])].tobytes().decode()


class _Index:
    """Finds the rows of one side's ids. An unknown id has the row `missing`."""

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self.missing = len(keys)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        if not self.missing:
            return np.zeros(len(ids), np.int64)
        at = np.minimum(np.searchsorted(self._keys, ids), self.missing - 1)
        return np.where(self._keys[at] == ids, self._order[at], self.missing)


@dataclass(frozen=True, repr=False)
class LoadedSnapshot:
    """A verified snapshot.

    Its arrays are read-only views of the mapped files, in the model's row order. tensors: every
    section by name, such as "users.keys" and "mean" (sections.py lists them). A bfloat16 section is
    a uint16 array.
    """

    path: Path
    manifest: Manifest
    tensors: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        return f"LoadedSnapshot({str(self.path)!r}, {self.manifest.summary})"

    @property
    def lineage(self) -> uuid.UUID:
        """The model's lineage. Lineage and `revision` are the position of the snapshot."""
        return self.manifest.lineage

    @property
    def revision(self) -> int:
        """The revision of the state."""
        return self.manifest.revision

    @property
    def log_hash(self) -> bytes:
        """The chain hash of the log at this revision, 32 bytes."""
        return self.manifest.log_hash

    @property
    def root_hash(self) -> bytes:
        """The root hash of the state, 32 bytes."""
        return self.manifest.root_hash

    @cached_property
    def spec(self) -> models_pb2.ModelSpec:
        """The complete spec of the model."""
        return parse_spec(self.manifest.spec)

    @property
    def user_ids(self) -> np.ndarray:
        """The ids of the user rows, uint64[users]."""
        return self.tensors["users.keys"]

    @property
    def item_ids(self) -> np.ndarray:
        """The ids of the item rows, uint64[items]."""
        return self.tensors["items.keys"]

    @cached_property
    def user_factors(self) -> np.ndarray:
        """The factors of the user rows, [users, k]: float16, or float32, also for a model of
        bfloat16.
        """
        return _without_bfloat16(self.tensors["users.factors"])

    @cached_property
    def item_factors(self) -> np.ndarray:
        """The factors of the item rows, [items, k], with the dtype of `user_factors`."""
        return _without_bfloat16(self.tensors["items.factors"])

    @property
    def user_biases(self) -> np.ndarray:
        """The biases of the user rows, float32[users]."""
        return self.tensors["users.bias"]

    @property
    def item_biases(self) -> np.ndarray:
        """The biases of the item rows, float32[items]."""
        return self.tensors["items.bias"]

    @property
    def accumulators(self) -> dict[str, np.ndarray]:
        """The optimizer's state by section name; empty with SGD.

        `snapshots.sections` lists all names. AdaGrad, for example, has "users.factor_g"
        float32[users, k] and "users.bias_g" float32[users].
        """
        sections = [f"{side}.{name}" for side in SIDES for name in optimizer_state(self.spec)]
        return {name: self.tensors[name] for name in sections}

    @property
    def mean(self) -> np.float32:
        """The global mean.

        Its sum and count are exact integers, and one float64 division gives it.
        """
        total, count = (int(number) for number in self.tensors["mean"])
        return np.float32(float(total) / (float(count) * _FIXED_POINT_ONE)) if count else np.float32(0.0)

    @property
    def events(self) -> int:
        """The number of interactions accepted since the model was created."""
        return int(self.tensors["events"][0])

    @property
    def unavailable_ids(self) -> np.ndarray:
        """The ids of the m unavailable items, uint64[m], in ascending order."""
        return self.tensors["unavailable"]

    @cached_property
    def user_labels(self) -> Labels:
        """The labels of user ids."""
        return self._labels("user")

    @cached_property
    def item_labels(self) -> Labels:
        """The labels of item ids."""
        return self._labels("item")

    def _labels(self, side: str) -> Labels:
        return Labels(*(self.tensors[f"labels.{side}.{name}"] for name in ("keys", "offsets", "text")))

    @cached_property
    def _user_index(self) -> _Index:
        return _Index(self.user_ids)

    @cached_property
    def _item_index(self) -> _Index:
        return _Index(self.item_ids)

    def score(self, user_id: int, item_ids: np.ndarray | Iterable[int]) -> np.ndarray:
        """Score n items for a user: float32[n], bit for bit the server's scores at this revision.

        item_ids: uint64[n]. An unknown user or item counts as a row of zeros. Raises ValueError for
        a model with rule SOLVE or with counts, because its scores need more than factors and
        biases.
        """
        if "gram" in self.tensors or "items.neighbor_rows" in self.tensors:
            raise ValueError(
                "score: this model's scores need histories, which only a server reads; restore the model on one"
            )
        ids = np.asarray(item_ids if isinstance(item_ids, np.ndarray) else list(item_ids), np.uint64)
        user = self._user_index.rows(np.array([user_id], np.uint64))
        rows = self._item_index.rows(ids)
        x, user_bias = _gather(self.user_factors, self.user_biases, user)
        y, item_bias = _gather(self.item_factors, self.item_biases, rows)
        scores: np.ndarray = ((self.mean + user_bias) + item_bias) + _dot(x, y)
        return scores


def _without_bfloat16(factors: np.ndarray) -> np.ndarray:
    """Widen bfloat16 bits (uint16) to float32. Arrays of another dtype are returned unchanged."""
    if factors.dtype != np.uint16:
        return factors
    wide = (factors.astype(np.uint32) << 16).view(np.float32)
    wide.flags.writeable = False
    return wide


def _gather(factors: np.ndarray, bias: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded with zeros to a multiple of `LANES`, and their biases.

    A row past the end is all zeros.
    """
    count, k = factors.shape
    known = rows < count
    out = np.zeros((len(rows), -(-k // LANES) * LANES), np.float32)
    out_bias = np.zeros(len(rows), np.float32)
    out[known, :k] = factors[rows[known]]
    out_bias[known] = bias[rows[known]]
    return out, out_bias


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The dot products, float32[n], of x float32[1, kp] with each row of y float32[n, kp].

    The sum runs in 16 lanes, which a tree then adds up. This is the server's order of additions.
    """
    products = (x * y).reshape(len(y), y.shape[1] // LANES, LANES)
    lanes: np.ndarray = products[:, 0].copy()
    for step in range(1, products.shape[1]):
        lanes += products[:, step]
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0]


def verify(path: StrPath, root_hash: bytes | None = None) -> Verification:
    """Check every byte of the snapshot folder `path`. This needs no server and no network.

    root_hash: the root hash that the snapshot must have (32 bytes); None for any. SnapshotInvalid
    names the bad file, tensor and block.
    """
    with _Folder(Path(path), root_hash) as folder:
        folder.tensors()
        return Verification(
            folder.manifest,
            sum(folder.layout.sizes.values()) + folder.manifest_bytes,
            sum(len(tensor.blocks) for tensor in folder.manifest.tensors),
        )


def load(path: StrPath, root_hash: bytes | None = None) -> LoadedSnapshot:
    """Verify the snapshot folder `path` and map its arrays.

    `verify` explains arguments and errors.
    """
    with _Folder(Path(path), root_hash) as folder:
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
    if name not in fmt.FILES:
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

    def __init__(self, path: Path, root_hash: bytes | None) -> None:
        _check_names(path)
        self._stack = contextlib.ExitStack()
        try:
            self.files = {name: self._stack.enter_context(open_file(path, name)) for name in fmt.FILES}
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
            if not np.isfinite(_without_bfloat16(values)).all():
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
    final = Path(path)
    if os.path.lexists(final):
        raise FileExistsError(f"{final} exists")
    temporary = final.with_name(f".tmp-{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        _store(pieces, temporary)
        verification = verify(temporary, root_hash)
        os.rename(temporary, final)
        return verification
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _store(pieces: Pieces, folder: Path) -> None:
    ends: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        files: dict[str, io.BufferedWriter] = {}
        for name, offset, size, data in pieces:
            if name not in fmt.FILES:
                raise SnapshotInvalid("", f"{name[:64]!r} is not a file of a snapshot")
            if offset != ends.get(name, 0) or offset + len(data) > size:
                raise SnapshotInvalid(
                    name, f"expected a piece at offset {ends.get(name, 0)} within {size} bytes, got {offset}"
                )
            if name not in files:
                files[name] = stack.enter_context(open(folder / name, "xb"))
            files[name].write(data)
            ends[name] = offset + len(data)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
