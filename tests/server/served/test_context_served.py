"""Context of a served model: events and calls with features, refusals, restarts and switches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import grpc
import numpy as np
import pytest
import typer.main

import livefactor
from livefactor.errors import ColumnError, InvalidArgument
from livefactor.v1 import scoring_pb2, updates_pb2
from livefactor.wire.keys import keys_of
from livefactor_kernels.reading.context import learning
from livefactor_server.cli.app import app
from livefactor_server.snapshots.audit import replay_model

ITEMS = 24
SPEC = {
    "k": 8,
    "context": {"size": 40},
    "history": {"users": 32, "items": 32},
    "limits": {"items_max": 40},
}
NAMES = np.array([f"film {item}" for item in range(ITEMS)])


def fill(server: livefactor.Local, model: str, batches: int = 20) -> None:
    """Even users have even items, which they take at night, and odd users odd ones, by day."""
    rng = np.random.default_rng(2)
    with server.producer("p", model=model) as producer:
        for _ in range(batches):
            users = rng.integers(0, 60, 100)
            items = 2 * rng.integers(0, ITEMS // 2, 100) + users % 2
            when = [[f"hour:{3 if item % 2 == 0 else 15}", "phone"] for item in items.tolist()]
            producer.push(users, NAMES[items], context=when)
        producer.flush()


@pytest.fixture(scope="module")
def server() -> Iterator[livefactor.Local]:
    with livefactor.local("auto") as server:
        with server.models() as models:
            models.create("films", **SPEC)
            models.create("short", "purchases_sgd", k=8, context={"size": 40})
        for model in ("films", "short"):
            fill(server, model)
        yield server


def created(server: livefactor.Local, model: str, **fields: object) -> None:
    """Makes a model. A test that runs again makes it again."""
    with server.models() as models:
        if any(each.name == model for each in models.list()):
            models.delete(model)
        models.create(model, **{**SPEC, **fields})


def even_share(answer: Any) -> float:
    return float(np.mean([int(name.split()[1]) % 2 == 0 for name in answer.item_ids.tolist()]))


@pytest.mark.parametrize("model", ["films", "short"])
def test_the_context_of_a_call_decides_what_comes_first(server: livefactor.Local, model: str) -> None:
    """With and without histories; one bag for all users, or one each."""
    with server.scorer(model=model) as scorer:
        bags = [["hour:3"], {"hour:15": 1.0}]
        night, day = scorer.recommend([1, 2], k=6, context=bags, context_weight=2000)
        assert (even_share(night), even_share(day)) == (1.0, 0.0)
        shared = scorer.recommend([1, 2, 99], k=6, context=["hour:3"], context_weight=2000)
        assert [even_share(each) for each in shared] == [1.0, 1.0, 1.0]
        plain = scorer.score([1, 2], NAMES)
        scores = scorer.score([1, 2], NAMES, context={"hour:15": 2.0}, context_weight=3)
        added = scores[0].scores - plain[0].scores
        assert added[1::2].min() > added[::2].max()
        np.testing.assert_allclose(added, scores[1].scores - plain[1].scores, atol=1e-4)
        nothing = scorer.score([1, 2], NAMES, context=["hour:99"])
        np.testing.assert_array_equal(nothing[0].scores, plain[0].scores)


def test_every_event_has_the_same_bag_or_its_own(server: livefactor.Local) -> None:
    created(server, "small")
    with server.producer("p", model="small") as producer:
        producer.push([1, 2], [1, 2], context=["rain"]).result(10)
        with pytest.raises(ColumnError, match=r"context has 1 rows, expected 2 \(user_ids\)"):
            producer.push([1, 2], [1, 2], context=[["rain"]])
        receipt = producer.push(["ann"], ["tent"], context={"sun": 0.5})
        assert receipt.result(10).accepted == 1
    with server.scorer(model="small") as scorer:
        assert scorer.recommend("ann", k=3, context=["sun"])[0].item_ids[0] == "tent"


@pytest.mark.parametrize(
    ("bags", "text"),
    [
        ({"counts": [1, 0], "names": ["a"], "features": [0], "weights": [np.nan]}, "weights: row 0"),
        ({"counts": [0, 2], "names": ["a"], "features": [0, 0]}, "context: row 1 has 'a' twice"),
        ({"counts": [1, 0], "names": [""], "features": [0]}, "names: name 0: expected 1..256 bytes"),
        ({"counts": [1, 0], "names": ["a", "b"], "features": [0]}, "names: no bag has name 1"),
        ({"counts": [1, 1], "names": ["a"], "features": [0]}, "expected the sum of counts"),
        ({"counts": [1], "names": ["a"], "features": [0]}, "context has 1 rows, expected 2"),
        (
            {"counts": [65, 0], "names": [str(at) for at in range(65)], "features": range(65)},
            "context: row 0: at most 64 features a bag, got 65",
        ),
    ],
)
def test_bad_context_is_refused_as_a_whole(
    server: livefactor.Local, bags: dict[str, object], text: str
) -> None:
    message = updates_pb2.Interactions(user_ids=[1, 2], item_ids=[1, 2])
    message.context.MergeFrom(updates_pb2.Bags(**bags))  # type: ignore[arg-type]
    request = updates_pb2.ApplyUpdatesRequest(model="films", interactions=message)
    with server.models() as models:
        before = models.describe("films").position.revision
        stub = server.channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
        with pytest.raises(grpc.RpcError) as refused:
            stub(request.SerializeToString(), timeout=10)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert text in str(refused.value.details())
        assert models.describe("films").position.revision == before


def test_bad_calls_are_refused(server: livefactor.Local) -> None:
    created(server, "plain", context={"size": 0})
    with (
        server.scorer(model="plain") as scorer,
        pytest.raises(InvalidArgument, match="this model has no context"),
    ):
        scorer.recommend(1, context=["hour:3"])
    with (
        server.producer("q", model="plain") as producer,
        pytest.raises(InvalidArgument, match="this model has no context"),
    ):
        producer.push([1], [1], context=["hour:3"]).result(10)
    with server.scorer(model="films") as scorer:
        for weight in (0.0, np.nan, 1e7):
            with pytest.raises(InvalidArgument, match="context_weight: expected above 0"):
                scorer.recommend(1, context=["hour:3"], context_weight=weight)
    request = scoring_pb2.ScoreRequest(model="films", user_ids=[1, 2, 3], top_k=scoring_pb2.TopK(k=1))
    request.context.counts.extend([0, 0])
    stub = server.channel.unary_unary("/livefactor.v1.ScoringService/Score")
    with pytest.raises(grpc.RpcError, match="expected 1 bag, or one for each of 3 users, got 2"):
        stub(request.SerializeToString(), timeout=10)
    request = scoring_pb2.ScoreRequest(model="films", similar=scoring_pb2.Similar(item_ids=[1], k=1))
    request.context.SetInParent()
    with pytest.raises(grpc.RpcError, match="no query and no context"):
        stub(request.SerializeToString(), timeout=10)


def test_a_switch_learns_the_context_of_the_log(server: livefactor.Local) -> None:
    with server.models() as models:
        created(server, "later")
        fill(server, "later")
        models.promote("later", context={"size": 0})
        with server.scorer(model="later") as scorer, pytest.raises(InvalidArgument, match="no context"):
            scorer.recommend(1, context=["hour:3"])
        models.promote("later", context={"size": 40})
    with server.scorer(model="later") as scorer:
        assert even_share(scorer.recommend(1, k=6, context=["hour:3"], context_weight=2000)[0]) == 1.0


def test_a_file_brings_its_context_and_goes_on_where_it_ended(
    server: livefactor.Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(server, "file")
    monkeypatch.setenv("LIVEFACTOR_TARGET", server.target)
    runner, command = click.testing.CliRunner(), typer.main.get_command(app)
    typed = ["-m", "file", "--json", "--context", "query", "--context", "hour", "--separator", " "]
    lines = ["user_id,item_id,query,hour"]
    lines += [f"u{n % 8},item {n % 6},{'warm red' if n % 2 else 'cold red'},{n % 3}" for n in range(300)]
    events = tmp_path / "events.csv"
    accepted = []
    for count in (200, 301):
        events.write_text("\n".join(lines[:count]) + "\n")
        pushed = runner.invoke(command, ["push", str(events), *typed, "--batch", "50"])
        assert pushed.exit_code == 0, pushed.stderr
        accepted.append(json.loads(pushed.stdout)["accepted"])
    assert accepted == [199, 101]
    with server.auditor(model="file") as auditor:
        auditor.snapshot()
        auditor.fetch(tmp_path / "fetched")
    state = livefactor.load(tmp_path / "fetched")
    names = keys_of(["query:cold", "query:red", "hour:0", "query:warm", "hour:1", "hour:2"])
    np.testing.assert_array_equal(state.tensors["context.keys"], names)
    np.testing.assert_array_equal(state.tensors["context.counts"], [150, 300, 100, 150, 100, 100])
    asked = ["recommend", "u0", "-m", "file", "--json", "-k", "3", "--context", "query:warm"]
    found = json.loads(runner.invoke(command, [*asked, "--context-weight", "30"]).stdout)
    items = [each["item"] for each in found["users"][0]["items"]]
    assert sorted(items) == ["item 1", "item 3", "item 5"]


def test_a_report_tells_which_context_carries_weight_and_dropped_context_goes(
    server: livefactor.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(server, "told")
    fill(server, "told")
    with server.models() as models:
        found = {each.name: each for each in models.features("told", "context")}
        assert found.keys() == {"hour:3", "hour:15", "phone"} and found["phone"].ids == 2000
        assert found["hour:3"].ids + found["hour:15"].ids == 2000
        # Each event has "phone", so it says nothing of items.
        assert found["phone"].strength < 0.1 < 5 < found["hour:3"].strength
        assert [each.name for each in models.features("told", "context", limit=1, weakest_first=True)] == [
            "phone"
        ]
        with server.producer("d", model="told") as producer:
            assert producer.drop_features("context", ["phone", "unknown"]).result(10).accepted == 2
        assert {each.name for each in models.features("told", "context")} == {"hour:3", "hour:15"}
        with pytest.raises(InvalidArgument, match="this model has no features"):
            models.features("told")
        with pytest.raises(ValueError, match="side: expected 'user', 'item' or 'context', got 'shop'"):
            models.features("told", "shop")
        created(server, "plain", context={"size": 0})
        with pytest.raises(InvalidArgument, match="this model has no context"):
            models.features("plain", "context")
    with (
        server.producer("d", model="plain") as producer,
        pytest.raises(InvalidArgument, match="this model has no context"),
    ):
        producer.drop_features("context", "phone").result(10)
    monkeypatch.setenv("LIVEFACTOR_TARGET", server.target)
    runner, command = click.testing.CliRunner(), typer.main.get_command(app)
    typed = ["models", "drop-features", "told", "hour:15", "--side", "context"]
    assert runner.invoke(command, typed).exit_code == 0
    shown = runner.invoke(command, ["models", "features", "told", "--side", "context", "--json"])
    assert [each["name"] for each in json.loads(shown.stdout)] == ["hour:3"]
    assert "events" in runner.invoke(command, ["models", "features", "told", "--side", "context"]).stdout
    # An event that has it brings it back.
    with server.producer("p", model="told") as producer:
        producer.push([1], [NAMES[1]], context=["hour:15"]).result(10)
    with server.models() as models:
        assert {each.name for each in models.features("told", "context")} == {"hour:3", "hour:15"}


def test_names_of_forgotten_context_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are halved after 150 events, in a replay, too."""
    monkeypatch.setattr(learning, "HALVED_EVENTS", 150.0)
    with livefactor.local("auto", data=tmp_path) as server:
        with server.models() as models:
            models.create("films", **SPEC)
        with server.producer("p", model="films") as producer:
            producer.push([1], [NAMES[1]], context={"once": 0.5}).result(10)
            producer.push([1], [NAMES[1]], context={"often": 9.0}).result(10)
        with server.models() as models:
            assert {each.name for each in models.features("films", "context")} == {"once", "often"}
        fill(server, "films")
        with server.models() as models:
            names = {each.name for each in models.features("films", "context")}
        assert names == {"hour:3", "hour:15", "phone"}
        with server.auditor(model="films") as auditor:
            auditor.fetch(tmp_path / "copy", auditor.snapshot().snapshot_id)
    text = livefactor.load(tmp_path / "copy").tensors["context.labels.text"].tobytes().decode()
    assert sorted(text) == sorted("hour:3hour:15phone")
    assert replay_model(tmp_path / "models" / "films", "reference", None).good


