"""Learns the weights of a mix in compiled code (semantics: `reading/__init__.py`).

One call predicts all events of a record that are to be predicted. It reads the tables of the model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.history import DECAY_STEPS
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, address_of, prefetch
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import draw_below
from livefactor_kernels.reading import (
    CANDIDATES,
    COUNTS,
    EXPERTS,
    NEIGHBORS,
    OWN_MAX,
    POPULARITY,
    REPEATS,
    REPEATS_RATE,
    SIMILAR,
    WALK,
    WALKS,
    Reach,
    kinds_of,
)
from livefactor_kernels.reading.cpu_experts import (
    KINDS,
    NEAR_LANE,
    WALK_LANE,
    add_gains,
    dots_of,
    find_followers,
    find_repeats,
    fold_moments,
    fold_user,
    group_of,
    load_weights,
    place_of,
    popularity_moments,
    sort_gains,
    store_weights,
    weigh_everywhere,
    weigh_last,
    with_unobserved,
)
from livefactor_kernels.reading.cpu_neighbors import (
    add_gained,
    add_neighbors,
    find_neighbors,
    gaining_items,
    keep_best,
    share_out,
    weigh_own,
    weigh_walks,
)
from livefactor_kernels.reading.cpu_people import Person
from livefactor_kernels.reading.cpu_steps import step_blend, step_weights
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import word
from livefactor_kernels.solve.cpu_records import Side
from livefactor_kernels.solve.cpu_system import is_pulled
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.pages import copy_newest, event_at, memory_of, newest, one_back
from livefactor_kernels.tables.recent import Recent

_0, _1, _4 = np.uint64(0), np.uint64(1), np.uint64(4)
_CANDIDATES, _OWN_MAX, _AHEAD = np.uint64(CANDIDATES), np.uint64(OWN_MAX), np.uint64(8)
_OLDEST = np.int64(DECAY_STEPS - 1)
_F0, _F1, _D0, _D1 = np.float32(0.0), np.float32(1.0), np.float64(0.0), np.float64(1.0)


class Tables(NamedTuple):
    """The arrays of a model that a prediction reads, by row.

    Attributes:
        users, items: their rows.
        user_pages, item_pages: `Pages.fields`.
        visits, last_time: uint32 and int64 of users.
        seen, neighbor_rows, neighbor_counts: of items (`history/__init__.py`).
        popularity: the counts of items by kind, float32[cap, kinds].
        bagged: of users (`solve/features/__init__.py`), uint8; empty without features.
    """

    users: Side
    items: Side
    user_pages: np.ndarray
    item_pages: np.ndarray
    visits: np.ndarray
    last_time: np.ndarray
    seen: np.ndarray
    neighbor_rows: np.ndarray
    neighbor_counts: np.ndarray
    popularity: np.ndarray
    bagged: np.ndarray

    @staticmethod
    def of(users: Table, items: Table) -> Tables:
        """Of two tables, whose arrays never move."""
        assert users.pages is not None and items.pages is not None
        own, other = users.history, items.history
        bagged = users.padded().get("bagged", np.empty(0, np.uint8))
        return Tables(
            Side.of(users), Side.of(items), users.pages.fields, items.pages.fields, own["visits"],
            own["last_time"], other["seen_count"], other["neighbor_rows"], other["neighbor_counts"],
            other["popularity"].reshape(items.capacity, kinds_of(items.spec)), bagged,
        )  # fmt: skip


class Candidates(NamedTuple):
    """Working memory of predictions, for C candidates and H events (`history.users`).

    Attributes:
        events: rows of the user's events, uint32[H].
        values, weights, ages: float32[H], float32[H] and uint32[H].
        table: hash map of followers, uint32.
        slots, used: followers of each event, uint32[span, M], and their numbers, uint64[span].
        seen: numbers of events of the followers, uint32[span * M].
        shelf, trail: the last events of the user's last items, and of the neighbours; for similar
            users and for walks.
        is_taken: marks of items, uint8[cap]; 0 between predictions.
        rows, places: rows of candidates, and their places among the followers, uint32[C].
        z: standardised scores, float64[C, EXPERTS].
        odds, scores: float64[C].
        differences: float32[C].
    """

    events: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    ages: np.ndarray
    table: np.ndarray
    slots: np.ndarray
    used: np.ndarray
    seen: np.ndarray
    shelf: tuple[Recent, Recent]
    trail: tuple[Recent, Recent]
    is_taken: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    z: np.ndarray
    odds: np.ndarray
    scores: np.ndarray
    differences: np.ndarray

    @staticmethod
    def of(spec: ModelSpec) -> Candidates:
        """For the predictions of a model."""
        length, span = spec.history.users, min(spec.counts.span, spec.history.users)
        followers = span * spec.counts.neighbors
        most = gaining_items(spec) + 1 + CANDIDATES + OWN_MAX
        words = (length, length, followers, most, most)
        rows, ages, seen, candidates, places = (np.empty(size, np.uint32) for size in words)
        values, weights = np.empty((2, length), np.float32)
        table = np.zeros(1 << (2 * followers - 1).bit_length(), np.uint32)
        slots, used = np.empty((span, spec.counts.neighbors), np.uint32), np.empty(span, np.uint64)
        marks = reserve((spec.limits.items_max,), np.uint8, huge=False)
        odds, scores = np.empty((2, most))
        z, differences = reserve((most, EXPERTS), np.float64), np.empty(most, np.float32)
        return Candidates(
            rows,
            values,
            weights,
            ages,
            table,
            slots,
            used,
            seen,
            _shelf(SIMILAR, spec.mix.neighbors),
            _shelf(WALKS, spec.mix.walk_users),
            marks,
            candidates,
            places,
            z,
            odds,
            scores,
            differences,
        )


def _shelf(reach: Reach, users: int) -> tuple[Recent, Recent]:
    return Recent.of(reach.span, reach.users), Recent.of(users, reach.events)


class Prediction(NamedTuple):
    """What all predictions of a record share.

    Attributes:
        key, revision: of the draws.
        items: number of items before the record.
        other_count: number of items after it.
        rates: the rates, with the present weight of pairs without an event.
        shrinkage: of counts.
        span: number of events whose followers count.
        gram: float64[2, k + 1, k + 1].
        mix: the section.
        step: the learning rate.
        nobody: float64[k + 1] of zeros.
    """

    key: Any
    revision: Any
    items: Any
    other_count: Any
    rates: Any
    shrinkage: Any
    span: Any
    gram: Any
    mix: Any
    step: Any
    nobody: Any


@inlined
def _remember(tables: Any, columns: Any, visits: Any, event: Any, items: Any, room: Any) -> Any:
    """Writes the user's events before the visit of an event to `room`, oldest first.

    They are those of the history, and those in the record. `visits` int64[n] is working memory.
    Returns them.
    """
    user_rows, item_rows, values, weights, times = columns
    user, memory = np.uint64(user_rows[event]), memory_of(tables.user_pages)
    visit, last_time = np.int64(0), tables.last_time[user]
    for place in range(event):
        if np.uint64(user_rows[place]) == user:
            time = times[place] if times.size else np.int64(0)
            if time == 0 or time != last_time:
                visit += 1
            last_time = time
            visits[place] = visit
    # What came at the same time cannot be known before the event.
    now = times[event] if times.size else np.int64(0)
    known = visit - 1 if now != 0 and now == last_time else visit
    length = np.uint64(room.events.size)
    left, at = length, length
    place = event
    while place > _0 and left > _0:
        place -= _1
        if np.uint64(user_rows[place]) == user and visits[place] <= known:
            left -= _1
            if np.int64(item_rows[place]) < items:
                at -= _1
                room.events[at] = item_rows[place]
                room.values[at] = values[place] if values.size else _F1
                room.weights[at] = weights[place] if weights.size else _F1
                room.ages[at] = np.uint32(min(known - visits[place], _OLDEST))
    seen, present = word(memory.seen, user), np.int64(tables.visits[user])
    if seen > _0:
        index, place = newest(memory, user)
        for _ in range(min(seen, memory.length)):
            if left == _0:
                break
            row, value, weight, then = event_at(memory, index)
            index, place = one_back(memory, index, place)
            age = known + min(present - np.int64(then), _OLDEST)
            if age >= 0:
                left -= _1
                if np.int64(row) < items:
                    at -= _1
                    room.events[at], room.values[at], room.weights[at] = np.uint32(row), value, weight
                    room.ages[at] = np.uint32(min(age, _OLDEST))
    skip = at * _4
    rows = address_of(room.events) + skip
    return Person(
        rows, rows, address_of(room.values) + skip, address_of(room.weights) + skip, address_of(room.ages) + skip,
        length - at,
    )  # fmt: skip


@inlined
def _count_followers(
    tables: Any, person: Any, user: Any, shared: Any, decay: Any, count: Any, room: Any, desk: Any
) -> Any:
    """Finds what gains from the last events, and its gains. Returns the number of items.

    The items are the followers of the last events, and those of similar users and of walks.
    """
    followers, weights, hood, walked = desk.followers, desk.count_weights, desk.hood, desk.walked
    last, size = weigh_last(person, shared.span, decay, weights), _0
    table, seen, rows, gains = room.table, room.seen, followers.loose_rows, followers.loose
    table[:] = np.uint32(0)
    for n in range(last):
        item = word(person.rows, person.count - _1 - n)
        size, room.used[n] = find_followers(
            tables.neighbor_rows, tables.neighbor_counts, item, table, rows, size, room.slots[n]
        )
    for n in range(size):
        seen[n] = tables.seen[np.uint64(rows[n])]
        for kind in range(np.uint64(gains.shape[1])):
            gains[n, kind] = _F0
    for n in range(last):
        item = word(person.rows, person.count - _1 - n)
        own = np.float32(tables.seen[item])
        add_gains(
            tables.neighbor_counts, item, room.slots[n], room.used[n], own, seen, weights[:, n], shared.shrinkage,
            desk.norms, gains,
        )  # fmt: skip
    if hood.users.size:
        size = _add_similar(tables, person, user, hood, room.shelf, followers, size, NEAR_LANE)
    if desk.walk.users.size:
        found = _add_similar(tables, person, user, desk.walk, room.trail, walked, _0, _0)
        for n in range(found):
            own = np.float32(tables.seen[np.uint64(walked.loose_rows[n])])
            walked.loose[n, 0] /= np.sqrt(own + _F1)
        kept = keep_best(walked, found, desk.walk)
        size = add_gained(walked.rows[:kept], walked.gains[:kept, 0], hood, followers, size, WALK_LANE)
    sort_gains(followers, size, weights, last, count, desk)
    return size


@inlined
def _add_similar(
    tables: Any, person: Any, user: Any, hood: Any, shelf: Any, followers: Any, size: Any, lane: Any
) -> Any:
    """Adds the items of similar users, or of walks, to `size` others, and their gains.

    Returns the new number.
    """
    users, items, (taken, events) = memory_of(tables.user_pages), memory_of(tables.item_pages), shelf
    last = weigh_own(person, hood)
    for j in range(last):
        copy_newest(items, np.uint64(hood.own[j]), j, np.uint64(taken.rows.shape[1]), taken)
    if hood.is_walk:
        weigh_walks(hood, last, taken.seen, _0)
    count = find_neighbors(user, taken, _0, last, hood)
    for n in range(count):
        copy_newest(users, np.uint64(hood.users[n]), n, np.uint64(events.rows.shape[1]), events)
    if hood.is_walk:
        share_out(hood.similarities, events.seen, count)
    return add_neighbors(events, _0, hood.similarities[:count], last, hood, followers, size, lane)


@inlined
def _add_candidate(room: Any, size: Any, row: Any, place: Any, odds: Any) -> Any:
    """Appends a candidate. Returns the new number of candidates."""
    room.rows[size], room.places[size], room.odds[size] = np.uint32(row), np.uint32(place), odds
    return size + _1


@inlined
def _choose(
    shared: Any, event: Any, row: Any, followers: Any, found: Any, own: Any, kept: Any, room: Any
) -> Any:
    """Writes the candidates, that of the event's row first. Returns their number.

    `followers` and `own` are the rows of followers, and of the user's items: uint32[found] and
    uint32[kept], ascending. The place of a candidate without a gain from counts is `found`.
    """
    is_taken, items = room.is_taken, np.uint64(shared.items)
    for n in range(kept):
        is_taken[np.uint64(own[n])] = np.uint8(1)
    is_repeat = is_taken[row] != 0
    size, missing = _add_candidate(room, _0, row, place_of(followers, found, row), _D1), found
    for n in range(found):
        follower = np.uint64(followers[n])
        if is_taken[follower] == 0 and follower != row:
            size = _add_candidate(room, size, follower, n, _D1)
            is_taken[follower] = np.uint8(1)
    near, left = size, items - kept - size + (_1 if is_repeat else _0)
    is_taken[row] = np.uint8(1)
    if items <= _CANDIDATES:
        for further in range(items):
            if is_taken[further] == 0:
                size = _add_candidate(room, size, further, missing, _D1)
    else:
        for n in range(_CANDIDATES):
            further = draw_below(shared.key, shared.revision, event, n + _1, items)
            if is_taken[further] == 0:
                size = _add_candidate(room, size, further, missing, _D1)
        odds = np.float64(left) / np.float64(max(size - near, _1))
        for n in range(near, size):
            room.odds[n] = odds
    for n in range(near):
        is_taken[np.uint64(room.rows[n])] = np.uint8(0)
    for n in range(kept):
        is_taken[np.uint64(own[n])] = np.uint8(0)
    return size


@inlined
def _add_own(person: Any, row: Any, followers: Any, found: Any, repeats: Any, size: Any, room: Any) -> Any:
    """Appends the other items of the user's last events, by row. Returns the new number."""
    last, first = min(person.count, _OWN_MAX), size
    for n in range(last):
        own = word(person.rows, person.count - _1 - n)
        at = size
        while at > first and np.uint64(room.rows[at - _1]) > own:
            at -= _1
        if own == row or (at > first and np.uint64(room.rows[at - _1]) == own):
            continue
        for move in range(size - at):
            room.rows[size - move] = room.rows[size - move - _1]
        room.rows[at] = np.uint32(own)
        size += _1
    for n in range(first, size):
        room.odds[n], room.places[n] = _D1, np.uint32(place_of(followers, found, np.uint64(room.rows[n])))
    return size


