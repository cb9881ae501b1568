"""What it costs to forget, and the report of an erasure. `Models.forget` returns it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from livefactor.errors import LivefactorError


@dataclass(frozen=True, slots=True)
class ForgetCost:
    """What it costs to forget users and items.

    records: records of the log that name one of them. rows: rows in them that do. events: those of
    the rows that are events. revisions: how many are replayed. segments, segment_bytes: files of
    the log that are rewritten because of these records. snapshots: how many are removed. seconds:
    estimated time until the report. begins_at: the revision of the snapshot with which the replay
    begins, if the log lacks its beginning; else 0. put_back_bytes: bytes of archived segments that
    are put back into the log before.
    """

    records: int
    rows: int
    events: int
    revisions: int
    segments: int
    segment_bytes: int
    snapshots: int
    seconds: float
    begins_at: int = 0
    put_back_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """The evidence of an erasure. It does not name whom it is about.

    erase, erased: the revisions of the two records. records, rows: how many older records named a
    subject, and rows in them. revision: that of the hashes. root_hash: 32 bytes over the whole
    state. learned_root_hash: the same without the answers to producers; it is that of a model whose
    log never had the rows. fields: all of the report. json: its bytes, whose SHA-256 the log has.
    """

    erase: int
    erased: int
    records: int
    rows: int
    revision: int
    root_hash: bytes
    learned_root_hash: bytes
    fields: dict[str, Any]
    json: bytes


def cost_of(message: Any) -> ForgetCost:
    """A ForgetCost message as plain values."""
    return ForgetCost(
        message.records,
        message.rows,
        message.events,
        message.revisions,
        message.segments,
        message.segment_bytes,
        message.snapshots,
        message.seconds,
        message.begins_at,
        message.put_back_bytes,
    )


def report_of(data: bytes) -> ErasureReport:
    """The report with these bytes. Raises LivefactorError if they are none."""
    try:
        fields = json.loads(data)
        return ErasureReport(
            erase=int(fields["erase"]),
            erased=int(fields["erased"]),
            records=int(fields["records"]),
            rows=int(fields["rows"]),
            revision=int(fields["revision"]),
            root_hash=bytes.fromhex(fields["root_hash"]),
            learned_root_hash=bytes.fromhex(fields["learned_root_hash"]),
            fields=fields,
            json=data,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise LivefactorError(f"the server sent a malformed report: {error}") from None
