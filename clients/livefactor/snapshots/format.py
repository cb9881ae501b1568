"""The snapshot format: which files and tensors, where every byte lies, the manifest. Pure functions.

A snapshot is a folder of exactly four files:

    manifest.json        canonical JSON (below)
    users.safetensors    users.keys U64[n]   users.factors F32[n,k]   users.bias F32[n], and what else a row has
    items.safetensors    the same of items
    state.safetensors    what is not in a table

`sections.py` lists the sections, with their dtypes and shapes.
The order of sections, which the root hash follows: users.* as above, items.* alike, then the state's by name. The
layout is a function of the spec (k, its optimizer, what factors are stored as) and of the row counts, so a reader computes the
expected layout and safetensors headers and compares: nothing in a header is ever interpreted. Within a file,
tensors of 8-byte elements come first, then 4, 2 and 1, without gaps (safetensors demands it), and data begins
at a multiple of 64 bytes (the header is padded with spaces), so that every tensor is aligned to its element
size. Headers are written with sorted names and no metadata, so the bytes depend on the state alone.

manifest.json: ASCII, keys sorted, no spaces, integers only, one line feed at the end. Hashes and the spec in
lower-case hex.

    created_us        int     microseconds since 1970 UTC; all that two snapshots of one state differ in
    format            1
    kernel_semantics  int     the spec's
    lineage           text    UUID; with revision the position
    log_hash          hex     the log's chain hash at this revision, made with log_hash_name
    log_hash_name     text
    manifest_hash     hex     SHA-256 over the canonical JSON (with the line feed) of all other fields; the
                              root hash covers the state, not the lineage or the log
    model             text    the name
    parent            null
    revision          int
    root_hash         hex     of the state (digest.py)
    spec              hex     the logged bytes of the livefactor.v1.ModelSpec message
    tensors           list    in section order: blocks [hex], digest hex, dtype, file, name, offset (in the
                              file, bytes), shape
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
"""The closed list of file names, the manifest first."""

ITEM_BYTES = {"U64": 8, "I64": 8, "F64": 8, "U32": 4, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
"""Bytes of an element by safetensors dtype: the whole list of dtypes that a snapshot may hold."""

NUMPY_DTYPES = dict(zip(ITEM_BYTES, ("<u8", "<i8", "<f8", "<u4", "<f4", "<f2", "<u2", "|u1"), strict=True))
"""What arrays have; NumPy knows no bfloat16, so those hold its bits."""

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
    """Where a section lies. `offset` is the byte in `file` at which it begins."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the section."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Layout:
    """Sections in order with their places, and for every tensor file its header and size in bytes."""

    places: tuple[Place, ...]
    headers: dict[str, bytes]
    sizes: dict[str, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all sections together."""
        return sum(place.nbytes for place in self.places)


def layout(spec: bytes, users: int, items: int, small_lengths: Mapping[str, int]) -> Layout:
    """The one layout of a state: `users` and `items` are row counts, `small_lengths` elements of each section beside the rows."""
    message = bounded_spec(spec)
    placed: list[_Unplaced] = []
    for side, rows in zip(SIDES, (users, items), strict=True):
        for name, dtype, shape, _ in row_sections(message, side):
            placed.append((f"{side}.{name}", f"{side}.safetensors", dtype, (rows, *shape)))
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
        mine = [section for section in sections if section[1] == file]
        mine.sort(key=lambda section: -ITEM_BYTES[section[2]])  # stable, so else in section order
        entries: dict[str, Any] = {}
        end = 0
        for name, _, dtype, shape in mine:
            begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
            entries[name] = {"data_offsets": [begin, end], "dtype": dtype, "shape": list(shape)}
        headers[file] = safetensors_header(entries)
        sizes[file] = len(headers[file]) + end
        offsets |= {name: len(headers[file]) + entry["data_offsets"][0] for name, entry in entries.items()}
    return Layout(tuple(Place(*section, offsets[section[0]]) for section in sections), headers, sizes)


def safetensors_header(entries: dict[str, Any]) -> bytes:
    """Length prefix and JSON of a safetensors file, padded with spaces to a multiple of `ALIGNMENT` bytes."""
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


class Tensor(NamedTuple):
    """A section as a manifest lists it: its place, and the SHA-256 of its blocks."""

    place: Place
    blocks: tuple[bytes, ...]

    @property
    def digest(self) -> bytes:
        """The section's digest, 32 bytes."""
        return digest.section_digest(self.blocks)


def root_hash(revision: int, tensors: Iterable[Tensor]) -> bytes:
    """The root hash (32 bytes) of sections in their order."""
    sections = (digest.Section(t.place.name, t.place.dtype, t.place.shape, t.digest) for t in tensors)
    return digest.root_hash(revision, sections)


def snapshot_id(revision: int, root: bytes) -> str:
    """The name of a snapshot: its revision, 20 digits, and the first four bytes of its root hash."""
    return f"{revision:020d}-{root[:4].hex()}"


def is_snapshot_id(text: str) -> bool:
    """Whether `text` has the form of a snapshot id (and so is a plain file name)."""
    return _SNAPSHOT_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, repr=False)
