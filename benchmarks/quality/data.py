"""Events, and how they are divided: what is learned, what is held back, what settings are picked on.

Two sets. Online Retail: the first purchase of each item by each customer, 266,802 events; buying the same again
is no event here, since every list leaves out what its user has had. MovieLens-1M, timed half: the 487,650
ratings that have a time (users 1 to 2,999; the others' are unknown), each one positive, whatever its stars.

Two divisions, both by place in an order, `cut`. Online Retail: the last 20 % of all events are held back.
MovieLens: the last 20 % of each user's (nearly all of its users rate within one day and never come back:
a cut through all events leaves few users on both sides). What is left is learned in the order of time.

Settings are picked on an earlier cut of the same order: learned from its first 64 %, judged on the next 16 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.progressive.data import Stream

VALIDATED_FROM, HELD_BACK_FROM = 0.64, 0.80
HOLD_OUT_DRAW = 20_11
"""Seed of the one random order of `shuffled`."""


@dataclass(frozen=True, slots=True)
class Events:
    """Events in the order in which they are learned: users, items int32[n], small numbers; values float32[n]; times
    int64[n], microseconds, or None where the order is not time's.

    user_count, item_count: of the whole set, so that all parts of a set number alike.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    user_count: int
    item_count: int
    times: np.ndarray | None = None

    def __len__(self) -> int:
        return self.users.size

    def take(self, chosen: np.ndarray | slice) -> Events:
        """The events that `chosen` (places or a mask) names, in its order."""
        columns = self.users[chosen], self.items[chosen], self.values[chosen]
        times = None if self.times is None else self.times[chosen]
        return Events(*columns, self.user_count, self.item_count, times)

    def untimed(self) -> Events:
        """The same events in the same order, their times unknown."""
        return replace(self, times=None)

    def matrix(self, weights: np.ndarray | None = None) -> np.ndarray:
        """float32[users, items]: 1, or the last one of the weights (float[n]), where there is an event."""
        dense = np.zeros((self.user_count, self.item_count), np.float32)
        dense[self.users, self.items] = 1.0 if weights is None else weights
        return dense


@dataclass(frozen=True, slots=True)
class Division:
    """What is learned, and what the result is judged on."""

    learned: Events
    judged: Events


@dataclass(frozen=True, slots=True)
class Judgement:
    """A set in an order: `tuning` picks the settings, `final` gives the figures; judged parts are disjoint."""

    tuning: Division
    final: Division


def numbered(stream: Stream, once: bool) -> Events:
    """A stream with keys as small numbers, in the order of the keys. once: only a pair's first event stays."""
    user_keys, users = np.unique(stream.user_keys, return_inverse=True)
    item_keys, items = np.unique(stream.item_keys, return_inverse=True)
    events = Events(
        users.astype(np.int32), items.astype(np.int32), stream.values, user_keys.size, item_keys.size,
        stream.times,
    )  # fmt: skip
    if not once:
        return events
    firsts = np.unique(users.astype(np.int64) * item_keys.size + items, return_index=True)[1]
    return events.take(np.sort(firsts))


def places(events: Events, by_user: bool) -> tuple[np.ndarray, np.ndarray]:
    """(place of each event, events among which it has that place), int64[n] each: of all, or of its user's."""
    if not by_user:
        return np.arange(len(events)), np.full(len(events), len(events))
    counts = np.bincount(events.users, minlength=events.user_count)
    order = np.argsort(events.users, kind="stable")
    place = np.empty(len(events), np.int64)
    place[order] = np.arange(len(events)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts[events.users]


def cut(events: Events, by_user: bool, start: float, stop: float) -> Division:
    """The events before the share `start` to be learned, those from it and before `stop` to be judged on.

    Shares of the order given, rounded down to events; by_user: of each user's events on their own.
    """
    place, count = places(events, by_user)
    first, last = np.floor(count * start), np.floor(count * stop)
    return Division(events.take(place < first), events.take((place >= first) & (place < last)))


def in_time(events: Events, by_user: bool) -> Judgement:
    """The set as it came."""
    tuning, final = ((VALIDATED_FROM, HELD_BACK_FROM), (HELD_BACK_FROM, 1.0))
    return Judgement(cut(events, by_user, *tuning), cut(events, by_user, *final))


def shuffled(events: Events, by_user: bool) -> Judgement:
    """The set in one random order. Seeds permute what is learned (`reordered`), never what is held back: so no
    held-back event of one seed helps to pick the settings of another."""
    order = np.random.default_rng(HOLD_OUT_DRAW).permutation(len(events))
    return in_time(events.take(order).untimed(), by_user)


def reordered(events: Events, seed: int) -> Events:
    """The same events in a random order."""
    return events.take(np.random.default_rng(seed).permutation(len(events)))