@inlined
def _standardise(tables: Any, room: Any, size: Any, first_own: Any, found: Any, kept: Any, desk: Any) -> None:
    """Sets the standardised scores of the candidates. The user's own begin at `first_own`."""
    items, bias, z, rows, places = tables.items, tables.items.bias, room.z, room.rows, room.places
    means, scales, gains, repeats = desk.means, desk.scales, desk.followers.gains, desk.repeats
    x, m = address_of(desk.systems.x), np.uint64(desk.systems.y.shape[1])
    factors, line = address_of(items.factors), np.uint64(items.factors.shape[1]) * _4
    for n in range(size):
        ahead = factors + np.uint64(rows[min(n + _AHEAD, size - _1)]) * line
        for at in range(_0, line, VECTOR_BYTES):
            prefetch(ahead, at)
        row, place, own = np.uint64(rows[n]), np.uint64(places[n]), z[n]
        a, b, c = dots_of(x, m, items, row)
        own[0], own[1], own[2] = np.float64(a), np.float64(b), np.float64(c)
        for kind in range(KINDS):
            own[COUNTS + kind] = np.float64(gains[place, kind]) if place < found else _D0
        has_similar = gains.shape[1] > NEAR_LANE and place < found
        own[NEIGHBORS] = np.float64(gains[place, NEAR_LANE]) if has_similar else _D0
        has_walks = gains.shape[1] > WALK_LANE and place < found
        own[WALK] = np.float64(gains[place, WALK_LANE]) if has_walks else _D0
        own[REPEATS] = _D0
        if n == _0 or n >= first_own:
            at = place_of(repeats.rows, kept, row)
            if at < kept:
                own[REPEATS] = np.float64(repeats.gains[at, 0])
        own[POPULARITY] = np.float64(bias[row])
        for expert in range(EXPERTS):
            own[expert] = (own[expert] - means[expert]) * scales[expert]


