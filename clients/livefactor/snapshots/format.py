"""The snapshot format: the files, the place of every byte, and the manifest.

A snapshot is a folder with exactly four files:

    manifest.json        canonical JSON (see below)
    users.safetensors    users.keys U64[n], users.factors F32[n,k], users.bias F32[n] and further
                         sections of user rows
    items.safetensors    the same sections for items
    state.safetensors    the sections beside the rows

`sections.py` lists the sections with their dtypes and shapes. The root hash takes them in this
order: the sections of users, the sections of items, then the sections beside the rows by name.

The layout is a function of the spec, the row counts, and with `history.paged` the numbers of
remembered events. A reader computes the expected layout
and the expected safetensors headers, and compares them with the files. It never interprets a
header. Tensors of 8-byte elements come first in a file, then those of 4, 2 and 1 bytes. safetensors
allows no gaps between them. A header is padded with spaces, so that the data begins at a multiple
of 64 bytes and every tensor is aligned to its element size. Headers have sorted names and no
metadata, so their bytes depend only on the state.

manifest.json is ASCII with sorted keys, no spaces, only integers as numbers, and one line feed at
the end. The hashes and the spec are lower-case hex.

    created_us        int     microseconds since 1970 UTC; it and manifest_hash differ between two
                              snapshots of one state of a model
    format            1
    kernel_semantics  int     the same as in the spec
    lineage           text    UUID; lineage and revision are the position
    log_hash          hex     the chain hash of the log at this revision
    log_hash_name     text    the hash function of log_hash
    manifest_hash     hex     SHA-256 over the canonical JSON (with the line feed) of all other
                              fields; root_hash covers the state, not the lineage or the log
    model             text    the model's name
    parent            null
    revision          int
    root_hash         hex     the root hash of the state (digest.py)
    spec              hex     the bytes of the livefactor.v1.ModelSpec message in the log
    tensors           list    in section order: blocks [hex], digest hex, dtype, file, name, offset
                              (bytes from the start of the file), shape
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from livefactor.snapshots import digest
from livefactor.snapshots.sections import (
    SIDES,
    SPEC_BYTES_MAX,
    bounded_spec,
    parse_spec,
    row_sections,
    small_sections,
)

FORMAT = 1
MANIFEST_FILE = "manifest.json"
TENSOR_FILES = ("items.safetensors", "state.safetensors", "users.safetensors")
FILES = (MANIFEST_FILE, *TENSOR_FILES)
"""The names of all files, with the manifest first."""

ITEM_BYTES = {"U64": 8, "I64": 8, "F64": 8, "U32": 4, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
"""Bytes of an element for each safetensors dtype that a snapshot may hold."""

NUMPY_DTYPES = dict(zip(ITEM_BYTES, ("<u8", "<i8", "<f8", "<u4", "<f4", "<f2", "<u2", "|u1"), strict=True))
"""The NumPy dtype for each safetensors dtype. NumPy has no bfloat16, so uint16 holds its bits."""

ALIGNMENT = 64
MANIFEST_BYTES_MAX = 64 << 20
_MANIFEST_BASE_BYTES = 16 << 10
_BLOCK_TEXT_BYTES = 2 * digest.DIGEST_BYTES + 3

_HEX32 = re.compile(r"[0-9a-f]{64}")
_SPEC_HEX = re.compile(rf"[0-9a-f]{{0,{2 * SPEC_BYTES_MAX}}}")
_MODEL = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_HASH_NAME = re.compile(r"[a-z0-9-]{1,16}")
_SNAPSHOT_ID = re.compile(r"[0-9]{20}-[0-9a-f]{8}")


class Place(NamedTuple):
    """The place of a section. offset: where it begins in `file`, in bytes."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the section in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of all sections in order, and the header and size in bytes of each tensor file."""

    places: tuple[Place, ...]
    headers: dict[str, bytes]
    sizes: dict[str, int]

    @property
    def nbytes(self) -> int:
        """Size of all sections together in bytes."""
        return sum(place.nbytes for place in self.places)


def layout(
    spec: bytes, users: int, items: int, small_lengths: Mapping[str, int], events: tuple[int, int] = (0, 0)
) -> Layout:
    """The layout of a state.

    users, items: row counts. small_lengths: the number of elements of each section beside the rows.
    events: with `history.paged`, the number of events that users and items remember. Raises
    ValueError if the lengths do not fit the spec.
    """
    message = bounded_spec(spec)
    placed: list[_Unplaced] = []
    for side, rows, remembered in zip(SIDES, (users, items), events, strict=True):
        for section in row_sections(message, side):
            shape = (remembered,) if section.ragged else (rows, *section.shape)
            placed.append((f"{side}.{section.name}", f"{side}.safetensors", section.dtype, shape))
    small = small_sections(message)
    names = [section.name for section in small]
    if set(small_lengths) != set(names):
        raise ValueError(f"sections: expected {names}, got {sorted(small_lengths)}")
    for name, dtype, length, _ in small:
        if length not in (None, small_lengths[name]):
            raise ValueError(f"{name}: expected {length} elements, got {small_lengths[name]}")
        placed.append((name, "state.safetensors", dtype, (small_lengths[name],)))
    return _placed(placed)


