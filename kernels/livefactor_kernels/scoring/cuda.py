"""Exact top-k on the GPU, as of a pin, while updates go on.

    few users    every item's exact score, in one pass over the table
    many users   a matrix product (of float32, never TF32; narrow factors are widened for it, a block of rows at
                 a time) scores every item; what was copied since the pin is scored exactly over it; only what
                 the product's rounding error (`scoring.slacks`) cannot rule out of a user's k best is scored
                 exactly

Then the host orders the few that are left: by score descending, then by item key ascending. A row that an
update changes meanwhile is copied before, so whatever the product read of it is replaced by the exact score.
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
"""Scores that are held at once: 256 MiB."""
WIDENED_AT_ONCE = 1 << 24
"""Narrow factors that are widened at once for the matrix product: 64 MiB."""

_Found = tuple[np.ndarray, np.ndarray]


class Exclusions(NamedTuple):
    """Rows that are left out: for everybody uint32[e]; user u's own are own[offsets[u] : offsets[u + 1]]."""

    common: np.ndarray
    own: np.ndarray
    offsets: np.ndarray


class TopK:
    """One search. `lock` is held while work is put on the stream, not while it is waited for."""

    def __init__(
        self, device: Device, items: CudaTable, lock: threading.Condition, frozen: SavedRows, count: int
    ) -> None:
        self._device, self._items, self._lock, self._frozen = device, items, lock, frozen
        self._count = count
        self._blocks = items.spec.k_padded // LANES

    def run(
        self, factors: np.ndarray, bases: np.ndarray, k: int, exclusions: Exclusions
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows uint32[m], scores float32[m], offsets int64[n + 1]) of users with factors float32[n, kp] and mu +
        b_u float32[n]."""
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
        """The k best of each user; `first`: the number of the first user among all."""
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
        cuts = device.put(cutoff.py_func(best()[0], 2.0 * slack))  # -inf stays: fewer than k are left
        with self._lock, device.working():
            left = xp.nonzero((table >= cuts.array[:, None]) & (table > -np.inf))
            numbers, rows = (part.astype(np.int64) for part in left)
        return self._ordered(user.argument, base.argument, numbers, rows, users, k)

    def _scan(self, user: Any, base: Any, users: int, scores: Any, listed: bool) -> None:
        """Exact scores of all items, or of those that were copied since the pin."""
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
        """Scores by a matrix product, and the largest squared norm and |bias| of the live rows, to wait for."""
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
        """Dots of all users and all live rows."""
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
        """Exact scores of the candidates (user numbers and rows, int64[m] of the device), in order, the k best a
        user."""
        device, count = self._device, int(rows.size)
        if not count:  # all are left out
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
