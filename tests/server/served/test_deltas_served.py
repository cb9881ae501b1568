"""Deltas of a served model: effect, exactly once, refusals, limits, restarts and proofs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import livefactor
from livefactor.errors import ColumnError, FailedPrecondition, InvalidArgument
from livefactor.v1 import updates_pb2
from livefactor.wire.deltas import encode_deltas
from livefactor_server.changes import show
from livefactor_server.snapshots.audit import replay_model

K = 8
SPEC = {
    "k": K,
    "merge": {"learning_rate": 1.0, "norm_max": 4.0},
    "limits": {"items_max": 12, "weight_max": 10.0},
}
NAMES = ["mug", "lamp", "tent"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[livefactor.Local]:
    with livefactor.local("clicks_sgd", data=folder) as server:
        with server.models() as models:
            models.create("shop", "clicks_sgd", **SPEC)
            adaptive = {**SPEC["merge"], "optimizer_step": True}
            models.create("adaptive", "clicks_sgd", k=K, optimizer={"kind": "lazy_adam"}, merge=adaptive)
            models.create("solved", "clicks", k=K)
            models.create("closed", "clicks_sgd", k=K)
        with server.producer("events", model="shop") as producer:
            producer.push(["ann", "bob", "ann"], ["mug", "mug", "lamp"])
        yield server


def item_rows(server: livefactor.Local, folder: Path) -> dict[str, np.ndarray]:
    """The factors and the bias of each item of the model, from a snapshot."""
    with server.auditor(model="shop") as auditor:
        taken = auditor.snapshot()
        auditor.fetch(folder / taken.snapshot_id, taken.snapshot_id)
    tensors = livefactor.load(folder / taken.snapshot_id).tensors
    rows = np.column_stack([tensors["items.factors"], tensors["items.bias"]])
    return dict(zip(tensors["items.keys"].tolist(), rows, strict=True))


def test_deltas_are_added_once_and_new_ids_get_rows(
    server: livefactor.Local, folder: Path, tmp_path: Path
) -> None:
    before = item_rows(server, tmp_path)
    deltas, biases = np.full((3, K), 0.25), np.array([0.5, -0.5, 0.25])
    with server.producer("round", model="shop") as producer:
        ack = producer.push_deltas("item", NAMES, deltas, biases, weight=2.0).result()
        assert (ack.accepted, ack.rejected_count) == (3, 0)
    after = item_rows(server, tmp_path)
    assert len(before) == 2 and len(after) == 3
    for key, row in before.items():
        np.testing.assert_allclose(after[key][:K], row[:K] + 0.5, atol=1e-6)
    with server.scorer(model="shop") as scorer:
        best = scorer.recommend("ann", k=3)[0]
        assert set(best.item_ids.tolist()) == set(NAMES)
    # A client that had no answer sends the batch again.
    call = server.channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
    keys = np.array([*after], np.uint64)
    with server.producer("again", model="shop"):
        pass
    stamp = updates_pb2.ProducerStamp(id="again", epoch=1, sequence=1)
    bodies = [encode_deltas(2, keys, np.ones((3, K)), weight=w) for w in (1.0, 1.0, 3.0)]
    requests = [
        updates_pb2.ApplyUpdatesRequest(
            model="shop", producer=stamp, factor_deltas=updates_pb2.FactorDeltas.FromString(body)
        ).SerializeToString()
        for body in bodies
    ]
    answers = [updates_pb2.ApplyUpdatesResponse.FromString(call(raw, timeout=10)) for raw in requests[:2]]
    assert [answer.duplicate for answer in answers] == [False, True]
    assert answers[0].position == answers[1].position
    with pytest.raises(grpc.RpcError) as error:
        call(requests[2], timeout=10)
    assert error.value.code() == grpc.StatusCode.ALREADY_EXISTS
    once = item_rows(server, tmp_path)
    moved = np.array([once[key][:K] - after[key][:K] for key in after])
    # The norm of the contribution is sqrt(24), and the model takes 4 of it.
    np.testing.assert_allclose(moved, 4.0 / np.sqrt(24.0), atol=1e-6)
    shown = [row["change"] for row in show.rows(folder / "models" / "shop" / "log", 1)]
    assert "deltas of items, dimension 8, weight 2" in shown


def refusal(server: livefactor.Local, model: str, body: bytes) -> str:
    call = server.channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
    deltas = updates_pb2.FactorDeltas.FromString(body)
    request = updates_pb2.ApplyUpdatesRequest(model=model, factor_deltas=deltas)
    with pytest.raises(grpc.RpcError) as error:
        call(request.SerializeToString(), timeout=10)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(error.value.details())


def test_bad_deltas_are_refused_as_a_whole_with_their_row(server: livefactor.Local) -> None:
    ids, good = np.arange(3, dtype=np.uint64), np.ones((3, K), np.float32)
    bad = good.copy()
    bad[1, 2] = np.nan
    with server.models() as models:
        before = models.describe("shop").position
    assert refusal(server, "shop", encode_deltas(2, ids, bad)) == (
        "deltas: row 1: a number is NaN or infinite"
    )
    assert refusal(server, "shop", encode_deltas(2, ids, good, bad[:, 2])).startswith("biases: row 1: a")
    assert "expected dimension 8" in refusal(server, "shop", encode_deltas(2, ids, good[:, :5]))
    assert refusal(server, "shop", encode_deltas(0, ids, good)).startswith("side: expected SIDE_USER or")
    assert "row 2 has the id of an earlier row" in refusal(
        server, "shop", encode_deltas(2, np.array([4, 5, 4], np.uint64), good)
    )
    for weight in (-1.0, 11.0, float("nan")):
        assert "weight: expected above 0 and at most 10" in refusal(
            server, "shop", encode_deltas(2, ids, good, weight=weight)
        )
    assert "rule solve takes none" in refusal(server, "solved", encode_deltas(2, ids, good))
    assert "merge.learning_rate is 0" in refusal(server, "closed", encode_deltas(2, ids, good))
    short = updates_pb2.FactorDeltas(side=2, ids=[1, 2], dimension=K, deltas=[0.5] * K)
    assert "deltas has 8 numbers" in refusal(server, "shop", short.SerializeToString())
    with server.models() as models:
        assert models.describe("shop").position == before
    with server.producer("local", model="shop") as producer:
        for arguments, text in (
            (("item", [1, 1], good[:2]), r"ids\[1\]: it has the id"),
            (("item", [1, 2], good), "expected shape"),
            (("item", [1, 2, 3], bad), r"deltas\[1\]: a number is NaN"),
            (("item", [1], np.full((1, K), 1e39)), "beyond float32"),
        ):
            with pytest.raises(ColumnError, match=text):
                producer.push_deltas(*arguments)
        with pytest.raises(ColumnError, match="weight"):
            producer.push_deltas("item", [1], good[:1], weight=0.0)
        receipt = producer.push_deltas("item", [1], [[1.0, 2.0]])
        assert isinstance(receipt.exception(), InvalidArgument)


def created(server: livefactor.Local, model: str) -> None:
    """Make a model. A test that runs again makes it again."""
    with server.models() as models:
        if any(each.name == model for each in models.list()):
            models.delete(model)
        models.create(model, "clicks_sgd", **SPEC)


def test_a_spec_that_cannot_take_the_deltas_cannot_be_promoted(server: livefactor.Local) -> None:
    with server.models() as models:
        created(server, "had")
        with server.producer("round", model="had") as producer:
            producer.push_deltas("item", NAMES, np.full((3, K), 0.25)).result()
        for changes in ({"merge": {"learning_rate": 0.0, "norm_max": 0.0}}, {"k": 4}):
            with pytest.raises(FailedPrecondition, match="has deltas"):
                models.promote("had", **changes)


def test_rows_above_the_limit_of_items_are_rejected_one_by_one(server: livefactor.Local) -> None:
    created(server, "full")
    with server.producer("many", model="full", on_reject=lambda rejects: None) as producer:
        ack = producer.push_deltas("item", np.arange(20), np.ones((20, K))).result()
    assert (ack.accepted, ack.rejected_count) == (12, 8)
    assert {reject.reason for reject in ack.rejects} == {"ITEMS_FULL"}


def test_a_restart_and_a_replay_give_the_same_state(folder: Path, server: livefactor.Local) -> None:
    """The last test of the module: it ends the server."""
    names = ("shop", "adaptive")
    with server.producer("rounds", model="adaptive") as producer:
        for _ in range(3):
            producer.push_deltas("item", NAMES, np.full((3, K), 0.25), biases=np.ones(3)).result()
        producer.push(["ann", "bob"], ["mug", "lamp"])
    with server.models() as models:
        live = {name: models.describe(name, with_root_hash=True) for name in names}
    server.close()
    for name in names:
        report = replay_model(folder / "models" / name, "reference", None)
        assert report.root_hash == live[name].root_hash
    with livefactor.local("clicks_sgd", data=folder) as again, again.models() as models:
        for name in names:
            found = models.describe(name, with_root_hash=True)
            assert (found.root_hash, found.position) == (live[name].root_hash, live[name].position)
