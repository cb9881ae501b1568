"""Exact top-k lists on the GPU as of a pin, while updates go on.

    few users    The exact score of every item, in one pass over the table.
    many users   A matrix product in float32 (never TF32) scores every item. Narrow factors are
                 widened for it, a block of rows at a time. Items that were copied since the pin
                 are scored exactly. Of the others, only those that the product's rounding error
                 (`cpu.slacks`) cannot exclude from a user's k best are scored exactly.

The host then orders the few remaining items by descending score, then by ascending item key. A row
that an update changes during the search is copied before. So an exact score replaces whatever the
product read of it.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.device.machine import Device
from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.scoring.cpu import MANY_USERS, slacks
from livefactor_kernels.scoring.cpu_kernels import cutoff
from livefactor_kernels.scoring.cuda_reads import (
    SavedRows,
    livefactor_norms_kernel,
    livefactor_rescore_kernel,
    livefactor_scan_kernel,
)
from livefactor_kernels.spec.model import LANES
from livefactor_kernels.tables.cuda import CudaTable

SCORES_AT_ONCE = 1 << 26
"""Maximum number of scores in memory: 256 MiB."""
WIDENED_AT_ONCE = 1 << 24
"""Maximum number of narrow factors that are widened at once for the matrix product: 64 MiB."""

_Found = tuple[np.ndarray, np.ndarray]


class Exclusions(NamedTuple):
    """Excluded rows: uint32[e] for all users; user u's own are own[offsets[u] : offsets[u + 1]]."""

    common: np.ndarray
    own: np.ndarray
    offsets: np.ndarray


