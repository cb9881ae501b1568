"""How often ids were seen that have no rows yet: a counting sketch of fixed size.

A spec with `admission.sightings` n gives an id a row at its n-th event. The events before are in
the log, and the model does not learn them.

Each side has DEPTH rows of WIDTH counters of 8 bits, and an id has one counter in each row. An id
was seen as often as its lowest counter says, or less often, if other ids share all its counters.
After every WINDOW counted events all counters of the side are halved, rounded down. So a flood of
ids that come once neither fills the sketch nor takes memory. All of it depends on the log alone.
"""

from __future__ import annotations

import numpy as np

from livefactor.snapshots.sections import SIGHTINGS_DEPTH as DEPTH
from livefactor.snapshots.sections import SIGHTINGS_WIDTH as WIDTH

WINDOW = WIDTH // 2
"""Counted events of a side after which its counters are halved."""

_SIZE = DEPTH * WIDTH
_HALVES = bytes(number // 2 for number in range(256))
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)
_MIXER, _SHIFT = np.uint64(0xBF58476D1CE4E5B9), np.uint64(31)
_TOP = np.uint64(64 - WIDTH.bit_length() + 1)


def _places(ids: np.ndarray) -> np.ndarray:
    """The counters of ids uint64[n], int64[n, DEPTH]."""
    mixed = (ids ^ (ids >> _SHIFT)) * _MIXER
    mixed ^= mixed >> _SHIFT
    columns = (mixed[:, None] * _MULTIPLIERS) >> _TOP
    places: np.ndarray = columns.astype(np.int64) + np.arange(DEPTH) * WIDTH
    return places


class Sightings:
    """The sketches of both sides. One thread at a time uses it."""

    def __init__(self, needed: int) -> None:
        """`needed` is the number of the event at which an id gets a row."""
        self._needed = needed
        self._counters = bytearray(_SIZE), bytearray(_SIZE)
        self._since = [0, 0]

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return 2 * _SIZE

    def admit(self, side: int, ids: np.ndarray) -> np.ndarray:
        """Counts events of ids without rows, in order. Returns at which of them the id has a row.

        `ids` is uint64[n]. From the event on that gives it a row, an id is not counted.
        """
        counters, admitted = self._counters[side], set[int]()
        has_row = np.zeros(len(ids), bool)
        for number, (key, places) in enumerate(zip(ids.tolist(), _places(ids).tolist(), strict=True)):
            if key in admitted or min(counters[place] for place in places) + 1 >= self._needed:
                admitted.add(key)
                has_row[number] = True
            else:
                self._count(side, places)
        return has_row

    def count(self, side: int, ids: np.ndarray) -> None:
        """Counts events of ids uint64[n] that `admit` of another sketch left without a row."""
        for places in _places(ids).tolist():
            self._count(side, places)

    def _count(self, side: int, places: list[int]) -> None:
        counters = self._counters[side]
        for place in places:
            if counters[place] < 255:
                counters[place] += 1
        self._since[side] += 1
        if self._since[side] == WINDOW:
            self._since[side] = 0
            counters[:] = counters.translate(_HALVES)

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of the counters, by the names of the sections of a snapshot."""
        return {
            "sightings": np.frombuffer(b"".join(self._counters), np.uint8),
            "sightings.since": np.array(self._since, np.uint64),
        }

    def load(self, counters: np.ndarray, since: np.ndarray) -> None:
        """Sets the counters of a snapshot."""
        whole = counters.tobytes()
        self._counters = bytearray(whole[:_SIZE]), bytearray(whole[_SIZE:])
        self._since = [int(each) for each in since]
