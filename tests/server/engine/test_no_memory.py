"""A backend that has too little memory for a call.

The server refuses the call, the model continues, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest

from livefactor.v1 import models_pb2, scoring_pb2, snapshots_pb2
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.pins import cpu as pins
from livefactor_server.engine.short_reads import ShortReader
from livefactor_server.rpc import embedded
from livefactor_server.snapshots import replay
from stubs import Stubs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def stubs(folder) -> Iterator[Stubs]:
    server = embedded.start(preset="clicks_sgd", data=folder)
    with grpc.insecure_channel(server.target) as channel:
        yield Stubs(channel)
    server.stop()


def no_memory(*_arguments: object) -> None:
    raise MemoryError("a text that stays inside")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    return str(caught.value.details())


def score(stubs: Stubs, model: str, **target: object) -> list[float]:
    request = scoring_pb2.ScoreRequest(model=model, user_ids=[1], **target)
    return list(stubs.scoring.Score(request, timeout=30).scores)


TOP_K = {"top_k": scoring_pb2.TopK(k=2)}
FEW = {"candidates": scoring_pb2.Candidates(item_ids=[3, 4])}
MANY = {"candidates": scoring_pb2.Candidates(item_ids=range(5000))}


@pytest.mark.parametrize(
    ("place", "verb", "target"),
    [
        (CpuModel, "try_score", FEW),
        (CpuModel, "pin", MANY),
        (CpuModel, "pin", TOP_K),
        (pins.Pin, "top_k", TOP_K),
    ],
)
def test_a_read_is_refused_and_the_model_goes_on(stubs: Stubs, monkeypatch, place, verb, target) -> None:
    model = stubs.model()
    stubs.push(model, [1, 2], [3, 4])
    expected = score(stubs, model, **target)
    with monkeypatch.context() as patch:
        # Only a read that was interrupted too often takes a pin.
        patch.setattr(CpuModel, "try_score", lambda *_: None)
        patch.setattr(ShortReader, "answer", no_memory)
        patch.setattr(place, verb, no_memory)
        assert refused(lambda: score(stubs, model, **target)) == (
            "memory: not enough for this read now; try again later"
        )
        assert stubs.push(model, [7], [8]).position.revision == 2
    assert len(score(stubs, model, **target)) == len(expected)


@pytest.mark.parametrize("verb", ["pin", "read_rows"])
def test_a_snapshot_and_a_root_hash_are_refused(stubs: Stubs, monkeypatch, verb) -> None:
    model = stubs.model()
    stubs.push(model, [1, 2], [3, 4])
    request = snapshots_pb2.SnapshotRequest(model=model)
    with monkeypatch.context() as patch:
        patch.setattr(CpuModel if verb == "pin" else pins.Pin, verb, no_memory)
        text = "memory: not enough for reading all rows now; try again later"
        assert refused(lambda: list(stubs.snapshots.Snapshot(request))) == text
        assert refused(lambda: stubs.root(model)) == text
    info = list(stubs.snapshots.Snapshot(request))[-1].manifest.info
    assert stubs.root(model) == (1, info.root_hash)


def test_a_model_that_finds_no_room_is_not_made(stubs: Stubs, folder, monkeypatch) -> None:
    source = stubs.model()
    stubs.push(source, [1, 2], [3, 4])
    list(stubs.snapshots.Snapshot(snapshots_pb2.SnapshotRequest(model=source)))
    create = models_pb2.CreateModelRequest(model="large", preset="clicks_sgd")
    restore = models_pb2.RestoreSnapshotRequest(model="large", source_model=source)
    before = sorted(path.name for path in (folder / "models").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(replay, "recover", no_memory)
        for call in (lambda: stubs.models.CreateModel(create), lambda: stubs.models.RestoreSnapshot(restore)):
            assert refused(call) == "memory: not enough for this model now; try again later"
            assert sorted(path.name for path in (folder / "models").iterdir()) == before
    stubs.models.RestoreSnapshot(restore)
    stubs.push("large", [1], [3])
