"""The semantics of rule SOLVE: each event solves the rows of its user and its item again, in one
pass.

The objective is that of implicit ALS (Hu, Koren, Volinsky, ICDM 2008; regularisation scaled by
frequency as in Rendle et al., RecSys 2022) for the histories of rows. A row x has n remembered
events with other rows y_j, weights w_j and targets t_j, in the order of their places in its ring.
It minimises

    sum_j w_j (x . y_j - t_j)^2 + a0 sum_{all others y} (x . y)^2 + ridge |x|^2
    ridge = l2 (sum_j w_j + e + a0 N)

e is `solve.ridge_events`. a0 is `solve.unobserved`, and N is the number of other rows after the
record's allocation. With implicit loss, t_j is 1 if the value is above 0, else 0, and there are no
biases. With squared loss, a0 is 0 and t_j = (value - mean) - (y_j's bias). The row's bias is one
more coordinate of x after the k factors, with y_j = 1 and the ridge bias_l2 (sum_j w_j + e). `mean`
is the mean before the record's micro-batch. The values are added to it afterwards.

The steps of a micro-batch:

1. Its events are recorded in order (`history/__init__.py`).

2. Every user of its events is solved for the present items. Then the changes are added to the sum
of y y' over users (the Gram matrix), user by user in order of first appearance.

3. Every item of its events that is due is solved for the present users. The Gram matrix of items
changes likewise. Let an item have c events before the micro-batch and d events after it. It is due
if c < item_events, or floor(c / item_events) < floor(d / item_events), or c = d.

Replayed events (`replay/__init__.py`) are not recorded, and their values are not added to the mean.
They only select rows, which are solved again for their histories. The changes are added to the Gram
matrix as usual. c = d holds for items that only replayed events select. The values and weights of
replayed events have no effect.

The arithmetic is float32 with one rounding per operation, in this order:

    A  lower triangle: A[p, q] = float32(a0 G[p, q]), + ridge on the diagonal, then
       + (w_j y_jp) y_jq for each j; A[q, p] is A[p, q]
    b  from 0: + (w_j y_jp) t_j for each j
    r  = b, then r - x_p A[p, :] for each coordinate p of the present row
    in each sweep for each p: new = clamp(x_p + r_p / A[p, p]);
       r = r - (new - x_p) A[p, :]; x_p = new
    sum = e + sum_j w_j is added from e in order; ridge = max(l2 (sum + a0 N), 1e-9), and likewise
       with bias_l2 for a bias

G is the float64 Gram matrix of (x, 1). So its last row is the sum of x and the number of rows with
an event. A change is G[p, q] + new_p new_q - old_p old_q, from left to right (the products are
exact). A row counts as 0 before its first event.

A row can have a start (`tables/start.py`): factors x0 of another model, which count as s events.
From then on it is in G, like a row with an event: the record of x0 adds the change of a row without
events. The row is solved towards z = share x0, where share = s / (s + sum) in float32: with M =
a0 G + ridge I, b becomes b + M z, as `solve/prior/__init__.py` describes it. So a row without
events stays x0, and other rows move away from it with each event. z takes the place of what an
embedding says. If a0 follows the data, each user with a start counts as s further events of the
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from livefactor_kernels.simd.memory import reserve_shared
from livefactor_kernels.spec.model import LANES, MAX_UNOBSERVED, USERS, Loss, ModelSpec
from livefactor_kernels.tables.start import Begun, Start
from livefactor_kernels.update import UpdateRun

RIDGE_MIN = np.float32(1e-9)
FOLD_SWEEPS = np.uint64(32)
"""Sweeps of a fold-in for scores."""
GRAM = "gram"
"""Name of the section with the Gram matrices of users and then items: float64[2 (k + 1)^2]."""
STARTED = "started"
"""Name of the section with the number of users that have a start, float64[1]."""
UNOBSERVED = "unobserved"
"""Name of the section with a0 float64[1], if it follows the data."""


class SolveRates(NamedTuple):
    """The numbers of a spec, each rounded once to float32. `has_bias` is True for squared loss."""

    unobserved: np.float32
    l2: np.float32
    bias_l2: np.float32
    factor_max: np.float32
    sweeps: np.uint64
    item_events: np.uint64
    k: np.uint64
    has_bias: bool
    ridge_events: np.float32

    @staticmethod
    def of(spec: ModelSpec) -> SolveRates:
        """The rates of a spec."""
        return SolveRates(
            unobserved=np.float32(spec.solve.unobserved),
            l2=np.float32(spec.l2),
            bias_l2=np.float32(spec.bias_l2),
            factor_max=np.float32(spec.limits.factor_max),
            sweeps=np.uint64(spec.solve.sweeps),
            item_events=np.uint64(spec.solve.item_events),
            k=np.uint64(spec.k),
            has_bias=spec.loss == Loss.SQUARED,
            ridge_events=np.float32(spec.solve.ridge_events),
        )


class Unobserved:
    """The weight of pairs without an event, which may follow the data
    (`solve.unobserved_density`). `weighs` is False if it is 0.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._constant = np.float32(spec.solve.unobserved)
        self._density = float(np.float32(spec.solve.unobserved_density))
        self._section, self._events = reserve_shared((1,), np.float64), 0
        self._start_events = float(np.float32(spec.solve.start_events))
        self._started = np.zeros(1)
        self.weighs = bool(self._constant or self._density)

    def of(self, run: UpdateRun) -> np.ndarray:
        """The weights for records, which are learned next, float32[m]."""
        if not self._density:
            return np.full(len(run), self._constant, np.float32)
        users, items = np.maximum(run.user_counts, 1), np.maximum(run.item_counts, 1)
        events = self._events + run.ends - run.joined.replayed
        weights = self._weights(events, users, items)
        self._section[0], self._events = weights[-1], int(events[-1])
        return weights

    def _weights(self, events: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        pairs = users.astype(np.float64) * items.astype(np.float64)
        started = self._start_events * self._started[0]
        weights: np.ndarray = np.minimum(self._density * (events + started) / pairs, MAX_UNOBSERVED)
        return weights.astype(np.float32)

    def begin(self, users: int, user_count: int, item_count: int) -> None:
        """Takes `users` further users with a start, after which the tables have these sizes."""
        self._started[0] += users
        if self._density:
            counts = np.maximum([[user_count], [item_count]], 1)
            self._section[:] = self._weights(np.array([self._events]), *counts)

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        found = {UNOBSERVED: self._section} if self._density else {}
        return found | ({STARTED: self._started} if self._start_events else {})

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """Restores the state."""
        if self._start_events:
            self._started[:] = sections[STARTED]
        if self._density:
            self._section[:], self._events = sections[UNOBSERVED], int(sections["events"][0])


def begin_rows(gram: np.ndarray, unobserved: Unobserved, begun: Begun, start: Start) -> None:
    """Adds rows that got a start to gram float64[2, k + 1, k + 1], and to what a0 follows."""
    for old, new in zip(begun.before, begun.after, strict=True) if unobserved.weighs else ():
        gram[start.side] = (gram[start.side] + np.outer(new, new)) - np.outer(old, old)
    users = begun.started if start.side == USERS else 0
    unobserved.begin(users, start.user_count, start.item_count)


def width(spec: ModelSpec) -> int:
    """Coordinates of a system in memory: k_padded, and one more vector if there is a bias."""
    return spec.k_padded + (LANES if spec.loss == Loss.SQUARED else 0)
