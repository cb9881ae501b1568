"""A follower whose log lacks its beginning takes a new copy when its leader has erased somebody."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import livefactor
from following_nodes import Node
from livefactor_server.hosting import folders
from livefactor_server.hosting.following import copying
from livefactor_server.hosting.following.leader import Leader
from livefactor_server.hosting.keeper import KeeperSettings
from livefactor_server.hosting.retaining.retention import Policy
from livefactor_server.log.store import Log
from server_process import wait_until

MODEL = "m"
SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}
CANARY = 0xC0FFEE0DDBA11
MakeNode = Callable[[str], Node]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (Log.open, Log.create):
        monkeypatch.setitem(make.__func__.__kwdefaults__, "segment_bytes", 16 << 10)  # type: ignore[attr-defined]


@pytest.fixture
def pair(node: MakeNode, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """A leader with an archive, and a follower that copied it after its log was shortened."""
    policy = Policy.of("1r", tmp_path / "archive")
    leader, follower = node("leader"), node("follower")
    leader.start(keeper=KeeperSettings(snapshots_kept=2, retention=policy))
    with livefactor.Models(leader.target) as models:
        models.create(MODEL, "clicks_sgd", **SPEC)
    push(leader, 40, CANARY)
    hosted = leader.hosting.get(MODEL)
    hosted.keeper.take()
    hosted.keeper._retained = 0.0
    hosted.keeper._retain()
    assert hosted.engine.log.gap is not None
    follower.start(leader.target)
    caught_up(leader, follower)
    assert follower.hosting.followed(MODEL)[0].log.lacks
    yield leader, follower


def push(leader: Node, batches: int, user: int = 1) -> None:
    with livefactor.Producer(producer_id=f"p-{user}", target=leader.target, model=MODEL) as pushing:
        for number in range(batches):
            ids = np.arange(number, number + 100, dtype=np.uint64)
            users = ids % 50
            users[3] = user
            pushing.push(users, ids % 30).result(30)


def described(node: Node) -> livefactor.ModelDescription:
    with livefactor.Models(node.target) as models:
        return models.describe(MODEL, with_root_hash=True)


def is_equal(leader: Node, follower: Node) -> bool:
    models = follower.hosting._models
    return MODEL in models and models[MODEL].engine.revision == leader.hosting.get(MODEL).engine.revision


def caught_up(leader: Node, follower: Node) -> None:
    wait_until(lambda: is_equal(leader, follower), "the follower has all revisions", 60)
    one, other = described(leader), described(follower)
    assert (one.position, one.root_hash, one.log_hash) == (other.position, other.root_hash, other.log_hash)


def forget(leader: Node) -> None:
    with livefactor.Models(leader.target) as models:
        models.forget(MODEL, users=[CANARY])


def files_naming(node: Node) -> list[str]:
    guest = CANARY.to_bytes(8, "little")
    files = [path for path in node.data.rglob("*") if path.is_file()]
    return [str(path) for path in files if guest in path.read_bytes()]


def done(leader: Node, follower: Node) -> None:
    """The follower is a copy, nothing names the subject, and it follows on."""
    caught_up(leader, follower)
    push(leader, 3, 2)
    caught_up(leader, follower)
    wait_until(
        lambda: follower.hosting.get(MODEL).forgetter.running is None, "its own files are rewritten", 60
    )
    assert files_naming(follower) == []
    assert [path.name for path in (follower.data / "models").iterdir()] == [MODEL]


def test_it_takes_a_new_copy_by_itself(pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture) -> None:
    leader, follower = pair
    assert files_naming(follower) != []
    forget(leader)
    wait_until(lambda: "its log lacked its beginning" in caplog.text, "the follower took a copy", 60)
    done(leader, follower)
    assert follower.hosting.followed(MODEL)[0].log.acts.erased


def test_it_does_so_also_after_a_restart(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leader, follower = pair

    def fail(*arguments: object) -> None:
        raise copying.CopyFailed("the line is down")

    monkeypatch.setattr(copying, "receive_after", fail)
    forget(leader)
    wait_until(lambda: "the line is down" in caplog.text, "the copy failed", 60)
    found = follower.hosting.following.of(MODEL)
    assert "cannot be copied from the leader yet" in found.error
    follower.stop()
    monkeypatch.undo()
    follower.start(leader.target)
    done(leader, follower)
    assert follower.hosting.faults() == []


def test_a_log_with_other_records_takes_no_place(
    pair: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leader, follower = pair
    # A copy of the leader from before the erasure lacks records that the follower has.
    old = tmp_path / "old"
    shutil.copytree(leader.data / "models" / MODEL, old / MODEL)
    given = Leader.copy
    monkeypatch.setattr(Leader, "copy", lambda *_: copying.pieces(old / MODEL, tmp_path / "copy"))
    forget(leader)
    wait_until(lambda: "does not have all records up to revision" in caplog.text, "it is refused", 60)
    own = follower.data / "models" / MODEL / "log"
    with Log.open(own, read_only=True) as log:
        assert log.acts.erased
    monkeypatch.setattr(Leader, "copy", given)
    done(leader, follower)


def test_a_crash_between_the_two_folders_leaves_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folders.Folders(tmp_path)
    made.make("m", lambda folder: (folder / "old").touch())
    given = folders.Folders.remove

    def crash(self: folders.Folders, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders.Folders, "remove", crash)
    with pytest.raises(KeyboardInterrupt):
        made.replace("m", lambda folder: (folder / "new").touch(), keeps=False)
    monkeypatch.setattr(folders.Folders, "remove", given)
    made.clean()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m"]
    assert [path.name for path in (tmp_path / "models" / "m").iterdir()] == ["new"]
