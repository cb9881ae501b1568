"""Encryption at rest: the key of the process, and groups that are sealed with it.

A sealed group has SEALED_VERSION in its header. Its header is plain, and names the key. Everything
after the header is encrypted with AES-256-GCM, and the header is authenticated with it:

    group header │ ciphertext │ tag, 16 bytes │ nonce, 12 bytes

Commitments and chain hashes are those of the plain records, so the chain does not depend on the
encryption. Each log has a key of its own, derived from the given one and the log id. A nonce is
random and fresh at each write, also when a group of the last block is written again.

Without a key the package `cryptography` is not imported.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from livefactor_server.log.crc32c import crc32c
from livefactor_server.log.errors import WrongKey
from livefactor_server.log.format import (
    CHECKSUM,
    GROUP,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    GROUP_VERSION,
    NO_KEY,
    SEALED_VERSION,
    BadGroup,
    GroupHead,
)
from livefactor_server.log.parsing import read_group_head

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
TAG_BYTES, NONCE_BYTES = 16, 12
SEAL_BYTES = TAG_BYTES + NONCE_BYTES
"""Bytes by which a sealed group is longer than a plain one."""

WINDOW_BYTES = 1 << 20
"""About so many bytes of groups are opened at a time."""


class Key:
    """A key for data at rest.

    Attributes:
        id: 4 bytes that tell one key from another. They reveal nothing of it.
    """

    def __init__(self, secret: bytes) -> None:
        """Takes a secret of KEY_BYTES random bytes."""
        assert len(secret) == KEY_BYTES
        self.secret = secret
        self.id = _derived(secret, b"", b"livefactor key id", 4)

    def __repr__(self) -> str:
        return f"Key({self.id.hex()})"

    def cipher(self, purpose: str, salt: bytes) -> AESGCM:
        """The cipher of one log or one file, which `salt` names."""
        return _cipher(self.secret, purpose, salt)


@lru_cache(maxsize=256)
def _cipher(secret: bytes, purpose: str, salt: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(_derived(secret, salt, f"livefactor {purpose}".encode(), KEY_BYTES))


def _derived(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), length, salt, info).derive(secret)


_key: list[Key] = []


def use(key: Key | None) -> None:
    """Sets the key of the process. None means that data is not encrypted."""
    _key[:] = [] if key is None else [key]


def present() -> Key | None:
    """The key of the process, or None."""
    return _key[0] if _key else None


class GroupSeal(NamedTuple):
    """What seals the groups of one log."""

    key_id: bytes
    cipher: AESGCM

    def close(self, buffer: memoryview, at: int, size: int) -> None:
        """Seals the group of `size` bytes at `buffer[at:]`. Its last SEAL_BYTES are unused."""
        start, end = at + GROUP_HEADER_BYTES, at + size - SEAL_BYTES
        nonce = os.urandom(NONCE_BYTES)
        sealed = self.cipher.encrypt(nonce, buffer[start:end], bytes(buffer[at:start]))
        buffer[start : end + TAG_BYTES] = sealed
        buffer[end + TAG_BYTES : at + size] = nonce


def seal_of(log_id: bytes) -> GroupSeal | None:
    """What seals the groups of the log with this id. None without a key."""
    key = present()
    return None if key is None else GroupSeal(key.id, key.cipher("log", log_id))


def opened(
    memory: memoryview, origin: int, offset: int, path: Path, bytes_most: int = WINDOW_BYTES
) -> tuple[memoryview, int]:
    """Memory in which the groups from byte `offset` of the file on are plain, as many as fit.

    Groups that are plain anyway, or that cannot be opened, stay in their memory.

    Args:
        memory: bytes of the file.
        origin: the byte of the file at which they start.
        offset: the byte of the file at which a group starts.
        path: the file, for errors.
        bytes_most: no further group is opened after so many bytes.

    Returns:
        The memory, and the byte of the file at which it starts.

    Raises:
        WrongKey: the group needs another key, or no key.
    """
    at, plain = offset - origin, bytearray()
    while len(plain) < bytes_most:
        head = _head(memory, at, origin + at, path)
        if head is None or head.version != SEALED_VERSION:
            break
        piece = _plain(memory, at, head)
        if piece is None:
            break
        plain += piece
        at += head.size
    return (memoryview(plain), offset) if plain else (memory, origin)


def _head(memory: memoryview, at: int, place: int, path: Path) -> GroupHead | None:
    """The header of a group that the key of the process fits, or None without a whole header."""
    try:
        head = read_group_head(memory, at, place, path)
    except BadGroup:
        return None
    key = present()
    wanted = NO_KEY if key is None else key.id
    if head.key == wanted:
        return head
    if key is None:
        raise WrongKey(
            f"{path} is encrypted with the key {head.key.hex()}, and no key is given"
            " (--encryption-key-file or --encryption-key-command)"
        )
    if head.key == NO_KEY:
        raise WrongKey(
            f"{path} is not encrypted, and a key is given; leave the key out, or make an encrypted copy"
            " with `livefactor encrypt`"
        )
    raise WrongKey(f"{path} is encrypted with the key {head.key.hex()}, and the given key is {key.id.hex()}")


def _plain(memory: memoryview, at: int, head: GroupHead) -> bytes | None:
    """The bytes of a sealed group as those of a plain one. None if it is damaged or not whole."""
    key, start, end = present(), at + GROUP_HEADER_BYTES, at + head.size
    if key is None or head.size < GROUP_HEADER_BYTES + SEAL_BYTES or end > len(memory):
        return None
    from cryptography.exceptions import InvalidTag

    cipher, nonce = key.cipher("log", head.log_id), memory[end - NONCE_BYTES : end]
    try:
        rest = cipher.decrypt(nonce, memory[start : end - NONCE_BYTES], bytes(memory[at:start]))
    except InvalidTag:
        return None
    header = GROUP.pack(*head._replace(version=GROUP_VERSION, key=NO_KEY))
    return b"".join((GROUP_MAGIC, CHECKSUM.pack(crc32c(header)), header, rest, bytes(SEAL_BYTES)))
