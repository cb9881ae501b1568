"""An opponent for `livefactor evaluate`: iALS of the package implicit, fitted again and again.

A batch method knows only what was there when it was fitted. It is fitted at each tenth of the
judged part, or once before a held-out part. A user who is new since then gets the most popular
items.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise

import numpy as np

from livefactor_server.tuning.progressive import TOP, Stream, most_popular

FACTORS = 64
"""Factors of a row, as in the presets for rankings."""
MISSING = 'the opponent implicit needs its package: pip install "livefactor[bench]"'


def is_installed() -> bool:
    """Whether the package implicit and what it needs are installed."""
    return find_spec("implicit") is not None and find_spec("scipy") is not None


def implicit_ranks(
    stream: Stream, sample: np.ndarray, fitted_at: list[int], seed: int, on_events: Callable[[int], None]
) -> np.ndarray:
    """The place of each judged event's item in its user's list, int64[n]; `TOP` if it is in none.

    Args:
        stream: the events.
        sample: the judged events, bool[n].
        fitted_at: numbers of events that each fit knows, ascending. A fit answers up to the next.
        seed: the seed of the fits.
        on_events: called with the number of events that were judged or passed.
    """
    users, user_rows = np.unique(stream.user_keys, return_inverse=True)
    items, item_rows = np.unique(stream.item_keys, return_inverse=True)
    liked, shape, places = stream.values > 0, (users.size, items.size), []
    for start, stop in pairwise([*fitted_at, len(stream)]):
        known = np.arange(start)[liked[:start]]
        lists, of_user = _lists(user_rows[known], item_rows[known], shape, seed)
        at = start + np.flatnonzero(sample[start:stop])
        hits = lists[of_user[user_rows[at]]] == item_rows[at][:, None]
        places.append(np.where(hits.any(axis=1), hits.argmax(axis=1), TOP))
        on_events(stop)
    return np.concatenate(places)


def _lists(
    users: np.ndarray, items: np.ndarray, shape: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of item rows int64[m, TOP], -1 where an item is missing, and the list of each user.

    The last list has the most popular items.
    """
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    popular = np.full((1, TOP), -1)
    best = most_popular(np.bincount(items, minlength=shape[1]).astype(np.float64))
    popular[0, : best.size] = best
    known = np.unique(users)
    of_user = np.full(shape[0], known.size)
    if not known.size:
        return popular, of_user
    of_user[known] = np.arange(known.size)
    seen = csr_matrix((np.ones(users.size, np.float32), (of_user[users], items)), (known.size, shape[1]))
    # implicit brings a BLAS of its own.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(FACTORS, random_state=seed, num_threads=1)
        model.fit(seen, show_progress=False)
        found, _ = model.recommend(np.arange(known.size), seen, N=TOP, filter_already_liked_items=False)
    lists = np.full((known.size, TOP), -1)
    lists[:, : found.shape[1]] = found
    return np.vstack([lists, popular]), of_user
