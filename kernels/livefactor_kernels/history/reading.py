"""A user as scores see it: folded in from its recent events, and what follows them. Reads change nothing.

Events of a user's history weigh weight * decay(visits - the event's visit), `history.half_life`. With rule SOLVE the
user's row is solved for them against the items as they are (`FOLD_SWEEPS` sweeps from the row that it has), which is
what its row would be had everything else been learned before it. With counts, item i gets, beside its score,

    counts.weight * sum_j r_j count(j -> i) / (sqrt(n_j n_i) + shrinkage) / sum_j r_j

over the last `span` events j, newest first, r_j their weights, n the items' numbers of events; float32, in this order.

A user may come with events of its own: they stand in the place of its history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit

from ..solve import SolveRates
from ..solve.cpu import Scratch, Side, livefactor_fold_kernel
from ..spec import ModelSpec, Rule
from ..tables import ITEMS, USERS
from . import DECAY_STEPS, decays
from .cpu import Ring

FOLD_SWEEPS = np.uint64(32)
_USER_SECTIONS = ("seen_rows", "seen_values", "seen_weights", "seen_visits", "seen_count", "visits")
_F0 = np.float32(0.0)


class Source(Protocol):
    """What is read from: a pin, or a backend whose gate is held."""

    @property
    def mean(self) -> np.float32: ...
    @property
    def gram(self) -> np.ndarray: ...
    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def read(self, side: int, rows: np.ndarray, names: Any) -> dict[str, np.ndarray]: ...


class Events(NamedTuple):
    """A user's remembered events, oldest first: item rows uint32[n], values, weights (as of now) float32[n]."""

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, slots=True)
class Persons:
    """Users as scores see them: factors float32[n, kp], bias float32[n]; had: each one's item rows, ascending; and
    followers: each one's (rows uint32[m] ascending, what they get float32[m])."""

    factors: np.ndarray
    bias: np.ndarray
    had: list[np.ndarray]
    followers: list[tuple[np.ndarray, np.ndarray]]


class PersonReader:
    """Reads users of a model whose spec has histories. Any thread may call it; it keeps no state."""

    def __init__(self, spec: ModelSpec) -> None:
        """Computes decays; kernels are compiled by the first read."""
        self._spec, self._rates = spec, SolveRates.of(spec)
        self._decay = decays(spec.history.half_life)

    def read(self, source: Source, user_rows: np.ndarray, item_count: int,
             own: list[Events | None] | None = None) -> Persons:  # fmt: skip
        """The users of rows uint32[n] (or `NO_ROW`); item_count: items of the model. own: events that stand in the place
        of a user's history."""
        factors, bias = source.gather(USERS, user_rows)
        events = self._events(source, user_rows)
        if own is not None:
            events = [given if given is not None else kept for given, kept in zip(own, events, strict=True)]
        had = [np.unique(each.rows) for each in events]
        if self._spec.rule == Rule.SOLVE:
            self._fold(source, factors, bias, events, item_count)
        followers = [self._followers(source, each) for each in events] if self._spec.counts.neighbors else []
        return Persons(factors, bias, had, followers)

    def _events(self, source: Source, user_rows: np.ndarray) -> list[Events]:
        sections = source.read(USERS, user_rows, _USER_SECTIONS)
        rings = (sections[name] for name in _USER_SECTIONS[:4])
        return [
            self._ordered(*ring, int(sections["seen_count"][n]), int(sections["visits"][n]))
            for n, ring in enumerate(zip(*rings, strict=True))
        ]

    def _ordered(
        self, rows: np.ndarray, values: np.ndarray, weights: np.ndarray, visits: np.ndarray, count: int, now: int
    ) -> Events:
        length = len(rows)
        order = np.arange(max(0, count - length), count) % length
        ages = np.minimum(now - visits[order].astype(np.int64), DECAY_STEPS - 1)
        return Events(rows[order], values[order], weights[order] * self._decay[ages])

    def _fold(
        self, source: Source, factors: np.ndarray, bias: np.ndarray, events: list[Events], item_count: int
    ) -> None:
        """Replace factors and bias of the users who have events."""
        longest = max((len(each.rows) for each in events), default=0)
        if not longest:
            return
        scratch, k = Scratch.for_events(self._spec, longest), self._spec.k
        scratch.everywhere[:k, :k] = (self._rates.unobserved * source.gram[ITEMS]).astype(np.float32)
        users = Side(factors, bias, _NO_RING)
        for n, each in enumerate(events):
            if not len(each.rows):
                continue
            item_factors, item_bias = source.gather(ITEMS, each.rows)
            items = Side(item_factors, item_bias, _NO_RING)
            places = np.arange(len(each.rows), dtype=np.uint32)
            livefactor_fold_kernel(
                users, np.uint64(n), items, np.uint64(len(places)), places, each.values, each.weights, source.mean,
                np.float32(item_count), scratch, FOLD_SWEEPS, self._rates,
            )  # fmt: skip
            factors[n] = scratch.x[: factors.shape[1]]
            if self._rates.has_bias:
                bias[n] = scratch.x[factors.shape[1]]

    def _followers(self, source: Source, events: Events) -> tuple[np.ndarray, np.ndarray]:
        counts = self._spec.counts
        last = slice(max(0, len(events.rows) - counts.span), None)
        rows, weights = events.rows[last][::-1], events.weights[last][::-1]
        lists = source.read(ITEMS, rows, ("neighbor_rows", "neighbor_counts", "seen_count"))
        followers, amounts = lists["neighbor_rows"], lists["neighbor_counts"]
        if not followers.size:
            return np.empty(0, np.uint32), np.empty(0, np.float32)
        named = np.unique(followers[amounts > 0])
        events_of = source.read(ITEMS, named, ("seen_count",))["seen_count"]
        gained = np.zeros(len(named), np.float32)
        _gain(
            followers, amounts, lists["seen_count"], np.ascontiguousarray(weights), named, events_of,
            np.float32(counts.shrinkage), np.float32(counts.weight), gained,
        )  # fmt: skip
        return named, gained


_NO_RING = Ring(
    np.empty((0, 0), np.uint32), np.empty((0, 0), np.float32), np.empty((0, 0), np.float32), np.empty(0, np.uint32)
)


@njit(cache=True, nogil=True, error_model="numpy")
def _gain(
    followers: Any, amounts: Any, events: Any, weights: Any, named: Any, events_of: Any, shrinkage: Any,
    weight: Any, gained: Any,
) -> None:  # fmt: skip
    """What each of the rows `named` uint32[m] (ascending) gets, to gained float32[m] (zeros before)."""
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
