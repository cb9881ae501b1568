"""Hashes of a model's state: what "bit-identical" is measured by.

A state is a list of sections (tensors) in a fixed order. A section's bytes are its elements, little-endian,
in row order without padding. They are hashed with SHA-256 in blocks of `BLOCK_BYTES`, so that damage has an
address and hashing needs no copy of the state; the section's digest is SHA-256 over its block digests, and
the root covers every section:

    livefactor-state 1 <revision>\\n
    <name> <dtype> <shape> <hex digest>\\n

with one line a section; a shape is spelled 3x64, a dtype as in safetensors (U64, I64, F32, F16,
BF16, U8).
Both ends use these functions: the server when it takes a snapshot, an auditor when it checks one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

BLOCK_BYTES = 1 << 20
"""Bytes of a block; the last block of a section is shorter."""

DIGEST_BYTES = 32
"""Bytes of every digest here (SHA-256)."""


class Section(NamedTuple):
    """One hashed section. `shape` in elements, `digest` as `section_digest` gives it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: bytes


class SectionHasher:
    """Block digests of a section that arrives in pieces of any size. Hashing releases the GIL."""

    __slots__ = ("_blocks", "_current", "_room")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._current = hashlib.sha256()
        self._room = BLOCK_BYTES

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Hash the next bytes of the section. `data` is C-contiguous."""
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
        """The block digests; an empty section has none. The hasher is not used again."""
        if self._room != BLOCK_BYTES:
            self._close_block()
        return tuple(self._blocks)


def section_digest(blocks: Iterable[bytes]) -> bytes:
    """SHA-256 (32 bytes) over a section's block digests in order."""
    return hashlib.sha256(b"".join(blocks)).digest()


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as the root's text spells it: (3, 64) -> "3x64"."""
    return "x".join(str(length) for length in shape)


def root_hash(revision: int, sections: Iterable[Section]) -> bytes:
    """SHA-256 (32 bytes) of a whole state at `revision`; `sections` in the format's fixed order."""
    text = hashlib.sha256(f"livefactor-state 1 {revision}\n".encode())
    for name, dtype, shape, digest in sections:
        text.update(f"{name} {dtype} {shape_text(shape)} {digest.hex()}\n".encode())
    return text.digest()
