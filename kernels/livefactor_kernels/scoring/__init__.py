"""Scores of candidates, and exact top-k lists.

The score of a user and an item is ((mean + user's bias) + item's bias) + user's factors . item's
factors, in float32, the dot product in 16 lanes: the same bits from every backend, for lists of
any length. A top-k list holds the k items of the highest scores, of equal scores those of the
lower key first. For few users every item is scored; for many a matrix product, whose order of
additions is not fixed, finds the items that its rounding error cannot rule out, and only they are
scored exactly. A list is made as of a pin (`pins/__init__.py`) without a lock: live rows are
scanned, then rows that were copied for the pin replace what was scanned of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Candidates(NamedTuple):
    """The scores of n users' candidates at one revision.

    Attributes:
        revision: the revision.
        scores: float32[m], user by user.
        user_known: which users have rows, bool[n].
        item_known: which candidates have rows, bool; one flag per key that was given.
    """

    revision: int
    scores: np.ndarray
    user_known: np.ndarray
    item_known: np.ndarray
