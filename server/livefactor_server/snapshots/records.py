"""Reads the records of a log, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from livefactor_server.log.store import Log, Record


def between(log: Log, revision: int, last: int) -> Iterator[Sequence[Record]]:
    """Yields the records after `revision` up to `last`, many at a time."""
    groups = log.read_groups(revision + 1)
    while revision < last and (records := next(groups, None)) is not None:
        yield records[: last - revision]
        revision += len(records)


def present(log: Log, last: int) -> Iterator[Sequence[Record]]:
    """Yields the records up to `last` that the log has, many at a time. It passes a gap."""
    gap = log.gap
    if gap is None:
        yield from between(log, log.first_revision - 1, last)
        return
    yield from between(log, log.first_revision - 1, min(gap.first - 1, last))
    yield from between(log, gap.last, last)
