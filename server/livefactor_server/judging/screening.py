"""Decides which batches wait in quarantine: those that are unlike the batches before them.

A batch has three figures, at the state before it: the mean loss of its events, the root mean square
of their gradients, and the share of its rows that name a new user or item. Each is compared with
the same figure of the last batches that were learned. A figure is an outlier if it is above the
median by more than `deviations` times the median absolute deviation (scaled to a standard deviation
of normal figures), and above a floor, because figures that hardly vary would make everything one.
Source of the rule: Iglewicz and Hoaglin, How to detect and handle outliers, 1993.

Small batches are not judged: chance alone makes outliers of them. A batch that is held does not
enter the windows, so many bad ones cannot become normal. A batch that an operator accepts raises
the bounds to its figures.

The windows are no part of the state. They begin anew with each start, and with each other spec.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from prometheus_client import Counter

from livefactor_kernels.spec.model import Loss
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.changes import InteractionsChange
from livefactor_server.judging import choice, scoring
from livefactor_server.judging.scoring import Reading, Sample
from livefactor_server.model.state import ModelState

ROWS_MIN = 32
"""Rows of a batch that is judged, at least."""

EVENTS_MAX = 128
"""Events of a batch whose loss is computed, at most. They are drawn at random."""

BATCHES_KEPT, BATCHES_MIN = 256, 32
"""Batches that a window has, and those that it needs before it decides."""

TO_SIGMA = 1.4826
"""A standard deviation of normal figures, as a multiple of their median absolute deviation."""

TIMES_MIN = 2.0
"""An outlier has at least so many times the median loss or gradient."""

SHARE_MIN, SHARE_MOST = 0.25, 0.75
"""The bound of the share of new ids is at least so far above the median, and at most this part of
the way from the median to 1.
"""

LOSS, GRADIENT, NEW_KEYS = FIGURES = ("loss", "gradient", "new_keys")

QUARANTINED = Counter(
    "livefactor_quarantined_batches",
    "Batches that went into quarantine, by the figure that was an outlier.",
    ["model", "figure"],
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScreenSettings:
    """Settings of the quarantine.

    Attributes:
        deviations: how many deviations above the median a figure may be.
        bytes_max: most bytes of batches that wait. Beyond it further ones are refused.
    """

    deviations: float
    bytes_max: int = 64 << 20


class Outlier(NamedTuple):
    """Why a batch is held: a figure, its value, and the bound that it passes."""

    figure: str
    value: float
    bound: float

    @property
    def note(self) -> bytes:
        """What the log keeps of it."""
        return json.dumps({**self._asdict(), "value": round(self.value, 6), "bound": round(self.bound, 6)},
                          sort_keys=True).encode()  # fmt: skip


class Screen:
    """Judges the batches of one model. The LOG stage calls `outlier`."""

    def __init__(self, name: str, state: ModelState, settings: ScreenSettings, reading: Reading) -> None:
        """`reading` locks the backend for short reads."""
        scoring.compile_kernels()
        self.settings = settings
        self._name, self._reading = name, reading
        self._lock = threading.Lock()
        self._draws = random.SystemRandom()
        self._looks = 0
        self.judge(state)

    def judge(self, state: ModelState) -> None:
        """Judges the batches of another state from now on, with new windows."""
        self._state, self._backend = state, state.backend
        self._windows = {name: deque[float](maxlen=BATCHES_KEPT) for name in FIGURES}
        self._accepted = dict.fromkeys(FIGURES, 0.0)

    def follow(self, state: ModelState) -> None:
        """The tables are others from now on, and the windows stay."""
        self._state, self._backend = state, state.backend

    def outlier(self, batch: InteractionsChange) -> Outlier | None:
        """Why a batch has to wait, or None. A batch that need not enters the windows."""
        if batch.rows < ROWS_MIN:
            return None
        figures = self._figures(batch)
        with self._lock:
            for name, value in figures.items():
                bound = self._bound(name)
                if value > bound or not np.isfinite(value):
                    QUARANTINED.labels(self._name, name).inc()
                    return Outlier(name, value, bound)
            for name, value in figures.items():
                self._windows[name].append(value)
        return None

    def accept(self, figure: str, value: float) -> None:
        """An operator takes a batch with this figure as normal."""
        with self._lock:
            if figure in self._accepted:
                self._accepted[figure] = max(value, self._accepted[figure])

    def _bound(self, name: str) -> float:
        window = self._windows[name]
        if len(window) < BATCHES_MIN:
            return float("inf")
        values = np.array(window)
        median = float(np.median(values))
        spread = TO_SIGMA * float(np.median(np.abs(values - median)))
        bound = median + self.settings.deviations * spread
        if name == NEW_KEYS:
            # A share of 1 is an outlier however much the share varies.
            most = median + SHARE_MOST * (1.0 - median)
            return max(min(max(bound, median + SHARE_MIN), most), self._accepted[name])
        return max(bound, median * TIMES_MIN, self._accepted[name])

    def _figures(self, batch: InteractionsChange) -> dict[str, float]:
        tables = self._backend.users, self._backend.items
        rows = [table.find(ids, table.allocated) for table, ids in zip(tables, batch.keys, strict=True)]
        is_new = (rows[USERS] == NO_ROW) | (rows[ITEMS] == NO_ROW)
        sample = self._sample(batch, rows)
        loss = Loss(self._state.spec.loss)
        ranks = loss != Loss.SQUARED
        negatives = choice.draw(
            self._state.spec.seed, choice.NEGATIVE_DOMAIN, sample.revisions, sample.events, sample.item_rows,
            sample.item_counts, self._state.spec.negatives if ranks else 0,
        )  # fmt: skip
        nobody = np.zeros(len(sample.events), bool)
        read = scoring.read(
            self._backend, self._reading, sample, nobody, negatives, np.empty((0, 0), np.uint32)
        )
        losses, errors = scoring.losses(loss, sample, read), scoring.errors(loss, sample, read)
        squares = sum(np.einsum("ij,ij->i", each, each, dtype=np.float64) for each in read.factors)
        gradients = errors * np.sqrt(1.0 + squares)
        return {
            LOSS: float(losses.mean()),
            GRADIENT: float(np.sqrt((gradients * gradients).mean())),
            NEW_KEYS: float(is_new.mean()),
        }

    def _sample(self, batch: InteractionsChange, rows: list[np.ndarray]) -> Sample:
        columns, n = batch.columns, batch.rows
        chosen = np.array(sorted(self._draws.sample(range(n), min(n, EVENTS_MAX))), np.int64)
        m = len(chosen)
        self._looks += 1

        def column(numbers: np.ndarray | None, default: float) -> np.ndarray:
            return np.full(m, default) if numbers is None else numbers[chosen].astype(np.float64)

        types = columns.event_types
        values, weights = self._state.meanings.applied(n, types, columns.values, columns.weights)
        return Sample(
            revisions=np.full(m, self._looks, np.uint64),
            events=chosen,
            user_rows=rows[USERS][chosen],
            item_rows=rows[ITEMS][chosen],
            values=column(values, 1.0),
            weights=column(weights, 1.0),
            types=np.zeros(m, np.uint32),
            item_counts=np.full(m, self._backend.items.allocated, np.uint64),
            lots=np.zeros((m, 2)),
            companions=np.full(m, m, np.int64),
        )