def test_a_restart_and_a_replay_have_the_same_bits(tmp_path: Path) -> None:
    asked = {"context": ["hour:15", "new"], "context_weight": 2.0}
    with livefactor.local("auto", data=tmp_path) as server:
        with server.models() as models:
            models.create("films", **SPEC)
        # The reference learns some hundred events a second.
        fill(server, "films", 4)
        with server.auditor(model="films") as auditor:
            auditor.snapshot()
        with server.producer("p", model="films") as producer:
            producer.push([70], [NAMES[3]], context=["hour:15", "new"]).result(10)
            producer.drop_features("context", ["hour:3", "unknown"]).result(10)
        with server.scorer(model="films") as scorer:
            before = scorer.score(70, NAMES, **asked)[0].scores
        with server.models() as models:
            told = models.features("films", "context")
            assert {each.name for each in told} == {"hour:15", "phone", "new"}
    with livefactor.local("auto", data=tmp_path) as again:
        with again.scorer(model="films") as scorer:
            np.testing.assert_array_equal(scorer.score(70, NAMES, **asked)[0].scores, before)
        with again.models() as models:
            assert models.features("films", "context") == told
        with again.auditor(model="films") as auditor:
            auditor.snapshot()
    report = replay_model(tmp_path / "models" / "films", "reference", None)
    assert report.good and len(report.snapshots) >= 2
