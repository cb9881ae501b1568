"""A model with histories on a server, from the push to the snapshot, replay and restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import livefactor
from livefactor.errors import InvalidArgument
from livefactor.in_process import Local, local
from livefactor.models import Models
from livefactor_server.snapshots.audit import replay_model

TABLES = ("users.", "items.", "gram", "mean")

START = 1_500_000_000
"""Seconds since 1970 at the first event."""

SPEC: dict[str, Any] = {
    "k": 16,
    "loss": "implicit",
    "rule": "solve",
    "negatives": 0,
    "optimizer": {"kind": "sgd"},
    "l2": 0.003,
    "micro_batch": 16,
    "init_scale": 0.05,
    "history": {"users": 32, "items": 64, "half_life": 1.0},
    "solve": {"unobserved": 1.0, "item_events": 8, "sweeps": 2},
    "counts": {
        "neighbors": 16,
        "span": 8,
        "half_life": 8.0,
        "weight": 0.5,
        "shrinkage": 10.0,
        "repeat": 0.25,
    },
    "event_types": [{"type": 7, "weight": 2.0, "negative": True}],
    "limits": {"users_max": 1000, "items_max": 1000, "value_abs_max": 10.0},
}


def _fill(server: Local) -> None:
    """Push events for users 0-49, who have ten tastes with ten items each.

    Each visit has three events.
    """
    with Models(channel=server.channel) as models:
        assert models.create("m", "clicks_sgd", **SPEC).spec["event_types"] == SPEC["event_types"]
    rng = np.random.default_rng(0)
    users = rng.integers(0, 50, 1500).astype(np.uint64)
    items = (users % 10 * 10 + rng.integers(0, 10, 1500)).astype(np.uint64)
    with livefactor.Producer(producer_id="p", channel=server.channel, model="m") as producer:
        for part in np.array_split(np.arange(1500), 12):
            producer.push(users[part], items[part], times=part // 3 + START)
        producer.flush()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(folder: Path):
    with local(None, folder) as running:
        _fill(running)
        yield running


def test_lists_match_the_users_taste_and_exclude_seen_items(server: Local) -> None:
    with livefactor.Scorer(channel=server.channel, model="m") as scorer:
        for answer in scorer.recommend([3, 14], 5):
            assert len({int(item) // 10 for item in answer.item_ids}) == 1
        (all_items,) = scorer.recommend([3], 100)
        (unseen,) = scorer.recommend([3], 100, exclude_seen=True)
        seen = set(all_items.item_ids.tolist()) - set(unseen.item_ids.tolist())
        assert seen
        assert seen <= set(range(30, 40))
        kept = np.isin(all_items.item_ids, unseen.item_ids)
        assert all_items.item_ids[kept].tolist() == unseen.item_ids.tolist()


def test_candidates_and_lists_have_the_same_scores(server: Local) -> None:
    with livefactor.Scorer(channel=server.channel, model="m") as scorer:
        (best,) = scorer.recommend([5], 20)
        (scores,) = scorer.score([5], best.item_ids)
        assert scores.scores.tobytes() == best.scores.tobytes()


def test_visitors_are_served_by_the_events_that_they_bring(server: Local) -> None:
    with livefactor.Scorer(channel=server.channel, model="m") as scorer:
        one, other, unknown = scorer.recommend([901, 902, 903], 5, events=[[71, 72, 73], [12, 11, 13], []])
        assert {int(item) // 10 for item in one.item_ids} == {7}
        assert {int(item) // 10 for item in other.item_ids} == {1}
        assert not one.known
        # A user without events gets the mean of all users.
        assert unknown.scores.max() > 0
        (left,) = scorer.recommend([901], 5, events=[71, 72, 73], exclude_seen=True)
        assert not {71, 72, 73} & set(left.item_ids.tolist())
        (candidates,) = scorer.score([901], one.item_ids, events=[71, 72, 73])
        assert candidates.scores.tobytes() == one.scores.tobytes()


def test_an_answer_says_where_seen_items_are_forgotten(server: Local) -> None:
    with Models(channel=server.channel) as models:
        models.create("long", "clicks_sgd", **SPEC)
    with livefactor.Producer(producer_id="p", channel=server.channel, model="long") as producer:
        # The ring of a user has 32 places. User 1 fills it, and user 2 has one event more.
        producer.push([1] * 32 + [2] * 33, [*range(32), *range(33)])
        producer.flush()
    with livefactor.Scorer(channel=server.channel, model="long") as scorer:
        kept, forgotten, unknown = answers = scorer.recommend([1, 2, 3], 100, exclude_seen=True)
        assert answers.seen_truncated.tolist() == [False, True, False]
        assert (kept.seen_truncated, forgotten.seen_truncated) == (False, True)
        assert "seen_truncated" in repr(forgotten) and "seen_truncated" not in repr(kept)
        assert kept.item_ids.tolist() == [32] and forgotten.item_ids.tolist() == [0] and len(unknown) == 33
        plain = scorer.recommend([1, 2], 100)
        assert not plain[1].seen_truncated and not len(plain.seen_truncated)
        # Events that come with the call are all known, however many there are.
        (given,) = scorer.recommend([9], 100, events=[*range(33)], exclude_seen=True)
        assert not given.seen_truncated and not len(given)


def test_a_user_with_a_thousand_items_gets_none_of_them_back(server: Local) -> None:
    with Models(channel=server.channel) as models:
        models.create("heavy", "auto", limits={"users_max": 1000, "items_max": 2000})
    with livefactor.Producer(producer_id="p", channel=server.channel, model="heavy") as producer:
        producer.push([*[1] * 1000, *[2] * 100], [*range(1100)])
        producer.flush()
    with livefactor.Scorer(channel=server.channel, model="heavy") as scorer:
        (answer,) = answers = scorer.recommend([1], 200, exclude_seen=True)
        assert sorted(answer.item_ids.tolist()) == [*range(1000, 1100)]
        assert answers.seen_truncated.tolist() == [False]


def test_a_negative_type_pulls_down(server: Local) -> None:
    with Models(channel=server.channel) as models:
        models.create("types", "clicks_sgd", **SPEC)
    with livefactor.Producer(producer_id="p", channel=server.channel, model="types") as producer:
        producer.push(np.repeat(np.arange(20), 2), np.tile([1, 2], 20), times=np.arange(40) + START)
        producer.push([500, 501], [1, 1], event_types=[0, 7], times=[START, START])
        producer.flush()
    with livefactor.Scorer(channel=server.channel, model="types") as scorer:
        liked, disliked = scorer.score([500, 501], [1])
        assert liked.scores[0] > 0.3
        assert disliked.scores[0] < 0.3 * liked.scores[0]


def test_models_without_histories_say_so(server: Local) -> None:
    with Models(channel=server.channel) as models:
        models.create("plain", "clicks_sgd", k=8, rule="sgd", loss="logistic", history={"users": 0, "items": 0},
                      counts={"neighbors": 0}, limits={"users_max": 10, "items_max": 10})  # fmt: skip
    with livefactor.Scorer(channel=server.channel, model="plain") as scorer:
        with pytest.raises(InvalidArgument, match="exclude_seen"):
            scorer.recommend([1], 5, exclude_seen=True)
        with pytest.raises(InvalidArgument, match="events"):
            scorer.score([1], [2], events=[3])


def test_snapshot_replay_restart_and_restore_have_one_root(
    server: Local, folder: Path, tmp_path: Path
) -> None:
    with livefactor.Auditor(channel=server.channel, model="m") as auditor:
        taken = auditor.snapshot()
        auditor.fetch(tmp_path / "copy")
    snapshot = livefactor.load(tmp_path / "copy")
    with Models(channel=server.channel) as models:
        live = models.describe("m", with_root_hash=True)
        assert live.root_hash == taken.root_hash
        for backend in ("cpu", "reference"):
            report = replay_model(folder / "models" / "m", backend)
            assert report.root_hash == live.root_hash
        models.restore("again", "m")
    with livefactor.Auditor(channel=server.channel, model="again") as auditor:
        # The restored log is one revision longer, because its first record names its source.
        auditor.snapshot()
        auditor.fetch(tmp_path / "again")
    restored = livefactor.load(tmp_path / "again").tensors
    for name, tensor in snapshot.tensors.items():
        if name.startswith(TABLES):
            assert tensor.tobytes() == restored[name].tobytes(), name
    lists = []
    for model in ("m", "again"):
        with livefactor.Scorer(channel=server.channel, model=model) as scorer:
            lists.append(scorer.recommend(np.arange(50), 7))
    assert lists[0].scores.tobytes() == lists[1].scores.tobytes()
    assert lists[0].item_ids.tolist() == lists[1].item_ids.tolist()
