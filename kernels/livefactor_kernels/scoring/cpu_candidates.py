"""Scores of candidates by keys on the CPU, in one compiled call without a lock.

The call looks keys up, reads the rows, and adds up the scores, while a writer may change the rows.
Then it looks whether the version of the tables is the one from before (`tables/head.py`). If not,
the result is dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import LANES, VECTOR_BYTES
from livefactor_kernels.numbers.narrow import as_argument, factors_of, prefetch_factors
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.scoring import Candidates
from livefactor_kernels.simd.atomics import load_relaxed
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import dot
from livefactor_kernels.tables import NO_ROW
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.head import (
    ITEM_COUNT,
    REVISION,
    USER_COUNT,
    HeadReader,
    is_unchanged,
    version_before,
)
from livefactor_kernels.tables.keymap import Blocks, find_kernel
from livefactor_kernels.tables.shared import SharedTable

SHORT_PAIRS_MAX = 2048
"""Maximum number of scores of a read that keeps the GIL: about 0.1 ms.

Who releases the GIL waits for it afterwards, which takes longer if other threads want it.
"""

TRIES = 4
"""Number of tries of a read. Between them it waits for a short time (`Head.wait`)."""

_0, _1 = np.uint64(0), np.uint64(1)
_AHEAD = np.uint64(12)
_NO_ROW = np.uint32(NO_ROW)
CHANGED = np.uint64(2**64 - 1)
"""What `read_candidates` returns if rows changed meanwhile."""

_SHARED = np.empty(0, np.uint32)
_SHARED.flags.writeable = False


class CandidateReader:
    """Reads the tables of one model. Any thread may call it at any time.

    Attributes:
        tables: the first arguments of `read_candidates`.
    """

    def __init__(
        self, head: HeadReader, sums: np.ndarray, users: Table | SharedTable, items: Table | SharedTable
    ) -> None:
        """`sums` are those of the global mean (`tables.state.GlobalMean`)."""
        self._head, self._users, self._items = head, users, items
        # An unknown row has zeros.
        self._zeros = reserve((1, items.factors.shape[1]), items.factors.dtype)
        self.tables = (
            head.words,
            sums,
            as_argument(users.factors),
            users.bias,
            as_argument(items.factors),
            items.bias,
            as_argument(self._zeros),
        )

    def read(
        self, user_keys: np.ndarray, item_keys: np.ndarray, offsets: np.ndarray | None
    ) -> Candidates | None:
        """See `backend.Backend.try_score`."""
        for _try in range(TRIES):
            found = self._try(_fixed(user_keys), _fixed(item_keys), _SHARED if offsets is None else offsets)
            if found is not None:
                return found
            self._head.wait()
        return None

    def _try(self, user_keys: np.ndarray, item_keys: np.ndarray, offsets: np.ndarray) -> Candidates | None:
        users, items = len(user_keys), len(item_keys)
        user_known, item_known = np.empty(users, np.bool_), np.empty(items, np.bool_)
        scores = np.empty(items if offsets.size else users * items, np.float32)
        kernel = _short_kernel if scores.size <= SHORT_PAIRS_MAX else _long_kernel
        maps = self.maps()
        revision = kernel(
            *self.tables, maps[0].directory, maps[1].directory, user_keys, item_keys, _fixed(offsets),
            scores, user_known, item_known,
        )  # fmt: skip
        if revision == CHANGED or not self.are_present(maps):
            return None
        return Candidates(revision, scores, user_known, item_known)

    def maps(self) -> tuple[Blocks, Blocks]:
        """The present blocks of the maps of users and items. The caller keeps them until a read of
        them has ended.
        """
        return self._users.keymap.blocks, self._items.keymap.blocks

    def are_present(self, maps: tuple[Blocks, Blocks]) -> bool:
        """Whether the maps have not grown since `maps`. Otherwise they may lack keys of a revision
        that was published since then.
        """
        return maps[0] is self._users.keymap.blocks and maps[1] is self._items.keymap.blocks


def _fixed(column: np.ndarray) -> np.ndarray:
    """The column as a contiguous and aligned one that cannot be written to, as in messages.

    Numba would compile another version of the kernels for other columns.
    """
    flags = column.flags
    if not flags.writeable and flags.c_contiguous and flags.aligned:
        return column
    fixed = np.require(column, requirements=("C", "A")).view()
    fixed.flags.writeable = False
    return fixed


@inlined
def _find(directory: Any, keys: Any, published: Any, known: Any) -> Any:
    """The rows of keys, `NO_ROW` for unknown and unpublished ones. Writes which are known."""
    rows = np.empty(keys.size, np.uint32)
    find_kernel(np.uint64(directory.ctypes.data), np.uint64(keys.ctypes.data), rows)
    for i in range(np.uint64(keys.size)):
        if np.uint64(rows[i]) >= published:
            rows[i] = _NO_ROW
        known[i] = rows[i] != _NO_ROW
    return rows


@inlined
def read_candidates(
    words: Any, sums: Any, users: Any, user_bias: Any, items: Any, item_bias: Any, zeros: Any,
    user_directory: Any, item_directory: Any, user_keys: Any, item_keys: Any, offsets: Any, scores: Any,
    user_known: Any, item_known: Any,
) -> Any:  # fmt: skip
    """Writes scores and flags, and returns their revision, or `CHANGED`.

    The arguments from the directories on are those of `CandidateReader.read`. Empty `offsets` mean
    that every user has all candidates.
    """
    head = np.uint64(words.ctypes.data)
    version = version_before(head)
    if version & _1:
        return CHANGED
    revision, mean = load_relaxed(head + REVISION), scalar.mean_of(sums[0], sums[1])
    user_rows = _find(user_directory, user_keys, load_relaxed(head + USER_COUNT), user_known)
    item_rows = _find(item_directory, item_keys, load_relaxed(head + ITEM_COUNT), item_known)
    vectors = np.uint64(items.shape[1] // LANES)
    row_bytes = vectors * VECTOR_BYTES
    user_factors, item_factors, nothing = factors_of(users), factors_of(items), factors_of(zeros)
    place, shared = _0, np.uint64(offsets.size) == _0
    for u in range(np.uint64(user_keys.size)):
        start = _0 if shared else np.uint64(offsets[u])
        stop = np.uint64(item_keys.size) if shared else np.uint64(offsets[u + _1])
        row, own, at, base = user_rows[u], nothing, _0, mean + np.float32(0.0)
        if row != _NO_ROW:
            own, at, base = user_factors, np.uint64(row) * row_bytes, mean + user_bias[row]
        for i in range(start, stop):
            ahead = i + _AHEAD
            if ahead < stop and item_rows[ahead] != _NO_ROW:
                prefetch_factors(item_factors, np.uint64(item_rows[ahead]) * row_bytes, vectors)
            item = item_rows[i]
            if item == _NO_ROW:
                scores[place] = (base + np.float32(0.0)) + dot(own, at, nothing, _0, vectors)
            else:
                product = dot(own, at, item_factors, np.uint64(item) * row_bytes, vectors)
                scores[place] = (base + item_bias[item]) + product
            place += _1
    return revision if is_unchanged(head, version) else CHANGED


@compiled(nogil=False)
def _short_kernel(
    words, sums, users, user_bias, items, item_bias, zeros, user_directory, item_directory, user_keys,
    item_keys, offsets, scores, user_known, item_known,
):  # fmt: skip
    """`read_candidates` with the GIL."""
    return read_candidates(words, sums, users, user_bias, items, item_bias, zeros, user_directory, item_directory,
                 user_keys, item_keys, offsets, scores, user_known, item_known)  # fmt: skip


@compiled
def _long_kernel(
    words, sums, users, user_bias, items, item_bias, zeros, user_directory, item_directory, user_keys,
    item_keys, offsets, scores, user_known, item_known,
):  # fmt: skip
    """`read_candidates` without the GIL."""
    return read_candidates(words, sums, users, user_bias, items, item_bias, zeros, user_directory, item_directory,
                 user_keys, item_keys, offsets, scores, user_known, item_known)  # fmt: skip


def compile_kernels(reader: CandidateReader) -> None:
    """Compiles the kernels for the types of a model, or loads them from the cache."""
    keys = np.zeros(1, np.uint64)
    reader.read(keys, keys, None)
    reader.read(keys, np.zeros(SHORT_PAIRS_MAX + 1, np.uint64), None)
