"""The shared negatives of a record's groups (semantics: `softmax/__init__.py`).

They are proposed before the record is learned. The numbers of the items' events are in a tree of
sums with 64 children per node. An event costs one addition per level, and a draw costs one short
scan per level. The tree follows from the items' `seen_count`, so it is in no snapshot.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.random import SHARED_DOMAIN, domain_key, draw_below
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.model import ModelSpec, Proposal
from livefactor_kernels.update import Update

_0, _1 = np.uint64(0), np.uint64(1)
_F1 = np.float32(1.0)
_CHILDREN = np.uint64(64)
_UNIFORM, _POPULARITY, _IN_BATCH = int(Proposal.UNIFORM), int(Proposal.POPULARITY), int(Proposal.IN_BATCH)


class Tree(NamedTuple):
    """Sums by level, from the events of each item to the total.

    Attributes:
        sums: uint64[nodes].
        starts: the first node of each level, uint64[levels].
    """

    sums: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(capacity: int) -> Tree:
        """An empty tree for `capacity` items."""
        sizes = [capacity]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // int(_CHILDREN)))
        starts = np.cumsum([0, *sizes[:-1]]).astype(np.uint64)
        return Tree(reserve((sum(sizes),), np.uint64), starts)

    def fill(self, counts: np.ndarray) -> None:
        """Sets the numbers of events of the first items, uint[n]. Other items have none."""
        self.sums[:] = 0
        level = counts.astype(np.uint64)
        for start in self.starts:
            self.sums[int(start) : int(start) + level.size] = level
            width = -(-level.size // int(_CHILDREN)) * int(_CHILDREN)
            level = (
                np.pad(level, (0, width - level.size))
                .reshape(-1, int(_CHILDREN))
                .sum(axis=1, dtype=np.uint64)
            )


class Shared(NamedTuple):
    """The negatives of a record's groups.

    In a short group, only IN_BATCH leaves places unused.

    Attributes:
        rows: uint32[groups, m].
        rarity: float32[groups, m].
        own: rarity of each event's item, float32[events].
    """

    rows: np.ndarray
    rarity: np.ndarray
    own: np.ndarray


@compiled
def _ticket(tree: Any, ticket: Any) -> Any:
    """The item of event number `ticket`, with the events in the order of the items."""
    node = _0
    for level in range(np.uint64(tree.starts.size) - _1, _0, -1):
        place = tree.starts[np.uint64(level) - _1] + node * _CHILDREN
        node *= _CHILDREN
        while ticket >= tree.sums[place]:
            ticket -= tree.sums[place]
            place += _1
            node += _1
    return node


@compiled
def _count(tree: Any, row: Any) -> None:
    for level in range(np.uint64(tree.starts.size)):
        tree.sums[tree.starts[level] + row] += _1
        row //= _CHILDREN


@compiled
def livefactor_propose_kernel(
    proposal: Any, key: Any, revision: Any, item_rows: Any, fresh: Any, items: Any, group_events: Any, tree: Any,
    rows: Any, rarity: Any, own: Any,
) -> None:  # fmt: skip
    """Fills the arrays of `Shared` for a record, and adds its fresh events to the tree.

    UNIFORM does not need the tree.
    """
    n, width = np.uint64(item_rows.size), np.uint64(rows.shape[1])
    for start in range(_0, n, group_events):
        step, stop = start // group_events, min(start + group_events, n)
        events = tree.sums[tree.sums.size - 1]
        for d in range(stop - start if proposal == _IN_BATCH else width):
            if proposal == _UNIFORM:
                rows[step, d] = draw_below(key, revision, step, d, items)
                continue
            if proposal == _POPULARITY:
                ticket = draw_below(key, revision, step, d, events + items)
                row = _ticket(tree, ticket) if ticket < events else ticket - events
            else:
                row = np.uint64(item_rows[start + d])
            rows[step, d] = row
            rarity[step, d] = _F1 / np.float32(tree.sums[row] + _1)
        if proposal != _UNIFORM:
            for t in range(start, stop):
                own[t] = _F1 / np.float32(tree.sums[np.uint64(item_rows[t])] + _1)
            for t in range(start, min(stop, fresh)):
                _count(tree, np.uint64(item_rows[t]))


class Proposer:
    """Proposes the negatives of consecutive records."""

    def __init__(self, spec: ModelSpec, capacity: int) -> None:
        """For an empty table with at most `capacity` items."""
        self._spec = spec
        self._proposal = int(spec.softmax.proposal)
        self._key = domain_key(spec.seed, SHARED_DOMAIN)
        self._tree = Tree.of(capacity if self.counts else 1)

    @property
    def counts(self) -> bool:
        """Whether what is proposed depends on how many events items have had."""
        return self._spec.softmax.proposal != Proposal.UNIFORM

    def reload(self, counts: np.ndarray) -> None:
        """Reads the numbers of the items' events from the restored sections of their table."""
        self._tree.fill(counts)

    def propose(self, update: Update) -> Shared:
        """The negatives of a record. Its events count for later records."""
        size, n = self._spec.group_events, update.item_rows.size
        shape = -(-n // size), self._spec.negatives_of_event
        rows, rarity = np.zeros(shape, np.uint32), np.ones(shape, np.float32)
        shared = Shared(rows, rarity, np.ones(n, np.float32))
        numbers = self._proposal, self._key, np.uint64(update.revision)
        items, group_events = np.uint64(update.item_count), np.uint64(size)
        events = update.item_rows, np.uint64(update.fresh)
        livefactor_propose_kernel(*numbers, *events, items, group_events, self._tree, *shared)
        return shared
