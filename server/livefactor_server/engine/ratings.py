"""Recognises ratings among the first events of a model, and gives the model the preset `ratings`.

Ratings are few distinct values on a grid, and people rate more of what they like. So their mean is
not below the middle between the smallest and the largest one. Quantities and play counts have many
values, gaps and a long tail: their mean is far below the middle. `docs/auto.md` says on which data
the rule was chosen.

Whether events are ratings depends on the log alone: after each record, from `EVENTS_MIN` events on,
the rule looks at the first events up to `auto.ratings_events`. The first yes counts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

import grpc
import numpy as np

from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import Change, InteractionsChange, change_of
from livefactor_server.changes.history.quarantine import LEARNED
from livefactor_server.log.store import Log
from livefactor_server.statuses import Refused

EVENTS_MIN = 100
"""Number of events from which on ratings are recognised."""

VALUES_MIN, VALUES_MAX = 3, 21
"""Minimum and maximum number of distinct ratings."""

VALUE_MAX = 100.0
"""Maximum of ratings. One of them must be above 1."""

COVERED_MIN = 0.5
"""Minimum share of the grid between the smallest and the largest rating that occurs."""

BIAS_L2, RIDGE_EVENTS = 0.1, 20.0
"""Regularisation that suits sparse ratings as well (docs/auto.md)."""

RETRY_S = 10.0
"""Seconds between two tries of the switch if memory or disk are short, or another one runs."""

logger = logging.getLogger(__name__)


def are_ratings(values: np.ndarray) -> bool:
    """Whether values float32[n] look like ratings."""
    distinct = np.unique(values.astype(np.float64))
    if not VALUES_MIN <= distinct.size <= VALUES_MAX or not 1.0 < distinct[-1] <= VALUE_MAX:
        return False
    places = (distinct - distinct[0]) / np.diff(distinct).min()
    if np.abs(places - np.round(places)).max() > 1e-3 or distinct.size < COVERED_MIN * (places[-1] + 1):
        return False
    return bool(values.mean(dtype=np.float64) >= (distinct[0] + distinct[-1]) / 2)


def spec_for_ratings(spec: ModelSpec) -> ModelSpec:
    """The preset `ratings` for data of any density, with four parts of `spec`.

    These are the seed, the event types, the type of factors, and the limits of rows.
    """
    base = preset("ratings")
    limits = replace(spec.limits, value_abs_max=base.limits.value_abs_max)
    return replace(
        base,
        bias_l2=BIAS_L2,
        solve=replace(base.solve, ridge_events=RIDGE_EVENTS),
        seed=spec.seed,
        event_types=spec.event_types,
        factor_dtype=spec.factor_dtype,
        limits=limits,
    )


def spec_after(spec: ModelSpec, values: np.ndarray) -> ModelSpec:
    """The spec that a model with `spec` has after events with values float32[n], one a record."""
    first = values[: spec.auto.ratings_events]
    sizes = range(min(EVENTS_MIN, first.size), first.size + 1)
    return spec_for_ratings(spec) if any(are_ratings(first[:size]) for size in sizes if size) else spec


class Recogniser:
    """Watches the first events of one model. The APPLY stage calls `see`."""

    def __init__(self, name: str, spec: ModelSpec, log: Log, promote: Callable[[ModelSpec], int]) -> None:
        """Watches nothing if the spec or the log says so.

        A log that has a SWITCH record was decided. So was one whose beginning was not read when it
        was opened or was deleted, because the first events are in its beginning.
        """
        self._name, self._spec, self._log, self._promote = name, spec, log, promote
        self._limit = spec.auto.ratings_events
        self._values = np.empty(0, np.float32)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self.watches = bool(self._limit) and not (
            log.lacks or log.switches_from or log.switches or log.rollbacks
        )

    def start(self) -> None:
        """Sees the events that the log has already."""
        for record in self._log.read() if self.watches else ():
            if record.kind in LEARNED:
                self.see([change_of(record.kind, record.body)])
            if not self.watches:
                return

    def see(self, changes: Iterable[Change]) -> None:
        """Sees the next records. When it has recognised ratings, it starts the promotion."""
        for change in changes:
            if self.watches and isinstance(change, InteractionsChange) and change.rows:
                self._see(change)

    def _see(self, change: InteractionsChange) -> None:
        values = change.columns.values
        if values is None or self._log.switches:
            # Ratings have values. An operator's promotion decides, too.
            self.watches = False
            return
        self._values = np.concatenate((self._values, values))[: self._limit]
        found = self._values.size >= min(EVENTS_MIN, self._limit) and are_ratings(self._values)
        self.watches = not found and self._values.size < self._limit
        if found:
            self._thread = threading.Thread(target=self._switch, name=f"ratings-{self._name}", daemon=True)
            self._thread.start()

    def _switch(self) -> None:
        logger.info("model %s: its first events look like ratings; preset ratings learns them", self._name)
        try:
            while not self._promoted():
                if self._stopped.wait(RETRY_S):
                    return
        except Exception:
            logger.exception("model %s: the switch to preset ratings failed", self._name)

    def _promoted(self) -> bool:
        """Tries to promote. False if a later try can succeed."""
        try:
            self._promote(spec_for_ratings(self._spec))
        except Refused as refusal:
            logger.warning(
                "model %s: its first events look like ratings, but it keeps its spec: %s",
                self._name,
                refusal.text,
            )
            return refusal.code != grpc.StatusCode.RESOURCE_EXHAUSTED
        return True

    def stop(self) -> None:
        """Waits for a promotion to end. The engine drains."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
