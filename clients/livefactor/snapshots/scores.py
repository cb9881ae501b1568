"""The scores of a snapshot: what a server computes for a user, in NumPy and with the same bits.

A score is the sum of several parts. The mean, the biases and the dot product of the factors are in
every score. A model with rule SOLVE first folds the user's remembered events in. A model with
counts adds a gain for items that often follow the user's last events, and a gain for items that the
user had before. A model with a mix standardises these parts, popularity and what similar users had,
and weighs them. `livefactor_kernels.reading` explains the parts and the order of each sum. A test
compares every part with a server, to the bit.

A spec with a part that this module does not know is refused by name (`check_known`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.unknown_fields import UnknownFieldSet

from livefactor.errors import UnknownSpec
from livefactor.snapshots import mixing, neighbors
from livefactor.snapshots.decays import DECAY_STEPS, decays
from livefactor.snapshots.sections import Spec, remembered_offsets
from livefactor.v1 import models_pb2

LANES = 16
KERNEL_SEMANTICS = 1
"""The version of the arithmetic that this module computes (`ModelSpec.kernel_semantics`)."""
FOLD_SWEEPS = 32
RIDGE_MIN = np.float32(1e-9)
_F0 = np.float32(0.0)
_NOTHING_GAINED = np.empty(0, np.int64), np.empty(0, np.float32)


class Events(NamedTuple):
    """The n events of a user, oldest first.

    rows: item rows int64[n]. values: float32[n]. weights, repeats: the present weights for fold-in
    and for repeats of the same item, float32[n] each. ages: visits since each event, int64[n].
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    repeats: np.ndarray
    ages: np.ndarray


