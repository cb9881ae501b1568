"""Rule SOFTMAX in plain NumPy: the reference for `softmax/cpu.py` and `softmax/cuda.py`.

`softmax/__init__.py` has the semantics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.random import SHARED_DOMAIN, domain_key, draw_below
from livefactor_kernels.numbers.sums import chunked_sum, dot, lane_sum, left_to_right
from livefactor_kernels.softmax import GAP_MAX
from livefactor_kernels.spec.model import LANES, Proposal
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.reference import ReferenceTables
from livefactor_kernels.tables.state import Stateless
from livefactor_kernels.update import Update

_F0, _F1 = np.float32(0.0), np.float32(1.0)


class Errors(NamedTuple):
    """The errors of an event: `own` float32 of its item, and `others` float32[m] of the
    negatives.
    """

    own: np.float32
    others: np.ndarray


class Group(NamedTuple):
    """The contributions of a group to items.

    Attributes:
        negatives: rows int[m].
        events: (item, (contribution to its factors, contribution to its bias)) of the counting
            events.
        of_negatives: contributions of each event to the negatives, (float32[m, k_padded],
            float32[m]).
    """

    negatives: np.ndarray
    events: list[Any]
    of_negatives: list[Any]


def errors_of(
    own: np.float32, others: np.ndarray, own_rarity: np.float32, rarity: np.ndarray, hits: np.ndarray,
    weight: np.float32, limit: np.float32,
) -> Errors:  # fmt: skip
    """The errors of an event.

    `own` is the score of its item, and `others` float32[m] are those of the negatives. `hits`
    bool[m] marks accidental hits.
    """
    z = np.where(hits, _F0, scalar.exp(clamp(others - own, GAP_MAX)) * rarity)
    lanes = np.pad(z, (0, -len(z) % LANES)).reshape(-1, LANES)
    total = lane_sum(left_to_right(list(lanes)))
    scale = weight / (own_rarity + total)
    return Errors(-clamp(total * scale, limit), clamp(z * scale, limit))


class Softmax(Stateless):
    """Learns from records."""

    records = False

    def __init__(self, model: ReferenceTables) -> None:
        self._model, self._spec, self._rates = model, model.spec, model.rates
        self._key = domain_key(model.spec.seed, SHARED_DOMAIN)

    def learn(self, update: Update) -> None:
        """Learns from one record. Histories record it afterwards."""
        size, n = self._spec.group_events, update.user_rows.size
        items = self._model.items
        groups: list[Group] = []
        counts = items.seen_count.astype(np.int64) if "seen_count" in items.names else np.zeros(0, np.int64)
        counts = np.pad(counts[: update.item_count], (0, max(0, update.item_count - len(counts))))
        for start in range(0, n, size):
            stop = min(start + size, n)
            negatives = self._propose(update, start, stop, counts)
            groups.append(self._group(update, start, stop, negatives, self._rarity(counts)))
            np.add.at(counts, update.item_rows[start : min(stop, update.fresh)], 1)
            if stop == n or stop % self._spec.micro_batch == 0:
                self._step_items(groups)
                groups = []

    def _rarity(self, counts: np.ndarray) -> np.ndarray:
        if self._spec.softmax.proposal == Proposal.UNIFORM:
            return np.ones(len(counts), np.float32)
        return _F1 / (counts + 1).astype(np.float32)

    def _propose(self, update: Update, start: int, stop: int, counts: np.ndarray) -> np.ndarray:
        if self._spec.softmax.proposal == Proposal.IN_BATCH:
            return update.item_rows[start:stop]
        is_uniform = self._spec.softmax.proposal == Proposal.UNIFORM
        ends = np.cumsum(np.zeros_like(counts) if is_uniform else counts)
        events, step = int(ends[-1]), start // self._spec.group_events
        rows = []
        for draw in range(self._spec.negatives):
            numbers = (
                np.uint64(number) for number in (update.revision, step, draw, events + update.item_count)
            )
            ticket = int(draw_below(self._key, *numbers))
            row = int(np.searchsorted(ends, ticket, side="right")) if ticket < events else ticket - events
            rows.append(row)
        return np.array(rows, np.uint32)

    def _group(
        self, update: Update, start: int, stop: int, negatives: np.ndarray, rarity: np.ndarray
    ) -> Group:
        users, items = self._model.users, self._model.items
        y, y_bias = items.factors[negatives], items.bias[negatives]
        group = Group(negatives, [], [])
        for t, weight in self._events(update, start, stop):
            user, item = int(update.user_rows[t]), int(update.item_rows[t])
            x, own = users.factors[user], items.factors[item]
            scores = y_bias + dot(x[:, None], y.T)
            errors = errors_of(
                items.bias[item] + dot(x, own), scores, rarity[item], rarity[negatives], negatives == item, weight,
                self._rates.error_max,
            )  # fmt: skip
            pull, *of_item = self._pulls(user, item, errors, y)
            group.events.append((item, of_item))
            group.of_negatives.append((errors.others[:, None] * x, errors.others))
            self._model.step(USERS, user, pull, None, 1)
        return group

    def _events(self, update: Update, start: int, stop: int) -> Iterator[tuple[int, np.float32]]:
        """(number, weight) of the events that count."""
        for t in range(start, stop):
            if update.values is None or update.values[t] > 0:
                yield t, _F1 if update.weights is None else update.weights[t]

    def _pulls(self, user: int, item: int, errors: Errors, y: np.ndarray) -> tuple[Any, Any, Any]:
        """Contributions of an event to the factors of its user and of its item, and to its item's
        bias.
        """
        users, items, rates = self._model.users, self._model.items, self._rates
        x, own = users.factors[user], items.factors[item]
        pull = errors.own * own
        for error, other in zip(errors.others, y, strict=True):
            pull = pull + error * other
        return (
            pull + rates.l2 * x,
            scalar.pull(errors.own, x, rates.l2, own),
            scalar.bias_pull(errors.own, rates.bias_l2, items.bias[item]),
        )

    def _step_items(self, groups: list[Group]) -> None:
        """Steps the items of a micro-batch."""
        gradients: dict[int, list[Any]] = {}
        own_pulls: dict[int, list[Any]] = {}
        for item, pulls in (event for group in groups for event in group.events):
            own_pulls.setdefault(item, []).append(pulls)
        for item, pulls in own_pulls.items():
            gradients[item] = [chunked_sum([pull[part] for pull in pulls]) for part in (0, 1)]
        for group in groups:
            if not group.events:
                continue
            factors = chunked_sum([factors for factors, _ in group.of_negatives])
            biases = chunked_sum([biases for _, biases in group.of_negatives])
            for n, row in enumerate(group.negatives.tolist()):
                mine = [factors[n], biases[n]]
                old = gradients.get(row)
                gradients[row] = mine if old is None else [a + b for a, b in zip(old, mine, strict=True)]
        for item, (gradient, bias) in gradients.items():
            self._model.step(ITEMS, item, gradient, bias, len(own_pulls.get(item, ())))
