"""Events as training pairs: what a user had before, and the item that came next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NO_ITEM = -1


class Pairs(NamedTuple):
    """n pairs in the order of the events.

    Attributes:
        histories: the last items that the user had before, int64[n, length]; the latest comes
            first, and places without an item have `NO_ITEM`.
        items: the item that came next, int64[n]. It is none of the history.
        places: the number of the event, int64[n].
    """

    histories: np.ndarray
    items: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def take(self, chosen: np.ndarray) -> Pairs:
        """The pairs that `chosen` (a mask or numbers) selects."""
        return Pairs(*(column[chosen] for column in self))


def pairs_of(users: np.ndarray, items: np.ndarray, length: int) -> Pairs:
    """The pairs of n events, in their order.

    users: uint64[n]. items: numbers of items, int64[n]; negative ones have no text, and are
    left out. length: items of a history. An item that is in it is no next item, and a user's first
    item has no history.
    """
    kept = np.flatnonzero(items >= 0)
    recent: dict[int, list[int]] = {}
    histories, nexts, places = [], [], []
    for place, user, item in zip(kept.tolist(), users[kept].tolist(), items[kept].tolist(), strict=True):
        before = recent.setdefault(user, [])
        if item in before:
            continue
        if before:
            histories.append(before + [NO_ITEM] * (length - len(before)))
            nexts.append(item)
            places.append(place)
        before.insert(0, item)
        del before[length:]
    columns = np.array(histories, np.int64).reshape(-1, length), np.array(nexts, np.int64)
    return Pairs(*columns, np.array(places, np.int64))
