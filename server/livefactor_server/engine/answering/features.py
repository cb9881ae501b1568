"""What a model has learned of the features of a side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from livefactor_kernels.solve.features import FEATURES, SIDE_NAMES
from livefactor_server.engine.engine import Engine
from livefactor_server.statuses import invalid

BLOCK_ROWS = 4096
"""Rows whose bags are read at once."""


class FeatureReport(NamedTuple):
    """The features of a side at a revision.

    `names`, `ids` int64[n] and `strengths` float32[n] are of some of them, and `total` counts all.
    """

    revision: int
    names: list[str]
    ids: np.ndarray
    strengths: np.ndarray
    total: int


def report(
    engine: Engine, side: int, limit: int, weakest_first: bool, check: Callable[[], None]
) -> FeatureReport:
    """The `limit` features of a side with the most strength, or the least.

    `check` is called between blocks of rows. Its exception ends the read.

    Raises:
        Refused: INVALID_ARGUMENT if the model has no features.
    """
    if not engine.state.spec.features.size:
        raise invalid("features: this model has no features (spec: features.size)")
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
    kept: np.ndarray = np.empty(0, np.int64)
    if names:
        kept = np.lexsort((names, strengths if weakest_first else -strengths))[:limit]
    return FeatureReport(
        revision, [names[at] for at in kept.tolist()], ids[1:][kept], strengths[kept], len(keys)
    )
