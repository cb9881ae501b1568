"""The records of one model's log for one follower, in messages of bounded size."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from livefactor.v1 import following_pb2
from livefactor_server.hosting.hosted import Hosted
from livefactor_server.log.erasing import entry_of
from livefactor_server.log.errors import LogDamaged, LogGap
from livefactor_server.log.following import Follower
from livefactor_server.log.format import Entry, Record, parts_of
from livefactor_server.snapshots.replay import log_folder
from livefactor_server.statuses import precondition, unavailable

MESSAGE_BYTES, MESSAGE_RECORDS = 1 << 20, 4096
"""Bytes of payloads after which a message takes no further record, and the most records in one."""

MARKS_MAX = 64
"""Maximum number of a follower's earlier records that are compared."""


class Tail:
    """Reads a log from one revision on. One thread at a time uses it.

    It holds what it read and has not sent: the records of one group, whose bodies lie in the file.
    """

    def __init__(self, hosted: Hosted, request: following_pb2.FollowLogRequest) -> None:
        """Begins after the revision that the follower has.

        Raises:
            Refused: FAILED_PRECONDITION if the follower's log is no beginning of this one, or if
                this log lacks the records that come next.
        """
        _check(hosted, request)
        self._reader = Follower(log_folder(hosted.folder), request.revision)
        self._groups: Iterator[Sequence[Record]] = iter(())
        self._group: Sequence[Record] = ()
        self._at = 0
        self._confirm = hosted.engine.confirmations is not None

    def message(self, until: int) -> bytes | None:
        """The next records up to a published revision, as a FollowLogResponse. None without any.

        Raises:
            Refused: FAILED_PRECONDITION if the records were deleted meanwhile, UNAVAILABLE if they
                were rewritten. A new Tail finds them.
        """
        message = following_pb2.FollowLogResponse(revision=until, confirm=self._confirm)
        size, last = 0, b""
        try:
            while size < MESSAGE_BYTES and len(message.records) < MESSAGE_RECORDS:
                record = self._next(until)
                if record is None:
                    break
                _add(message, entry_of(record))
                size += record.payload_bytes
                last = record.hash
        except LogGap as gap:
            raise precondition(f"follow: {gap}; the follower needs a new copy of the model") from None
        except LogDamaged:
            raise unavailable("follow: the log was rewritten; ask again") from None
        if not last:
            return None
        message.hash = last
        return message.SerializeToString()

    def _next(self, until: int) -> Record | None:
        while self._at == len(self._group):
            group = next(self._groups, None)
            if group is None:
                if self._reader.revision >= until:
                    return None
                self._groups = self._reader.read(until)
            else:
                self._group, self._at = group, 0
        self._at += 1
        return self._group[self._at - 1]


def _add(message: following_pb2.FollowLogResponse, entry: Entry) -> None:
    message.records.add(
        kind=entry.kind, revision=entry.revision, producer=entry.producer, epoch=entry.epoch,
        sequence=entry.sequence, time_us=entry.time_us, count=entry.count, rejects=bytes(entry.rejects),
        body=b"".join(map(bytes, parts_of(entry.body))), salt=entry.salt, commitment=entry.commitment, erasure=entry.erasure,
    )  # fmt: skip


def _check(hosted: Hosted, request: following_pb2.FollowLogRequest) -> None:
    """Checks that the log of the follower is a beginning of this one."""
    engine, lineage, revision = hosted.engine, request.lineage, request.revision
    log, own = engine.log, engine.log.lineage
    if lineage != own.bytes:
        theirs = uuid.UUID(bytes=lineage) if len(lineage) == len(own.bytes) else lineage.hex()
        raise precondition(f"follow: the leader's model has lineage {own}, the follower's has {theirs}")
    if request.term > hosted.term:
        raise precondition(
            f"follow: the follower has seen term {request.term}, and this server leads in term {hosted.term}: another"
            " server took its place"
        )
    if revision > engine.revision:
        raise precondition(
            f"follow: the follower is at revision {revision}, ahead of the leader at {engine.revision};"
            f" {_shared(hosted, request)}"
        )
    try:
        found = next(log.read(revision)).hash
    except LogGap as gap:
        raise precondition(f"follow: {gap}; the follower needs a new copy of the model") from None
    if found != request.hash:
        raise precondition(
            f"follow: the follower has other records than the leader up to revision {revision};"
            f" {_shared(hosted, request)}"
        )


def _shared(hosted: Hosted, request: following_pb2.FollowLogRequest) -> str:
    """How much both logs are known to share."""
    log = hosted.engine.log
    for mark in request.earlier[:MARKS_MAX]:
        if log.first_revision <= mark.revision <= hosted.engine.revision:
            try:
                if next(log.read(mark.revision)).hash == mark.hash:
                    return f"both have the same records up to revision {mark.revision} at least"
            except LogGap:
                break
    return "it is not known where they begin to differ"
