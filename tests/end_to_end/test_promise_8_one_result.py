"""Promise 8: every backend computes the same bits. Here: the CPU's compiled kernels and the reference in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from history import MODELS, History
from livefactor_kernels import scoring
from livefactor_server.audit import replay_model
from livefactor_server.log import Log
from livefactor_server.replay import log_folder, replay
from livefactor_server.state import ModelState


@pytest.mark.parametrize("model", MODELS)
def test_the_reference_learns_what_the_live_model_learned(history: History, model: str) -> None:
    report = replay_model(history.folder(model), "reference")
    assert report.root_hash == history.roots[model]
    assert report.snapshots and report.good


def states(history: History, model: str) -> tuple[ModelState, ModelState]:
    folder = history.folder(model)
    with Log.open(log_folder(folder), read_only=True) as log:
        return replay(folder, log, "cpu"), replay(folder, log, "reference")


@pytest.mark.parametrize("model", ["ratings-adagrad", "clicks-batch", "purchases-sgd"])
def test_scores_of_both_are_the_same_bits(history: History, model: str) -> None:
    fast, slow = states(history, model)
    users, items = slow.backend.published
    assert fast.backend.published == (users, items)
    expected = scores_in_numpy(slow)
    lists = np.arange(users + 1, dtype=np.uint32) * np.uint32(items)
    item_rows = np.tile(np.arange(items, dtype=np.uint32), users)
    got = scoring.score_candidates(
        fast.backend.mean, *scoring.gather(fast.backend.users, np.arange(users, dtype=np.uint32)),
        *scoring.gather(fast.backend.items, item_rows), lists,
    )  # fmt: skip
    assert got.tobytes() == expected.tobytes()
    assert np.unique(got).size > users  # they say something


def scores_in_numpy(state: ModelState) -> np.ndarray:
    """float32[users, items]: ((mu + b_u) + b_i) + dot, 8 factors in as many lanes."""
    users, items = (
        table.sections(count)
        for table, count in zip(
            (state.backend.users, state.backend.items), state.backend.published, strict=True
        )
    )
    lanes = users["factors"][:, None, :] * items["factors"][None, :, :]
    assert lanes.shape[-1] == 8
    for width in (4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return ((np.float32(state.backend.mean) + users["bias"][:, None]) + items["bias"][None, :]) + lanes[
        ..., 0
    ]
