"""What users did with the lists that a champion and a challenger gave them.

A user's last list is remembered. Each later event with a value above 0 of this user counts for the
variant that gave the list, and is a hit if its item was in it. So the rates compare what the
variants did for their own users, whom a hash chose.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

USERS_MAX, ITEMS_MAX = 1 << 16, 100
"""Maximum number of users whose last lists are remembered, and of items of a list."""


@dataclass(slots=True)
class Variant:
    """The figures of the champion or of the challenger.

    Attributes:
        name: its name.
        answers: lists that it gave.
        events: later events of users with such a list.
        hits: those whose item was in the list.
    """

    name: str
    answers: int = 0
    events: int = 0
    hits: int = 0


class Outcomes:
    """Counts for two variants. Any thread may call it."""

    def __init__(self, champion: str, challenger: str) -> None:
        self.variants = Variant(champion), Variant(challenger)
        self._lists: OrderedDict[int, tuple[int, frozenset[int]]] = OrderedDict()
        self._lock = threading.Lock()

    def answered(self, variant: int, users: np.ndarray, items: np.ndarray, offsets: np.ndarray) -> None:
        """Remembers lists: user u's list of item keys is items[offsets[u]:offsets[u + 1]].

        `variant` is 0 for the champion and 1 for the challenger.
        """
        ends = offsets.tolist()
        with self._lock:
            self.variants[variant].answers += len(users)
            for place, user in enumerate(users.tolist()):
                first = ends[place]
                kept = frozenset(items[first : min(ends[place + 1], first + ITEMS_MAX)].tolist())
                self._lists[user] = variant, kept
                self._lists.move_to_end(user)
            while len(self._lists) > USERS_MAX:
                self._lists.popitem(last=False)

    def happened(self, users: np.ndarray, items: np.ndarray) -> list[tuple[int, int]]:
        """Counts events with values above 0: keys uint64[n].

        Returns (events, hits) of each variant.
        """
        events, hits = [0, 0], [0, 0]
        with self._lock:
            for user, item in zip(users.tolist(), items.tolist(), strict=True):
                found = self._lists.get(user)
                if found is not None:
                    events[found[0]] += 1
                    hits[found[0]] += item in found[1]
            found_all = list(zip(events, hits, strict=True))
            for variant, (more, matched) in zip(self.variants, found_all, strict=True):
                variant.events += more
                variant.hits += matched
        return found_all