@compiled
def _predict(tables: Any, person: Any, user: Any, event: Any, row: Any, shared: Any, decays: Any, room: Any,
             desk: Any) -> None:  # fmt: skip
    """Predicts an event whose item has row `row`, and steps the weights."""
    users, items = shared.gram[0], shared.gram[1]
    count = max(items[shared.rates.k, shared.rates.k], _D1)
    # The row of a user with a bag is what her features say.
    is_told = (tables.bagged.size and tables.bagged[user]) or is_pulled(tables.users, user)
    fold_user(
        tables.users,
        user,
        shared.nobody if is_told else users[shared.rates.k],
        tables.items,
        shared.other_count,
        shared.rates,
        person,
        decays.folds,
        desk,
    )
    fold_moments(items, shared.rates.k, count, desk)
    found = _count_followers(tables, person, user, shared, decays.counts, count, room, desk)
    kept = find_repeats(person, decays.repeats, count, desk)
    popularity_moments(shared.mix, count, desk)
    followers, own = desk.followers.rows, desk.repeats.rows
    is_new = place_of(own, kept, row) == kept
    known = _choose(shared, event, row, followers, found, own, kept, room)
    size = _add_own(person, row, followers, found, desk.repeats, known, room)
    _standardise(tables, room, size, known, found, kept, desk)
    group = group_of(tables.users, user, person.count)
    weights = desk.weights
    load_weights(shared.mix, group, weights)
    if is_new:
        unit = weights[POPULARITY] * desk.scales[POPULARITY]
        step_weights(weights, room.z, room.odds, known, True, shared.step, room)
        if tables.popularity.shape[1] > 1:
            step_blend(shared.mix, tables.popularity, known, unit, shared.step, room)
    step_weights(weights, room.z, room.odds, size, False, shared.step * REPEATS_RATE, room)
    store_weights(shared.mix, group, weights)


@compiled
def livefactor_predict_kernel(
    tables: Any, decays: Any, room: Any, desk: Any, user_rows: Any, item_rows: Any, values: Any, weights: Any,
    times: Any, predicted: Any, key: Any, revision: Any, items: Any, other_count: Any, rates: Any, unobserved: Any,
    shrinkage: Any, span: Any, gram: Any, mix: Any, step: Any,
) -> None:  # fmt: skip
    """Predicts the events of a record that `predicted` bool[n] selects, in order.

    The columns are those of `history.cpu.Columns`; `Prediction` has the other arguments.
    """
    rates = with_unobserved(rates, unobserved)
    shared = Prediction(
        key, revision, items, other_count, rates, shrinkage, span, gram, mix, step, np.zeros(gram.shape[2])
    )
    weigh_everywhere(gram[1], rates.k, unobserved, desk.systems.everywhere)
    columns, visits = (user_rows, item_rows, values, weights, times), np.empty(user_rows.size, np.int64)
    for event in range(np.uint64(predicted.size)):
        if predicted[event]:
            person = _remember(tables, columns, visits, event, items, room)
            user, row = np.uint64(user_rows[event]), np.uint64(item_rows[event])
            _predict(tables, person, user, event, row, shared, decays, room, desk)
