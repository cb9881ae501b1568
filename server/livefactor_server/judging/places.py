"""Places in top-k lists and predictions of a model, for events that it has not learned yet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from livefactor_kernels.backend import Backend
from livefactor_kernels.reading.context.learning import factors_of
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS


def places(
    model: Backend, user_rows: np.ndarray, item_rows: np.ndarray, top: int, shift: np.ndarray | None = None
) -> np.ndarray:
    """The place of each item in its user's list of `top` items, int64[n]; `top` if it is not there.

    Place 0 is the best. Lists are ordered by descending score, then by ascending item key. Repeats
    are not excluded. `shift` float32[n, k] is what the context of each event adds to the factors of
    its user.
    """
    known_users, known_items = model.published
    if not known_items:
        return np.full(item_rows.size, top)
    users = np.where(user_rows < known_users, user_rows, NO_ROW)
    place = np.arange(len(users))
    if shift is None:
        users, place = np.unique(users, return_inverse=True)
    hits = _lists(model, users.astype(np.uint32), top, shift)[place] == item_rows[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1), top)


def _lists(model: Backend, user_rows: np.ndarray, top: int, shift: np.ndarray | None) -> np.ndarray:
    """The top-k lists of the users, as item rows uint32[users, top]. Missing entries are NO_ROW."""
    none, no_offsets = np.empty(0, np.uint32), np.zeros(user_rows.size + 1, np.int64)
    with model.pin() as pin:
        persons = PersonReader(model.spec).read(pin, user_rows, pin.counts[ITEMS])
        if shift is not None:
            persons.factors[:, : shift.shape[1]] += shift
        rows, _, offsets = persons.top_k(pin, model.items.keys, top, none, none, no_offsets)
    lists = np.full((user_rows.size, top), NO_ROW, np.uint32)
    for user, (start, stop) in enumerate(pairwise(offsets.tolist())):
        lists[user, : stop - start] = rows[start:stop]
    return lists


def shift_of(model: Backend, context: Bags | None, weight: float = 1.0) -> np.ndarray | None:
    """What the context of each event adds to the factors of its user, float32[n, k].

    None if the events or the model have no context. The caller is the only one that uses the model.
    """
    if context is None or not model.spec.context.size:
        return None
    return np.asarray(np.float32(weight) * factors_of(model.context(context.keys), context))


def predictions(model: Backend, user_rows: np.ndarray, item_rows: np.ndarray) -> np.ndarray:
    """The scores of (user, item) pairs, float64[n]. Unknown users and items have zero rows."""
    known_users, known_items = (
        np.where(rows < model.published[side], rows, NO_ROW).astype(np.uint32)
        for side, rows in ((USERS, user_rows), (ITEMS, item_rows))
    )
    users, place = np.unique(known_users, return_inverse=True)
    persons = PersonReader(model.spec).read(model, users, model.published[ITEMS])
    x, user_bias = persons.factors[place], persons.bias[place]
    y, item_bias = model.gather(ITEMS, known_items)
    dots = np.einsum("ij,ij->i", x.astype(np.float64), y.astype(np.float64))
    return model.mean + user_bias.astype(np.float64) + item_bias + dots  # type: ignore[no-any-return]
