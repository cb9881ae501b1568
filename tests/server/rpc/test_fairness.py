"""Models take turns, reads and writes do not stop each other, and late work is not begun."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from livefactor.v1 import scoring_pb2, snapshots_pb2, updates_pb2
from livefactor_kernels.spec.presets import preset
from livefactor_server.engine.readers import Reader
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.log.store import Log
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer
from stubs import Stubs


@pytest.fixture(scope="module")
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosting]:
    made = Hosting(tmp_path_factory.mktemp("data"), HostingSettings(default_preset=""))
    made.open_all()
    for name in ("one", "two"):
        made.create(name, preset("clicks_sgd"))
    yield made
    made.drain()


@pytest.fixture
def stubs(hosting: Hosting) -> Iterator[Stubs]:
    server = RpcServer(hosting, ServiceSettings(score_slots=1), "127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Stubs(channel)
    server.stop()


def top_k(model: str) -> scoring_pb2.ScoreRequest:
    return scoring_pb2.ScoreRequest(model=model, user_ids=[1], top_k=scoring_pb2.TopK(k=1))


def push(stubs: Stubs, model: str, user: int, timeout: float = 20) -> None:
    rows = updates_pb2.Interactions(user_ids=[user], item_ids=[user])
    stubs.updates.ApplyUpdates(
        updates_pb2.ApplyUpdatesRequest(model=model, interactions=rows), timeout=timeout
    )


def test_a_call_of_one_model_does_not_wait_for_all_those_of_another(
    stubs: Stubs, hosting: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, order, score = threading.Event(), list[str](), Reader.score
    names = {id(hosting.get(name).reader): name for name in ("one", "two")}

    def noted(reader: Reader, *arguments: Any) -> Any:
        hold.wait(20)
        order.append(names[id(reader)])
        return score(reader, *arguments)

    push(stubs, "one", 1)
    push(stubs, "two", 1)
    monkeypatch.setattr(Reader, "score", noted)
    many = [stubs.scoring.Score.future(top_k("one"), timeout=20) for _ in range(20)]
    time.sleep(0.2)
    other = [stubs.scoring.Score.future(top_k("two"), timeout=20) for _ in range(2)]
    gone = stubs.scoring.Score.future(top_k("two"), timeout=0.1)
    assert gone.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(0.1)
    hold.set()
    for call in (*other, *many):
        call.result()
    assert sorted(order) == ["one"] * 20 + ["two"] * 2, "the late call was not begun"
    assert order[:5].count("two") == 2, order


def test_reads_go_on_while_the_log_of_a_model_stands_still_and_late_batches_are_not_logged(
    stubs: Stubs, hosting: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(stubs, "one", 1)
    push(stubs, "two", 1)
    hold, holds, append = threading.Event(), threading.Event(), Log.append
    stuck = hosting.get("one").engine

    def slow(log: Log, entries: Any) -> Any:
        if log is stuck.log:
            holds.set()
            hold.wait(20)
        return append(log, entries)

    monkeypatch.setattr(Log, "append", slow)
    before = stuck.revision
    logged = threading.Thread(target=push, args=(stubs, "one", 2))
    logged.start()
    assert holds.wait(20)
    with pytest.raises(grpc.RpcError) as late:
        push(stubs, "one", 3, timeout=0.3)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    for model in ("one", "two"):
        assert stubs.scoring.Score(top_k(model), timeout=5).scores
    push(stubs, "two", 5, timeout=5)
    hold.set()
    logged.join()
    push(stubs, "one", 4)
    assert stuck.revision == before + 2, "the batch of the caller that left was not logged"


def test_what_has_no_room_now_says_when_to_come_again(stubs: Stubs, hosting: Hosting) -> None:
    with hosting.get("one").keeper._taking, pytest.raises(grpc.RpcError) as refused:
        list(stubs.snapshots.Snapshot(snapshots_pb2.SnapshotRequest(model="one"), timeout=20))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "try again later" in refused.value.details()
    assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
