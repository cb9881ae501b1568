"""Embeddings of a served model: cold items, refusals, labels, limits, restarts and proofs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

import livefactor
from livefactor.errors import ColumnError, FailedPrecondition, InvalidArgument
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import encode_embeddings
from livefactor_server.cli.content.transfer import push_vectors
from livefactor_server.snapshots.audit import replay_model

D, ITEMS, COLD = 8, 30, 6
SPEC = {
    "k": 8,
    "embeddings": {"dimension": D, "prior_events": 2.0},
    "history": {"users": 32, "items": 32},
    "counts": {"neighbors": 16, "span": 8},
    "limits": {"items_max": 40},
}


def vectors_of(rng: np.random.Generator) -> np.ndarray:
    """Vectors of two kinds of items, which take turns."""
    return rng.normal(size=(ITEMS, D)) * 0.3 + np.where(np.arange(ITEMS) % 2, 1.0, -1.0)[:, None]


def fill(server: livefactor.Local, model: str = "films") -> livefactor.Position:
    """Even users have had even items, odd users odd ones. The last items have vectors alone."""
    rng = np.random.default_rng(2)
    names = np.array([f"film {item}" for item in range(ITEMS)])
    with server.producer("p", model=model) as producer:
        for turn in range(20):
            users = rng.integers(0, 40, 100)
            items = 2 * rng.integers(0, (ITEMS - COLD) // 2, 100) + users % 2
            producer.push(users, names[items])
            if turn == 10:
                producer.push_embeddings(names, vectors_of(rng))
        return producer.flush()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[livefactor.Local]:
    with livefactor.local("auto", data=folder) as server:
        with server.models() as models:
            models.create("films", **SPEC)
        fill(server)
        yield server


def test_items_without_events_are_recommended_to_whom_they_suit(server: livefactor.Local) -> None:
    cold = [f"film {item}" for item in range(ITEMS - COLD, ITEMS)]
    with server.scorer(model="films") as scorer:
        even, odd = scorer.score([2, 3], cold)
        assert even.item_known.all()
        assert even.scores[::2].min() > even.scores[1::2].max()
        assert odd.scores[1::2].min() > odd.scores[::2].max()
        best = scorer.recommend(2, k=ITEMS, exclude=[f"film {item}" for item in range(ITEMS - COLD)])[0]
        assert set(best.item_ids[:3].tolist()) == {f"film {item}" for item in (24, 26, 28)}
        near = scorer.similar("film 24", k=5)[0].item_ids.tolist()
        assert all(int(name.split()[1]) % 2 == 0 for name in near)


def test_a_snapshot_has_the_vectors_and_gives_the_same_scores(
    server: livefactor.Local, folder: Path, tmp_path: Path
) -> None:
    with server.auditor(model="films") as auditor:
        taken = auditor.snapshot()
        auditor.fetch(tmp_path / "copy", taken.snapshot_id)
    loaded = livefactor.load(tmp_path / "copy")
    assert loaded.tensors["items.embedding"].shape == (ITEMS, D)
    assert loaded.tensors["items.embedding"].dtype == np.float16
    with server.scorer(model="films") as scorer:
        names = [f"film {item}" for item in range(ITEMS)]
        served = scorer.score(3, names)[0].scores
    assert loaded.score(3, names).tobytes() == served.tobytes()


def test_a_query_adds_to_the_scores_what_it_says_of_the_items(server: livefactor.Local) -> None:
    """Candidates and lists, with one vector for all users or one a user."""
    names = [f"film {item}" for item in range(ITEMS)]
    query = np.stack([np.ones(D), -np.ones(D)])
    with server.scorer(model="films") as scorer:
        plain = scorer.score([2, 3], names)
        asked = scorer.score([2, 3], names, query=query, query_weight=50.0)
        parts = np.array([one.scores - other.scores for one, other in zip(asked, plain, strict=True)]) / 50
        assert (np.abs(parts) <= 1.0 + 1e-5).all()
        # The first query is like the odd items, the second one like the even ones.
        assert parts[0, 1::2].min() > 0.5 > -0.5 > parts[0, ::2].max()
        np.testing.assert_allclose(parts[0], -parts[1], atol=1e-5)
        best = scorer.recommend([2, 3], k=ITEMS, query=query, query_weight=50.0)
        for answer, expected in zip(best, asked, strict=True):
            order = np.argsort(-expected.scores, kind="stable")
            assert answer.scores.tobytes() == expected.scores[order].tobytes()
        shared = scorer.recommend([2, 3], k=4, query=query[0], query_weight=1e6, exclude=names[1:9:2])
        for answer in shared:
            assert all(int(name.split()[1]) % 2 for name in answer.item_ids.tolist())
            assert not set(names[1:9:2]) & set(answer.item_ids.tolist())


def test_bad_queries_are_refused(server: livefactor.Local) -> None:
    with server.models() as models:
        models.create("no-vectors", "auto")
        models.create("no-histories", "clicks_sgd")
    with server.scorer(model="films") as scorer:
        for query, weight, text in (
            (np.ones(D + 1), 1.0, "query.vectors: expected 8 numbers"),
            (np.zeros(D), 1.0, "vector 0 is 0"),
            ([1.0] * (D - 1) + [float("inf")], 1.0, "NaN or infinite"),
            (np.ones(D), 0.0, "query.weight: expected above 0"),
        ):
            with pytest.raises(InvalidArgument, match=text):
                scorer.score(2, ["film 1"], query=query, query_weight=weight)
        with pytest.raises(ColumnError, match="one vector, or 2"):
            scorer.recommend([1, 2], query=np.ones((3, D)))
    for model in ("no-vectors", "no-histories"):
        with server.scorer(model=model) as scorer:
            for ask in (partial(scorer.score, 2, ["film 1"]), partial(scorer.recommend, 2)):
                with pytest.raises(InvalidArgument, match="has no embeddings"):
                    ask(query=np.ones(D))


def refusal(server: livefactor.Local, model: str, body: bytes) -> str:
    call = server.channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
    request = updates_pb2.ApplyUpdatesRequest(model=model, embeddings=updates_pb2.Embeddings.FromString(body))
    with pytest.raises(grpc.RpcError) as error:
        call(request.SerializeToString(), timeout=10)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return error.value.details()


def test_bad_vectors_are_refused_as_a_whole_with_their_row(server: livefactor.Local) -> None:
    ids, good = np.arange(3, dtype=np.uint64), np.ones((3, D), np.float32)
    with server.models() as models:
        before = models.describe("films").position
        models.create("plain", "clicks_sgd")
    bad = good.copy()
    bad[1, 2] = np.nan
    assert refusal(server, "films", encode_embeddings(2, ids, bad)).startswith(
        "vectors: row 1: a number is NaN"
    )
    bad[1, 2], bad[2, 0] = 1e6, np.inf
    assert refusal(server, "films", encode_embeddings(2, ids, bad)).startswith("vectors: row 1 and 1 further")
    side = "side: expected SIDE_USER or SIDE_ITEM, got 3"
    assert refusal(server, "films", encode_embeddings(3, ids, good)) == side
    assert refusal(server, "films", encode_embeddings(2, ids, good[:, :5])) == "dimension: expected 8, got 5"
    assert refusal(server, "plain", encode_embeddings(2, ids, good)).startswith(
        "embeddings: this model cannot take vectors"
    )
    short = updates_pb2.Embeddings(side=2, ids=[1, 2], dimension=D, vectors=[0.5] * D)
    assert "vectors has 8 numbers" in refusal(server, "films", short.SerializeToString())
    both = updates_pb2.Embeddings(side=2, ids=[1], dimension=1, vectors=[0.5], half_vectors=b"ab")
    assert "got both" in refusal(server, "films", both.SerializeToString())
    many = np.zeros((40_000, D), np.float16)
    assert refusal(server, "films", encode_embeddings(2, np.arange(40_000), many)) == (
        "batch: at most 32768 rows, got 40000"
    )
    with server.models() as models:
        assert models.describe("films").position == before
    with server.producer("q", model="films") as producer:
        with pytest.raises(ColumnError, match=r"vectors\[1\]: a number is NaN"):
            producer.push_embeddings([1, 2], [[0.0] * D, [float("nan")] * D])
        with pytest.raises(ColumnError, match="has 2 rows, expected 3"):
            producer.push_embeddings([1, 2, 3], good[:2])
        receipt = producer.push_embeddings([1], [[1.0, 2.0]])
        with pytest.raises(InvalidArgument, match="dimension: expected 8, got 2"):
            receipt.result()


def test_rows_above_the_limit_of_items_are_rejected_one_by_one(tmp_path: Path) -> None:
    with livefactor.local("auto", data=tmp_path) as server:
        with server.models() as models:
            models.create("films", **SPEC)
        with server.producer("p", model="films", on_reject=lambda rejects: None) as producer:
            ack = producer.push_embeddings(np.arange(45), np.ones((45, D))).result()
        assert (ack.accepted, ack.rejected_count) == (40, 5)
        assert {reject.reason for reject in ack.rejects} == {"ITEMS_FULL"}
        assert [reject.row for reject in ack.rejects] == list(range(40, 45))


def test_the_sums_of_the_map_count_as_memory(server: livefactor.Local) -> None:
    """With dimension 1,024 they are 8 MiB and more."""
    with server.models() as models:
        models.create("wide", **SPEC | {"embeddings": {"dimension": 1024}})
        narrow = models.describe("films").memory_bytes
        assert models.describe("wide").memory_bytes > 8 * 1025**2 + 16 * 1025 * 8 > narrow


def test_the_command_sends_files_of_vectors(server: livefactor.Local) -> None:
    rng = np.random.default_rng(3)
    accepted, rejected, revision = push_vectors(
        ["film 1", "film 2"], rng.normal(size=(2, D)), b"", server.target, "films", b""
    )
    with server.models() as models:
        assert (accepted, rejected, revision) == (2, 0, models.describe("films").position.revision)


def test_a_spec_of_another_dimension_cannot_be_promoted(server: livefactor.Local) -> None:
    """A model without vectors can get them, and one with vectors keeps their dimension."""
    with server.models() as models:
        with pytest.raises(
            FailedPrecondition, match="has vectors of dimension 8, and the spec expects dimension 5"
        ):
            models.promote("films", embeddings={"dimension": 5})
        models.create("late", "clicks", **SPEC | {"embeddings": {}})
        with server.producer("p", model="late") as producer:
            producer.push([1, 2, 1], [4, 5, 5]).result()
            models.promote("late", embeddings={"dimension": 3})
            assert producer.push_embeddings([4, 6], np.ones((2, 3))).result().accepted == 2


def test_the_first_vectors_decide_the_dimension(folder: Path, server: livefactor.Local) -> None:
    """A batch that is not valid decides nothing. The vectors and the switch are in the log."""
    rng, names = np.random.default_rng(5), [f"film {item}" for item in range(ITEMS)]
    with server.models() as models:
        models.create("first", **{key: value for key, value in SPEC.items() if key != "embeddings"})
        with server.producer("p", model="first") as producer:
            producer.push(rng.integers(0, 9, 50), np.array(names)[rng.integers(0, 9, 50)]).result()
        bad = np.full((1, 3), np.inf, np.float32)
        assert "row 0" in refusal(server, "first", encode_embeddings(2, np.arange(1), bad))
        many = np.zeros((1, 1025), np.float16)
        assert "embeddings.dimension: expected 0..1024" in refusal(
            server, "first", encode_embeddings(2, np.arange(1), many)
        )
        assert not models.describe("first").earlier_specs
        receipts, producers = [], [server.producer(f"p{d}", model="first") for d in (3, 4)]
        for producer, d in zip(producers, (3, 4), strict=True):
            receipts.append(producer.push_embeddings(names, np.ones((ITEMS, d))))
        assert [type(receipt.exception()) for receipt in receipts].count(InvalidArgument) == 1
        for producer in producers:
            producer.close()
        found = models.describe("first", with_root_hash=True)
        assert found.spec["embeddings"]["dimension"] in (3, 4) and len(found.earlier_specs) == 1
    report = replay_model(folder / "models" / "first", "reference", None)
    assert report.root_hash == found.root_hash


def test_first_vectors_bring_an_earlier_spec_back(folder: Path, server: livefactor.Local) -> None:
    """The model had given itself a spec that takes none. A settled model keeps its spec."""
    softmax = {"k": 8, "limits": SPEC["limits"] | {"value_abs_max": 100.0}, "auto": {"ratings_events": 1000}}
    plain = {key: value for key, value in SPEC.items() if key != "embeddings"}
    ids, vectors = np.arange(5, dtype=np.uint64), np.ones((5, 3), np.float32)
    with server.models() as models:
        for name in ("returns", "stays"):
            models.create(name, **plain)
            with server.producer("p", model=name) as producer:
                producer.push([1, 2, 1, 3], [4, 1, 2, 3]).result()
            models.promote(name, "purchases", **softmax)
        models.settle("stays")
        assert "cannot take vectors" in refusal(server, "stays", encode_embeddings(2, ids, vectors))
        bad = vectors * np.inf
        assert "row 0" in refusal(server, "returns", encode_embeddings(2, ids, bad))
        assert models.describe("returns").spec["loss"] == "softmax"
        with server.producer("q", model="returns") as producer:
            assert producer.push_embeddings(ids, vectors).result().accepted == 5
        found = models.describe("returns", with_root_hash=True)
        assert found.spec["loss"] == "implicit" and found.spec["embeddings"]["dimension"] == 3
        assert found.spec["limits"]["value_abs_max"] == 100.0 and len(found.earlier_specs) == 2
    report = replay_model(folder / "models" / "returns", "reference", None)
    assert report.root_hash == found.root_hash


def test_vectors_of_users_say_what_they_like(folder: Path, server: livefactor.Local, tmp_path: Path) -> None:
    """The first ones decide their dimension. Replay and loaded snapshot agree with the server."""
    rng, kinds = np.random.default_rng(6), np.eye(2)[np.arange(42) % 2]
    with server.models() as models:
        models.create("people", "clicks", **{key: each for key, each in SPEC.items() if key != "embeddings"})
        with server.producer("p", model="people") as producer:
            producer.push_embeddings(range(40), kinds[:40], side="user").result()
            for _ in range(12):
                users = rng.integers(0, 40, 100)
                producer.push(users, 2 * rng.integers(0, 12, 100) + users % 2)
            producer.push_embeddings([40, 41], kinds[40:], side="user").result()
            with pytest.raises(InvalidArgument, match="dimension: expected 2, got 3"):
                producer.push_embeddings([1], [[1.0, 2.0, 3.0]], side="user").result()
            with pytest.raises(ValueError, match="side: expected"):
                producer.push_embeddings([1], [[1.0, 2.0]], side="neither")
        found = models.describe("people", with_root_hash=True)
    assert found.spec["embeddings"]["user_dimension"] == 2 and len(found.earlier_specs) == 1
    items = np.arange(24)
    with server.scorer(model="people") as scorer:
        live = scorer.score([40, 41], items)
    for user, answer in enumerate(live):
        assert answer.scores[user::2].mean() > answer.scores[1 - user :: 2].mean()
    with server.auditor(model="people") as auditor:
        auditor.snapshot()
        auditor.fetch(tmp_path / "copy")
    loaded = livefactor.load(tmp_path / "copy")
    for user, answer in zip((40, 41), live, strict=True):
        assert loaded.score(user, items).tobytes() == answer.scores.tobytes()
    report = replay_model(folder / "models" / "people", "reference", None)
    assert report.root_hash == found.root_hash


def test_a_restart_and_a_replay_give_the_same_state(folder: Path, server: livefactor.Local) -> None:
    """The last test of the module: it ends the server."""
    with server.models() as models:
        live = models.describe("films", with_root_hash=True)
    server.close()
    with livefactor.local("auto", data=folder) as again:
        with again.models() as models:
            found = models.describe("films", with_root_hash=True)
        assert (found.root_hash, found.position) == (live.root_hash, live.position)
        with again.producer("p", model="films") as producer:
            position = producer.push_embeddings("film 29", np.zeros(D)).result().position
        with again.auditor(model="films") as auditor:
            assert auditor.snapshot().position == position
    report = replay_model(folder / "models" / "films", "reference", None)
    assert report.good and len(report.snapshots) >= 2
