"""Hashes of a model's state. Two states are bit-identical if their root hashes are equal.

A state is a list of sections (tensors) in a fixed order. The bytes of a section are its elements,
little-endian, in row order, without padding. They are hashed with SHA-256 in blocks of
`BLOCK_BYTES`. A block hash tells which block is damaged, and hashing needs no copy of the state.
The digest of a section is the SHA-256 over its block digests. The root hash is the SHA-256 over
this text, with one line for each section:

    livefactor-state 1 <revision>\\n
    <name> <dtype> <shape> <hex digest>\\n

A shape is written as 3x64, and a dtype by its safetensors name (U64, I64, F32, F16, BF16, U8).

The server calls these functions when it takes a snapshot, and the client when it verifies one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

BLOCK_BYTES = 1 << 20
"""Size of a block in bytes. The last block of a section may be shorter."""

DIGEST_BYTES = 32
"""Size of a SHA-256 digest in bytes."""


class Section(NamedTuple):
    """A hashed section. shape: in elements. digest: 32 bytes, from `section_digest`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: bytes


class SectionHasher:
    """Computes the block digests of a section that arrives in pieces of any size.

    It releases the GIL.
    """

    __slots__ = ("_blocks", "_current", "_room")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._current = hashlib.sha256()
        self._room = BLOCK_BYTES

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Hash the next bytes of the section. data: C-contiguous."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        while len(view):
            piece, view = view[: self._room], view[self._room :]
            self._current.update(piece)
            self._room -= len(piece)
            if self._room == 0:
                self._close_block()

    def _close_block(self) -> None:
        self._blocks.append(self._current.digest())
        self._current = hashlib.sha256()
        self._room = BLOCK_BYTES

    def finish(self) -> tuple[bytes, ...]:
        """The block digests. An empty section has none. Do not use the hasher afterwards."""
        if self._room != BLOCK_BYTES:
            self._close_block()
        return tuple(self._blocks)


def section_digest(blocks: Iterable[bytes]) -> bytes:
    """The digest of a section (32 bytes). blocks: its block digests in order."""
    return hashlib.sha256(b"".join(blocks)).digest()


def shape_text(shape: tuple[int, ...]) -> str:
    """The shape in the text of the root hash: "3x64" for (3, 64)."""
    return "x".join(str(length) for length in shape)


def root_hash(revision: int, sections: Iterable[Section]) -> bytes:
    """The root hash (32 bytes) of a state at `revision`.

    sections: all of them, in the format's order.
    """
    text = hashlib.sha256(f"livefactor-state 1 {revision}\n".encode())
    for name, dtype, shape, digest in sections:
        text.update(f"{name} {dtype} {shape_text(shape)} {digest.hex()}\n".encode())
    return text.digest()
