"""The exceptions of a log.

LogError
├── LogMissing    The folder has no log, or its creation did not finish. It can be created again.
├── LogFull       The disk has no room. Nothing of the group remains, and the log still works.
├── LogGap        A retention policy deleted the records that the caller wants to read.
├── LogFailed     A write or a sync failed. The log refuses all records until it is opened again.
├── WrongKey      The log is encrypted with another key, or it is not encrypted.
└── LogDamaged    Synced bytes differ from what was written. It names the path, offset and reason.
"""

from __future__ import annotations

from pathlib import Path


class LogError(Exception):
    """The base class of all errors of a log."""


class LogMissing(LogError):
    """The folder has no log.

    It was never created, or its creation was interrupted before any ack.
    """


class LogFull(LogError):
    """The disk or the quota has no room for the next segment or group."""


class LogGap(LogError):
    """The records were deleted by a retention policy, or their segments are missing."""


class LogFailed(LogError):
    """A write or a sync failed. Only recovery can tell what reached the disk."""


class WrongKey(LogError):
    """The log is encrypted with another key, or a key is given for a log that is not encrypted."""


class LogDamaged(LogError):
    """The synced part of the log is damaged.

    Attributes:
        path: the damaged file.
        offset: the first damaged byte.
        reason: what was found there.
    """

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        super().__init__(f"the log is damaged: {path}, byte {offset}: {reason}")
        self.path, self.offset, self.reason = path, offset, reason
