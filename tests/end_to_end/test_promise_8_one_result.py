"""Promise 8: every backend computes the same bits.

These tests compare the CPU backend with the NumPy reference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from history import MODELS, History
from livefactor.auditor import Auditor
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_server.log.store import Log
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.replay import log_folder, replay
from load import MODEL, create_model, described
from server_process import Server


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
        fast.backend.mean, *fast.backend.gather(USERS, np.arange(users, dtype=np.uint32)),
        *fast.backend.gather(ITEMS, item_rows), lists,
    )  # fmt: skip
    assert got.tobytes() == expected.tobytes()
    # The comparison is not about constant scores.
    assert np.unique(got).size > users


def scores_in_numpy(state: ModelState) -> np.ndarray:
    """float32[users, items]: ((mu + b_u) + b_i) + dot, with 8 factors in 8 lanes."""
    users, items = (state.backend.sections(side, state.backend.published[side]) for side in (USERS, ITEMS))
    lanes = users["factors"][:, None, :] * items["factors"][None, :, :]
    assert lanes.shape[-1] == 8
    for width in (4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return ((np.float32(state.backend.mean) + users["bias"][:, None]) + items["bias"][None, :]) + lanes[
        ..., 0
    ]


class Talk:
    """A fixed series of pushes and score calls. It records the bytes of every answer."""

    def __init__(self, server: Server) -> None:
        self.server, self.rng, self.answers = server, np.random.default_rng(20_261_131), []

    def push(self) -> None:
        """Push four batches. Each begins with new users and items."""
        settings = BatchSettings(latency_ms_max=0)
        with self.server.channel() as channel, Producer(channel, "p", model=MODEL, batch=settings) as pushing:
            for _ in range(4):
                fresh = np.arange(10, dtype=np.uint64) + self.rng.integers(1 << 40, dtype=np.uint64)
                users = np.concatenate([fresh, self.rng.integers(0, 60, 50, np.uint64)])
                items = np.concatenate([fresh, self.rng.integers(0, 40, 50, np.uint64)])
                pushing.push(users, items).result(60)

    def ask(self) -> None:
        """Score candidates for one user, and ask for the top items of few users and of many."""
        with self.server.channel() as channel, Scorer(channel, model=MODEL) as scorer:
            one, few = scorer.score(3, range(50)), scorer.recommend([1, 99_999], 9)
            many = scorer.recommend(np.arange(70), 100)
        for answer in (one, *few, *many):
            self.answers += [answer.item_ids.tobytes(), answer.scores.tobytes()]


@pytest.mark.parametrize(
    "factors", ["float32", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("float16", "bfloat16"))]
)
def test_a_server_on_the_reference_gives_the_answers_of_one_on_the_cpu(
    serve: Callable[..., Server], factors: str
) -> None:
    talks = []
    for backend in ("cpu", "reference"):
        server = serve("--backend", backend, name=backend)
        create_model(server, seed=7, factor_dtype=factors)
        talk = Talk(server)
        talk.push()
        talk.ask()
        with server.channel() as channel:
            Auditor(channel, model=MODEL).snapshot()
        talk.push()
        # Only the log holds the records behind the snapshot.
        server.kill()
        server.start()
        talk.ask()
        talk.push()
        talk.ask()
        model = described(server)
        assert model.backend == backend
        assert server.stop() == 0
        report = replay_model(server.model_folder(MODEL))
        assert report.good and report.snapshots and report.root_hash == model.root_hash
        talks.append(talk)
    assert talks[0].answers == talks[1].answers
    # The comparison is not about equal answers to different calls.
    assert len(set(talks[0].answers)) > 100
