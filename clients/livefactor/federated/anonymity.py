"""Less about people in an export of events: pseudonyms, randomised items, and a report.

Neither pseudonyms nor k-anonymity are differential privacy. `randomised` is, for one event: what it
says of the item of an event is bounded by epsilon, and n events of a user have n * epsilon.
"""

from __future__ import annotations

import hmac
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

KEY_BYTES_MIN, PSEUDONYM_BYTES = 16, 16
EPSILON_MAX = 64.0


def pseudonyms(
    ids: Sequence[Any] | npt.NDArray[Any], periods: npt.NDArray[np.int64], key: bytes
) -> list[str]:
    """A pseudonym of 32 hex digits for each id, of HMAC-SHA256.

    periods: int64[n]. An id has another pseudonym in each period, and without the key nobody can
    tell that they belong together. Raises ValueError for a key below `KEY_BYTES_MIN` bytes.
    """
    if len(key) < KEY_BYTES_MIN:
        raise ValueError(f"key: expected at least {KEY_BYTES_MIN} bytes, got {len(key)}")
    keys = {period: _mac(key, b"period %d" % period) for period in np.unique(periods).tolist()}
    known: dict[tuple[Any, int], str] = {}
    found = []
    for one in zip(np.asarray(ids).tolist(), periods.tolist(), strict=True):
        if one not in known:
            kind = b"s" if isinstance(one[0], str) else b"i"
            known[one] = _mac(keys[one[1]], kind + str(one[0]).encode())[:PSEUDONYM_BYTES].hex()
        found.append(known[one])
    return found


def keep_share(epsilon: float, catalogue: int) -> float:
    """The share of events whose item `randomised` keeps on purpose."""
    return (math.exp(epsilon) - 1.0) / (math.exp(epsilon) - 1.0 + catalogue)


def randomised(items: npt.NDArray[np.int64], catalogue: int, epsilon: float) -> npt.NDArray[np.int64]:
    """Randomised response: each item 0..catalogue - 1 is kept, or drawn anew from all of them.

    Whatever item comes out, no item makes that more than exp(epsilon) times as likely as another
    one (Kairouz, Bonawitz, Ramage, ICML 2016). The draws come from the operating system. Raises
    ValueError for an epsilon outside (0, 64].
    """
    if not 0.0 < epsilon <= EPSILON_MAX:
        raise ValueError(f"epsilon: expected above 0 and at most {EPSILON_MAX:g}, got {epsilon}")
    if not 1 <= catalogue <= 1 << 31:
        raise ValueError(f"catalogue: expected 1..2**31 items, got {catalogue}")
    n = len(items)
    # 53 bits of the operating system are a number in [0, 1).
    coins = (_words(n) >> np.uint64(11)) * 2.0**-53
    # 64 bits modulo at most 2**31 favour no item by more than 2**-33.
    drawn = (_words(n) % np.uint64(catalogue)).astype(np.int64)
    return np.where(coins < keep_share(epsilon, catalogue), items, drawn)


@dataclass(frozen=True, slots=True)
class Anonymity:
    """How many users stand behind an item, and behind a set of items.

    rare_items: items with fewer than k users. events_of_rare_items: their events. exposed_users:
    users with a set of items that fewer than k users have. smallest: users of the rarest item.
    """

    k: int
    users: int
    items: int
    rare_items: int
    events_of_rare_items: int
    exposed_users: int
    smallest: int


def users_of_items(users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of different users of each item, int64[largest item + 1]."""
    pairs = np.unique(np.column_stack([items, users]), axis=0)
    return np.bincount(pairs[:, 0], minlength=int(items.max()) + 1)


def anonymity(users: npt.NDArray[np.int64], items: npt.NDArray[np.int64], k: int) -> Anonymity:
    """The report of n events with numbered users and items, int64[n] each. Raises ValueError for no
    events and for a k below 1.
    """
    if k < 1 or not len(users):
        raise ValueError(f"expected events and a k of at least 1, got {len(users)} events and {k}")
    behind = users_of_items(users, items)
    present = behind[behind > 0]
    rare = (behind > 0) & (behind < k)
    pairs = np.unique(np.column_stack([users, items]), axis=0)
    _, starts = np.unique(pairs[:, 0], return_index=True)
    sets = [sha256(part.tobytes()).digest() for part in np.split(pairs[:, 1], starts[1:])]
    _, counts = np.unique(np.array(sets, "S32"), return_counts=True)
    return Anonymity(
        k,
        len(sets),
        len(present),
        int(rare.sum()),
        int(rare[items].sum()),
        int(counts[counts < k].sum()),
        int(present.min()),
    )


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _words(n: int) -> npt.NDArray[np.uint64]:
    return np.frombuffer(os.urandom(8 * n), np.uint64)
