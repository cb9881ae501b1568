"""Users for scoring: their rows after fold-in of recent events, and the followers of these events.

Reads change nothing. An event of a user's history has the weight weight * decay(visits - the
event's visit) with the half-life `history.half_life`. With rule SOLVE, the user's row is solved for
these events given the present items, in `FOLD_SWEEPS` sweeps from the present row. This
approximates the row that results if everything else had been learned before it. A user without
events gets the mean of all users' rows, if Gram matrices exist (`solve.unobserved` above 0). With
counts, item i gets, in addition to its score,

    counts.weight * sum_j r_j count(j -> i) / (sqrt(n_j n_i) + shrinkage) / sum_j r_j

over the last `span` events j, newest first, in float32 and in this order. r_j are the weights of
the events, and n the numbers of events of the items. Users repeat items, the sooner the more
recently they had them (Anderson, Kumar, Tomkins, Vassilvitskii, WWW 2014). So item i also gets

    counts.repeat * sum_j weight * decay(visits - the event's visit)

over all remembered events j of i itself with a value above 0, oldest first, with the half-life
`counts.half_life`.

A caller can supply events of a user. They replace the user's history.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from livefactor_kernels.history import DECAY_STEPS, decays
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.pins import Pin
from livefactor_kernels.scoring.cpu import score_candidates
from livefactor_kernels.solve import GRAM, SolveRates
from livefactor_kernels.solve.cpu import Scratch, Side, livefactor_fold_kernel
from livefactor_kernels.spec.model import ModelSpec, Rule
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.pages import Pages

FOLD_SWEEPS = np.uint64(32)
_USER_SECTIONS = ("seen_rows", "seen_values", "seen_weights", "seen_visits", "seen_count", "visits")
_F0 = np.float32(0.0)


class Source(Protocol):
    """The source of a read: a pin, or a backend whose gate is held."""

    @property
    def mean(self) -> np.float32:
        """The global mean."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """As `backend.Backend.state`."""
        ...

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `backend.Backend.gather`."""
        ...

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`."""
        ...


class Events(NamedTuple):
    """The remembered events of a user, oldest first.

    Attributes:
        rows: item rows, uint32[n].
        values: float32[n].
        weights: present weights for fold-in, float32[n].
        repeats: present weights for repeats of their own items, float32[n].
        had: the item rows that the user had, as far as they are known; uint32[m], ascending.
        truncated: whether the user had further events, which are forgotten.
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    repeats: np.ndarray
    had: np.ndarray
    truncated: bool


@dataclass(frozen=True, slots=True)
class Persons:
    """Users for scoring: factors float32[n, kp] and biases float32[n].

    `had` holds each user's item rows, ascending. `truncated` bool[n] tells which users had further
    events, which are forgotten. `followers` holds each user's followers: rows uint32[m], ascending,
    and their gains float32[m].
    """

    factors: np.ndarray
    bias: np.ndarray
    had: list[np.ndarray]
    truncated: np.ndarray
    followers: list[tuple[np.ndarray, np.ndarray]]

    def gained(self, user: int, rows: np.ndarray) -> np.ndarray:
        """The gains from counts for item rows uint32[n] of a user, float32[n]."""
        if not self.followers or not self.followers[user][0].size:
            return np.zeros(len(rows), np.float32)
        named, gained = self.followers[user]
        place = np.minimum(np.searchsorted(named, rows), named.size - 1)
        return np.where(named[place] == rows, gained[place], np.float32(0.0))

    def with_had(self, own: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adds all items that the users had to their own exclusions.

        The result fits `pins.Pin.top_k`.
        """
        ends = offsets.tolist()
        lists = [
            with_rows(own[start:stop], had)
            for start, stop, had in zip(ends[:-1], ends[1:], self.had, strict=True)
        ]
        return np.concatenate(lists), np.concatenate([[0], np.cumsum([part.size for part in lists])])

    def top_k(
        self, pin: Pin, keys: np.ndarray, k: int, common: np.ndarray, own: np.ndarray, own_offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The exact top-k lists with the gains from counts; see `pins.Pin.top_k`.

        `keys` are the item keys by row. Gains are never negative. An item without a gain that is
        among the k best is therefore also among the k best without gains. So the k best without
        gains and all followers contain the k best.
        """
        rows, scores, offsets = pin.top_k(self.factors, self.bias, k, common, own, own_offsets)
        if not self.followers:
            return rows, scores, offsets
        best = [
            self._merged(pin, keys, k, user, rows[offsets[user] : offsets[user + 1]], common,
                         own[own_offsets[user] : own_offsets[user + 1]])
            for user in range(len(self.bias))
        ]  # fmt: skip
        sizes = [len(part) for part, _ in best]
        return (
            np.concatenate([part for part, _ in best]),
            np.concatenate([part for _, part in best]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        )

    def _merged(
        self,
        pin: Pin,
        keys: np.ndarray,
        k: int,
        user: int,
        rows: np.ndarray,
        common: np.ndarray,
        own: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        followers = self.followers[user][0]
        followers = followers[~_are_in(common, followers) & ~_are_in(own, followers)]
        found = np.union1d(rows, followers).astype(np.uint32)
        factors, bias = pin.gather(ITEMS, found)
        users = self.factors[user : user + 1], self.bias[user : user + 1]
        scores = score_candidates(pin.mean, *users, factors, bias, np.array([0, found.size]))
        scores = scores + self.gained(user, found)
        order = np.lexsort((keys[found], -scores))[:k]
        return found[order], scores[order]


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


class PersonReader:
    """Reads users of a model. Their histories, if any, are folded in. Any thread may call it."""

    def __init__(self, spec: ModelSpec) -> None:
        """Computes the decays. The first read compiles the kernels."""
        self._spec, self._rates = spec, SolveRates.of(spec)
        self._decay = decays(spec.history.half_life)
        self._repeat_decay = decays(spec.counts.half_life if spec.counts.repeat else 0.0)
        self._memory = threading.local()

    def read(self, source: Source, user_rows: np.ndarray, item_count: int,
             own: list[Events | None] | None = None) -> Persons:  # fmt: skip
        """Reads the users of rows uint32[n] (or `NO_ROW`).

        `item_count` is the number of items of the model. `own` holds events that replace a user's
        history, or None.
        """
        factors, bias = source.gather(USERS, user_rows)
        if not self._spec.history.users:
            return Persons(factors, bias, [], np.zeros(len(bias), bool), [])
        events = self._events(source, user_rows)
        if own is not None:
            events = [given if given is not None else kept for given, kept in zip(own, events, strict=True)]
        if self._spec.rule == Rule.SOLVE:
            self._fold(source, factors, bias, events, item_count)
        counts = self._spec.counts
        followers = [self._followers(source, each) for each in events] if counts.neighbors else []
        if counts.repeat:
            followers = followers or [_NOTHING_GAINED] * len(events)
            followers = [self._repeated(*pair) for pair in zip(events, followers, strict=True)]
        truncated = np.array([each.truncated for each in events], bool)
        return Persons(factors, bias, [each.had for each in events], truncated, followers)

    def given(self, rows: np.ndarray) -> Events:
        """Events for item rows uint32[n], oldest first, of value 1 and weight 1. Each is a visit.

        If there are too many, the last ones are used for the score, as in a history. The user had
        all of them.
        """
        had = np.unique(rows)
        rows = rows[-self._spec.history.users :]
        ages = np.minimum(np.arange(len(rows))[::-1], DECAY_STEPS - 1)
        values = np.ones(len(rows), np.float32)
        return Events(rows, values, self._decay[ages], self._repeat_decay[ages], had, False)

    def _events(self, source: Source, user_rows: np.ndarray) -> list[Events]:
        sections = source.read(USERS, user_rows, _USER_SECTIONS)
        return [
            self._ordered({name: section[n] for name, section in sections.items()})
            for n in range(len(user_rows))
        ]

    def _ordered(self, user: dict[str, np.ndarray]) -> Events:
        count, length = int(user["seen_count"]), len(user["seen_rows"])
        order = np.arange(max(0, count - length), count) % length
        ages = int(user["visits"]) - user["seen_visits"][order].astype(np.int64)
        ages = np.clip(ages, 0, DECAY_STEPS - 1)
        values, weights = user["seen_values"][order], user["seen_weights"][order]
        liked = weights * (values > 0)
        rows = user["seen_rows"][order]
        return Events(
            rows,
            values,
            weights * self._decay[ages],
            liked * self._repeat_decay[ages],
            np.unique(rows),
            count > length,
        )

    def _fold(
        self, source: Source, factors: np.ndarray, bias: np.ndarray, events: list[Events], item_count: int
    ) -> None:
        """Replaces the factors and biases of the users who have events."""
        scratch, k = self._scratch(), self._spec.k
        gram = source.state()[GRAM].reshape(2, k + 1, k + 1)
        if not any(len(each.rows) for each in events) and not gram[USERS, k, k]:
            return
        scratch.everywhere[:k, :k] = (self._rates.unobserved * gram[ITEMS, :k, :k]).astype(np.float32)
        users = Side(factors, bias, _NO_RINGS)
        for n, each in enumerate(events):
            if not len(each.rows):
                if gram[USERS, k, k]:
                    factors[n, :k] = gram[USERS, k, :k] / gram[USERS, k, k]
                continue
            item_factors, item_bias = source.gather(ITEMS, each.rows)
            items = Side(item_factors, item_bias, _NO_RINGS)
            places = np.arange(len(each.rows), dtype=np.uint32)
            livefactor_fold_kernel(
                users, np.uint64(n), items, np.uint64(len(places)), places, each.values, each.weights, source.mean,
                np.float32(item_count), scratch, FOLD_SWEEPS, self._rates,
            )  # fmt: skip
            factors[n] = scratch.x[: factors.shape[1]]
            if self._rates.has_bias:
                bias[n] = scratch.x[factors.shape[1]]

    def _scratch(self) -> Scratch:
        scratch: Scratch | None = getattr(self._memory, "scratch", None)
        if scratch is None:
            scratch = self._memory.scratch = Scratch.for_events(self._spec, self._spec.history.users)
        return scratch

    def _followers(self, source: Source, events: Events) -> tuple[np.ndarray, np.ndarray]:
        counts = self._spec.counts
        last = slice(max(0, len(events.rows) - counts.span), None)
        rows, weights = events.rows[last][::-1], events.weights[last][::-1]
        lists = source.read(ITEMS, rows, ("neighbor_rows", "neighbor_counts", "seen_count"))
        followers, amounts = lists["neighbor_rows"], lists["neighbor_counts"]
        if not followers.size:
            return _NOTHING_GAINED
        named = np.unique(followers[amounts > 0])
        events_of = source.read(ITEMS, named, ("seen_count",))["seen_count"]
        gained = np.zeros(len(named), np.float32)
        _gain(
            followers, amounts, lists["seen_count"], np.ascontiguousarray(weights), named, events_of,
            np.float32(counts.shrinkage), np.float32(counts.weight), gained,
        )  # fmt: skip
        return named, gained

    def _repeated(
        self, events: Events, followers: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adds the gains of the events' own items to those of the followers."""
        named = np.union1d(followers[0], events.rows).astype(np.uint32)
        gained, again = np.zeros((2, len(named)), np.float32)
        gained[np.searchsorted(named, followers[0])] = followers[1]
        np.add.at(again, np.searchsorted(named, events.rows), events.repeats)
        return named, gained + np.float32(self._spec.counts.repeat) * again


_NOTHING_GAINED = np.empty(0, np.uint32), np.empty(0, np.float32)
_NO_RINGS = Pages.reserved(np.empty(0, np.uint32), 0, False)


@compiled
def _gain(
    followers: Any, amounts: Any, events: Any, weights: Any, named: Any, events_of: Any, shrinkage: Any,
    weight: Any, gained: Any,
) -> None:  # fmt: skip
    """Adds the gains of the rows `named` (uint32[m], ascending) to `gained`, float32[m] zeros."""
    total = _F0
    for j in range(np.uint64(weights.size)):
        total += weights[j]
        own = np.float32(events[j])
        for place in range(np.uint64(followers.shape[1])):
            if amounts[j, place] > _F0:
                at = np.searchsorted(named, followers[j, place])
                norm = np.sqrt(own * np.float32(events_of[at])) + shrinkage
                gained[at] += (weights[j] * amounts[j, place]) / norm
    for at in range(np.uint64(gained.size)):
        gained[at] = (weight * gained[at]) / total
