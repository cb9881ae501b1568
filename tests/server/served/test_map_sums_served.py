"""Sums of the map of users of a served model: effect, exactly once, refusals, restarts, proofs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import livefactor
from livefactor import federated
from livefactor.errors import ColumnError, FailedPrecondition, InvalidArgument
from livefactor.snapshots.loaded import LoadedSnapshot
from livefactor.v1 import updates_pb2
from livefactor.wire.map_sums import encode_map_sums
from livefactor_server.changes import show
from livefactor_server.snapshots.audit import replay_model

K, D, ITEMS = 8, 2, 12
SPEC = {
    "k": K,
    "embeddings": {"user_dimension": D},
    "merge": {"learning_rate": 1.0, "norm_max": 1e9},
    "limits": {"weight_max": 10.0},
}
KINDS = np.array([[1.0, 0.0], [0.0, 1.0]])
"""The vectors of users who like even items, and of those who like odd ones."""
EVENTS: list[list[int]] = [[] for _ in range(40)]
"""The items of each user."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[livefactor.Local]:
    with livefactor.local("clicks", data=folder) as server:
        with server.models() as models:
            models.create("shop", "clicks", **SPEC)
            models.create("open", "clicks", k=K)
            models.create("closed", "clicks", k=K, embeddings=SPEC["embeddings"])
        rng = np.random.default_rng(1)
        with server.producer("events", model="shop") as producer:
            for _ in range(10):
                users = rng.permutation(40)
                items = 2 * rng.integers(0, ITEMS // 2, 40) + users % 2
                producer.push(users, items)
                for user, item in zip(users.tolist(), items.tolist(), strict=True):
                    EVENTS[user].append(item)
        yield server


def loaded(server: livefactor.Local, folder: Path) -> LoadedSnapshot:
    with server.auditor(model="shop") as auditor:
        taken = auditor.snapshot()
        auditor.fetch(folder / taken.snapshot_id, taken.snapshot_id)
    return livefactor.load(folder / taken.snapshot_id)


def of_users(snapshot: LoadedSnapshot, ids: range) -> federated.MapSums:
    """The sums of users whose rows the model has, and whose vectors it does not have."""
    rows = dict(zip(snapshot.user_ids.tolist(), snapshot.user_factors, strict=True))
    return federated.map_sums(KINDS[[user % 2 for user in ids]], [rows[user] for user in ids])


def test_sums_of_participants_rank_for_users_with_a_vector_alone(
    server: livefactor.Local, folder: Path, tmp_path: Path
) -> None:
    before = loaded(server, tmp_path)
    at_home = federated.rows_at_home(before, [EVENTS[user] for user in range(40)])
    found = dict(zip(before.user_ids.tolist(), before.user_factors, strict=True))
    rows = np.array([found[user] for user in range(40)])
    # The model solved each user when its items were not yet the present ones.
    assert np.corrcoef(at_home.ravel(), rows.ravel())[0, 1] > 0.95
    parts = [of_users(before, range(20)), of_users(before, range(20, 40))]
    assert [part.users for part in parts] == [20, 20]
    # What the server would add in a secure sum, from two of the participants.
    code = federated.FixedPoint(bound=64.0, terms=2)
    codes = [code.encode(part.numbers) for part in parts]
    total = federated.MapSums.of(code.decode(codes[0] + codes[1]), D)
    np.testing.assert_allclose(total.gram, parts[0].gram + parts[1].gram, atol=code.resolution)
    with server.producer("round", model="shop") as producer:
        producer.push_embeddings([100, 101], KINDS, side="user")
        acks = [producer.push_map_sums(part.gram, part.rows).result() for part in parts]
        assert [(ack.accepted, ack.rejected_count) for ack in acks] == [(D + 1, 0)] * 2
    after = loaded(server, tmp_path)
    given = federated.map_sums_of(after).minus(federated.map_sums_of(before))
    for found, expected in ((given.gram, total.gram), (given.rows, total.rows)):
        np.testing.assert_allclose(found, expected, atol=4 * code.resolution)
    with server.scorer(model="shop") as scorer:
        even, odd = (set(scorer.recommend(user, k=5)[0].item_ids.tolist()) for user in (100, 101))
    assert even <= set(range(0, ITEMS, 2)) and odd <= set(range(1, ITEMS, 2))
    shown = [row["change"] for row in show.rows(folder / "models" / "shop" / "log", 1)]
    assert "map sums of 20 users, dimension 2, weight 1" in shown


def apply(
    server: livefactor.Local, model: str, body: bytes, **fields: object
) -> updates_pb2.ApplyUpdatesResponse:
    call = server.channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
    sums = updates_pb2.MapSums.FromString(body)
    request = updates_pb2.ApplyUpdatesRequest(model=model, map_sums=sums, **fields)
    return updates_pb2.ApplyUpdatesResponse.FromString(call(request.SerializeToString(), timeout=10))


def test_a_contribution_counts_once(server: livefactor.Local, tmp_path: Path) -> None:
    with server.producer("again", model="shop"):
        pass
    before = federated.map_sums_of(loaded(server, tmp_path))
    stamp = updates_pb2.ProducerStamp(id="again", epoch=1, sequence=1)
    body = encode_map_sums(np.eye(D + 1), np.ones((D + 1, K)), 2.0)
    answers = [apply(server, "shop", body, producer=stamp) for _ in range(2)]
    assert [answer.duplicate for answer in answers] == [False, True]
    given = federated.map_sums_of(loaded(server, tmp_path)).minus(before)
    np.testing.assert_allclose(given.gram, 2.0 * np.eye(D + 1), atol=1e-9)
    np.testing.assert_allclose(given.rows, 2.0, atol=1e-9)


def refusal(server: livefactor.Local, model: str, body: bytes) -> str:
    with pytest.raises(grpc.RpcError) as error:
        apply(server, model, body)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(error.value.details())


def test_bad_sums_are_refused_as_a_whole(server: livefactor.Local) -> None:
    gram, rows = np.eye(D + 1), np.ones((D + 1, K))
    with server.models() as models:
        before = models.describe("shop").position
    indefinite = np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert refusal(server, "shop", encode_map_sums(indefinite, rows)).startswith("gram: no vectors have")
    assert refusal(server, "shop", encode_map_sums(-gram, rows)).startswith("gram: no vectors have")
    for bad in (np.nan, np.inf, 1e31):
        wrong = rows.copy()
        wrong[1, 2] = bad
        assert refusal(server, "shop", encode_map_sums(gram, wrong)) == (
            "rows: number 10 is NaN, infinite or beyond 1e+30"
        )
    assert "expected dimension 2" in refusal(server, "shop", encode_map_sums(np.eye(4), np.ones((4, K))))
    assert "expected 8 numbers a row" in refusal(server, "shop", encode_map_sums(gram, rows[:, :5]))
    for weight in (-1.0, 11.0, float("nan")):
        assert "weight: expected above 0 and at most 10" in refusal(
            server, "shop", encode_map_sums(gram, rows, weight)
        )
    assert "embeddings.user_dimension is 0" in refusal(server, "open", encode_map_sums(gram, rows))
    assert "merge.learning_rate is 0" in refusal(server, "closed", encode_map_sums(gram, rows))
    short = updates_pb2.MapSums(dimension=D, gram=[1.0] * 5, rows=[1.0] * 3 * K)
    assert "gram has 5 numbers" in refusal(server, "shop", short.SerializeToString())
    short = updates_pb2.MapSums(dimension=D, gram=[1.0] * 6, rows=[1.0] * 10)
    assert "rows has 10 numbers" in refusal(server, "shop", short.SerializeToString())
    huge = updates_pb2.MapSums(dimension=2**32 - 1, gram=[1.0] * 6, rows=[1.0] * 10)
    assert "gram has 6 numbers" in refusal(server, "shop", huge.SerializeToString())
    with server.models() as models:
        assert models.describe("shop").position == before
    with server.producer("local", model="shop") as producer:
        for arguments, text in (
            ((gram, rows[:2]), "expected shapes"),
            ((indefinite + np.triu(gram, 1) + [[0, 1, 0]] * 3, rows), "symmetric"),
            ((gram, rows * np.nan), "NaN or infinite"),
            ((np.eye(1000), np.ones((1000, K))), "at most 393216 numbers"),
        ):
            with pytest.raises(ColumnError, match=text):
                producer.push_map_sums(*arguments)
        with pytest.raises(ColumnError, match="weight"):
            producer.push_map_sums(gram, rows, weight=0.0)
        with pytest.raises(InvalidArgument, match="no vectors have this sum"):
            producer.push_map_sums(indefinite, rows).result()
    for vectors, users, text in (
        ([[1.0, 2.0]], np.ones((2, K)), "expected shapes"),
        ([[1.0, 1e9]], np.ones((1, K)), r"vectors\[0\]"),
        ([[1.0, 2.0]], np.full((1, K), np.nan), r"rows\[0\]"),
    ):
        with pytest.raises(ColumnError, match=text):
            federated.map_sums(vectors, users)
    with pytest.raises(ColumnError, match="expected those of dimension 2"):
        federated.MapSums.of(np.ones(7), D)


def test_a_spec_that_cannot_take_the_sums_cannot_be_promoted(server: livefactor.Local) -> None:
    with server.producer("nobody", model="shop") as producer:
        producer.push_map_sums(np.zeros((D + 1, D + 1)), np.zeros((D + 1, K))).result()
    with server.models() as models:
        nothing = {"merge": {"learning_rate": 0.0, "norm_max": 0.0}}
        for changes in (nothing, {"k": 4}, {"embeddings": {"user_dimension": 3}}):
            with pytest.raises(FailedPrecondition, match=r"has (map sums|vectors)"):
                models.promote("shop", **changes)


def test_a_restart_and_a_replay_give_the_same_state(folder: Path, server: livefactor.Local) -> None:
    """The last test of the module: it ends the server."""
    with server.models() as models:
        live = models.describe("shop", with_root_hash=True)
    server.close()
    report = replay_model(folder / "models" / "shop", "reference", None)
    assert report.root_hash == live.root_hash
    with livefactor.local("clicks", data=folder) as again, again.models() as models:
        found = models.describe("shop", with_root_hash=True)
        assert (found.root_hash, found.position) == (live.root_hash, live.position)
