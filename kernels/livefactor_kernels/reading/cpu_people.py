"""What users remember, for compiled code: one user at a time, and users end to end."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.history import DECAY_STEPS
from livefactor_kernels.numbers.compiled import compiled

_1, _OLDEST = np.uint64(1), np.int64(DECAY_STEPS - 1)


class Person(NamedTuple):
    """The remembered events of a user, oldest first: addresses of arrays, and their length.

    Attributes:
        rows: item rows, uint32[count].
        places: rows of the items in the arrays that the kernel reads, uint32[count].
        values, weights: float32[count].
        ages: in visits, below `DECAY_STEPS`, uint32[count].
        count: number of events.
    """

    rows: Any
    places: Any
    values: Any
    weights: Any
    ages: Any
    count: Any


class Histories(NamedTuple):
    """The remembered events of n users, end to end, each user's oldest first.

    Attributes:
        rows: item rows, uint32[m].
        values, weights: float32[m].
        ages: in visits, below `DECAY_STEPS`, uint32[m].
        ends: the events of user u are ends[u]:ends[u + 1], int64[n + 1].
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    ages: np.ndarray
    ends: np.ndarray

    def part(self, first: int, last: int) -> Histories:
        """The histories of the users [first, last)."""
        span = slice(int(self.ends[first]), int(self.ends[last]))
        rows, values, weights, ages = (column[span] for column in self[:-1])
        return Histories(rows, values, weights, ages, self.ends[first : last + 1] - self.ends[first])

    def last_rows(self, most: int) -> np.ndarray:
        """The rows of each user's last items, at most so many, newest first, uint32[any]."""
        lasts = [
            self.rows[max(start, stop - most) : stop][::-1]
            for start, stop in zip(self.ends[:-1].tolist(), self.ends[1:].tolist(), strict=True)
        ]
        return np.concatenate(lasts)


def histories_of(sections: dict[str, np.ndarray]) -> Histories:
    """The histories of users, given the sections of their rows."""
    rings = tuple(sections[name] for name in ("seen_rows", "seen_values", "seen_weights", "seen_visits"))
    counts = np.minimum(sections["seen_count"], np.uint32(rings[0].shape[1]))
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    size = int(ends[-1])
    (rows, ages), (values, weights) = np.empty((2, size), np.uint32), np.empty((2, size), np.float32)
    found = Histories(rows, values, weights, ages, ends)
    livefactor_order_kernel(*rings, sections["seen_count"], sections["visits"], *found)
    return found


@compiled
def livefactor_order_kernel(
    ring_rows: Any, ring_values: Any, ring_weights: Any, ring_visits: Any, seen: Any, visits: Any, rows: Any,
    values: Any, weights: Any, ages: Any, ends: Any,
) -> None:  # fmt: skip
    """Writes the events of rings [n, length], oldest first, to the arrays of `Histories`."""
    length = np.uint64(ring_rows.shape[1])
    for user in range(np.uint64(seen.size)):
        start, stop = np.uint64(ends[user]), np.uint64(ends[user + _1])
        first, present = np.uint64(seen[user]) - (stop - start), np.int64(visits[user])
        for n in range(stop - start):
            at, to = (first + n) % length, start + n
            rows[to], values[to], weights[to] = (
                ring_rows[user, at],
                ring_values[user, at],
                ring_weights[user, at],
            )
            age = present - np.int64(ring_visits[user, at])
            ages[to] = np.uint32(min(max(age, np.int64(0)), _OLDEST))
