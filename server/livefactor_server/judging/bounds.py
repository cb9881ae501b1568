"""Early warnings: is the loss, or are the factors, running away? Judged in blocks, each beside the blocks before it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

BLOCK_EVENTS = 256
"""Judged events that are looked at together."""
BLOCKS_KEPT = 32
"""Blocks that a new one is compared with: the median of their means."""
BLOCKS_BEFORE_FIRST = 8
"""Blocks that must be there before one is compared: a model that begins changes fast."""
LOSS_TIMES_MAX = 4.0
NORM_TIMES_MAX = 3.0
CLAMPED_SHARE_MAX = 0.01
"""A block's mean loss and mean row norm, in multiples of the median before; share of factors at the spec's bound."""
AT_BOUND = 0.999
"""A factor counts as clamped from this share of factor_max on (narrow factors round)."""

LOSS_NOT_FINITE = "loss_not_finite"
LOSS_ABOVE_WINDOW = "loss_above_window"
FACTORS_CLAMPED = "factors_clamped"
NORMS_GROWING = "norms_growing"
KINDS = (LOSS_NOT_FINITE, LOSS_ABOVE_WINDOW, FACTORS_CLAMPED, NORMS_GROWING)


class Alarm(NamedTuple):
    """A bound that was passed: what is compared, its value before (or the bound itself), and its value now."""

    kind: str
    metric: str
    before: float
    after: float


class Bounds:
    """Watches one model. factor_max: of the spec; k: factors of a row."""

    def __init__(self, factor_max: float, k: int) -> None:
        self._at_bound = AT_BOUND * factor_max
        self._k = k
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: what comes next is what is normal."""
        self._losses: deque[float] = deque(maxlen=BLOCKS_KEPT)
        self._norms: deque[float] = deque(maxlen=BLOCKS_KEPT)
        self._standing: set[str] = set()
        self._begin()
        self.row_norm = self.clamped_share = float("nan")

    def _begin(self) -> None:
        self._events, self._loss = 0, 0.0
        self._rows, self._norm, self._clamped = 0, 0.0, 0

    @property
    def passed(self) -> bool:
        """Whether a bound was passed by the last block."""
        return bool(self._standing)

    def push(self, losses: np.ndarray, factors: tuple[np.ndarray, np.ndarray]) -> tuple[bool, list[Alarm]]:
        """Take in judged events: losses float64[m], and rows float32[m, kp] of users and items (zeros: unknown).

        Returns (whether a block ended, bounds that were not passed before and are now).
        """
        self._events += len(losses)
        self._loss += float(losses.sum())
        for rows in factors:
            squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
            self._norm += float(np.sqrt(squares).sum())
            self._rows += int(np.count_nonzero(squares))
            self._clamped += int(np.count_nonzero(np.abs(rows) >= self._at_bound))
        if self._events < BLOCK_EVENTS and np.isfinite(self._loss):
            return False, []
        return True, self._close()

    def _close(self) -> list[Alarm]:
        loss, norm = self._loss / max(1, self._events), self._norm / max(1, self._rows)
        self.row_norm, self.clamped_share = norm, self._clamped / max(1, self._rows * self._k)
        alarms = []
        if not np.isfinite(loss):
            alarms.append(Alarm(LOSS_NOT_FINITE, "loss", float("nan"), loss))
        for kind, metric, value, blocks, times in (
            (LOSS_ABOVE_WINDOW, "loss", loss, self._losses, LOSS_TIMES_MAX),
            (NORMS_GROWING, "row_norm", norm, self._norms, NORM_TIMES_MAX),
        ):
            if not np.isfinite(value):
                continue
            if len(blocks) >= BLOCKS_BEFORE_FIRST and value > times * (before := float(np.median(blocks))):
                alarms.append(Alarm(kind, metric, before, value))
            blocks.append(value)
        if self.clamped_share > CLAMPED_SHARE_MAX:
            alarms.append(Alarm(FACTORS_CLAMPED, "clamped_share", CLAMPED_SHARE_MAX, self.clamped_share))
        new = [alarm for alarm in alarms if alarm.kind not in self._standing]
        self._standing = {alarm.kind for alarm in alarms}
        self._begin()
        return new
