"""The negatives that a record's groups share, before anything is learned (semantics: `softmax/__init__.py`).

How often items came is a tree of sums with 64 children a node: an event costs one addition a level, a draw one short scan
a level. It follows from the items' `seen_count`, so it is in no snapshot.
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
    """Sums by level, from items' events to the number of all: sums uint64[nodes]; where a level begins: starts
    uint64[levels]."""

    sums: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(capacity: int) -> Tree:
        """An empty tree over so many items."""
        sizes = [capacity]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // int(_CHILDREN)))
        starts = np.cumsum([0, *sizes[:-1]]).astype(np.uint64)
        return Tree(reserve((sum(sizes),), np.uint64), starts)

    def fill(self, counts: np.ndarray) -> None:
        """Set the events of the first items, uint[n], others have none."""
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
    """Negatives of a record's groups: rows uint32[groups, m], their rarity float32 of the same shape; own
    float32[events]: the rarity of each event's item. In a short group only IN_BATCH leaves places unused."""

    rows: np.ndarray
    rarity: np.ndarray
    own: np.ndarray


@compiled
def _ticket(tree: Any, ticket: Any) -> Any:
    """The item of event number `ticket`, events counted item by item."""
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
    """Fill `Shared`'s arrays for a record's events, and count the fresh ones in the tree (not with UNIFORM, which needs
    none)."""
    n, drawn = np.uint64(item_rows.size), np.uint64(rows.shape[1])
    for start in range(_0, n, group_events):
        step, stop = start // group_events, min(start + group_events, n)
        events = tree.sums[tree.sums.size - 1]
        for d in range(stop - start if proposal == _IN_BATCH else drawn):
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
    """Proposes negatives, record by record."""

    def __init__(self, spec: ModelSpec, capacity: int) -> None:
        """For an empty table of at most `capacity` items."""
        self._spec = spec
        self._proposal = int(spec.softmax.proposal)
        self._key = domain_key(spec.seed, SHARED_DOMAIN)
        self._tree = Tree.of(capacity if self.counts else 1)

    @property
    def counts(self) -> bool:
        """Whether what is proposed depends on how many events items have had."""
        return self._spec.softmax.proposal != Proposal.UNIFORM

    def reload(self, counts: np.ndarray) -> None:
        """Take the numbers of events of restored items, uint32[n] by row."""
        self._tree.fill(counts)

    def propose(self, update: Update) -> Shared:
        """The negatives of a record, whose events count from now on."""
        size, n = self._spec.group_events, update.item_rows.size
        shape = -(-n // size), self._spec.negatives_of_event
        rows, rarity = np.zeros(shape, np.uint32), np.ones(shape, np.float32)
        shared = Shared(rows, rarity, np.ones(n, np.float32))
        numbers = self._proposal, self._key, np.uint64(update.revision)
        items, group_events = np.uint64(update.item_count), np.uint64(size)
        events = update.item_rows, np.uint64(update.fresh)
        livefactor_propose_kernel(*numbers, *events, items, group_events, self._tree, *shared)
        return shared
