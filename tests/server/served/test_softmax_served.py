"""A model with the rule SOFTMAX on a server, from the push to the snapshot, replay and restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import livefactor
from livefactor.in_process import local
from livefactor.models import Models
from livefactor.v1 import models_pb2
from livefactor_kernels.spec.model import Loss, Proposal, Rule, Softmax, SpecError
from livefactor_kernels.spec.presets import preset
from livefactor_server.model import spec_codec
from livefactor_server.snapshots.audit import replay_model

SPEC: dict[str, Any] = {
    "k": 16,
    "loss": "softmax",
    "rule": "softmax",
    "softmax": {"proposal": "popularity"},
    "negatives": 16,
    "micro_batch": 8,
    "optimizer": {"kind": "adagrad", "learning_rate": 0.2, "bias_learning_rate": 0.05, "initial_g": 0.1},
    "history": {"users": 32},
    "counts": {"repeat": 1.5},
    "event_types": [{"type": 7, "negative": True, "weight": 1.0}],
    "limits": {
        "users_max": 1000,
        "items_max": 1000,
        "value_abs_max": 10.0,
        "error_max": 10.0,
        "factor_max": 100.0,
    },
}


def test_messages_name_the_rule_and_its_proposal() -> None:
    spec = preset(
        "clicks_sgd", rule=Rule.SOFTMAX, loss=Loss.SOFTMAX, softmax=Softmax(Proposal.UNIFORM), micro_batch=4
    )
    assert spec_codec.decode(spec_codec.encode(spec)).softmax == spec.softmax
    message = models_pb2.ModelSpec.FromString(spec_codec.encode(spec))
    assert (message.rule, message.softmax.proposal) == (models_pb2.RULE_SOFTMAX, models_pb2.PROPOSAL_UNIFORM)
    assert not models_pb2.ModelSpec.FromString(spec_codec.encode(preset("clicks_sgd"))).HasField("softmax")
    message.softmax.proposal = 9  # type: ignore[assignment]
    with pytest.raises(SpecError, match=r"softmax\.proposal"):
        spec_codec.decode(message.SerializeToString())
    with pytest.raises(SpecError, match=r"softmax\.proposal"):
        spec_codec.from_message(message, "clicks_sgd")


def test_it_is_served_snapshotted_replayed_and_restored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(0, 50, 4000).astype(np.uint64)
    items = (users % 10 * 10 + rng.integers(0, 10, 4000)).astype(np.uint64)
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        models.create("m", "clicks_sgd", **SPEC)
        with livefactor.Producer(producer_id="p", channel=server.channel, model="m") as producer:
            for part in np.array_split(np.arange(4000), 8):
                producer.push(users[part], items[part])
            producer.flush()
        with livefactor.Auditor(channel=server.channel, model="m") as auditor:
            auditor.snapshot()
        models.restore("again", "m")
        lists = []
        for model in ("m", "again"):
            with livefactor.Scorer(channel=server.channel, model=model) as scorer:
                lists.append(scorer.recommend(np.arange(50), 8))
        assert lists[0].item_ids.tolist() == lists[1].item_ids.tolist()
        assert lists[0].scores.tobytes() == lists[1].scores.tobytes()
        hits = [np.mean(answer.item_ids // 10 == user % 10) for user, answer in enumerate(lists[0])]
        # A random list would hit one time in ten.
        assert np.mean(hits) > 0.7
        with livefactor.Producer(producer_id="q", channel=server.channel, model="again") as producer:
            producer.push(users[:200], items[:200], event_types=np.arange(200) % 8)
            producer.flush()
        # The second model learns from restored popularity.
        for model in ("m", "again"):
            live = models.describe(model, with_root_hash=True)
            for backend in ("cpu", "reference"):
                assert replay_model(tmp_path / "models" / model, backend).root_hash == live.root_hash


def test_repeated_purchases_gain_in_scores_and_in_lists() -> None:
    rng, answers = np.random.default_rng(1), []
    users, items = rng.integers(1, 50, 1000), rng.integers(0, 80, 1000)
    with local(None) as server, Models(channel=server.channel) as models:
        for model, repeat in (("some", 1.5), ("none", 0.0)):
            models.create(model, "purchases", k=16, counts={"repeat": repeat})
            with livefactor.Producer(producer_id="p", channel=server.channel, model=model) as producer:
                # Each event is a separate visit.
                producer.push([*users, 0, 0, 0, 0], [*items, 90, 91, 90, 92])
                producer.flush()
            with livefactor.Scorer(channel=server.channel, model=model) as scorer:
                scores = scorer.score([0], [[90, 91, 92, 5]])[0].scores
                answers.append(
                    (scores, scorer.recommend(0, 3)[0], scorer.recommend(0, 3, exclude_seen=True)[0])
                )
    (more, first, others), (plain, _, plain_others) = answers
    ages = np.array([1.0, 3.0, 2.0, 0.0])
    halved = 1.5 * 0.5 ** (ages / 8.0)
    np.testing.assert_allclose(more - plain, [halved[0] + halved[1], halved[2], halved[3], 0.0], atol=1e-5)
    assert first.item_ids.tolist()[0] == 90
    assert others.item_ids.tolist() == plain_others.item_ids.tolist()
    assert others.scores.tobytes() == plain_others.scores.tobytes()
