"""Users for scoring. The semantics are in `reading/__init__.py`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from livefactor_kernels.history import DECAY_STEPS, decays
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.pins import View
from livefactor_kernels.reading import MIX, remembered
from livefactor_kernels.reading.cpu_counts import CountReader
from livefactor_kernels.reading.cpu_counts import Lists as ItemLists
from livefactor_kernels.reading.cpu_people import Histories, histories_of
from livefactor_kernels.reading.cpu_readers import MixReader, followers_of
from livefactor_kernels.reading.remembered import distinct
from livefactor_kernels.scoring.cpu_gains import Exclusions, Lists, with_gains
from livefactor_kernels.solve import FOLD_SWEEPS, GRAM, UNOBSERVED, SolveRates
from livefactor_kernels.solve.cpu_records import Side
from livefactor_kernels.solve.cpu_system import Events as SolveEvents
from livefactor_kernels.solve.cpu_system import Problem, Scratch, livefactor_fold_kernel
from livefactor_kernels.solve.features import NONE
from livefactor_kernels.spec.model import ModelSpec, Rule
from livefactor_kernels.tables import ITEMS, STARTS, USERS, has_starts

_USER_SECTIONS = ("seen_rows", "seen_values", "seen_weights", "seen_visits", "seen_count", "visits")
CHUNK_EVENTS, CHUNK_USERS = 8192, 32
"""Maximum number of events, and of users, that are read at once for a mix. One user may have more
events.
"""


class Source(remembered.Source, Protocol):
    """The source of a read: a pin, or a backend whose gate is held."""

    @property
    def mean(self) -> np.float32:
        """The global mean."""
        ...


class Events(NamedTuple):
    """The remembered events of a user, oldest first.

    Attributes:
        rows: item rows, uint32[n].
        values: float32[n].
        weights: present weights for fold-in, float32[n].
        repeats: present weights for repeats of their own items, float32[n].
        ages: visits since each event, int64[n].
        items: the rows of the items of the user's known events, uint32[m], ascending.
        truncated: whether the user had further events, which are forgotten.
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    repeats: np.ndarray
    ages: np.ndarray
    items: np.ndarray
    truncated: bool