_Unplaced = tuple[str, str, str, tuple[int, ...]]


def _placed(sections: list[_Unplaced]) -> Layout:
    offsets: dict[str, int] = {}
    headers: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for file in TENSOR_FILES:
        in_file = [section for section in sections if section[1] == file]
        # The sort is stable, so sections of one element size stay in section order.
        in_file.sort(key=lambda section: -ITEM_BYTES[section[2]])
        entries: dict[str, Any] = {}
        end = 0
        for name, _, dtype, shape in in_file:
            begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
            entries[name] = {"data_offsets": [begin, end], "dtype": dtype, "shape": list(shape)}
        headers[file] = safetensors_header(entries)
        sizes[file] = len(headers[file]) + end
        offsets |= {name: len(headers[file]) + entry["data_offsets"][0] for name, entry in entries.items()}
    return Layout(tuple(Place(*section, offsets[section[0]]) for section in sections), headers, sizes)


def safetensors_header(entries: dict[str, Any]) -> bytes:
    """The length prefix and JSON of a safetensors file, padded to `ALIGNMENT` bytes."""
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


class Tensor(NamedTuple):
    """A section in a manifest: its place, and the SHA-256 of each block."""

    place: Place
    blocks: tuple[bytes, ...]

    @property
    def digest(self) -> bytes:
        """The digest of the section, 32 bytes."""
        return digest.section_digest(self.blocks)


def root_hash(revision: int, tensors: Iterable[Tensor]) -> bytes:
    """The root hash (32 bytes) of a state. tensors: all sections, in the format's order."""
    sections = (digest.Section(t.place.name, t.place.dtype, t.place.shape, t.digest) for t in tensors)
    return digest.root_hash(revision, sections)


def snapshot_id(revision: int, root: bytes) -> str:
    """The id of a snapshot: the revision in 20 digits, and 4 bytes of the root hash."""
    return f"{revision:020d}-{root[:4].hex()}"


def is_snapshot_id(text: str) -> bool:
    """Whether `text` has the form of a snapshot id. Such a text is a safe file name."""
    return _SNAPSHOT_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, repr=False)
