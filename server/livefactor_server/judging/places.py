"""Places in top-k lists and predictions of a model, for events that it has not learned yet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from livefactor_kernels.backend import Backend
from livefactor_kernels.pins import Pin
from livefactor_kernels.reading.context.learning import factors_of
from livefactor_kernels.reading.persons import PersonReader, Persons
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS


def places(
    model: Backend,
    user_rows: np.ndarray,
    item_rows: np.ndarray,
    top: int,
    shift: np.ndarray | None = None,
    new_apart: bool = False,
) -> np.ndarray:
    """The place of each item in its user's list of `top` items, int64[n]; `top` if it is not there.

    Place 0 is the best. Lists are ordered by descending score, then by ascending item key. Repeats
    are not excluded. With `new_apart` the list of an event whose item is new to the user leaves out
    the items that the user had, as a caller asks for it who wants new items. `shift` float32[n, k]
    is what the context of each event adds to the factors of its user.
    """
    known_users, known_items = model.published
    place = np.full(item_rows.size, top)
    if not known_items or not item_rows.size:
        return place
    users = np.where(user_rows < known_users, user_rows, NO_ROW).astype(np.uint32)
    of_event = np.arange(len(users))
    if shift is None:
        users, of_event = np.unique(users, return_inverse=True)
    with model.pin() as pin:
        persons = PersonReader(model.spec).read(pin, users, pin.counts[ITEMS])
        if shift is not None:
            persons.factors[:, : shift.shape[1]] += shift
        is_new = np.zeros(len(item_rows), bool)
        if new_apart and (had := persons.items):
            is_new[:] = [row not in had[user] for user, row in zip(of_event, item_rows, strict=True)]
        for events, leaves_out in ((np.flatnonzero(~is_new), False), (np.flatnonzero(is_new), True)):
            asked, user = np.unique(of_event[events], return_inverse=True)
            lists = _lists(model, pin, _some(persons, asked), top, leaves_out)
            hits = lists[user] == item_rows[events, None]
            place[events] = np.where(hits.any(axis=1), hits.argmax(axis=1), top)
    return place


def _some(persons: Persons, chosen: np.ndarray) -> Persons:
    """The persons at the places `chosen` int64[n]."""
    items, followers = (
        [part[n] for n in chosen.tolist()] if part else [] for part in (persons.items, persons.followers)
    )
    truncated = persons.truncated[chosen]
    return Persons(persons.factors[chosen], persons.bias[chosen], items, truncated, followers)


def _lists(model: Backend, pin: Pin, persons: Persons, top: int, leaves_out: bool) -> np.ndarray:
    """The top-k lists of the persons, as item rows uint32[n, top]. Missing entries are NO_ROW."""
    count = len(persons.bias)
    lists = np.full((count, top), NO_ROW, np.uint32)
    if not count:
        return lists
    own, ends = np.empty(0, np.uint32), np.zeros(count + 1, np.int64)
    if leaves_out:
        own, ends = persons.exclusions(own, ends)
    rows, _, offsets = persons.top_k(pin, model.items.keys, top, np.empty(0, np.uint32), own, ends)
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
