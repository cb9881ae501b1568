"""Reading snapshots: everything is checked before anything is used, and no content can run.

A snapshot is data: JSON integers and texts of a closed form, and arrays at places that follow from the spec.
`verify` checks every byte of every file, `load` does the same and maps the arrays. Files are opened once,
never through a link, and what was checked is what is mapped; the folder must not be written to while it is
loaded. `save` stores a fetched snapshot.

What this proves: the files are exactly those whose root hash the manifest names. Who made them it does not
prove: compare the root hash with one that you trust (`root_hash=`), such as a replay's or an earlier
checkpoint's.
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
# Not following a link, not waiting for a writer of a pipe; the flags are 0 where a platform lacks them.
_OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

StrPath = str | os.PathLike[str]
Pieces = Iterable[tuple[str, int, int, bytes]]


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """A snapshot that was found valid. bytes_checked: of all files. blocks_checked: blocks that were hashed."""

    manifest: Manifest
    bytes_checked: int
    blocks_checked: int

    def __repr__(self) -> str:
        snapshot_id = self.manifest.snapshot_id
        return (
            f"Verification({snapshot_id} valid, {self.bytes_checked:,} bytes, {self.blocks_checked} blocks)"
        )


class Labels(Mapping[int, str]):
    """Names of one side's ids: a mapping id -> text over the snapshot's arrays (keys ascending)."""

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
    """Id -> row of one side; rows of unknown ids are `missing`."""

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
    """A verified snapshot. Arrays are read-only views of the mapped files, rows in the model's row order.

    tensors: every section by name ("users.keys", "mean" and others; sections.py lists them), bfloat16 as uint16.
    """

    path: Path
    manifest: Manifest
    tensors: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        return f"LoadedSnapshot({str(self.path)!r}, {self.manifest.summary})"

    @property
    def lineage(self) -> uuid.UUID:
        """The model's lineage; with `revision` the position."""
        return self.manifest.lineage

    @property
    def revision(self) -> int:
        """The revision that the state is of."""
        return self.manifest.revision

    @property
    def log_hash(self) -> bytes:
        """The log's chain hash at the revision, 32 bytes."""
        return self.manifest.log_hash

    @property
    def root_hash(self) -> bytes:
        """SHA-256 of the state, 32 bytes."""
        return self.manifest.root_hash

    @cached_property
    def spec(self) -> models_pb2.ModelSpec:
        """The model's complete specification, parsed from the logged bytes."""
        return parse_spec(self.manifest.spec)

    @property
    def user_ids(self) -> np.ndarray:
        """uint64[users]."""
        return self.tensors["users.keys"]

    @property
    def item_ids(self) -> np.ndarray:
        """uint64[items]."""
        return self.tensors["items.keys"]

    @cached_property
    def user_factors(self) -> np.ndarray:
        """[users, k]: float32, or float16 if stored so; bfloat16 is widened to float32, exactly."""
        return _without_bfloat16(self.tensors["users.factors"])

    @cached_property
    def item_factors(self) -> np.ndarray:
        """[items, k], as `user_factors`."""
        return _without_bfloat16(self.tensors["items.factors"])

    @property
    def user_biases(self) -> np.ndarray:
        """float32[users]."""
        return self.tensors["users.bias"]

    @property
    def item_biases(self) -> np.ndarray:
        """float32[items]."""
        return self.tensors["items.bias"]

    @property
    def accumulators(self) -> dict[str, np.ndarray]:
        """The optimizer's state by section name (AdaGrad: "users.factor_g" float32[users, k], "users.bias_g" ...; all
        names: `snapshots.sections`); empty with SGD.
        """
        sections = [f"{side}.{name}" for side in SIDES for name in optimizer_state(self.spec)]
        return {name: self.tensors[name] for name in sections}

    @property
    def mean(self) -> np.float32:
        """The global mean: sum and count are exact integers, divided once in float64."""
        total, count = (int(number) for number in self.tensors["mean"])
        return np.float32(float(total) / (float(count) * _FIXED_POINT_ONE)) if count else np.float32(0.0)

    @property
    def events(self) -> int:
        """Interactions accepted since the model began."""
        return int(self.tensors["events"][0])

    @property
    def unavailable_ids(self) -> np.ndarray:
        """Items marked unavailable, uint64[m], ascending."""
        return self.tensors["unavailable"]

    @cached_property
    def user_labels(self) -> Labels:
        """Names of user ids."""
        return self._labels("user")

    @cached_property
    def item_labels(self) -> Labels:
        """Names of item ids."""
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
        """Scores float32[n] of items (ids, uint64[n]) for a user: bit for bit what the server answers at this
        revision.

        An unknown user or item counts as a row of zeros. ValueError for a model that folds users in or counts followers
        (rule SOLVE, counts): its scores take more than factors.
        """
        if "gram" in self.tensors or "items.neighbor_rows" in self.tensors:
            raise ValueError(
                "score: this model's scores take histories, which only a server reads; restore it on one"
            )
        ids = np.asarray(item_ids if isinstance(item_ids, np.ndarray) else list(item_ids), np.uint64)
        user = self._user_index.rows(np.array([user_id], np.uint64))
        rows = self._item_index.rows(ids)
        x, user_bias = _gather(self.user_factors, self.user_biases, user)
        y, item_bias = _gather(self.item_factors, self.item_biases, rows)
        scores: np.ndarray = ((self.mean + user_bias) + item_bias) + _dot(x, y)
        return scores