class TopK:
    """One search. It holds `lock` while it puts work on the stream, and not while it waits."""

    def __init__(
        self, device: Device, items: CudaTable, lock: threading.Condition, frozen: SavedRows, count: int
    ) -> None:
        self._device, self._items, self._lock, self._frozen = device, items, lock, frozen
        self._count = count
        self._blocks = items.spec.k_padded // LANES

    def run(
        self, factors: np.ndarray, bases: np.ndarray, k: int, exclusions: Exclusions
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Searches for users with factors float32[n, kp] and bases mu + b_u, float32[n].

        Returns:
            Rows uint32[m], scores float32[m] and offsets int64[n + 1].
        """
        users, k = len(bases), min(k, self._count)
        found: list[_Found] = []
        at_once = max(1, SCORES_AT_ONCE // max(1, self._count))
        for first in range(0, users, at_once):
            last = min(first + at_once, users)
            if k:
                found += self._search(factors[first:last], bases[first:last], k, exclusions, first)
            else:
                found += [(np.empty(0, np.uint32), np.empty(0, np.float32))] * (last - first)
        offsets = np.zeros(users + 1, np.int64)
        np.cumsum([len(rows) for rows, _ in found], out=offsets[1:])
        rows = np.concatenate([np.empty(0, np.uint32), *(rows for rows, _ in found)])
        return rows, np.concatenate([np.empty(0, np.float32), *(scores for _, scores in found)]), offsets

    def _search(
        self, factors: np.ndarray, bases: np.ndarray, k: int, exclusions: Exclusions, first: int
    ) -> list[_Found]:
        """The k best items of each user.

        `first` is the number of the first of these users among all.
        """
        device, xp, users = self._device, self._device.xp, len(bases)
        with self._lock:
            user, base = device.put(np.asarray(factors, np.float32)), device.put(bases)
            scores = device.empty(users * self._count, np.float32)
            table = scores.array.reshape(users, self._count)
            slack = np.zeros(users)
            if users < MANY_USERS:
                self._scan(user.argument, base.argument, users, scores.argument, listed=False)
            else:
                bounds = self._product(user, base, table)
                self._scan(user.argument, base.argument, users, scores.argument, listed=True)
        if users >= MANY_USERS:
            norms = np.linalg.norm(factors.astype(np.float64), axis=1)
            slack = slacks(bases, norms, factors.shape[1], *(float(part[0]) for part in bounds()))
        with self._lock, device.working():
            self._leave_out(table, exclusions, first)
            place = self._count - k
            best = device.fetch([xp.partition(table, place, axis=1)[:, place]])
        # -inf stays -inf: fewer than k items are left.
        cuts = device.put(cutoff.py_func(best()[0], 2.0 * slack))
        with self._lock, device.working():
            left = xp.nonzero((table >= cuts.array[:, None]) & (table > -np.inf))
            numbers, rows = (part.astype(np.int64) for part in left)
        return self._ordered(user.argument, base.argument, numbers, rows, users, k)

    def _scan(self, user: Any, base: Any, users: int, scores: Any, listed: bool) -> None:
        """Writes exact scores of all items or, if `listed`, of those copied since the pin."""
        most = max(1, self._frozen.bound) if listed else self._count
        if listed and not self._frozen.bound:
            return
        self._device.launch(
            livefactor_scan_kernel,
            users * most * LANES,
            user,
            base,
            users,
            self._items.live,
            self._frozen.saved,
            int(listed),
            most,
            self._count,
            self._blocks,
            scores,
        )

    def _product(self, user: Any, base: Any, table: Any) -> Any:
        """Scores by a matrix product.

        Returns a function that waits for the maximum squared norm and |bias| of the live rows.
        """
        device, xp, count = self._device, self._device.xp, self._count
        norms = device.empty(count, np.float32)
        device.launch(
            livefactor_norms_kernel, count * LANES, self._items.live, count, self._blocks, norms.argument
        )
        with device.working():
            self._multiply(user.array, table)
            bias = self._items.matrix("bias", 0, count)[:, 0]
            constant = base.array[:, None] + bias[None, :]
            xp.add(constant, table, out=table)
            bounds = [norms.array.max().reshape(1), xp.abs(bias).max().reshape(1)]
        return device.fetch(bounds)

    def _multiply(self, user: Any, table: Any) -> None:
        """Writes the dot products of all users and all live rows."""
        items, xp, width = self._items, self._device.xp, self._items.widths["factors"]
        users = user.reshape(-1, width)
        if items.dtypes["factors"] == np.float32:
            xp.matmul(users, items.matrix("factors", 0, self._count).T, out=table)
            return
        at_once = max(1, WIDENED_AT_ONCE // width)
        for start in range(0, self._count, at_once):
            stop = min(start + at_once, self._count)
            table[:, start:stop] = xp.matmul(users, widened(items.matrix("factors", start, stop)).T)

    def _leave_out(self, table: Any, exclusions: Exclusions, first: int) -> None:
        xp = self._device.xp
        if exclusions.common.size:
            table[:, xp.asarray(exclusions.common.astype(np.int64))] = -np.inf
        ends = exclusions.offsets[first : first + len(table) + 1]
        if ends[-1] > ends[0]:
            numbers = np.repeat(np.arange(len(table)), np.diff(ends))
            rows = exclusions.own[ends[0] : ends[-1]].astype(np.int64)
            table[xp.asarray(numbers), xp.asarray(rows)] = -np.inf

    def _ordered(
        self, user: Any, base: Any, numbers: Any, rows: Any, users: int, k: int
    ) -> list[_Found]:  # fmt: skip
        """Scores the candidates exactly and orders them, at most k per user.

        The candidates are user numbers and rows, int64[m] each, on the device.
        """
        device, count = self._device, int(rows.size)
        # Without a candidate, all items are excluded.
        if not count:
            return [(np.empty(0, np.uint32), np.empty(0, np.float32))] * users
        with self._lock:
            scores = device.empty(count, np.float32)
            pairs = [device.wrapped(part).argument for part in (numbers, rows)]
            live, saved = self._items.live, self._frozen.saved
            arguments = (user, base, live, saved, *pairs, count, self._blocks, scores.argument)
            device.launch(livefactor_rescore_kernel, count * LANES, *arguments)
            wait = device.fetch([numbers, rows, scores.array])
        host_numbers, host_rows, host_scores = wait()
        keys = self._items.keys[host_rows]
        order = np.lexsort((keys, -host_scores, host_numbers))
        ends = np.searchsorted(host_numbers[order], np.arange(users + 1))
        taken = [order[start : min(start + k, stop)] for start, stop in pairwise(ends)]
        return [(host_rows[part].astype(np.uint32), host_scores[part]) for part in taken]
