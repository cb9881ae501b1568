"""Features of a served model: cold items and users, refusals, limits, restarts and proofs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import livefactor
from livefactor.errors import ColumnError, FailedPrecondition, InvalidArgument
from livefactor.v1 import updates_pb2
from livefactor_server.cli.content.transfer import push_bags
from livefactor_server.snapshots.audit import replay_model

ITEMS, COLD = 30, 6
SPEC = {
    "k": 8,
    "features": {"size": 40, "per_id": 3},
    "embeddings": {"prior_events": 2.0},
    "history": {"users": 32, "items": 32},
    "counts": {"neighbors": 16, "span": 8},
    "limits": {"items_max": 40},
}
NAMES = [f"film {item}" for item in range(ITEMS)]


def fill(server: livefactor.Local) -> None:
    """Even users have had even items, odd users odd ones. The last ids have features alone."""
    rng = np.random.default_rng(2)
    kinds = [{"genre:odd" if item % 2 else "genre:even": 1.0, "length": 0.5} for item in range(ITEMS)]
    with server.producer("p", model="films") as producer:
        for turn in range(20):
            users = rng.integers(0, 40, 100)
            items = 2 * rng.integers(0, (ITEMS - COLD) // 2, 100) + users % 2
            producer.push(users, np.array(NAMES)[items])
            if turn == 10:
                producer.push_features("item", NAMES, kinds)
                producer.push_features("user", np.arange(44), [[f"club:{user % 2}"] for user in range(44)])
        producer.flush()


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


def test_cold_items_are_ranked_by_their_features(server: livefactor.Local) -> None:
    cold = NAMES[ITEMS - COLD :]
    with server.scorer(model="films") as scorer:
        even, odd = scorer.score([2, 3], cold)
        assert even.item_known.all()
        assert even.scores[::2].min() > even.scores[1::2].max()
        assert odd.scores[1::2].min() > odd.scores[::2].max()
        best = scorer.recommend(2, k=ITEMS, exclude=NAMES[: ITEMS - COLD])[0]
        assert set(best.item_ids[:3].tolist()) == {"film 24", "film 26", "film 28"}
        near = scorer.similar("film 24", k=5)[0].item_ids.tolist()
        assert all(int(name.split()[1]) % 2 == 0 for name in near)


def test_cold_users_are_ranked_by_their_features(server: livefactor.Local) -> None:
    """A mix would rank by popularity until it has seen first events of many users."""
    rng = np.random.default_rng(3)
    with server.models() as models:
        models.create("clicks", "clicks", **SPEC)
    with server.producer("p", model="clicks") as producer:
        for _ in range(20):
            users = rng.integers(0, 40, 100)
            producer.push(users, 2 * rng.integers(0, 12, 100) + users % 2)
        producer.push_features("user", np.arange(44), [[f"club:{user % 2}"] for user in range(44)]).result()
    with server.scorer(model="clicks") as scorer:
        even, odd = scorer.score([42, 43], np.arange(24))
        assert even.known and even.scores[::2].min() > even.scores[1::2].max()
        assert odd.scores[1::2].min() > odd.scores[::2].max()


def test_a_snapshot_has_the_bags_and_gives_the_same_scores(server: livefactor.Local, tmp_path: Path) -> None:
    with server.auditor(model="films") as auditor:
        taken = auditor.snapshot()
        auditor.fetch(tmp_path / "copy", taken.snapshot_id)
    loaded = livefactor.load(tmp_path / "copy")
    assert loaded.tensors["features.item.keys"].shape == (3,)
    assert loaded.tensors["features.item.labels.text"].tobytes().count(b"genre") == 2
    with server.scorer(model="films") as scorer:
        for user in (3, 42, 77):
            served = scorer.score(user, NAMES)[0].scores
            assert loaded.score(user, NAMES).tobytes() == served.tobytes(), user


def refusal(server: livefactor.Local, model: str, **fields: object) -> str:
    call = server.channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
    request = updates_pb2.ApplyUpdatesRequest(model=model, features=updates_pb2.Features(**fields))
    with pytest.raises(grpc.RpcError) as error:
        call(request.SerializeToString(), timeout=10)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(error.value.details())


def test_bad_features_are_refused_as_a_whole_with_their_row(server: livefactor.Local) -> None:
    with server.models() as models:
        models.create("plain", "clicks")
        before = models.describe("films").position
    good = dict(side=2, ids=[1, 2], counts=[1, 1], names=["a", "b"], features=[0, 1])
    for change, text in (
        ({"side": 0}, "side: expected SIDE_USER or SIDE_ITEM"),
        ({"counts": [1]}, "counts has 1 rows, expected 2"),
        ({"counts": [1, 2]}, "features has 2 rows, expected the sum of counts"),
        ({"features": [0, 2]}, "features: expected indexes below 2"),
        ({"weights": [1.0]}, "weights has 1 rows, expected 2"),
        ({"weights": [1.0, float("nan")]}, "weights: row 1, feature 'b': expected a number"),
        ({"weights": [float("inf"), 0.0]}, "weights: row 0, feature 'a' and 1 further weights"),
        ({"names": ["a", "a"]}, "names: two names are equal"),
        ({"names": ["a", "b", "c"]}, "names: no bag has name 2"),
        ({"names": ["a", ""]}, "names: name 1: expected 1..256 bytes, got 0"),
        ({"names": ["a" * 257, "b"]}, "names: name 0: expected 1..256 bytes, got 257"),
        ({"counts": [2, 0], "features": [0, 0], "names": ["a"]}, "features: row 0 has 'a' twice"),
        (
            {"counts": [0, 4], "features": [0, 1, 2, 3], "names": list("abcd")},
            "features: row 1: at most 3 features a bag, got 4",
        ),
        ({"ids": [], "counts": [], "features": [], "names": []}, "batch: it has no rows"),
    ):
        assert refusal(server, "films", **good | change).startswith(text)
    assert refusal(server, "plain", **good) == "features: this model has no features (spec: features.size)"
    with server.models() as models:
        assert models.describe("films").position == before


def test_the_producer_names_the_row_of_a_bad_feature(server: livefactor.Local) -> None:
    with server.producer("q", model="films") as producer:
        for bags, text in (
            ([["a"], ["b", "b"]], r"features\[1\]: a feature occurs twice"),
            ([{"a": 1.0}, {"b": float("nan")}], r"features\[1\]: 'b': expected a weight"),
            ([["a"], "b"], r"features\[1\]: expected a dict"),
            ([["a"], [""]], r"features\[1\]: expected names of 1..256 bytes"),
            ([["a"]], "features has 1 rows, expected 2"),
            ({"a": [1.0]}, "features has 1 rows, expected 2"),
        ):
            with pytest.raises(ColumnError, match=text):
                producer.push_features("item", [1, 2], bags)
        with pytest.raises(ValueError, match="side: expected 'user' or 'item'"):
            producer.push_features("shop", [1], [["a"]])
        with pytest.raises(InvalidArgument, match="row 0: at most 3 features a bag, got 4"):
            producer.push_features("item", "film 1", list("abcd")).result()


def test_columns_and_bags_without_features(server: livefactor.Local) -> None:
    """Columns make a feature each. The last push leaves what `fill` pushed."""
    columns = {"genre": ["even", None], "tags": [["x", "y"], []], "price": [0.0, 2.0], "new": [False, True]}
    with server.models() as models:
        models.create("columns", **SPEC)
    with server.producer("c", model="columns") as producer:
        producer.push_features("item", [1, 2], columns).result()
        producer.push_features("item", 1, {"genre:even": 2.0}).result()
        producer.push_features("item", 2, {}).result()
    with server.auditor(model="columns") as auditor:
        state = auditor.snapshot()
    with server.models() as models:
        assert models.describe("columns").position == state.position


def test_the_command_sends_the_features_of_a_file(server: livefactor.Local) -> None:
    columns = {"genre": ["even", "odd"], "length": [0.5, 0.5]}
    sent = push_bags("item", ["film 0", "film 1"], columns, server.target, "films", b"")
    with server.models() as models:
        assert sent == (2, 0, models.describe("films").position.revision)


def test_new_features_above_the_limit_are_rejected_one_by_one(tmp_path: Path) -> None:
    """The other rows of a batch are applied. Rows above the limit of items are rejected, too."""
    with livefactor.local("auto", data=tmp_path) as server:
        with server.models() as models:
            models.create("films", **SPEC)
        with server.producer("p", model="films", on_reject=lambda rejects: None) as producer:
            bags = [[f"name {row}"] for row in range(39)] + [["last", "one more"], ["name 1"]]
            ack = producer.push_features("user", np.arange(41), bags).result()
            assert (ack.accepted, [reject.row for reject in ack.rejects]) == (40, [39])
            assert ack.rejects[0].reason == "FEATURES_FULL"
            ack = producer.push_features("item", np.arange(42), [["a"]] * 42).result()
            assert [(reject.row, reject.reason) for reject in ack.rejects] == [
                (40, "ITEMS_FULL"),
                (41, "ITEMS_FULL"),
            ]
        report = replay_model(tmp_path / "models" / "films", "reference", None)
        assert report.good


def test_a_spec_that_cannot_hold_the_features_is_not_promoted(server: livefactor.Local) -> None:
    with server.models() as models:
        for features, text in (
            ({"size": 0}, "features of users, and the spec allows 0"),
            ({"size": 2}, "the model has 3 features of items, and the spec allows 2"),
            ({"size": 40, "per_id": 1}, "features of an id, the spec allows 1"),
        ):
            with pytest.raises(FailedPrecondition, match=text):
                models.promote("films", features=features)


def test_a_report_tells_which_features_carry_weight_and_dropped_ones_go(server: livefactor.Local) -> None:
    with server.models() as models:
        found = {each.name: each for each in models.features("films")}
        assert found["genre:even"].ids == ITEMS // 2 and found["length"].ids == ITEMS
        # The producer divides the events into batches by time, so the strength varies.
        assert found["genre:even"].strength > 0.05
        names = [each.name for each in models.features("films", limit=2)]
        weakest = models.features("films", limit=2, weakest_first=True)
        assert names[0] == max(found.values(), key=lambda each: each.strength).name
        assert weakest[0].strength <= weakest[1].strength <= found[names[1]].strength
        with server.producer("d", model="films") as producer:
            assert producer.drop_features("item", ["length", "unknown"]).result().accepted == 2
            with pytest.raises(ValueError, match="side"):
                producer.drop_features("shop", "length")
        assert {each.name for each in models.features("films")} == found.keys() - {"length"}
        assert {each.name for each in models.features("films", "user")} == {"club:0", "club:1"}
        models.create("none", "clicks")
        for name, limit, text in (("none", 9, "has no features"), ("films", 5000, "limit: at most 4096")):
            with pytest.raises(InvalidArgument, match=text):
                models.features(name, limit=limit)
    with (
        server.producer("n", model="none") as producer,
        pytest.raises(InvalidArgument, match="has no features"),
    ):
        producer.drop_features("item", "a").result()


@pytest.mark.parametrize("preset", ["purchases", "purchases_sgd"])
def test_features_of_a_model_with_gradient_steps(preset: str, tmp_path: Path) -> None:
    """Cold items of the right kind rank first, snapshots score alike, and a replay has the bits."""
    spec = {name: SPEC[name] for name in ("k", "features", "embeddings", "limits")}
    with livefactor.local("auto", data=tmp_path) as server:
        with server.models() as models:
            models.create("films", preset, history={"users": 32}, counts={"repeat": 0.0}, **spec)
        fill(server)
        fill(server)
        cold = NAMES[ITEMS - COLD :]
        with server.producer("p", model="films") as producer:
            producer.push_features("item", cold, [[f"genre:{('even', 'odd')[at % 2]}"] for at in range(COLD)])
        with server.scorer(model="films") as scorer:
            even, odd = (answer.scores for answer in scorer.score([2, 3], cold))
            assert even[::2].min() > even[1::2].max() and odd[1::2].min() > odd[::2].max()
            served = scorer.score(42, NAMES)[0].scores
        with server.models() as models:
            found = {each.name: each for each in models.features("films")}
            assert found["genre:even"].strength > 0.1 and found["genre:even"].ids == ITEMS // 2
        with server.auditor(model="films") as auditor:
            auditor.fetch(tmp_path / "copy", auditor.snapshot().snapshot_id)
        assert livefactor.load(tmp_path / "copy").score(42, NAMES).tobytes() == served.tobytes()
    assert replay_model(tmp_path / "models" / "films", "reference", None).good


def test_a_restart_and_a_replay_give_the_same_state(folder: Path, server: livefactor.Local) -> None:
    """The last test of the module: it ends the server."""
    with server.models() as models:
        live = models.describe("films", with_root_hash=True)
        assert live.memory_bytes > 0
    server.close()
    with livefactor.local("auto", data=folder) as again:
        with again.models() as models:
            found = models.describe("films", with_root_hash=True)
        assert (found.root_hash, found.position) == (live.root_hash, live.position)
        with again.producer("p", model="films") as producer:
            position = producer.push_features("item", "film 29", ["genre:new"]).result().position
        with again.auditor(model="films") as auditor:
            assert auditor.snapshot().position == position
    report = replay_model(folder / "models" / "films", "reference", None)
    assert report.good and len(report.snapshots) >= 2
