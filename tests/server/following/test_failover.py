"""After its leader died, a follower takes the lead, and the old leader is fenced."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click.testing
import numpy as np
import pytest
import typer

import livefactor
from following_nodes import Node
from livefactor.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from livefactor_server.changes import show
from livefactor_server.cli.app import app
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.hosting.identity import Terms
from server_process import wait_until

MODEL = "m"
SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}
MakeNode = Callable[[str], Node]


@pytest.fixture
def pair(node: MakeNode) -> tuple[Node, Node]:
    leader, follower = node("leader").start(), node("follower")
    with livefactor.Models(leader.target) as models:
        models.create(MODEL, "clicks_sgd", **SPEC)
    follower.start(leader.target)
    wait_until(lambda: MODEL in follower.hosting.names(), "the follower has the model")
    return leader, follower


def described(node: Node) -> livefactor.ModelDescription:
    with livefactor.Models(node.target) as models:
        return models.describe(MODEL, with_root_hash=True)


def take_lead(follower: Node, **options: Any) -> None:
    with livefactor.Models(follower.target) as models:
        (lead,) = models.take_lead(address=follower.target, **options)
    assert lead.model == MODEL


def equal(one: Node, other: Node) -> bool:
    revisions = [each.hosting.followed(MODEL)[0].revision for each in (one, other)]
    return revisions[0] == revisions[1]


def same(one: Node, other: Node) -> None:
    wait_until(lambda: equal(one, other), "both are at one revision", 60)
    assert described(one).root_hash == described(other).root_hash


class Load:
    """A producer that pushes without a pause, and knows what was acknowledged."""

    def __init__(self, targets: list[str]) -> None:
        self.producer = livefactor.Producer(producer_id="load", target=targets, model=MODEL)
        self.acked: list[int] = []
        self.times: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            ids = np.arange(len(self.acked), len(self.acked) + 5)
            self.producer.push(ids % 50, ids % 30).result(60)
            self.acked.append(5)
            self.times.append(time.monotonic())

    def reach(self, batches: int) -> None:
        wait_until(lambda: len(self.acked) >= batches, f"{batches} batches are acknowledged", 60)

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        self.producer.close()
        return sum(self.acked)


@pytest.fixture
def load(pair: tuple[Node, Node]) -> Iterator[Load]:
    made = Load([each.target for each in pair])
    yield made
    made.stop()


def caught_up(leader: Node, follower: Node) -> None:
    wait_until(lambda: equal(leader, follower), "the follower is there", 60)


def test_a_follower_takes_the_lead_and_the_old_leader_follows_it(pair: tuple[Node, Node], load: Load) -> None:
    leader, follower = pair
    load.reach(20)
    with (
        livefactor.Models(follower.target) as models,
        pytest.raises(FailedPrecondition, match="still answers"),
    ):
        models.take_lead()
    load._stopped.set()
    load._thread.join()
    caught_up(leader, follower)
    before = len(load.acked)
    leader.vanish()
    take_lead(follower)
    load._stopped.clear()
    load._thread = threading.Thread(target=load._run, daemon=True)
    load._thread.start()
    load.reach(before + 20)
    events = load.stop()
    found = described(follower)
    # Each acknowledged event was learned once.
    assert (found.events, found.term, found.leader) == (events, 1, "")
    leader.start(follower.target)
    same(leader, follower)
    assert described(leader).leader == follower.target
    # The roles change back, in a second term.
    follower.vanish()
    take_lead(leader)
    assert described(leader).term == 2


def test_the_old_leader_is_fenced_when_it_comes_back(pair: tuple[Node, Node]) -> None:
    leader, follower = pair
    command, run = typer.main.get_command(app), click.testing.CliRunner().invoke
    # It is refused while the leader answers.
    assert run(command, ["promote", follower.target]).exit_code == 1
    assert described(follower).term == 0
    leader.vanish()
    assert run(command, ["promote", follower.target]).exit_code == 0
    assert described(follower).term == 1
    with livefactor.Producer(producer_id="p", target=follower.target, model=MODEL) as producer:
        producer.push([1], [2]).result(30)
        leader.start()
        wait_until(lambda: described(leader).leader == follower.target, "the old leader is fenced", 60)
        leader.stop()
        leader.start()
        refused = f"takes no updates; {follower.target} does"
        with pytest.raises(Unavailable, match=refused):
            livefactor.Producer(producer_id="q", target=leader.target, model=MODEL, open_timeout=0.5)
        producer.push([1], [2]).result(30)
    # It follows the newer leader, because its log is a beginning of that one's.
    leader.stop()
    leader.start(follower.target)
    same(leader, follower)
    assert described(leader).term == 1


def test_a_client_that_saw_a_newer_term_leaves_the_old_leader(pair: tuple[Node, Node]) -> None:
    leader, follower = pair
    both = [leader.target, follower.target]
    with livefactor.Producer(producer_id="p", target=both, model=MODEL) as producer:
        producer.push([1], [2]).result(30)
        caught_up(leader, follower)
        leader.vanish()
        take_lead(follower)
        # Nothing reaches the old leader, so it does not know that it is fenced.
        follower.hosting._fencing.stop()
        producer.push([3], [4]).result(30)
        Terms().save(leader.data / "models" / MODEL)
        leader.start()
        assert described(leader).leader == ""
        producer._connection.at = 0
        producer._sender._call.cancel()
        producer.push([5], [6]).result(30)
    assert described(leader).events == 1
    assert described(follower).events == 3


def test_records_that_the_new_leader_never_got_are_set_aside(
    pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture
) -> None:
    leader, follower = pair
    take_lead(follower, force=True)
    wait_until(lambda: described(leader).leader == follower.target, "the old leader is fenced", 60)
    leader.stop()
    # Records that the follower never got.
    shutil.rmtree(leader.data / "models" / MODEL / "term.json", ignore_errors=True)
    (leader.data / "models" / MODEL / "term.json").unlink(missing_ok=True)
    leader.start()
    with livefactor.Producer(producer_id="q", target=leader.target, model=MODEL) as producer:
        lost = producer.push([1], [2]).result(30).position.revision
    leader.stop()
    leader.start(follower.target)
    same(leader, follower)
    assert (described(leader).events, described(leader).leader) == (0, follower.target)
    aside = leader.data / "models" / f"{MODEL}.set-aside-1"
    assert "is kept in" in caplog.text and str(aside) in caplog.text
    rows = list(show.rows(aside / "log", lost))
    assert [(row["kind"], row["producer"]) for row in rows] == [("INTERACTIONS", "q")]
    # It goes on like any follower, also after a restart.
    with livefactor.Producer(producer_id="q", target=follower.target, model=MODEL) as producer:
        producer.push([3], [4]).result(30)
    same(leader, follower)
    leader.stop()
    leader.start(follower.target)
    same(leader, follower)


def test_in_one_term_other_records_are_refused_by_name(pair: tuple[Node, Node]) -> None:
    leader, follower = pair
    follower.stop()
    (other := leader.data.with_name("alone")).mkdir()
    shutil.copytree(follower.data, other, dirs_exist_ok=True)
    alone = Node(leader.data.parent, "alone").start()
    for target, item in ((alone.target, 2), (leader.target, 3)):
        with livefactor.Producer(producer_id="q", target=target, model=MODEL) as producer:
            producer.push([1], [item]).result(30)
    alone.stop()
    alone.start(leader.target)
    found = alone.hosting.following.of(MODEL)
    wait_until(lambda: "other records than the leader" in found.error, "the difference is named", 60)
    assert described(alone).events == 1 and not list(alone.data.glob("models/*.set-aside-*"))
    alone.stop()


def test_an_ack_waits_until_a_follower_has_the_batch_on_disk(node: MakeNode) -> None:
    engine = EngineSettings(ack_after_followers=1, ack_wait_s=0.3)
    leader, follower = node("leader").start(engine=engine), node("follower")
    with livefactor.Models(leader.target) as models:
        models.create(MODEL, "clicks_sgd", **SPEC)
    follower.start(leader.target)
    with livefactor.Producer(producer_id="p", target=leader.target, model=MODEL) as producer:
        producer.push([1], [2]).result(60)
        follower.vanish()
        receipt = producer.push([1], [2])
        with pytest.raises(DeadlineExceeded):
            receipt.result(1.0)
        waits_for = "followers: fewer than 1 have revision"
        wait_until(lambda: waits_for in producer.status.waiting_for, "the reason is known")
        follower.start(leader.target)
        acks = [receipt.result(60)]
        for number in range(20):
            acks.append(producer.push([number], [number]).result(30))
            engine_of = follower.hosting.followed(MODEL)[0]
            assert engine_of.log.last_revision >= acks[-1].position.revision
    same(leader, follower)
    assert described(follower).events == 22
