"""A follower has the records and the states of its leader, and says clearly what it cannot do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

import livefactor
from following_nodes import Node
from livefactor.errors import DeadlineExceeded, Unavailable
from livefactor.position import Position
from livefactor_server.access.entry import Entry
from livefactor_server.access.grants import Grant, Grants, Role, add_grant, new_token
from livefactor_server.changes import change_of
from livefactor_server.log.store import Kind, Log
from server_process import wait_until

MODEL = "m"
SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}
MakeNode = Callable[[str], Node]


def create(leader: Node, preset: str = "clicks_sgd") -> None:
    with livefactor.Models(leader.target) as models:
        models.create(MODEL, preset, **SPEC)


def push(leader: Node, batches: int, producer: str = "p") -> Position:
    with livefactor.Producer(producer_id=producer, target=leader.target, model=MODEL) as pushing:
        for number in range(batches):
            ids = np.arange(number, number + 20)
            pushing.push(ids % 50, ids % 30).result(30)
        return pushing.flush()


def described(node: Node) -> livefactor.ModelDescription:
    with livefactor.Models(node.target) as models:
        return models.describe(MODEL, with_root_hash=True)


def caught_up(follower: Node, position: Position) -> None:
    def reached() -> bool:
        return (
            MODEL in follower.hosting.names()
            and follower.hosting.followed(MODEL)[0].revision >= position.revision
        )

    wait_until(reached, f"the follower reaches revision {position.revision}", 60)


def same(leader: Node, follower: Node) -> None:
    one, other = described(leader), described(follower)
    assert one.position == other.position
    assert (one.root_hash, one.log_hash, one.spec_id) == (other.root_hash, other.log_hash, other.spec_id)


@pytest.fixture
def pair(node: MakeNode) -> tuple[Node, Node]:
    leader, follower = node("leader").start(), node("follower")
    create(leader)
    return leader, follower


def test_a_follower_from_nothing_has_the_leaders_log_and_states(pair: tuple[Node, Node]) -> None:
    leader, follower = pair
    push(leader, 10)
    follower.start(leader.target)
    position = push(leader, 30, "q")
    caught_up(follower, position)
    same(leader, follower)
    with (
        livefactor.Scorer(follower.target, model=MODEL) as theirs,
        livefactor.Scorer(leader.target, model=MODEL) as own,
    ):
        users, items = [1, 2, 3], [4, 5, 6]
        assert np.array_equal(
            theirs.score(users, items, min_position=position).scores, own.score(users, items).scores
        )
    found = follower.hosting.following.of(MODEL)
    wait_until(lambda: found.is_connected and found.lag == 0 and found.lag_s < 5, "the lag is known")
    of_model = {"model": MODEL}
    wait_until(
        lambda: REGISTRY.get_sample_value("livefactor_followers", of_model) == 1, "the follower is counted"
    )
    assert REGISTRY.get_sample_value("livefactor_follower_lag_revisions", of_model) == 0
    leader.stop()
    follower.stop()
    with (
        Log.open(leader.data / "models" / MODEL / "log", read_only=True) as one,
        Log.open(follower.data / "models" / MODEL / "log", read_only=True) as other,
    ):
        records = [[(r.kind, r.salt, bytes(r.body), r.hash) for r in log.read()] for log in (one, other)]
    assert records[0] == records[1] and len(records[0]) > 40


def test_updates_are_refused_with_the_name_of_the_leader(pair: tuple[Node, Node]) -> None:
    leader, follower = pair
    follower.start(leader.target)
    caught_up(follower, push(leader, 1))
    with livefactor.Models(follower.target) as models:
        for call in (
            lambda: models.create("other", "clicks_sgd"),
            lambda: models.delete(MODEL),
            lambda: models.promote(MODEL, k=16),
        ):
            with pytest.raises(Unavailable, match=f"takes no updates; {leader.target} does"):
                call()
    with pytest.raises((Unavailable, DeadlineExceeded), match=f"takes no updates; {leader.target} does"):
        livefactor.Producer(producer_id="x", target=follower.target, model=MODEL, open_timeout=0.5)
    before = described(leader).position
    with livefactor.Producer(producer_id="y", target=[follower.target, leader.target], model=MODEL) as both:
        both.push([1], [2])
        assert both.flush(30).revision > before.revision


def test_a_read_waits_for_a_position_that_the_follower_lacks(pair: tuple[Node, Node]) -> None:
    leader, follower = pair
    follower.start(leader.target)
    position = push(leader, 5)
    caught_up(follower, position)
    leader.vanish()
    later = Position(position.lineage, position.revision + 1)
    with livefactor.Scorer(follower.target, model=MODEL) as scorer:
        scorer.score([1], [2], min_position=position)
        with pytest.raises(DeadlineExceeded):
            scorer.score([1], [2], min_position=later, timeout=0.3)
        leader.start()
        push(leader, 1, "q")
        assert scorer.score([1], [2], min_position=later, timeout=60).position.revision >= later.revision
    same(leader, follower)


def test_acts_of_the_leader_change_the_followers_state(pair: tuple[Node, Node]) -> None:
    leader, follower = pair
    follower.start(leader.target)
    kept = push(leader, 5)
    push(leader, 5, "q")
    with livefactor.Models(leader.target) as models:
        models.promote(MODEL, l2=0.03)
        models.roll_back(MODEL, to_revision=kept.revision)
        models.forget(MODEL, users=[7])
    position = push(leader, 3, "r")
    caught_up(follower, position)
    same(leader, follower)
    hosted = follower.hosting.get(MODEL)
    wait_until(lambda: hosted.forgetter.running is None, "the follower's files are rewritten", 60)
    log = hosted.engine.log
    assert list(log.acts.erases.values()) == [b""]
    (erase,) = log.acts.erases
    rows = [
        change_of(r.kind, r.body) for r in log.read() if r.kind == Kind.INTERACTIONS and r.revision < erase
    ]
    assert rows and all(7 not in change.keys[0] for change in rows)


def test_a_follower_goes_on_after_a_restart(pair: tuple[Node, Node]) -> None:
    leader, follower = pair
    follower.start(leader.target)
    caught_up(follower, push(leader, 5))
    follower.stop()
    position = push(leader, 50, "q")
    follower.start(leader.target)
    caught_up(follower, position)
    same(leader, follower)


def test_a_follower_needs_the_role_of_an_auditor(node: MakeNode, tmp_path: Path) -> None:
    file, tokens = tmp_path / "access.toml", {}
    for role in (Role.ADMIN, Role.AUDITOR, Role.CONSUMER):
        tokens[role] = new_token()
        add_grant(file, Grant(role, role, None), tokens[role])
    leader = node("leader").start(entry=Entry(None, Grants(file)))
    admin = livefactor.Access(token=tokens[Role.ADMIN])
    with livefactor.Models(leader.target, access=admin) as models:
        models.create(MODEL, "clicks_sgd", **SPEC)
    refused = node("refused").start(leader.target, tokens[Role.CONSUMER])
    wait_until(lambda: "PERMISSION_DENIED" in refused.hosting.following.error, "the role is refused")
    assert MODEL not in refused.hosting.names()
    follower = node("follower").start(leader.target, tokens[Role.AUDITOR])
    wait_until(lambda: MODEL in follower.hosting.names(), "the model is copied", 60)
    found = follower.hosting.following.of(MODEL)
    wait_until(lambda: found.is_connected, "the log is followed")


def test_a_follower_of_another_history_is_refused_by_name(pair: tuple[Node, Node], node: MakeNode) -> None:
    leader, follower = pair
    position = push(leader, 5)
    copy = node("copy")
    leader.stop()
    shutil.copytree(leader.data, copy.data)
    copy.start()
    push(copy, 5, "other")
    copy.stop()
    leader.start()
    copy.start(leader.target)
    found = copy.hosting.following.of(MODEL)
    wait_until(lambda: "ahead of the leader at" in found.error, "the one that is ahead is refused")
    copy.stop()
    push(leader, 20, "q")
    copy.start(leader.target)
    found = copy.hosting.following.of(MODEL)
    wait_until(lambda: "other records than the leader" in found.error, "the other records are refused")
    # Both have the records up to `position`. The follower sends some of its own.
    wait_until(
        lambda: "both have the same records up to revision 4 at least" in found.error, "what is shared"
    )
    assert position.revision == 6
    assert described(copy).position.revision > position.revision
    stranger = follower.start()
    create(stranger)
    stranger.stop()
    stranger.start(leader.target)
    found = stranger.hosting.following.of(MODEL)
    wait_until(lambda: "has lineage" in found.error, "another lineage is refused")
