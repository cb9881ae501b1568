"""A served model that begins with the factors of another one: scores, refusals, files, replays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

import livefactor
from livefactor.errors import ColumnError, FailedPrecondition, InvalidArgument
from livefactor.v1 import updates_pb2
from livefactor.wire.factors import encode_factors
from livefactor_server.cli.app import app
from livefactor_server.snapshots.audit import replay_model

D, USERS, ITEMS = 6, 24, 20
SPEC = {"k": 8, "history": {"users": 32, "items": 32}, "counts": {"neighbors": 16, "span": 8}}
RNG = np.random.default_rng(7)
# Two kinds of users like two kinds of items.
USER_FACTORS = np.where(np.arange(USERS)[:, None] % 2, 0.6, -0.6) + RNG.normal(size=(USERS, D)) * 0.1
ITEM_FACTORS = np.where(np.arange(ITEMS)[:, None] % 2, 0.3, -0.3) + RNG.normal(size=(ITEMS, D)) * 0.1
NAMES = [f"film {item}" for item in range(ITEMS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[livefactor.Local]:
    with livefactor.local("auto", data=folder) as server:
        with server.models() as models:
            for name, preset in (("films", "auto"), ("plain", "clicks"), ("bare", "clicks")):
                models.create(name, preset, **SPEC)
            models.create("logistic", "clicks_sgd", k=8)
        for name in ("films", "plain", "logistic"):
            with server.producer("nightly", model=name) as producer:
                producer.push_factors("item", NAMES, ITEM_FACTORS, np.arange(ITEMS) / 100)
                producer.push_factors("user", np.arange(USERS), USER_FACTORS)
        yield server


def orders(server: livefactor.Local, model: str, user: int) -> list[str]:
    with server.scorer(model=model) as scorer:
        return [str(name) for name in scorer.recommend(user, k=ITEMS)[0].item_ids.tolist()]


def test_the_lists_begin_as_those_of_the_other_model(server: livefactor.Local) -> None:
    scores = USER_FACTORS @ ITEM_FACTORS.T
    for user in (0, 5, USERS - 1):
        best = [NAMES[item] for item in np.argsort(-scores[user], kind="stable")]
        assert orders(server, "plain", user) == best
        # A mix knows popularity, too.
        moved = [abs(best.index(name) - place) for place, name in enumerate(orders(server, "films", user))]
        assert np.mean(moved) < 1.5
        with_bias = np.argsort(-(scores[user] + np.arange(ITEMS) / 100), kind="stable")
        assert orders(server, "logistic", user) == [NAMES[item] for item in with_bias]
    with server.models() as models:
        films = models.describe("films")
        assert films.spec["solve"]["start_events"] == 128.0 and len(films.earlier_specs) == 1
        assert (films.users, films.items, films.events) == (USERS, ITEMS, 0)


def refusal(server: livefactor.Local, body: bytes, model: str = "bare") -> str:
    call = server.channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
    request = updates_pb2.ApplyUpdatesRequest(model=model, factors=updates_pb2.Factors.FromString(body))
    with pytest.raises(grpc.RpcError) as error:
        call(request.SerializeToString(), timeout=10)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(error.value.details())


def test_bad_factors_are_refused_as_a_whole_with_their_row(server: livefactor.Local) -> None:
    with server.models() as models:
        models.create("ratings", "ratings")
    ids, good = np.arange(3), np.ones((3, D))
    bad = good.copy()
    bad[1, 2] = np.nan
    assert refusal(server, encode_factors(1, ids, bad)).startswith("factors: row 1: a number is NaN")
    assert "biases: row 2" in refusal(server, encode_factors(1, ids, good, np.array([0, 1, np.inf])))
    assert refusal(server, encode_factors(0, ids, good)) == "side: expected SIDE_USER or SIDE_ITEM, got 0"
    assert "dimension of 1..8, which is k of the model, got 9" in refusal(
        server, encode_factors(1, ids, np.ones((3, 9)))
    )
    assert (
        refusal(server, encode_factors(2, [5, 6, 5], good)) == "ids: row 2 has the id of an earlier row (5)"
    )
    assert "squared loss" in refusal(server, encode_factors(1, ids, good), "ratings")
    short = updates_pb2.Factors(side=1, ids=[1, 2], dimension=2, factors=[0.5] * 4, biases=[1.0])
    assert "biases has 1 rows, expected 2" in refusal(server, short.SerializeToString())
    with server.models() as models:
        found = models.describe("bare")
        assert (found.position.revision, found.earlier_specs) == (0, ())
    with server.producer("q", model="bare") as producer:
        with pytest.raises(ColumnError, match=r"factors\[1\]: a number is NaN"):
            producer.push_factors("user", ids, bad)
        with pytest.raises(ColumnError, match=r"ids\[2\]: it has the id of an earlier row"):
            producer.push_factors("user", [5, 6, 5], good)
        receipt = producer.push_factors("item", [1], np.ones((1, 9)))
        with pytest.raises(InvalidArgument, match="got 9"):
            receipt.result()


def test_a_model_with_factors_cannot_become_one_that_takes_none(server: livefactor.Local) -> None:
    with server.models() as models:
        with pytest.raises(FailedPrecondition, match=r"has factors: expected a dimension of 1\.\.4"):
            models.promote("films", k=4)
        with pytest.raises(FailedPrecondition, match=r"has factors: rule solve needs solve\.start_events"):
            models.promote("films", solve={"start_events": 0.0})
        with pytest.raises(FailedPrecondition, match="has factors: rule solve"):
            models.promote("logistic", "clicks", **SPEC)


def command(server: livefactor.Local, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["import", *arguments, "--target", server.target, "--json"])


def test_the_command_reads_files_of_factors(server: livefactor.Local, tmp_path: Path) -> None:
    with server.models() as models:
        for name in ("npz", "tensors"):
            models.create(name, "clicks", **SPEC)
    biases = np.linspace(-0.5, 0.5, ITEMS)
    np.savez(
        tmp_path / "m.npz", user_factors=USER_FACTORS, item_factors=ITEM_FACTORS, item_biases=biases,
        item_ids=np.array(NAMES), num_threads=np.array(object()),
    )  # fmt: skip
    (tmp_path / "users.txt").write_text("\n".join(map(str, range(USERS))))
    shown = command(server, str(tmp_path / "m.npz"), "-m", "npz")
    assert shown.exit_code == 2 and "no user_ids: name a file of ids with --user-ids" in shown.output
    shown = command(server, str(tmp_path / "m.npz"), "--user-ids", str(tmp_path / "users.txt"), "-m", "npz")
    assert shown.exit_code == 0, shown.output
    # The biases of items are one more factor of rule solve.
    done = json.loads(shown.output)
    assert (done["users"], done["items"], done["dimension"], done["rejected"]) == (USERS, ITEMS, D + 1, 0)
    best = np.argsort(-(USER_FACTORS @ ITEM_FACTORS.T + biases)[3], kind="stable")
    assert orders(server, "npz", 3) == [NAMES[item] for item in best]
    tensors = {"item_embeddings": ITEM_FACTORS.astype(np.float32), "item_ids": np.arange(ITEMS)}
    save_file(tensors, tmp_path / "m.safetensors")
    shown = command(server, str(tmp_path / "m.safetensors"), "-m", "tensors")
    assert json.loads(shown.output)["items"] == ITEMS
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    for arguments in (("bad.npz", "-m", "npz"), ("users.txt", "-m", "npz"), ("m.npz", "-m", "nothere")):
        shown = command(server, str(tmp_path / arguments[0]), *arguments[1:])
        assert shown.exit_code == 2 and "Traceback" not in shown.output


def test_the_command_factorises_a_file_of_events(server: livefactor.Local, tmp_path: Path) -> None:
    """Latent semantic indexing: lists begin with what the user's kind had."""
    users = np.repeat(np.arange(30), 8)
    items = 2 * np.random.default_rng(3).integers(0, 10, users.size) + users % 2
    rows = "\n".join(f"u{user},i{item}" for user, item in zip(users, items, strict=True))
    (tmp_path / "events.csv").write_text(f"user,item\n{rows}\n")
    with server.models() as models:
        models.create("lsi", "clicks", **SPEC)
    shown = command(server, str(tmp_path / "events.csv"), "--svd", "4", "-m", "lsi")
    assert shown.exit_code == 0, shown.output
    with server.scorer(model="lsi") as scorer:
        assert all(name.startswith("i") for name in scorer.recommend("u2", k=3)[0].labels)
        even, odd = scorer.score(["u2", "u3"], [f"i{item}" for item in range(20)])
    assert even.scores[::2].mean() > even.scores[1::2].mean() + 0.2
    assert odd.scores[1::2].mean() > odd.scores[::2].mean() + 0.2
    with server.producer("p", model="lsi") as producer:
        producer.push([1], [2]).result()
    shown = command(server, str(tmp_path / "events.csv"), "--svd", "4", "-m", "lsi")
    assert shown.exit_code == 2 and "has learned 1 events" in shown.output
    shown = command(server, str(tmp_path / "events.csv"), "--svd", "99", "-m", "bare")
    assert shown.exit_code == 2 and "got 99" in shown.output


