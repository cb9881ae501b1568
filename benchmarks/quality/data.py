"""Events, and how they are divided into learned, held-out and tuning parts.

There are two sets. Online Retail has the first purchase of each item by each customer, 266,802
events. Repeats are not events, since every list leaves out the items that its user has.
MovieLens-1M, timed half, has the 487,650 ratings with a known time (users 1 to 2,999). Each rating
is positive, regardless of its stars.

There are two divisions, both by position in an order (`cut`). For Online Retail, the last 20 % of
all events are held out. For MovieLens, the last 20 % of each user's events are held out, since
nearly all of its users rate within one day and never return: a cut through all events would leave
few users on both sides. The other events are learned in time order.

Settings are tuned on an earlier cut of the same order: the first 64 % are learned, and the next 16
% are judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.progressive.data import Stream

VALIDATED_FROM, HELD_BACK_FROM = 0.64, 0.80
HOLD_OUT_DRAW = 20_11
"""Seed of the random order of `shuffled`."""


@dataclass(frozen=True, slots=True)
class Events:
    """n events in the order of learning.

    Attributes:
        users, items: small numbers, int32[n].
        values: float32[n].
        times: int64[n], microseconds; None if the order is not the time order.
        user_count, item_count: numbers of the whole set, so that all its parts use the same
            numbers.
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
        """The events that `chosen` (positions or a mask) selects, in its order."""
        columns = self.users[chosen], self.items[chosen], self.values[chosen]
        times = None if self.times is None else self.times[chosen]
        return Events(*columns, self.user_count, self.item_count, times)

    def untimed(self) -> Events:
        """The same events in the same order, without times."""
        return replace(self, times=None)

    def matrix(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The matrix float32[users, items]: 1, or the last weight (float[n]), where there is an
        event, else 0.
        """
        dense = np.zeros((self.user_count, self.item_count), np.float32)
        dense[self.users, self.items] = 1.0 if weights is None else weights
        return dense


@dataclass(frozen=True, slots=True)
class Division:
    """The events to learn, and the events to judge."""

    learned: Events
    judged: Events


@dataclass(frozen=True, slots=True)
class Judgement:
    """A set in an order.

    `tuning` selects the settings, and `final` gives the figures. Their judged parts are disjoint.
    """

    tuning: Division
    final: Division


def numbered(stream: Stream, once: bool) -> Events:
    """A stream with its keys replaced by small numbers in key order.

    With `once`, only the first event of a pair stays.
    """
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
    """The position of each event and the number of events that it is counted in, int64[n] each: of
    all, or of its user.
    """
    if not by_user:
        return np.arange(len(events)), np.full(len(events), len(events))
    counts = np.bincount(events.users, minlength=events.user_count)
    order = np.argsort(events.users, kind="stable")
    place = np.empty(len(events), np.int64)
    place[order] = np.arange(len(events)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts[events.users]


def cut(events: Events, by_user: bool, start: float, stop: float) -> Division:
    """Divides the events: those before the share `start` are learned, those in [start, stop) are
    judged.

    Shares are rounded down to events. With `by_user`, each user's events are divided separately.
    """
    place, count = places(events, by_user)
    first, last = np.floor(count * start), np.floor(count * stop)
    return Division(events.take(place < first), events.take((place >= first) & (place < last)))


def in_time(events: Events, by_user: bool) -> Judgement:
    """The set in its own order."""
    tuning, final = ((VALIDATED_FROM, HELD_BACK_FROM), (HELD_BACK_FROM, 1.0))
    return Judgement(cut(events, by_user, *tuning), cut(events, by_user, *final))


def shuffled(events: Events, by_user: bool) -> Judgement:
    """The set in one random order.

    Seeds permute the learned events (`reordered`) and never the held-out ones. So no held-out event
    of one seed helps to tune the settings of another.
    """
    order = np.random.default_rng(HOLD_OUT_DRAW).permutation(len(events))
    return in_time(events.take(order).untimed(), by_user)


def reordered(events: Events, seed: int) -> Events:
    """The same events in a random order."""
    return events.take(np.random.default_rng(seed).permutation(len(events)))