def _without_bfloat16(factors: np.ndarray) -> np.ndarray:
    """The upper halves of float32 (uint16) as float32; other arrays as they are."""
    if factors.dtype != np.uint16:
        return factors
    wide = (factors.astype(np.uint32) << 16).view(np.float32)
    wide.flags.writeable = False
    return wide


def _gather(factors: np.ndarray, bias: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded with zeros to whole lanes; zeros for a row past the end."""
    count, k = factors.shape
    known = rows < count
    out = np.zeros((len(rows), -(-k // LANES) * LANES), np.float32)
    out_bias = np.zeros(len(rows), np.float32)
    out[known, :k] = factors[rows[known]]
    out_bias[known] = bias[rows[known]]
    return out, out_bias


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dot products of x float32[1, kp] with y float32[n, kp] in 16 lanes and a tree: the server's order of
    additions.
    """
    products = (x * y).reshape(len(y), y.shape[1] // LANES, LANES)
    lanes: np.ndarray = products[:, 0].copy()
    for step in range(1, products.shape[1]):
        lanes += products[:, step]
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0]


def verify(path: StrPath, root_hash: bytes | None = None) -> Verification:
    """Check everything in the snapshot folder `path`, every byte of it; needs no server and no network.

    root_hash: if given, the root hash that it must have (32 bytes). Raises SnapshotInvalid naming file,
    tensor and block.
    """
    with _Opened(Path(path), root_hash) as opened:
        opened.tensors()
        return Verification(
            opened.manifest,
            sum(opened.layout.sizes.values()) + opened.manifest_bytes,
            sum(len(tensor.blocks) for tensor in opened.manifest.tensors),
        )


def load(path: StrPath, root_hash: bytes | None = None) -> LoadedSnapshot:
    """Verify the snapshot folder `path` and map its arrays. Raises SnapshotInvalid (see `verify`)."""
    with _Opened(Path(path), root_hash) as opened:
        return LoadedSnapshot(Path(path), opened.manifest, opened.tensors())


def read_manifest(path: StrPath) -> Manifest:
    """The manifest of a snapshot folder, checked in itself and against the sizes of the files. Raises
    SnapshotInvalid.
    """
    with _Opened(Path(path), None) as opened:
        return opened.manifest


def open_file(folder: StrPath, name: str) -> io.FileIO:
    """Open one of a snapshot's files for reading: a regular file, never through a link. Raises
    SnapshotInvalid.
    """
    if name not in fmt.FILES:
        raise SnapshotInvalid("", f"{name[:64]!r} is no file of a snapshot")
    path = Path(folder) / name
    try:
        if path.is_symlink():  # where O_NOFOLLOW is missing
            raise SnapshotInvalid(name, "is a link")
        file = io.FileIO(os.open(path, _OPEN), "rb", closefd=True)
    except OSError as error:
        raise SnapshotInvalid(name, f"cannot be opened: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise SnapshotInvalid(name, "is not a regular file")
    return file


class _Opened:
    """A snapshot's files, opened once and checked as far as that needs no reading of tensors."""

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
                raise SnapshotInvalid(fmt.MANIFEST_FILE, "root_hash is not the expected one")
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Opened:
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
        """Check headers, blocks and content; then map the files that were checked."""
        for name, header in self.layout.headers.items():
            found = bytearray(len(header))
            _read_at(self.files[name], name, 0, memoryview(found))
            if found != header:
                raise SnapshotInvalid(name, "its header is not the one that the manifest describes")
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
        raise SnapshotInvalid("", f"holds {name[:64]!r}, which is no file of a snapshot")


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
            raise SnapshotInvalid(place.file, "the bytes are not those that were hashed", place.name, number)
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
    """Store a fetched snapshot as the new folder `path` and verify it before it appears.

    pieces: (file name, offset, file size, data) as the server streams them, each file from its begin. A name
    that is no snapshot's, a gap or a second file of a name ends it. Raises SnapshotInvalid, FileExistsError,
    OSError; then nothing is left.
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
                raise SnapshotInvalid("", f"{name[:64]!r} is no file of a snapshot")
            if offset != ends.get(name, 0) or offset + len(data) > size:
                raise SnapshotInvalid(
                    name, f"expected the bytes from {ends.get(name, 0)}, got those from {offset}"
                )
            if name not in files:
                files[name] = stack.enter_context(open(folder / name, "xb"))
            files[name].write(data)
            ends[name] = offset + len(data)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
