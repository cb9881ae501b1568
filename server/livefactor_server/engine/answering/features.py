"""What a model has learned of the features of a side, or of context."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from livefactor_kernels.reading.context import KEYS
from livefactor_kernels.reading.context.learning import strengths_of
from livefactor_kernels.solve.features import FEATURES, SIDE_NAMES
from livefactor_server.changes.content.bags import require_context
from livefactor_server.changes.content.features import CONTEXT, require_features
from livefactor_server.engine.engine import Engine

BLOCK_ROWS = 4096
"""Rows whose bags are read at once."""


class FeatureReport(NamedTuple):
    """The features of a side, or of context, at a revision.

    `names`, `ids` int64[n] and `strengths` float32[n] are of some of them, and `total` counts all.
    `ids` of context counts events.
    """

    revision: int
    names: list[str]
    ids: np.ndarray
    strengths: np.ndarray
    total: int


def report(
    engine: Engine, side: int, limit: int, weakest_first: bool, check: Callable[[], None]
) -> FeatureReport:
    """The `limit` features of a side, or of `CONTEXT`, with the most strength, or the least.

    `check` is called between blocks of rows. Its exception ends the read.

    Raises:
        Refused: INVALID_ARGUMENT if the model has no such features.
    """
    if side == CONTEXT:
        return _report_of_context(engine, limit, weakest_first)
    require_features(engine.state.spec)
    with engine.gate.reading():
        state = engine.state
        pin, revision, learned = state.backend.pin(), state.revision, state.backend.state()
        prefix = f"{FEATURES}.{SIDE_NAMES[side]}."
        keys = learned[prefix + "keys"]
        # A row has the bias behind its factors, if the rule has biases.
        rows = learned[prefix + "rows"].copy().reshape(len(keys) + 1, -1)[:, : state.spec.k]
        names = [state.features[side].get(key) for key in keys.tolist()]
    ids = np.zeros(len(keys) + 1, np.int64)
    with pin:
        for start in range(0, pin.counts[side], BLOCK_ROWS):
            check()
            block = np.arange(start, min(start + BLOCK_ROWS, pin.counts[side]), dtype=np.uint32)
            bags = pin.read(side, block, ("bag",))["bag"]
            ids += np.bincount(bags.reshape(-1), minlength=len(ids))
    strengths = np.sqrt(np.square(rows[1:].astype(np.float64)).sum(axis=1)).astype(np.float32)
    return _first(FeatureReport(revision, names, ids[1:], strengths, len(keys)), limit, weakest_first)


def _report_of_context(engine: Engine, limit: int, weakest_first: bool) -> FeatureReport:
    require_context(engine.state.spec)
    with engine.gate.reading():
        state = engine.state
        keys = state.backend.state()[KEYS].copy()
        revision, statistics = state.revision, state.backend.context(keys)
        names = [state.context.get(key) for key in keys.tolist()]
    # The keys are in the order of their places, and so are the counts.
    events = np.rint(statistics.counts).astype(np.int64)
    strengths = strengths_of(statistics).astype(np.float32)
    return _first(FeatureReport(revision, names, events, strengths, len(keys)), limit, weakest_first)


def _first(found: FeatureReport, limit: int, weakest_first: bool) -> FeatureReport:
    if not found.names:
        return found
    order = found.strengths if weakest_first else -found.strengths
    kept = np.lexsort((np.array(found.names), order))[:limit]
    names = [found.names[at] for at in kept.tolist()]
    return FeatureReport(found.revision, names, found.ids[kept], found.strengths[kept], found.total)
