"""What can go wrong with a log.

LogError
├── LogMissing    there is no log in the folder, or its creation never finished: create it (again)
├── LogFull       no room on the disk; nothing of the group remains and the log goes on
├── LogFailed     a write or a sync failed: the log refuses everything until it is opened again
└── LogDamaged    bytes that were once synced are not what was written: path, offset and reason
"""

from __future__ import annotations

from pathlib import Path


class LogError(Exception):
    """Any trouble with a log."""


class LogMissing(LogError):
    """No log here: never created, or cut off inside its creation, before anything was acknowledged."""


class LogFull(LogError):
    """The disk (or the quota) has no room for the next segment or group."""


class LogFailed(LogError):
    """A write or sync failed; what reached the disk is unknown until recovery reads it."""


class LogDamaged(LogError):
    """Damage at or under the durable mark. `path` and `offset` (bytes) say where, `reason` what was found."""

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        super().__init__(f"the log is damaged: {path} at byte {offset}: {reason}")
        self.path, self.offset, self.reason = path, offset, reason
