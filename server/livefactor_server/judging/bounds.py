"""Early warnings for diverging losses and growing factors.

Judged events are grouped in blocks. Each block is compared with the blocks before it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

BLOCK_EVENTS = 256
"""Judged events per block."""
BLOCKS_KEPT = 32
"""Number of earlier blocks that a block is compared with.

The comparison uses the median of their means.
"""
BLOCKS_BEFORE_FIRST = 8
"""Number of blocks needed before the first comparison, since a new model changes fast."""
LOSS_TIMES_MAX = 4.0
"""Maximum mean loss of a block, as a multiple of the median of earlier blocks."""
NORM_TIMES_MAX = 3.0
"""Maximum mean row norm of a block, as a multiple of the median of earlier blocks."""
CLAMPED_SHARE_MAX = 0.01
"""Maximum share of factors at the spec's `factor_max`."""
AT_BOUND = 0.999
"""A factor counts as clamped above this share of `factor_max`, since narrow factors are rounded."""

LOSS_NOT_FINITE = "loss_not_finite"
LOSS_ABOVE_WINDOW = "loss_above_window"
FACTORS_CLAMPED = "factors_clamped"
NORMS_GROWING = "norms_growing"
KINDS = (LOSS_NOT_FINITE, LOSS_ABOVE_WINDOW, FACTORS_CLAMPED, NORMS_GROWING)


class Alarm(NamedTuple):
    """A violated bound.

    `before` is the value before (or the bound itself), and `after` the present value.
    """

    kind: str
    metric: str
    before: float
    after: float


class Bounds:
    """Checks the bounds of one model."""

    def __init__(self, factor_max: float, k: int) -> None:
        """Stores the limits.

        Args:
            factor_max: the bound of factors in the spec.
            k: number of factors per row.
        """
        self._at_bound = AT_BOUND * factor_max
        self._k = k
        self.restart()

    def restart(self) -> None:
        """Discards all blocks. The next blocks define the normal values."""
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
        """Whether the last block violated a bound."""
        return bool(self._standing)

    def push(self, losses: np.ndarray, factors: tuple[np.ndarray, np.ndarray]) -> tuple[bool, list[Alarm]]:
        """Adds m judged events.

        Args:
            losses: their losses, float64[m].
            factors: their user rows and item rows, each float32[m, kp]; unknown rows are zeros.

        Returns:
            Whether a block ended, and the bounds that it violates and the block before did not.
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
