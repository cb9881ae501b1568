"""The tail of a segment: the bytes of the stream's last block while that block is not full.

A power cut can tear a block of 4,096 bytes that is being rewritten. So the last block of the stream
is never rewritten in its place. Its bytes are written alternately to two tail slots at the start of
the segment. A write can tear only the slot that it goes to. The other slot still holds what was
acknowledged before. When the block is full, it is written to its place once.

A slot, little-endian and unsigned:

      0    8  magic        TAIL_MAGIC
      8    4  checksum     CRC32C of bytes 12 to 4095
     12    4  used         bytes of content
     16    8  counter      number of this slot write in the file; even ones go to the first slot
     24    8  base         byte of the file at which the block starts, a multiple of 4,096
     32    8  synced       end of the stream that was synced before this write
     40    4  incarnation  as in a group header
     44    4  segment      length of this file when it was made, in blocks of 4,096
     48   16  log id
     64       content, `used` bytes, then zeros

A mark is a slot write without new content whose `synced` is the end of the stream. It shows that
the last group was synced. It is written after some time without updates, and it takes no room in
the stream.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from livefactor_server.log.crc32c import crc32c
from livefactor_server.log.disk import BLOCK_BYTES, FileIO, write_all
from livefactor_server.log.format import DATA_START

TAIL_MAGIC = b"lvf-tail"
SLOTS = 2

_CHECKSUM = struct.Struct("<I")
_SLOT = struct.Struct("<IQQQII16s")
SLOT_HEADER_BYTES = len(TAIL_MAGIC) + _CHECKSUM.size + _SLOT.size
CONTENT_BYTES_MAX = BLOCK_BYTES - SLOT_HEADER_BYTES
"""Maximum bytes of a slot's content. A longer tail is padded to a full block instead."""

assert SLOT_HEADER_BYTES == 64
assert DATA_START == SLOTS * BLOCK_BYTES


class Slot(NamedTuple):
    """One slot write, with the fields of the table above.

    `base` and `synced` are bytes of the file, `segment` is in blocks.
    """

    counter: int
    base: int
    synced: int
    incarnation: int
    segment: int
    log_id: bytes
    content: bytes

    @property
    def end(self) -> int:
        """The byte of the file at which the stream ends according to this slot."""
        return self.base + len(self.content)


def place_of(counter: int) -> int:
    """The byte of the file that slot write number `counter` goes to."""
    return counter % SLOTS * BLOCK_BYTES


def pack_slot(buffer: memoryview, slot: Slot) -> None:
    """Writes the slot into the first BLOCK_BYTES of `buffer`."""
    fields = _SLOT.pack(
        len(slot.content), slot.counter, slot.base, slot.synced, slot.incarnation, slot.segment, slot.log_id
    )
    body = fields + slot.content.ljust(CONTENT_BYTES_MAX, b"\0")
    buffer[:BLOCK_BYTES] = TAIL_MAGIC + _CHECKSUM.pack(crc32c(body)) + body


def write_slot(io: FileIO, fd: int, slot: Slot, buffer: memoryview) -> None:
    """Writes one tail slot through `buffer`, BLOCK_BYTES of page-aligned memory.

    The next sync makes it durable. Raises OSError.
    """
    pack_slot(buffer, slot)
    write_all(io, fd, buffer[:BLOCK_BYTES], place_of(slot.counter))


def read_slots(view: memoryview) -> list[Slot]:
    """The intact slots of a segment, newest first. A torn write leaves only one."""
    found = []
    for start in range(0, DATA_START, BLOCK_BYTES):
        slot = _read_slot(bytes(view[start : start + BLOCK_BYTES]))
        if slot is not None and place_of(slot.counter) == start:
            found.append(slot)
    return sorted(found, reverse=True)


def both_used(view: memoryview) -> bool:
    """Whether both slots of a segment were written. A torn write leaves the other one whole, or
    empty.
    """
    return all(any(view[start : start + BLOCK_BYTES]) for start in range(0, DATA_START, BLOCK_BYTES))


def _read_slot(block: bytes) -> Slot | None:
    if len(block) < BLOCK_BYTES or not block.startswith(TAIL_MAGIC):
        return None
    checked = block[len(TAIL_MAGIC) + _CHECKSUM.size :]
    if crc32c(checked) != _CHECKSUM.unpack_from(block, len(TAIL_MAGIC))[0]:
        return None
    used, counter, base, synced, incarnation, segment, log_id = _SLOT.unpack_from(checked)
    content = block[SLOT_HEADER_BYTES : SLOT_HEADER_BYTES + used]
    return Slot(counter, base, synced, incarnation, segment, log_id, content)


def with_tail(view: memoryview, start: int, base: int, content: bytes) -> memoryview:
    """The bytes of the file from `start` on. `content` replaces those from `base` on."""
    if start >= base:
        return memoryview(content[start - base :])
    return memoryview(bytes(view[start:base]) + content)