class SnapshotScores:
    """The scores of one snapshot.

    spec: of the model. tensors: every section by name. mean: the global mean. user_factors,
    item_factors: [rows, k], float32 or float16. Raises UnknownSpec.
    """

    def __init__(
        self,
        spec: Spec,
        tensors: Mapping[str, np.ndarray],
        mean: np.float32,
        user_factors: np.ndarray,
        item_factors: np.ndarray,
    ) -> None:
        check_known(spec)
        self._spec, self._tensors, self._mean = spec, tensors, mean
        self._user_factors, self._item_factors = user_factors, item_factors
        self._items = len(tensors["items.keys"])
        self._decay = decays(spec.history.half_life)
        self._repeat_decay = decays(spec.counts.half_life if spec.counts.repeat else 0.0)
        unobserved = tensors["unobserved"][0] if "unobserved" in tensors else spec.solve.unobserved
        self._unobserved = np.float32(unobserved)

    def score(self, user: int, rows: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        """Score n items for a user: float32[n].

        user: the user's row. rows: item rows int64[n]. A row at or past the number of rows stands
        for an unknown user or item. given: item rows int64[m] of events that replace the user's
        history, oldest first; None uses the history.
        """
        x, user_bias = _gather(self._user_factors, self._tensors["users.bias"], np.array([user]))
        y, item_bias = _gather(self._item_factors, self._tensors["items.bias"], rows)
        if not self._spec.history.users:
            return self._sum(x, user_bias[0], y, item_bias)
        events = self._history(user) if given is None else self._given(given)
        with np.errstate(all="ignore"):
            bias = user_bias[0]
            if self._spec.mix.learning_rate > 0:
                x[0], bias, (named, gained) = self._mixed(x[0], user, events)
            else:
                if self._spec.rule == models_pb2.RULE_SOLVE:
                    x[0], bias = self._folded(x[0], bias, events, user)
                named, gained = self._gains(events)
            scores = self._sum(x, bias, y, item_bias)
            # An item without a gain gets 0 added, as on the server: this turns -0 into 0.
            scores += _looked_up(named, gained, rows)
            return scores

    def _sum(self, x: np.ndarray, bias: np.float32, y: np.ndarray, item_bias: np.ndarray) -> np.ndarray:
        scores: np.ndarray = ((self._mean + bias) + item_bias) + _dot(x, y)
        return scores

    # The events of a user.

    def _history(self, user: int) -> Events:
        ring = {
            name: self._tensors[f"users.{name}"]
            for name in ("seen_rows", "seen_values", "seen_weights", "seen_visits")
        }
        if user >= len(self._tensors["users.keys"]):
            return self._given(np.empty(0, np.int64))
        count, length = int(self._tensors["users.seen_count"][user]), self._spec.history.users
        order = np.arange(max(0, count - length), count) % length
        if self._spec.history.paged:
            start = int(self._offsets[user])
            rows, values, weights, visits = (column[start + order] for column in ring.values())
        else:
            rows, values, weights, visits = (column[user, order] for column in ring.values())
        ages = int(self._tensors["users.visits"][user]) - visits.astype(np.int64)
        ages = np.clip(ages, 0, DECAY_STEPS - 1)
        liked = weights * (values > 0)
        return Events(
            rows.astype(np.int64), values, weights * self._decay[ages], liked * self._repeat_decay[ages], ages
        )

    @cached_property
    def _offsets(self) -> np.ndarray:
        return remembered_offsets(self._spec, "users", self._tensors["users.seen_count"])

    def _given(self, rows: np.ndarray) -> Events:
        rows = rows[rows < self._items][-self._spec.history.users :]
        ages = np.minimum(np.arange(len(rows))[::-1], DECAY_STEPS - 1)
        return Events(rows, np.ones(len(rows), np.float32), self._decay[ages], self._repeat_decay[ages], ages)

    # A mix of experts.

    def _mixed(self, x: np.ndarray, user: int, events: Events) -> tuple[np.ndarray, np.float32, mixing.Gains]:
        """The user's factors float32[kp], bias and gains, combined from all experts."""
        folds = []
        for half_life in mixing.HALF_LIVES:
            weights = events.weights * decays(half_life)[events.ages]
            folds.append(self._folded(x.copy(), _F0, events._replace(weights=weights), user)[0])
        counts = []
        for half_life in mixing.COUNT_HALF_LIVES:
            weights = events.weights * decays(half_life)[events.ages]
            followed = self._followed(events._replace(weights=weights), np.float32(1.0))
            counts.append(mixing.Gains(*followed))
        rows, places = np.unique(events.rows, return_inverse=True)
        again = np.zeros(len(rows), np.float32)
        decayed = decays(self._spec.counts.half_life)[events.ages]
        np.add.at(again, places, events.weights * (events.values > 0) * decayed)
        k = self._spec.k
        gram = self._tensors["gram"].reshape(2, k + 1, k + 1)[1]
        repeats = mixing.Gains(rows, again)
        similar = walked = mixing.Gains(*_NOTHING_GAINED)
        # The weights of a mix do not decay.
        own = neighbors.History(events.rows, events.values, events.weights)
        if self._spec.mix.neighbors:
            similar = self._similar.gains(user, own)
        if self._spec.mix.walk_users:
            walked = self._similar.walked(user, own)
        parts = np.stack(folds), counts, repeats, similar, walked
        start = self._start(user)
        has_many = start is not None and start[1] > 0
        return mixing.combined(
            self._tensors["mix"], gram, *parts, mixing.GROUP_STARTS[-1] if has_many else len(events.rows)
        )

    @cached_property
    def _similar(self) -> neighbors.SimilarUsers:
        return neighbors.SimilarUsers(self._spec, self._tensors)

    # Fold-in.

    def _is_told(self, user: int) -> bool:
        """Whether a user has a bag of features."""
        bagged = self._tensors.get("users.bagged")
        return bagged is not None and user < len(bagged) and bool(bagged[user])

    def _start(self, user: int) -> tuple[np.ndarray, np.float32] | None:
        """What a user is folded in towards, float32[k], and its events, which are negative if it is
        what her bag says.
        """
        events = self._tensors.get("users.start_events")
        if events is None or user >= len(events) or not events[user]:
            return None
        return self._tensors["users.factors_start"][user], events[user]

    def _folded(
        self, x: np.ndarray, bias: np.float32, events: Events, user: int
    ) -> tuple[np.ndarray, np.float32]:
        """The user's factors float32[kp] and bias, solved for the events.

        A user without events has what her features say, or the factors with which she began, or the
        mean of all users' factors, if there are Gram matrices.
        """
        towards = self._start(user)
        is_told = self._is_told(user) or towards is not None
        k, has_bias = self._spec.k, self._spec.loss == models_pb2.LOSS_SQUARED
        gram = self._tensors["gram"].reshape(2, k + 1, k + 1)
        if not len(events.rows):
            if gram[0, k, k] and not is_told:
                x[:k] = gram[0, k, :k] / gram[0, k, k]
            return x, bias
        y, y_bias = _gather(self._item_factors, self._tensors["items.bias"], events.rows)
        start, y = x[:k].copy(), y[:, :k]
        everywhere = (self._unobserved * gram[1, :k, :k]).astype(np.float32)
        targets = (events.values > 0).astype(np.float32)
        if has_bias:
            targets = (events.values - self._mean) - y_bias
            start, everywhere = np.append(start, bias), np.pad(everywhere, (0, 1))
            y = np.hstack([y, np.ones((len(y), 1), np.float32)])
        solved = self._solved(start, y, events.weights, targets, everywhere, towards)
        x[:k] = solved[:k]
        return x, (solved[k] if has_bias else bias)

    def _solved(
        self, x: np.ndarray, y: np.ndarray, weights: np.ndarray, targets: np.ndarray, a: np.ndarray,
        towards: tuple[np.ndarray, np.float32] | None,
    ) -> np.ndarray:  # fmt: skip
        """The row x float32[m] after `FOLD_SWEEPS` Gauss-Seidel sweeps.

        a: float32[m, m], the part of the system that does not depend on the events; it is changed.
        """
        spec, total = self._spec, np.float32(self._spec.solve.ridge_events)
        for weight in weights:
            total = total + weight
        others = self._unobserved * np.float32(self._items)
        ridge = np.full(len(x), np.float32(spec.l2) * (total + others), np.float32)
        if spec.loss == models_pb2.LOSS_SQUARED:
            ridge[-1] = np.float32(spec.bias_l2) * total
        b, product, diagonal = np.zeros(len(x), np.float32), np.empty_like(a), np.diag_indices_from(a)
        ridge = np.maximum(ridge, RIDGE_MIN)
        pull = None if towards is None else _pull(a, ridge, towards, total)
        a[diagonal] += ridge
        for row, weight, target in zip(y, weights, targets, strict=True):
            weighted = weight * row
            np.multiply(weighted[:, None], row, out=product)
            a += product
            b += weighted * target
        if pull is not None:
            b += pull
        # The server adds up the lower triangle and mirrors it.
        a = np.tril(a) + np.tril(a, -1).T
        for p in range(len(x)):
            b -= x[p] * a[p]
        limit = np.float32(spec.limits.factor_max)
        for _ in range(FOLD_SWEEPS):
            for p in range(len(x)):
                new = np.minimum(np.maximum(x[p] + b[p] / a[p, p], -limit), limit)
                b -= (new - x[p]) * a[p]
                x[p] = new
        return x

    # Gains from counts and repeats.

    def _gains(self, events: Events) -> tuple[np.ndarray, np.ndarray]:
        """Item rows int64[m], ascending, and their gains float32[m]."""
        counts = self._spec.counts
        named, gained = _NOTHING_GAINED
        if counts.neighbors:
            named, gained = self._followed(events, np.float32(counts.weight))
        if not counts.repeat:
            return named, gained
        every = np.union1d(named, events.rows)
        follows, again = np.zeros((2, len(every)), np.float32)
        follows[np.searchsorted(every, named)] = gained
        np.add.at(again, np.searchsorted(every, events.rows), events.repeats)
        return every, follows + np.float32(counts.repeat) * again

    def _followed(self, events: Events, factor: np.float32) -> tuple[np.ndarray, np.ndarray]:
        """The followers of the user's last events, and their gains times a factor."""
        counts, of_items = self._spec.counts, self._tensors["items.seen_count"]
        last = slice(max(0, len(events.rows) - counts.span), None)
        rows, weights = events.rows[last][::-1], events.weights[last][::-1]
        followers = self._tensors["items.neighbor_rows"][rows].astype(np.int64)
        amounts = self._tensors["items.neighbor_counts"][rows]
        if not followers.size:
            return _NOTHING_GAINED
        named = np.unique(followers[amounts > 0])
        gained, total, shrinkage = np.zeros(len(named), np.float32), _F0, np.float32(counts.shrinkage)
        for row, weight, to, amount in zip(rows, weights, followers, amounts, strict=True):
            total = total + weight
            to, amount = to[amount > 0], amount[amount > 0]
            norm = np.sqrt(np.float32(of_items[row]) * of_items[to].astype(np.float32)) + shrinkage
            gained[np.searchsorted(named, to)] += (weight * amount) / norm
        return named, (factor * gained) / total


def check_known(spec: Spec) -> None:
    """Raise UnknownSpec, which names the part, if scores may have a part that is not known here."""
    if spec.kernel_semantics != KERNEL_SEMANTICS:
        raise UnknownSpec(
            f"spec.kernel_semantics: expected {KERNEL_SEMANTICS}, got {spec.kernel_semantics}: "
            "this version of livefactor computes other scores than the model"
        )
    for name, number, kind in (
        ("rule", spec.rule, models_pb2.Rule),
        ("loss", spec.loss, models_pb2.Loss),
        ("factor_dtype", spec.factor_dtype, models_pb2.FactorDtype),
    ):
        if number not in kind.values():
            raise UnknownSpec(f"spec.{name}: this version of livefactor does not know the number {number}")
    _check_fields(spec, "spec")


def _check_fields(message: Any, where: str) -> None:
    unknown: Any = UnknownFieldSet(message)
    for field in unknown:
        raise UnknownSpec(f"{where}: this version of livefactor does not know its field {field.field_number}")
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            parts = value if hasattr(value, "__len__") else [value]
            for part in parts:
                _check_fields(part, f"{where}.{descriptor.name}")


def _looked_up(named: np.ndarray, gained: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The gains of item rows int64[n], float32[n]; 0 for a row that is not in `named`."""
    if not len(named):
        return np.zeros(len(rows), np.float32)
    place = np.minimum(np.searchsorted(named, rows), len(named) - 1)
    return np.where(named[place] == rows, gained[place], _F0)


def _pull(
    everywhere: np.ndarray, ridge: np.ndarray, towards: tuple[np.ndarray, np.float32], total: np.float32
) -> np.ndarray:
    """The right side that pulls a row towards what is known of it beside its events, float32[k]."""
    events = np.abs(towards[1])
    z = (events / (events + total)) * towards[0]
    pull = np.zeros(len(z), np.float32)
    for q in range(len(z)):
        pull = pull + everywhere[q] * z[q]
    return np.asarray(pull + ridge * z)


def _gather(factors: np.ndarray, bias: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded with zeros to a multiple of `LANES`, and their biases.

    A row past the end is all zeros.
    """
    count, k = factors.shape
    known = rows < count
    out = np.zeros((len(rows), -(-k // LANES) * LANES), np.float32)
    out_bias = np.zeros(len(rows), np.float32)
    out[known, :k] = factors[rows[known]]
    out_bias[known] = bias[rows[known]]
    return out, out_bias


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The dot products, float32[n], of x float32[1, kp] with each row of y float32[n, kp].

    The sum runs in 16 lanes, which a tree then adds up. This is the server's order of additions.
    """
    products = (x * y).reshape(len(y), y.shape[1] // LANES, LANES)
    lanes: np.ndarray = products[:, 0].copy()
    for step in range(1, products.shape[1]):
        lanes += products[:, step]
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0]
