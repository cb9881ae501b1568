"""A follower over TLS, and one of a model that evicts rows."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import livefactor
from certificates import Authority
from following_nodes import Node
from livefactor.access import Access
from livefactor_server.access.certificates import CertificateFiles
from livefactor_server.access.entry import Entry
from livefactor_server.access.grants import Grant, Grants, Role, add_grant, new_token
from livefactor_server.changes import show
from livefactor_server.snapshots.audit import replay_model
from server_process import wait_until

MODEL = "m"
SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 5000, "items_max": 1000}}
MakeNode = Callable[[str], Node]


def free_target() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"localhost:{probe.getsockname()[1]}"


def described(node: Node, access: Access | None = None) -> livefactor.ModelDescription:
    with livefactor.Models(node.target, access=access) as models:
        return models.describe(MODEL, with_root_hash=True)


def caught_up(leader: Node, follower: Node) -> None:
    def equal() -> bool:
        if MODEL not in follower.hosting.names():
            return False
        return follower.hosting.followed(MODEL)[0].revision == leader.hosting.followed(MODEL)[0].revision

    wait_until(equal, "the follower has all records", 60)


def test_a_follower_over_tls_proves_itself_by_its_token(node: MakeNode, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "tls"), Authority(tmp_path / "other", "stranger")
    signed = authority.sign("server")
    file = tmp_path / "access.toml"
    tokens = {role: new_token() for role in (Role.ADMIN, Role.CONSUMER)}
    for role, token in tokens.items():
        add_grant(file, Grant(role, role, None), token)
    entry = Entry(CertificateFiles(signed.certificate, signed.key), Grants(file))
    leader, follower = node("leader"), node("follower")
    leader.target = free_target()
    leader.start(entry=entry)
    admin = Access(ca=authority.file, token=tokens[Role.ADMIN])
    with livefactor.Models(leader.target, access=admin) as models:
        models.create(MODEL, "clicks_sgd", **SPEC)
    with livefactor.Producer(producer_id="p", target=leader.target, model=MODEL, access=admin) as producer:
        for number in range(10):
            producer.push(np.arange(20) + number, np.arange(20)).result(30)
    # An authority that did not sign the leader's certificate, and a role that may not follow.
    for ca, role, reason in (
        (stranger.file, Role.ADMIN, "UNAVAILABLE"),
        (authority.file, Role.CONSUMER, "PERMISSION_DENIED"),
    ):
        follower.start(leader.target, token=tokens[role], ca=ca)
        following = follower.hosting.following
        assert following is not None
        wait_until(lambda following=following: following.error != "", "the leader refuses", 60)
        assert reason in following.error and MODEL not in follower.hosting.names()
        follower.stop()
    follower.start(leader.target, token=tokens[Role.ADMIN], ca=authority.file)
    caught_up(leader, follower)
    assert described(follower).root_hash == described(leader, admin).root_hash


def test_a_follower_evicts_what_its_leader_evicts(node: MakeNode) -> None:
    leader, follower = node("leader").start(), node("follower")
    with livefactor.Models(leader.target) as models:
        models.create(MODEL, "clicks_sgd", **SPEC, eviction={"idle_events": 1000})
    follower.start(leader.target)
    with livefactor.Producer(producer_id="p", target=leader.target, model=MODEL) as producer:
        for number in range(60):
            users = np.arange(50) + 40 * number
            producer.push(users, users % 100).result(30)
    caught_up(leader, follower)
    one, other = described(leader), described(follower)
    # 2,410 users came, and most have left.
    assert one.users == other.users < 1500
    assert (one.root_hash, one.position) == (other.root_hash, other.position)
    with livefactor.Scorer(model=MODEL, target=leader.target) as ours:
        expected = ours.recommend([0, 2400], k=5, with_labels=False)
    with livefactor.Scorer(model=MODEL, target=follower.target) as theirs:
        found = theirs.recommend([0, 2400], k=5, with_labels=False)
    assert found.item_ids.tolist() == expected.item_ids.tolist()
    assert found.user_known.tolist() == [False, True]
    folder = follower.data / "models" / MODEL
    follower.stop()
    kinds = [row["kind"] for row in show.rows(folder / "log")]
    assert kinds.count("EVICT") >= 1
    assert replay_model(folder).good