@dataclass(frozen=True, slots=True)
class Persons:
    """Users for scoring: factors float32[n, kp] and biases float32[n].

    `items` has the items of each user's events: rows uint32[m], ascending. `truncated` bool[n]
    tells which users had further events, which are forgotten. `followers` has each user's
    followers: rows uint32[m], ascending, and their gains float32[m].
    """

    factors: np.ndarray
    bias: np.ndarray
    items: list[np.ndarray]
    truncated: np.ndarray
    followers: list[tuple[np.ndarray, np.ndarray]]

    def gains(self, user: int, rows: np.ndarray) -> np.ndarray:
        """The gains from counts for item rows uint32[n] of a user, float32[n]."""
        if not self.followers or not self.followers[user][0].size:
            return np.zeros(len(rows), np.float32)
        followers, gains = self.followers[user]
        place = np.minimum(np.searchsorted(followers, rows), followers.size - 1)
        return np.where(followers[place] == rows, gains[place], np.float32(0.0))

    def exclusions(self, own: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The exclusions of each user, and in addition the items of the user's events.

        Arguments and results have the form that `pins.Pin.top_k` takes.
        """
        ends = offsets.tolist()
        lists = [
            with_rows(own[start:stop], items)
            for start, stop, items in zip(ends[:-1], ends[1:], self.items, strict=True)
        ]
        return np.concatenate(lists), np.concatenate([[0], np.cumsum([part.size for part in lists])])

    def top_k(
        self,
        pin: View,
        keys: np.ndarray,
        k: int,
        common: np.ndarray,
        own: np.ndarray,
        own_offsets: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The exact top-k lists with the gains from counts; see `pins.Pin.top_k`.

        `keys` are the item keys by row. Gains are never negative. An item without a gain that is
        among the k best is therefore also among the k best without gains. So the k best without
        gains and all followers contain the k best.
        """
        best = Lists(*pin.top_k(self.factors, self.bias, k, common, own, own_offsets))
        if not self.followers:
            return best
        parts, ends = [], np.concatenate([[0], np.cumsum([rows.size for rows, _ in self.followers])])
        for first, last in _chunks(ends):
            followers = self.followers[first:last]
            rows, gains = (np.concatenate(column) for column in zip(*followers, strict=True))
            users = self.factors[first:last], np.float32(pin.mean) + self.bias[first:last]
            parts.append(
                with_gains(
                    users,
                    pin.gather(ITEMS, rows),
                    keys,
                    min(k, pin.counts[ITEMS]),
                    best.part(first, last),
                    Lists(rows, gains, ends[first : last + 1] - ends[first]),
                    Exclusions(common, own, own_offsets[first : last + 1]),
                )
            )
        rows, scores = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
        sizes = np.concatenate([np.diff(part[2]) for part in parts])
        return rows, scores, np.concatenate([[0], np.cumsum(sizes)])


def _are_in(rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Which rows `asked` uint32[m] are among `rows` uint32[n], ascending; bool[m]."""
    if not rows.size:
        return np.zeros(len(asked), bool)
    return np.asarray(rows[np.minimum(np.searchsorted(rows, asked), rows.size - 1)] == asked)


def with_rows(rows: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The union of two lists of distinct rows, uint32 and ascending.

    It copies the first list and sorts nothing, so the first may be long.
    """
    new = more[~_are_in(rows, more)]
    return np.insert(rows, np.searchsorted(rows, new), new) if new.size else rows


def _replaced(histories: Histories, own: list[Events | None]) -> Histories:
    """The histories, with the given events in place of those of a user."""
    parts = [
        histories.part(user, user + 1)[:-1]
        if events is None
        else (events.rows, events.values, events.weights, events.ages.astype(np.uint32))
        for user, events in enumerate(own)
    ]
    rows, values, weights, ages = (np.concatenate(column) for column in zip(*parts, strict=True))
    ends = np.concatenate([[0], np.cumsum([len(part[0]) for part in parts])])
    return Histories(rows, values, weights, ages, ends)


def _chunks(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Divides users into parts [first, last) of a bounded number of events and of users."""
    first, users = 0, len(ends) - 1
    while first < users:
        most = int(np.searchsorted(ends, ends[first] + CHUNK_EVENTS, side="right")) - 1
        last = min(max(most, first + 1), first + CHUNK_USERS, users)
        yield first, last
        first = last


class PersonReader:
    """Reads users of a model. Their histories, if any, are folded in. Any thread may call it."""

    def __init__(self, spec: ModelSpec) -> None:
        """Computes the decays. The first read compiles the kernels."""
        self._spec, self._rates = spec, SolveRates.of(spec)
        self._decay = decays(spec.history.half_life)
        self._repeat_decay = decays(spec.counts.half_life if spec.counts.repeat else 0.0)
        self._memory = threading.local()
        self._counts = CountReader(spec)

    def read(self, source: Source, user_rows: np.ndarray, item_count: int,
             own: list[Events | None] | None = None) -> Persons:  # fmt: skip
        """Reads the users of rows uint32[n] (or `NO_ROW`).

        `item_count` is the number of items of the model. `own` holds events that replace a user's
        history, or None.
        """
        factors, bias = source.gather(USERS, user_rows)
        if not self._spec.history.users:
            return Persons(factors, bias, [], np.zeros(len(bias), bool), [])
        if self._spec.mix.learning_rate:
            return self._mix(
                source, user_rows, self._users(source, user_rows, factors, bias), item_count, own
            )
        events = self._events(source, user_rows)
        if own is not None:
            pairs = zip(own, events, strict=True)
            events = [history if replacement is None else replacement for replacement, history in pairs]
        users = self._users(source, user_rows, factors, bias)
        followers = self._add_parts(source, user_rows, users, events, item_count)
        truncated = np.array([each.truncated for each in events], bool)
        return Persons(factors, bias, [each.items for each in events], truncated, followers)

    def _users(self, source: Source, user_rows: np.ndarray, factors: np.ndarray, bias: np.ndarray) -> Side:
        if not has_starts(self._spec, USERS):
            return Side(factors, bias)
        sections = source.read(USERS, user_rows, STARTS)
        start = np.zeros_like(factors)
        start[:, : self._spec.k] = sections[STARTS[0]]
        return Side(factors, bias, start, sections[STARTS[1]])

    def _add_parts(
        self, source: Source, user_rows: np.ndarray, users: Side, events: list[Events], item_count: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Folds the users in, if the rule does. Returns their followers."""
        if self._spec.rule == Rule.SOLVE:
            self._fold(source, user_rows, users, events, item_count)
        counts = self._spec.counts
        followers = [self._followers(source, each) for each in events] if counts.neighbors else []
        if counts.repeat:
            followers = followers or [_NO_FOLLOWERS] * len(events)
            followers = [self._add_repeats(*pair) for pair in zip(events, followers, strict=True)]
        return followers

    def _mix(
        self,
        source: Source,
        user_rows: np.ndarray,
        users: Side,
        item_count: int,
        own: list[Events | None] | None,
    ) -> Persons:
        """The users of a model with a mix."""
        sections = source.read(USERS, user_rows, _USER_SECTIONS)
        histories = histories_of(sections)
        truncated = sections["seen_count"] > np.diff(histories.ends)
        if own is not None:
            histories = _replaced(histories, own)
            truncated &= np.array([events is None for events in own], bool)
        if self._is_told_of_users:
            self._begin_without_events(source, user_rows, users, histories)
        reader, followers, items = self._mix_reader(), [], []
        for first, last in _chunks(histories.ends):
            starts = (column[first:last] if users.start_events.size else column for column in users[2:])
            part = Side(users.factors[first:last], users.bias[first:last], *starts)
            block = user_rows[first:last], part, histories.part(first, last)
            found = self._mix_part(reader, source, *block, item_count)
            followers += found[0]
            items += found[1]
        if own is not None:
            items = [
                rows if events is None else events.items for rows, events in zip(items, own, strict=True)
            ]
        return Persons(users.factors, users.bias, items, truncated, followers)

    def _told(self, source: Source, user_rows: np.ndarray) -> np.ndarray:
        """Which users have a bag of features, or a vector that is mapped; bool[n]."""
        told = np.zeros(len(user_rows), bool)
        if self._spec.features.size:
            told |= source.read(USERS, user_rows, ("bagged",))["bagged"] != NONE
        if self._spec.embeddings.user_dimension:
            told |= source.read(USERS, user_rows, STARTS)[STARTS[1]] != 0
        return told

    @property
    def _is_told_of_users(self) -> bool:
        return bool(self._spec.features.size or self._spec.embeddings.user_dimension)

    def _begin_without_events(
        self, source: Source, user_rows: np.ndarray, users: Side, histories: Histories
    ) -> None:
        """Sets the rows of users without events and without a bag to the mean of all users."""
        k = self._spec.k
        gram = source.state()[GRAM].reshape(2, k + 1, k + 1)[USERS]
        is_mean = (np.diff(histories.ends) == 0) & ~self._told(source, user_rows)
        if gram[k, k]:
            users.factors[is_mean, :k] = gram[k, :k] / gram[k, k]

    def _mix_part(
        self,
        reader: MixReader,
        source: Source,
        user_rows: np.ndarray,
        users: Side,
        histories: Histories,
        item_count: int,
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
        """Reads a few users, whose factors and biases are replaced (`MixReader.combine`)."""
        state, k = source.state(), self._spec.k
        lists = source.read(ITEMS, histories.last_rows(reader.span), ItemLists._fields)
        followers = followers_of(lists)
        seen = source.read(ITEMS, followers.rows, ("seen_count",))["seen_count"]
        unobserved = np.float32(state[UNOBSERVED][0]) if UNOBSERVED in state else self._rates.unobserved
        gram = state[GRAM].reshape(2, k + 1, k + 1)
        if self._is_told_of_users:
            # Without a number of users, users without events keep their rows.
            gram = gram.copy()
            gram[USERS, k, k] = 0.0
        items = source.gather(ITEMS, histories.rows)[0]
        neighbors = reader.neighbors.read(source, user_rows, histories)
        walks = reader.walks.read(source, user_rows, histories)
        parts = users, items, histories, lists, followers, seen, neighbors, walks
        return reader.combine(*parts, gram, unobserved, state[MIX], item_count)

    def _mix_reader(self) -> MixReader:
        reader: MixReader | None = getattr(self._memory, "mix", None)
        if reader is None:
            reader = self._memory.mix = MixReader(self._spec)
        return reader

    def history(self, source: Source, user_row: np.ndarray) -> Events:
        """The remembered events of the user of row uint32[1] (or `NO_ROW`).

        As `own` in `read` they give what the history gives.
        """
        if not self._spec.mix.learning_rate:
            return self._events(source, user_row)[0]
        sections = source.read(USERS, user_row, _USER_SECTIONS)
        user = {name: section[0] for name, section in sections.items()}
        rows, values, weights, ages = remembered.remembered(user)
        truncated = int(user["seen_count"]) > len(rows)
        # The experts take the weights without any decay.
        return Events(rows, values, weights, weights, ages, distinct(rows), truncated)

    def events_of(self, rows: np.ndarray) -> Events:
        """Events for item rows uint32[n], oldest first, of value 1 and weight 1. Each is a visit.

        If there are too many, the last ones are used for the score, as in a history. All of
        them count as items of the user.
        """
        items = distinct(rows)
        rows = rows[-self._spec.history.users :]
        ages = np.minimum(np.arange(len(rows))[::-1], DECAY_STEPS - 1)
        values = np.ones(len(rows), np.float32)
        return Events(rows, values, self._decay[ages], self._repeat_decay[ages], ages, items, False)

    def _events(self, source: Source, user_rows: np.ndarray) -> list[Events]:
        sections = source.read(USERS, user_rows, _USER_SECTIONS)
        return [
            self._order_events({name: section[n] for name, section in sections.items()})
            for n in range(len(user_rows))
        ]

    def _order_events(self, user: dict[str, np.ndarray]) -> Events:
        rows, values, weights, ages = remembered.remembered(user)
        positive_weights = weights * (values > 0)
        return Events(
            rows,
            values,
            weights * self._decay[ages],
            positive_weights * self._repeat_decay[ages],
            ages,
            distinct(rows),
            int(user["seen_count"]) > len(user["seen_rows"]),
        )

    def _fold(
        self, source: Source, user_rows: np.ndarray, users: Side, events: list[Events], item_count: int
    ) -> None:
        """Replaces the factors and biases of the users who have events."""
        scratch, k, (factors, bias, _, start_events) = self._scratch(), self._spec.k, users
        state = source.state()
        gram = state[GRAM].reshape(2, k + 1, k + 1)
        if not any(len(each.rows) for each in events) and not gram[USERS, k, k]:
            return
        rates = self._rates
        if UNOBSERVED in state:
            rates = rates._replace(unobserved=np.float32(state[UNOBSERVED][0]))
        scratch.everywhere[:k, :k] = (rates.unobserved * gram[ITEMS, :k, :k]).astype(np.float32)
        has_own = self._told(source, user_rows)
        if start_events.size:
            has_own |= start_events != 0
        for n, each in enumerate(events):
            if not len(each.rows):
                if gram[USERS, k, k] and not has_own[n]:
                    factors[n, :k] = gram[USERS, k, :k] / gram[USERS, k, k]
                continue
            item_factors, item_bias = source.gather(ITEMS, each.rows)
            items = Side(item_factors, item_bias)
            places = np.arange(len(each.rows), dtype=np.uint32)
            problem = Problem(source.mean, np.float32(item_count), rates)
            system = SolveEvents(
                rows=address_of(places),
                values=address_of(each.values),
                weights=address_of(each.weights),
                count=np.uint64(len(places)),
            )
            livefactor_fold_kernel(users, np.uint64(n), items, problem, system, scratch, FOLD_SWEEPS)
            factors[n] = scratch.x[: factors.shape[1]]
            if self._rates.has_bias:
                bias[n] = scratch.x[factors.shape[1]]

    def _scratch(self) -> Scratch:
        scratch: Scratch | None = getattr(self._memory, "scratch", None)
        if scratch is None:
            scratch = self._memory.scratch = Scratch.of(self._spec)
        return scratch

    def _followers(self, source: Source, events: Events) -> tuple[np.ndarray, np.ndarray]:
        counts = self._spec.counts
        last = slice(max(0, len(events.rows) - counts.span), None)
        rows, weights = events.rows[last][::-1], np.ascontiguousarray(events.weights[last][::-1])
        lists = source.read(ITEMS, rows, ItemLists._fields)
        if not lists["neighbor_rows"].size:
            return _NO_FOLLOWERS
        followers = self._counts.followers(lists)
        event_counts = source.read(ITEMS, followers, ("seen_count",))["seen_count"]
        return followers, self._counts.gains(lists, weights, followers, event_counts)

    def _add_repeats(
        self, events: Events, followers: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adds the gains of the events' own items to those of the followers."""
        rows = distinct(np.concatenate([followers[0], events.rows]))
        gains, repeats = np.zeros((2, len(rows)), np.float32)
        gains[np.searchsorted(rows, followers[0])] = followers[1]
        np.add.at(repeats, np.searchsorted(rows, events.rows), events.repeats)
        return rows, gains + np.float32(self._spec.counts.repeat) * repeats


_NO_FOLLOWERS = np.empty(0, np.uint32), np.empty(0, np.float32)
