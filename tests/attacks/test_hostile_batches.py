"""Promise 7: hostile input does no harm.

No message from a client can crash the server, poison a model or make it grow without bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract import METHODS
from hostile import MODEL, Target
from livefactor.v1 import (
    challenging_pb2,
    following_pb2,
    models_pb2,
    privacy_pb2,
    scoring_pb2,
    scoring_pb2_grpc,
    snapshots_pb2,
    updates_pb2,
    updates_pb2_grpc,
)
from server_process import Server, WarmStart

Serve = Callable[..., Server]
Rows = updates_pb2.Interactions

MUTATIONS = 700
MUTATIONS_LONG = 10_000
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def target(warm: WarmStart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    server = Server(
        warm, tmp_path_factory.mktemp("attacked") / "data", "--preset", "", "--batch-events-max", "5000"
    )
    server.start()
    with server.channel() as channel:
        made = Target(server, channel)
        made.create()
        made.create("clicks", "clicks_sgd")
        yield made
        made.check_alive()
    server.kill()


# ------------------------------------------------------------------------------------------------
# mutated messages


def _changes(stamp: updates_pb2.ProducerStamp, rows: Rows) -> list[dict[str, object]]:
    """Return the fields of a valid batch with each change."""
    labels = updates_pb2.Labels(side=updates_pb2.SIDE_ITEM, ids=[4, 5], labels=["mug", "lamp"])
    marks = updates_pb2.Availability(item_ids=[4, 5], available=False)
    vectors = updates_pb2.Embeddings(side=2, ids=[4], dimension=2, vectors=[1, 2])
    bags = updates_pb2.Features(side=2, ids=[4], counts=[2], names=["a", "b"], features=[0, 1])
    deltas = updates_pb2.FactorDeltas(side=2, ids=[4], dimension=2, deltas=[1, 2], biases=[3], weight=2)
    sums = updates_pb2.MapSums(dimension=1, gram=[1, 0, 2], rows=[1, 2, 3, 4], weight=2)
    return [
        dict(model=MODEL, interactions=rows), dict(model=MODEL, producer=stamp, interactions=rows),
        dict(model=MODEL, producer=stamp, labels=labels), dict(model=MODEL, availability=marks),
        dict(model=MODEL, producer=stamp, embeddings=vectors), dict(model=MODEL, producer=stamp, features=bags),
        dict(model=MODEL, factor_deltas=deltas), dict(model=MODEL, dropped_features=updates_pb2.DroppedFeatures(side=2, names=["a"])),
        dict(model=MODEL, factors=updates_pb2.Factors(side=1, ids=[4], dimension=1, factors=[1], biases=[3])),
        dict(model=MODEL, map_sums=sums),
    ]  # fmt: skip


def changing_messages(spec: models_pb2.ModelSpec) -> dict[str, list[Any]]:
    """Return messages that would change the model if it existed."""
    batches = models_pb2.ProducerBatches(producer_id="p", first_sequence=1, last_sequence=9)
    return {
        "PromoteSpec": [models_pb2.PromoteSpecRequest(model="nosuchmodel", preset="news", spec=spec)],
        "RollBack": [models_pb2.RollBackRequest(model="nosuchmodel", to_revision=3, without=[batches])],
        "Forget": [models_pb2.ForgetRequest(model="nosuchmodel", user_ids=[1, 2], item_ids=[4])],
        "AddChallenger": [
            challenging_pb2.AddChallengerRequest(model="nosuchmodel", name="x", preset="news", spec=spec)
        ],
    }


def _score_messages(here: updates_pb2.Position) -> list[Any]:
    few = scoring_pb2.Candidates(item_ids=[4, 5, 6, 7], offsets=[0, 2, 4])
    best = scoring_pb2.TopK(k=3, exclude_ids=[4, 5], offsets=[0, 1, 2], include_unavailable=True)
    fields: list[dict[str, Any]] = [
        {"user_ids": [1, 2], "candidates": few, "with_labels": True},
        {"user_ids": [1, 2], "top_k": best, "min_position": here},
        {"similar": scoring_pb2.Similar(item_ids=[4], k=3, include_unavailable=True)},
        {"user_ids": [1], "top_k": best, "query": scoring_pb2.Query(vectors=[1, 2], weight=1), "keep": True},
    ]
    return [scoring_pb2.ScoreRequest(model=MODEL, **each) for each in fields]


def valid_messages() -> dict[str, list[Any]]:
    """Return valid messages for each RPC, by its name. Some RPCs have several."""
    stamp = updates_pb2.ProducerStamp(id="p", epoch=1, sequence=1)
    here = updates_pb2.Position(lineage=bytes(16), revision=3)
    rows = Rows(
        user_ids=[1, 2, 3], item_ids=[4, 5, 6], values=[1, 2, 3], weights=[1, 1, 2],
        event_types=[1, 2, 3], times_us=[7, 8, 9],
    )  # fmt: skip
    update = _changes(stamp, rows)
    spec = models_pb2.ModelSpec(
        k=8, l2=0.1, optimizer=models_pb2.Optimizer(learning_rate=0.1), limits=models_pb2.Limits(users_max=9)
    )
    return {
        "OpenProducer": [updates_pb2.OpenProducerRequest(model=MODEL, producer_id="p")],
        "ApplyUpdates": [updates_pb2.ApplyUpdatesRequest(**fields) for fields in update],
        "StreamUpdates": [updates_pb2.StreamUpdatesRequest(**fields) for fields in update],
        "Score": _score_messages(here),
        "Explain": [scoring_pb2.ExplainRequest(model=MODEL, user_id=1, item_id=4, revision=1, events_max=3)],
        "FetchServed": [scoring_pb2.FetchServedRequest(model=MODEL, score_id=7)],
        "Snapshot": [snapshots_pb2.SnapshotRequest(model=MODEL, min_position=here)],
        "ListSnapshots": [snapshots_pb2.ListSnapshotsRequest(model=MODEL)],
        "FetchSnapshot": [
            snapshots_pb2.FetchSnapshotRequest(model=MODEL, snapshot_id="0" * 20 + "-" + "0" * 8)
        ],
        "CreateModel": [models_pb2.CreateModelRequest(model="Not A Name", preset="clicks_sgd", spec=spec)],
        "DescribeModel": [models_pb2.DescribeModelRequest(model=MODEL, with_root_hash=True)],
        "ListFeatures": [models_pb2.ListFeaturesRequest(model=MODEL, side=2, limit=3)],
        "ListProducers": [models_pb2.ListProducersRequest(model=MODEL, limit=3)],
        "ListQuarantine": [models_pb2.ListQuarantineRequest(model=MODEL)],
        "DecideQuarantine": [models_pb2.DecideQuarantineRequest(model=MODEL, revisions=[1, 2], decision=1)],
        "ListModels": [models_pb2.ListModelsRequest()],
        "DeleteModel": [models_pb2.DeleteModelRequest(model="nosuchmodel")],
        "ListChallengers": [challenging_pb2.ListChallengersRequest(model=MODEL)],
        "SettleModel": [challenging_pb2.SettleModelRequest(model="nosuchmodel", challenger="x")],
        # With the model's own lineage the stream would not end.
        "FollowLog": [following_pb2.FollowLogRequest(model=MODEL, lineage=bytes(16), hash=bytes(32))],
        "ConfirmLog": [following_pb2.ConfirmLogRequest(model=MODEL, lineage=bytes(16), follower="f")],
        "TakeLead": [following_pb2.TakeLeadRequest(address="a:1")],
        "Fence": [following_pb2.FenceRequest(model=MODEL, lineage=bytes(16), term=1, address="a:1")],
        "CopyModel": [following_pb2.CopyModelRequest(model=MODEL)],
        "ReleaseHold": [models_pb2.ReleaseHoldRequest(model=MODEL)],
        "RestoreSnapshot": [
            models_pb2.RestoreSnapshotRequest(model="Not A Name", source_model=MODEL, snapshot_id="x")
        ],
        "Contribute": [
            privacy_pb2.ContributeRequest(
                model=MODEL, release=1, user_id=7, deltas=update[6]["factor_deltas"]
            )
        ],
        "MakeRelease": [privacy_pb2.MakeReleaseRequest(model=MODEL, release=1)],
        "DescribePrivacy": [privacy_pb2.DescribePrivacyRequest(model=MODEL)],
    } | changing_messages(spec)


def mutated(message: Any, seed: int) -> bytes:
    """Return the bytes of the message with one to four random changes.

    A change flips, cuts, doubles or inserts bytes, or splices in bytes from another message.
    """
    chance = random.Random(seed)
    raw = bytearray(message.SerializeToString())
    others = [m.SerializeToString() for messages in valid_messages().values() for m in messages]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw) + 1)
        to = min(len(raw), at + chance.randint(1, 12))
        kind = chance.choice(("flip", "cut", "double", "put", "splice", "number"))
        if kind == "flip" and at < len(raw):
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del raw[at:to]
        elif kind == "double":
            raw[at:at] = raw[at:to] * chance.randint(1, 50)
        elif kind == "put":
            raw[at:at] = chance.randbytes(chance.randint(1, 9))
        elif kind == "splice":
            raw[at:] = chance.choice(others)[chance.randrange(40) :]
        elif kind == "number":
            raw[at:to] = chance.choice(
                (b"\xff" * 9 + b"\x01", b"\x00" * 8, b"\xff" * 8, b"\x00\x00\x80\x7f", b"\x80\x80\x01")
            )
    return bytes(raw)


NAMES = {path.rsplit("/", 1)[1]: path for path in METHODS}


def test_there_are_messages_for_every_rpc() -> None:
    assert set(valid_messages()) == set(NAMES)


def would_delete(raw: bytes) -> bool:
    """Return whether the bytes are a valid request to delete the model under attack."""
    try:
        return models_pb2.DeleteModelRequest.FromString(raw).model in (MODEL, "clicks")
    except DecodeError:
        return False


def attack(target: Target, mutations: int) -> None:
    """Send mutated messages to every RPC. Check that a refused message changes nothing."""
    cases = [(name, message) for name, messages in valid_messages().items() for message in messages]
    last = target.state()

    @settings(max_examples=mutations, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(cases), st.integers(0, 2**32))
    def run(case: tuple[str, Any], seed: int) -> None:
        nonlocal last
        name, message = case
        raw = mutated(message, seed)
        if name == "DeleteModel" and would_delete(raw):
            return
        statuses = target.call(NAMES[name], raw)
        now = target.state()
        if any(code is not grpc.StatusCode.OK for code, _ in statuses):
            assert now == last, (name, statuses)
        assert now[0] >= last[0]
        last = now

    run()
    target.check_alive()


def test_mutated_messages_get_an_allowed_status_and_change_nothing_when_refused(
    target: Target,
) -> None:
    before = sum(target.codes.values())
    attack(target, MUTATIONS)
    print(f"{sum(target.codes.values()) - before} answers: {dict(target.codes)}")
    assert target.codes["OK"] > 100 and target.codes["INVALID_ARGUMENT"] > 300


@pytest.mark.long
def test_many_more_mutated_messages(target: Target) -> None:
    attack(target, MUTATIONS_LONG)


def test_random_bytes_and_empty_messages(target: Target) -> None:
    chance = random.Random(1)
    before = target.state()
    for path in METHODS:
        if path.endswith(("DeleteModel", "CreateModel")):
            continue
        for size in (0, 1, 7, 100, 5000):
            target.call(path, chance.randbytes(size))
    assert target.state() == before
    target.check_alive()


# ------------------------------------------------------------------------------------------------
# hostile numbers


def push(
    target: Target, model: str, users: list[int], items: list[int], **columns: Any
) -> updates_pb2.ApplyUpdatesResponse:
    stub = updates_pb2_grpc.UpdateServiceStub(target.channel)
    rows = Rows(user_ids=users, item_ids=items, **columns)
    return stub.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model=model, interactions=rows), timeout=30)


@pytest.mark.parametrize("column", ["values", "weights"])
@pytest.mark.parametrize("bad", [NAN, -NAN, INF, -INF, 1e39, -1e39, 3.4e38, -3.4e38])
def test_rows_with_nonfinite_numbers_are_rejected_and_other_rows_are_applied(
    target: Target, column: str, bad: float
) -> None:
    columns = {"values": [1.0, 2.0, 3.0], "weights": [1.0, 1.0, 1.0]}
    columns[column][1] = bad
    ack = push(target, MODEL, [1, 2, 3], [4, 5, 6], **columns)
    assert (ack.accepted, ack.rejected_count, [reject.row for reject in ack.rejects]) == (2, 1, [1])
    assert ack.rejects[0].text
    check_scores_are_finite(target)


@pytest.mark.parametrize("weight", [0.0, -0.0, -1.0, 1e-46, 1001.0])
def test_weights_outside_their_domain_are_rejected(target: Target, weight: float) -> None:
    ack = push(target, MODEL, [1, 2], [4, 5], values=[1, 1], weights=[weight, 1])
    assert [(reject.row, reject.reason) for reject in ack.rejects] == [
        (0, updates_pb2.REJECT_REASON_WEIGHT_DOMAIN)
    ]


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, NAN, INF])
def test_values_outside_the_domain_of_clicks_are_rejected(target: Target, value: float) -> None:
    ack = push(target, "clicks", [1, 2], [4, 5], values=[value, 1])
    assert (ack.accepted, [reject.row for reject in ack.rejects]) == (1, [0])


def test_the_largest_allowed_numbers_keep_every_score_finite(target: Target) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        users, items = rng.integers(1, 4, 2000).tolist(), rng.integers(4, 7, 2000).tolist()
        ack = push(
            target, MODEL, users, items, values=rng.choice([-1000.0, 1000.0], 2000), weights=[1000.0] * 2000
        )
        assert ack.accepted == 2000
    check_scores_are_finite(target)


def check_scores_are_finite(target: Target) -> None:
    stub = scoring_pb2_grpc.ScoringServiceStub(target.channel)
    items = scoring_pb2.Candidates(item_ids=range(10))
    scores = stub.Score(
        scoring_pb2.ScoreRequest(model=MODEL, user_ids=range(5), candidates=items), timeout=20
    ).scores
    assert np.isfinite(scores).all()


def float_fields() -> list[tuple[str, str]]:
    return [
        (message.DESCRIPTOR.name, name)
        for message in (models_pb2.ModelSpec, models_pb2.Optimizer, models_pb2.Limits)
        for name, described in message.DESCRIPTOR.fields_by_name.items()
        if described.cpp_type == described.CPPTYPE_FLOAT
    ]


@pytest.mark.parametrize(("message", "field"), float_fields())
def test_a_spec_with_a_nonfinite_number_is_refused_and_names_the_field(
    target: Target, message: str, field: str
) -> None:
    for bad in (NAN, INF, -INF, 1e39, -1e30):
        spec = models_pb2.ModelSpec(k=8)
        part = {"ModelSpec": spec, "Optimizer": spec.optimizer, "Limits": spec.limits}[message]
        setattr(part, field, bad)
        request = models_pb2.CreateModelRequest(model="never", preset="purchases_sgd", spec=spec)
        ((code, text),) = target.call("livefactor.v1.ModelService/CreateModel", request.SerializeToString())
        assert code is grpc.StatusCode.INVALID_ARGUMENT and field in text, (bad, text)


# ------------------------------------------------------------------------------------------------
# floods


def test_a_flood_of_ids_stops_at_the_limits_in_the_spec(target: Target) -> None:
    target.create("flooded", "clicks_sgd")
    accepted = rejected = 0
    for start in range(0, 40_000, 4000):
        users = range(start, start + 4000)
        ack = push(target, "flooded", list(users), [user % 1000 for user in users])
        accepted, rejected = accepted + ack.accepted, rejected + ack.rejected_count
        assert len(ack.rejects) <= 100
    described = target.models.DescribeModel(models_pb2.DescribeModelRequest(model="flooded")).description
    assert described.users <= 500 and described.items <= 400 and accepted + rejected == 40_000
    assert described.events == accepted <= 500
    # Ids that already have a row are still accepted.
    assert push(target, "flooded", [1, 1], [2, 3]).accepted == 2


def test_a_flood_of_ids_stops_at_the_memory_of_the_server(serve: Serve) -> None:
    server = serve("--memory-bytes-max", str(4 << 20))
    with server.channel() as channel:
        target = Target(server, channel)
        target.create(
            MODEL, "clicks_sgd", k=64, limits=models_pb2.Limits(users_max=1 << 20, items_max=1 << 20)
        )
        push(target, MODEL, [1], [1])
        before = target.rss
        rejected = 0
        for start in range(0, 400_000, 10_000):
            ack = push(target, MODEL, list(range(start, start + 10_000)), [1] * 10_000)
            assert {one.reason for one in ack.rejects} <= {updates_pb2.REJECT_REASON_MEMORY_FULL}
            rejected += ack.rejected_count
        described = target.models.DescribeModel(models_pb2.DescribeModelRequest(model=MODEL)).description
        assert rejected > 300_000 and 10_000 < described.users * 260 < 4 << 20
        assert described.memory_bytes < 1.2 * (4 << 20)
        assert target.rss - before < 120 << 20
        assert push(target, MODEL, [1, 1], [1, 1]).accepted == 2
        target.check_alive()


def test_a_flood_of_labels_marks_and_producers_stops_at_the_limits(target: Target) -> None:
    target.create("named", "clicks_sgd")
    stub = updates_pb2_grpc.UpdateServiceStub(target.channel)
    refusals, labelled, marked = [], 0, 0
    for start in range(0, 5000, 100):
        ids = range(start, start + 100)
        labels = updates_pb2.Labels(side=updates_pb2.SIDE_USER, ids=ids, labels=["x" * 1000] * 100)
        marks = updates_pb2.Availability(item_ids=ids, available=False)
        answer = stub.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model="named", labels=labels), timeout=20)
        assert answer.accepted + answer.rejected_count == 100
        assert {reject.reason for reject in answer.rejects} in (
            set(),
            {updates_pb2.REJECT_REASON_LABELS_FULL},
        )
        labelled += answer.accepted
        answer = stub.ApplyUpdates(
            updates_pb2.ApplyUpdatesRequest(model="named", availability=marks), timeout=20
        )
        assert {one.reason for one in answer.rejects} <= {updates_pb2.REJECT_REASON_MARKS_FULL}
        marked += answer.accepted
    for number in range(40):
        try:
            stub.OpenProducer(
                updates_pb2.OpenProducerRequest(model="named", producer_id=f"p{number}"), timeout=20
            )
        except grpc.RpcError as error:
            refusals.append(error.code())
    assert set(refusals) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refusals) == 40 - 20
    assert (labelled, marked) == (500, 400)
    assert push(target, "named", [1], [1]).accepted == 1


def test_a_flood_of_names_stops_at_the_memory_of_the_server(serve: Serve) -> None:
    """The spec allows millions of ids and the test sends few.

    Their long labels still reach the memory limit.
    """
    server = serve("--memory-bytes-max", str(4 << 20))
    with server.channel() as channel:
        target = Target(server, channel)
        target.create(MODEL, "clicks_sgd", limits=models_pb2.Limits(users_max=1 << 20, items_max=1 << 20))
        push(target, MODEL, [1], [1])
        stub = updates_pb2_grpc.UpdateServiceStub(channel)
        before, labelled = target.rss, 0
        for start in range(0, 200_000, 1000):
            ids = range(start, start + 1000)
            labels = updates_pb2.Labels(
                side=updates_pb2.SIDE_ITEM, ids=ids, labels=[f"{n:01000}" for n in ids]
            )
            answer = stub.ApplyUpdates(
                updates_pb2.ApplyUpdatesRequest(model=MODEL, labels=labels), timeout=20
            )
            labelled += answer.accepted
            assert answer.accepted + answer.rejected_count == 1000
        assert 0 < labelled < 10_000
        assert target.rss - before < 120 << 20
        assert push(target, MODEL, [1, 1], [1, 1]).accepted == 2


def test_a_flood_of_models_stops_at_the_limit(serve: Serve) -> None:
    server = serve()
    with server.channel() as channel:
        target = Target(server, channel)
        for number in range(64):
            target.create(f"m{number}", "clicks_sgd")
        with pytest.raises(grpc.RpcError) as caught:
            target.create("one-more", "clicks_sgd")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        target.models.DeleteModel(models_pb2.DeleteModelRequest(model="m7"), timeout=20)
        target.create("one-more", "clicks_sgd")


@pytest.mark.parametrize("rows", [5001, 65_537, 200_000])
def test_batches_that_are_too_long_are_refused_as_a_whole(target: Target, rows: int) -> None:
    before = target.state("clicks")
    with pytest.raises(grpc.RpcError) as caught:
        push(target, "clicks", [1] * rows, [1] * rows)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "5000" in caught.value.details()
    assert target.state("clicks") == before


# ------------------------------------------------------------------------------------------------
# reads


def test_reads_between_updates_leave_no_trace(target: Target) -> None:
    """Two models get the same batches, and only one of them is read between the batches.

    Both must have the same root hash.
    """
    roots = []
    for name, reads in (("quiet", 0), ("read", 6)):
        target.create(name, "purchases_sgd", seed=5)
        chance, rng = random.Random(3), np.random.default_rng(3)
        for _ in range(60):
            push(target, name, rng.integers(0, 100, 50).tolist(), rng.integers(0, 60, 50).tolist())
            for _ in range(reads):
                read(target, name, chance)
        roots.append(target.state(name))
    assert roots[0] == roots[1]


def read(target: Target, model: str, chance: random.Random) -> None:
    users = [
        chance.choice((chance.randrange(150), chance.randrange(2**64))) for _ in range(chance.randint(1, 20))
    ]
    items = [
        chance.choice((chance.randrange(90), chance.randrange(2**64))) for _ in range(chance.randint(1, 300))
    ]
    if chance.random() < 0.5:
        fields: dict[str, Any] = dict(candidates=scoring_pb2.Candidates(item_ids=items))
    else:
        fields = dict(top_k=scoring_pb2.TopK(k=chance.randint(1, 100), exclude_ids=items))
    stub = scoring_pb2_grpc.ScoringServiceStub(target.channel)
    stub.Score(scoring_pb2.ScoreRequest(model=model, user_ids=users, **fields), timeout=20)
    if chance.random() < 0.1:
        target.call(
            "livefactor.v1.SnapshotService/Snapshot",
            snapshots_pb2.SnapshotRequest(model=model).SerializeToString(),
        )
        target.call(
            "livefactor.v1.SnapshotService/FetchSnapshot",
            snapshots_pb2.FetchSnapshotRequest(model=model).SerializeToString(),
        )
