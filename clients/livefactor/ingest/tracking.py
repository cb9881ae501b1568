"""Which events of a partition have their outcome, so that reading can go on there after a crash."""

from __future__ import annotations

from collections.abc import Iterable

from livefactor.ingest.journal import Progress


class _Open:
    """A message of which not every event has its outcome."""

    __slots__ = ("events", "left", "mask")

    def __init__(self, events: int, mask: int) -> None:
        self.events = events
        self.mask = mask
        self.left = events - mask.bit_count()


class Tracker:
    """The messages of one partition, whose positions grow.

    progress: that of the journal. Events that it counts as done are not given out again.
    """

    def __init__(self, progress: Progress) -> None:
        self._after = progress.after
        self._earlier = dict(progress.partial)
        self._open: dict[int, _Open] = {}

    def is_done(self, position: int) -> bool:
        """Whether a message was done as a whole before."""
        return self._after is not None and position <= self._after

    def begin(self, position: int, events: int) -> int:
        """Open a message of so many events; returns the mask of those that were done before."""
        mask = self._earlier.pop(position, 0)
        self._open[position] = _Open(events, mask)
        self._advance()
        return mask

    def finish(self, position: int, indices: Iterable[int]) -> None:
        """Count events of an open message as done."""
        message = self._open[position]
        indices = list(indices)
        message.left -= len(indices)
        if message.left > 0:
            bits = 0
            for index in indices:
                bits |= 1 << index
            message.mask |= bits
        else:
            self._advance()

    def is_open(self, position: int) -> bool:
        """Whether an event of the message has no outcome yet."""
        message = self._open.get(position)
        return message is not None and message.left > 0

    def progress(self) -> Progress:
        """The progress to write into the journal."""
        partial = {
            position: message.mask if message.left > 0 else (1 << message.events) - 1
            for position, message in self._open.items()
            if message.mask or message.left <= 0
        }
        return Progress(self._after, {**self._earlier, **partial})

    def _advance(self) -> None:
        while self._open:
            position = next(iter(self._open))
            if self._open[position].left > 0:
                return
            del self._open[position]
            self._after = position
