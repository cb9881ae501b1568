"""Parts of the description of a model: its features, and what its log has no more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FeatureReport:
    """A feature of a side. ids: how many users or items have it.

    strength: the length of its row of factors; 0 if nothing was learned of it.
    """

    name: str
    ids: int
    strength: float


@dataclass(frozen=True, slots=True)
class LogGap:
    """Revisions whose records a retention policy deleted from the log.

    time_us: when, in microseconds since 1970; 0 if the server does not know it yet. archived: they
    were moved to an archive. snapshot_revision, snapshot_root_hash: the snapshot that stands in for
    them, as the log names it.
    """

    first_revision: int
    last_revision: int
    time_us: int
    archived: bool
    snapshot_revision: int
    snapshot_root_hash: bytes