class Manifest:
    """The content of a manifest. The docstring of this module explains the fields.

    tensors: in section order. Each hash has 32 bytes.
    """

    model: str
    lineage: uuid.UUID
    revision: int
    kernel_semantics: int
    log_hash: bytes
    log_hash_name: str
    created_us: int
    spec: bytes
    tensors: tuple[Tensor, ...]
    root_hash: bytes

    def __repr__(self) -> str:
        return f"Manifest({self.summary})"

    @property
    def summary(self) -> str:
        """A short description of the snapshot, for a repr."""
        rows = f"{self.users} users, {self.items} items, {len(self.tensors)} tensors"
        return f"model {self.model!r}, snapshot {self.snapshot_id}, {rows}"

    @property
    def snapshot_id(self) -> str:
        """The id of the snapshot."""
        return snapshot_id(self.revision, self.root_hash)

    @property
    def users(self) -> int:
        """The number of user rows."""
        return self._rows("users.keys")

    @property
    def items(self) -> int:
        """The number of item rows."""
        return self._rows("items.keys")

    def _rows(self, name: str) -> int:
        for tensor in self.tensors:
            if tensor.place.name == name:
                return tensor.place.shape[0]
        raise ValueError(f"tensors: {name} is missing")

    @property
    def layout(self) -> Layout:
        """The layout of the state. Raises ValueError if the tensors do not fit the spec."""
        tables = ("users.", "items.")
        lengths = {
            t.place.name: math.prod(t.place.shape)
            for t in self.tensors
            if not t.place.name.startswith(tables)
        }
        remembered = {t.place.name: t.place.shape[0] for t in self.tensors if len(t.place.shape) == 1}
        users, items = (remembered.get(f"{side}.seen_rows", 0) for side in SIDES)
        return layout(self.spec, self.users, self.items, lengths, (users, items))

    @property
    def size_bytes(self) -> int:
        """Size of all files in bytes, including the manifest."""
        return len(self.to_json()) + sum(self.layout.sizes.values())

    def computed_root(self) -> bytes:
        """The root hash that follows from the block hashes."""
        return root_hash(self.revision, self.tensors)

    def to_json(self) -> bytes:
        """The bytes of the manifest file."""
        body = self._fields()
        body["manifest_hash"] = hashlib.sha256(_canonical(body)).hexdigest()
        return _canonical(body)

    def _fields(self) -> dict[str, Any]:
        return {
            "created_us": self.created_us,
            "format": FORMAT,
            "kernel_semantics": self.kernel_semantics,
            "lineage": str(self.lineage),
            "log_hash": self.log_hash.hex(),
            "log_hash_name": self.log_hash_name,
            "model": self.model,
            "parent": None,
            "revision": self.revision,
            "root_hash": self.root_hash.hex(),
            "spec": self.spec.hex(),
            "tensors": [_tensor_fields(tensor) for tensor in self.tensors],
        }

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse and check the bytes of a manifest file, which may be hostile. Raises ValueError.

        In the result every field is in its domain. The places of the tensors and the lengths of the
        block lists follow from the spec and the row counts. The root hash and the manifest hash are
        those of the other fields.
        """
        manifest = _parsed(data)
        manifest._check()
        # Each content has one valid text. The comparison finds spaces, another order, repeated
        # keys, other spellings of numbers and wrong hashes.
        if manifest.to_json() != data:
            raise ValueError("its text is not canonical, or manifest_hash is wrong")
        return manifest

    def _check(self) -> None:
        if [t.place for t in self.tensors] != list(self.layout.places):
            raise ValueError("tensors: the layout does not fit the spec and the row counts")
        for place, blocks in self.tensors:
            if len(blocks) != -(-place.nbytes // digest.BLOCK_BYTES):
                raise ValueError(f"{place.name}: {len(blocks)} block hashes for {place.nbytes} bytes")
        if self.computed_root() != self.root_hash:
            raise ValueError("root_hash does not match the block hashes")
        if parse_spec(self.spec).kernel_semantics != self.kernel_semantics:
            raise ValueError("kernel_semantics: differs from the spec")


def manifest_bytes_max(tensor_bytes: int) -> int:
    """The maximum size of a manifest in bytes. A reader refuses a larger one before it parses it.

    tensor_bytes: size of all tensor files.
    """
    blocks = tensor_bytes // digest.BLOCK_BYTES + 32
    return min(MANIFEST_BYTES_MAX, _MANIFEST_BASE_BYTES + 2 * SPEC_BYTES_MAX + blocks * _BLOCK_TEXT_BYTES)


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _tensor_fields(tensor: Tensor) -> dict[str, Any]:
    place = tensor.place
    return {
        "blocks": [block.hex() for block in tensor.blocks],
        "digest": tensor.digest.hex(),
        "dtype": place.dtype,
        "file": place.file,
        "name": place.name,
        "offset": place.offset,
        "shape": list(place.shape),
    }


def _parsed(data: bytes) -> Manifest:
    try:
        fields = json.loads(data.decode("ascii"), parse_float=_no_float, parse_constant=_no_float)
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("the text is not ASCII") from None
    if not isinstance(fields, dict):
        raise ValueError("the text is not a JSON object")
    if _int(fields, "format", 1 << 31) != FORMAT:
        raise ValueError(f"format: expected {FORMAT}, got {fields['format']}")
    tensors = fields.get("tensors")
    if not isinstance(tensors, list):
        raise ValueError("tensors: expected a list")
    return Manifest(
        model=_text(fields, "model", _MODEL),
        lineage=uuid.UUID(_text(fields, "lineage", re.compile(r"[0-9a-f-]{36}"))),
        revision=_int(fields, "revision", 1 << 64),
        kernel_semantics=_int(fields, "kernel_semantics", 1 << 32),
        log_hash=_hash(fields, "log_hash"),
        log_hash_name=_text(fields, "log_hash_name", _HASH_NAME),
        created_us=_int(fields, "created_us", 1 << 63),
        spec=bytes.fromhex(_text(fields, "spec", _SPEC_HEX)),
        tensors=tuple(_tensor(tensor) for tensor in tensors),
        root_hash=_hash(fields, "root_hash"),
    )


def _tensor(fields: Any) -> Tensor:
    if not isinstance(fields, dict):
        raise ValueError("tensors: expected objects")
    shape, blocks = fields.get("shape"), fields.get("blocks")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 2:
        raise ValueError("shape: expected one or two lengths")
    if not isinstance(blocks, list):
        raise ValueError("blocks: expected a list")
    dtype = _text(fields, "dtype", re.compile("|".join(ITEM_BYTES)))
    lengths = tuple(_int({"shape": length}, "shape", 1 << 40) for length in shape)
    file = _text(fields, "file", re.compile("|".join(map(re.escape, TENSOR_FILES))))
    name = _text(fields, "name", re.compile(r"[a-z_.]{1,64}"))
    place = Place(name, file, dtype, lengths, _int(fields, "offset", 1 << 62))
    return Tensor(place, tuple(_hash({"block": block}, "block") for block in blocks))


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"expected only integers, got {text[:32]}")


def _int(fields: dict[str, Any], name: str, bound: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < bound:
        raise ValueError(f"{name}: expected an integer in 0..{bound - 1}")
    return value


def _text(fields: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"{name}: does not have the expected form")
    return value


def _hash(fields: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(_text(fields, name, _HEX32))