def test_events_move_the_model_and_a_replay_gives_the_same_state(
    folder: Path, server: livefactor.Local, tmp_path: Path
) -> None:
    """The last test of the module: it ends the server."""
    before = orders(server, "films", 1)
    with server.producer("p", model="films") as producer:
        # Odd users turn to even items.
        users = np.repeat(np.arange(1, USERS, 2), 40)
        producer.push(users, np.array(NAMES)[2 * RNG.integers(0, ITEMS // 2, users.size)]).result()
    after = orders(server, "films", 1)
    evens = [[int(name.split()[1]) % 2 == 0 for name in names[:5]] for names in (before, after)]
    assert sum(evens[0]) == 0 and sum(evens[1]) >= 4
    with server.auditor(model="films") as auditor:
        auditor.fetch(tmp_path / "copy", auditor.snapshot().snapshot_id)
    assert livefactor.load(tmp_path / "copy").tensors["users.factors_start"].shape == (USERS, 8)
    with server.models() as models:
        live = {name: models.describe(name, with_root_hash=True) for name in ("films", "logistic")}
    server.close()
    for name, found in live.items():
        report = replay_model(folder / "models" / name, "reference", None)
        assert report.good and report.root_hash == found.root_hash
    with livefactor.local("auto", data=folder) as again, again.models() as models:
        assert models.describe("films", with_root_hash=True).root_hash == live["films"].root_hash
