"""Reads commit groups from memory and verifies them. `format.py` describes their layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from livefactor_server.log.crc32c import crc32c
from livefactor_server.log.errors import LogError
from livefactor_server.log.format import (
    CHECKED_FROM,
    CHECKSUM,
    ERASURE_BYTES,
    FLAG_ERASED,
    GROUP,
    GROUP_ALIGN,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    GROUP_VERSION,
    HASHED,
    HEAD,
    HEAD_BYTES,
    HEADER_VERSION,
    MAGIC,
    PRODUCER,
    PRODUCER_BYTES_MAX,
    SEALED_VERSION,
    BadGroup,
    Erasure,
    GroupHead,
    Record,
    align,
    commitment_of,
    is_zero,
)


def read_group_head(memory: memoryview, at: int, place: int, path: Path) -> GroupHead:
    """Reads and checks the header of the group at `memory[at:]`, byte `place` of the file `path`.

    Raises:
        BadGroup: no group starts here, or its header is damaged.
        LogError: another version of livefactor wrote the group.
    """
    raw = bytes(memory[at : at + GROUP_HEADER_BYTES])
    if len(raw) < GROUP_HEADER_BYTES:
        raise BadGroup(place, "the file ends inside a group's header")
    if not raw.startswith(GROUP_MAGIC):
        raise BadGroup(place, "no group starts here")
    if crc32c(raw[CHECKED_FROM:]) != CHECKSUM.unpack_from(raw, len(GROUP_MAGIC))[0]:
        raise BadGroup(place, "the checksum of the group's header is wrong")
    head = GroupHead._make(GROUP.unpack_from(raw, CHECKED_FROM))
    if head.version not in (GROUP_VERSION, SEALED_VERSION):
        raise LogError(
            f"{path} at byte {place}: the group has layout version {head.version}, which is not supported"
        )
    return head


def read_records(
    memory: memoryview, at: int, head: GroupHead, path: Path, new_hash: Callable[..., Any]
) -> list[Record]:
    """Reads the records of the group at `memory[at:]` and verifies them against its header `head`.

    Bodies are views of `memory`. Raises BadGroup if the group is not whole.
    """
    place = head.place
    end = at + head.size
    if head.version == SEALED_VERSION:
        raise BadGroup(place, "the encrypted bytes of the group do not match its tag")
    if head.size < GROUP_HEADER_BYTES or end > len(memory):
        raise BadGroup(place, "the file ends inside a group's payload")
    producers, cursor = _read_producers(memory, at + GROUP_HEADER_BYTES, end, head)
    heads_end = cursor + head.records * HEAD_BYTES
    if heads_end > end:
        raise BadGroup(place, "the group ends inside its record heads")
    heads = list(HEAD.iter_unpack(memory[cursor:heads_end]))
    erased = sum(1 for fields in heads if fields[2])
    payload = heads_end + erased * ERASURE_BYTES
    if payload + sum(fields[4] + fields[5] for fields in heads) > end:
        raise BadGroup(place, "the group ends inside its payloads")
    found, previous, revision, erasure_at = [], head.previous, head.revision, heads_end
    for kind, number, flags, count, rejects_size, body_size, above, since, salt in heads:
        producer, epoch, base = producers[number] if number < len(producers) else (b"", -1, 0)
        if epoch < 0 or flags & ~FLAG_ERASED:
            raise BadGroup(place, f"the head of revision {revision} is damaged")
        body_start = payload + rejects_size
        rejects, body = bytes(memory[payload:body_start]), memory[body_start : body_start + body_size]
        payload = body_start + body_size
        commitment = commitment_of(new_hash, salt, rejects, body)
        rows, erased_at = count, 0
        if flags:
            try:
                rows, erased_at, acknowledged, current = Erasure.from_bytes(memory, erasure_at)
            except ValueError as error:
                raise BadGroup(place, f"of revision {revision}, {error}") from None
            erasure_at += ERASURE_BYTES
            if commitment != current:
                raise BadGroup(place, f"the payload of revision {revision} does not match its commitment")
            commitment = acknowledged
        sequence, time_us = base + above, head.time_us + since
        hashed = HASHED.pack(
            MAGIC, HEADER_VERSION, kind, head.hash_id, len(producer), revision, epoch, sequence, time_us,
            count, commitment, previous, producer,
        )  # fmt: skip
        chain = new_hash(hashed).digest()
        found.append(
            Record(
                kind, revision, producer, epoch, sequence, time_us, count, rejects, body, salt, commitment,
                path, place, chain, previous, head, rows, erased_at,
            )
        )  # fmt: skip
        previous, revision = chain, revision + 1
    check_chain(place, previous, head.last)
    if not is_zero(memory[payload:end]):
        raise BadGroup(place, "the padding at the end of the group is damaged")
    return found


def check_chain(place: int, found: bytes, expected: bytes) -> None:
    """Raises BadGroup if the chain hash of the group at `place` is not the expected one."""
    if found != expected:
        raise BadGroup(place, "the records or payloads of the group do not match its hash")


def _read_producers(
    memory: memoryview, at: int, end: int, head: GroupHead
) -> tuple[list[tuple[bytes, int, int]], int]:
    """(id, epoch, smallest sequence) by number, and the index at which the record heads begin."""
    found, start = [(b"", 0, 0)], at
    for _ in range(head.producers):
        if at + PRODUCER.size > end:
            raise BadGroup(head.place, "the group ends inside its producers")
        epoch, sequence, length = PRODUCER.unpack_from(memory, at)
        at += PRODUCER.size
        found.append((bytes(memory[at : at + length]), epoch, sequence))
        at += length
    padded = start + align(at - start, GROUP_ALIGN)
    if any(len(producer) > PRODUCER_BYTES_MAX for producer, _, _ in found) or not is_zero(memory[at:padded]):
        raise BadGroup(head.place, "the group's producers are damaged")
    return found, padded