class Manifest:
    """A manifest's content; the module's docstring explains the fields. tensors: in section order. Hashes are 32
    bytes.
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
        """The snapshot in a few words, for a repr."""
        rows = f"{self.users} users, {self.items} items, {len(self.tensors)} tensors"
        return f"model {self.model!r}, snapshot {self.snapshot_id}, {rows}"

    @property
    def snapshot_id(self) -> str:
        """The snapshot's name."""
        return snapshot_id(self.revision, self.root_hash)

    @property
    def users(self) -> int:
        """User rows."""
        return self._rows("users.keys")

    @property
    def items(self) -> int:
        """Item rows."""
        return self._rows("items.keys")

    def _rows(self, name: str) -> int:
        for tensor in self.tensors:
            if tensor.place.name == name:
                return tensor.place.shape[0]
        raise ValueError(f"tensors: {name} is missing")

    @property
    def layout(self) -> Layout:
        """Where everything lies. Raises ValueError if the tensors do not fit the spec."""
        tables = ("users.", "items.")
        lengths = {
            t.place.name: math.prod(t.place.shape)
            for t in self.tensors
            if not t.place.name.startswith(tables)
        }
        return layout(self.spec, self.users, self.items, lengths)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, the manifest included."""
        return len(self.to_json()) + sum(self.layout.sizes.values())

    def computed_root(self) -> bytes:
        """The root hash that follows from the block hashes."""
        return root_hash(self.revision, self.tensors)

    def to_json(self) -> bytes:
        """The manifest file's bytes."""
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
        """Parse and check a manifest in itself. Raises ValueError saying what is wrong; nothing in `data` is
        trusted.

        Afterwards every field is in its domain, the tensors lie where the spec and row counts put them, the
        block lists have the right lengths, and root and manifest hash follow from the rest.
        """
        manifest = _parsed(data)
        manifest._check()
        # One text only: this catches spaces, order, doubled keys, spellings of numbers, other hashes.
        if manifest.to_json() != data:
            raise ValueError("not the canonical text of its content, or manifest_hash differs")
        return manifest

    def _check(self) -> None:
        if [t.place for t in self.tensors] != list(self.layout.places):
            raise ValueError("tensors: not the layout that spec and row counts give")
        for place, blocks in self.tensors:
            if len(blocks) != -(-place.nbytes // digest.BLOCK_BYTES):
                raise ValueError(f"{place.name}: {len(blocks)} block hashes for {place.nbytes} bytes")
        if self.computed_root() != self.root_hash:
            raise ValueError("root_hash does not follow from the block hashes")
        if parse_spec(self.spec).kernel_semantics != self.kernel_semantics:
            raise ValueError("kernel_semantics: not the spec's")


def manifest_bytes_max(tensor_bytes: int) -> int:
    """The most bytes a manifest of `tensor_bytes` may have: a reader refuses more before it parses."""
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
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not ASCII") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
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
    raise ValueError(f"numbers are integers, got {text[:32]}")


def _int(fields: dict[str, Any], name: str, bound: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < bound:
        raise ValueError(f"{name}: expected an integer in 0..{bound - 1}")
    return value


def _text(fields: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"{name}: not of the expected form")
    return value


def _hash(fields: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(_text(fields, name, _HEX32))
