"""The contract as clients in any language see it: answers, statuses and messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from livefactor.v1 import models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor_server.hosting.host import MODELS_LISTED_MAX, Hosting, HostingSettings
from livefactor_server.statuses import Refused
from stubs import Stubs

CLOSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED,
}
Rows = updates_pb2.Interactions
NAN, INF = float("nan"), float("inf")


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return the status and the text with which a call ends."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() in CLOSED
    return caught.value.code(), caught.value.details()


def top_k(stubs: Stubs, model: str, users: list[int], k: int, **fields: object) -> scoring_pb2.ScoreResponse:
    target = scoring_pb2.TopK(
        k=k, **{n: v for n, v in fields.items() if n not in ("with_labels", "min_position")}
    )
    rest = {n: v for n, v in fields.items() if n in ("with_labels", "min_position")}
    return stubs.scoring.Score(
        scoring_pb2.ScoreRequest(model=model, user_ids=users, top_k=target, **rest), timeout=30
    )


def candidates(
    stubs: Stubs, model: str, users: list[int], items: list[int], offsets: list[int] | None = None
):
    target = scoring_pb2.Candidates(item_ids=items, offsets=offsets or [])
    return stubs.scoring.Score(
        scoring_pb2.ScoreRequest(model=model, user_ids=users, candidates=target), timeout=30
    )


def test_a_batch_is_acknowledged_with_its_revision_and_visible(stubs: Stubs) -> None:
    model = stubs.model()
    ack = stubs.push(model, [1, 2, 3], [10, 20, 10])
    assert (ack.position.revision, ack.accepted, ack.rejected_count, ack.duplicate) == (1, 3, 0, False)
    answer = candidates(stubs, model, [1], [10, 20])
    assert answer.position == ack.position
    assert list(answer.user_known) == [True] and list(answer.item_known) == [True, True]
    assert list(answer.item_ids) == [10, 20] and list(answer.offsets) == [0, 2]


def test_unknown_users_and_items_get_a_marked_answer(stubs: Stubs) -> None:
    model = stubs.model()
    stubs.push(model, [1] * 50, [10] * 50)
    answer = candidates(stubs, model, [1, 99], [10, 77])
    assert list(answer.user_known) == [True, False]
    assert list(answer.item_known) == [True, False] * 2
    known_user, bias_only, unknown_item_for_unknown = answer.scores[0], answer.scores[2], answer.scores[3]
    assert known_user > bias_only > 0.0 and unknown_item_for_unknown == 0.0


def test_an_empty_model_answers(stubs: Stubs) -> None:
    model = stubs.model()
    answer = top_k(stubs, model, [1, 2], 5)
    assert (
        list(answer.offsets) == [0, 0, 0]
        and not answer.item_ids
        and list(answer.user_known) == [False, False]
    )
    assert list(candidates(stubs, model, [1], [5]).scores) == [0.0]
    assert answer.position.revision == 0 and len(answer.position.lineage) == 16


def test_top_k_is_exact_ordered_and_leaves_out_what_it_should(stubs: Stubs) -> None:
    model = stubs.model()
    rng = np.random.default_rng(5)
    stubs.push(model, rng.integers(0, 50, 4000).tolist(), (rng.zipf(1.5, 4000) % 60).tolist())
    items = list(range(60))
    scored = candidates(stubs, model, [7, 8], items)
    for user in (0, 1):
        known = [
            (-s, i)
            for s, i, ok in zip(
                scored.scores[user * 60 :], items, scored.item_known[user * 60 :], strict=False
            )
            if ok
        ]
        expected = [item for _, item in sorted(known)]
        answer = top_k(stubs, model, [7, 8], 10)
        assert list(answer.item_ids)[user * 10 : user * 10 + 10] == expected[:10]
        everything = top_k(stubs, model, [7, 8], 1000)
        assert list(everything.item_ids)[everything.offsets[user] : everything.offsets[user + 1]] == expected
    both = top_k(stubs, model, [7, 8], 3, exclude_ids=[1, 2, 1, 999], offsets=[0, 2, 4])
    assert not {1, 2} & set(both.item_ids[:3]) and 1 not in both.item_ids[3:]


def test_unavailable_items_keep_learning_and_are_left_out_of_top_k(stubs: Stubs) -> None:
    model = stubs.model()
    marks = updates_pb2.Availability(item_ids=[10, 555], available=False)
    stubs.push(model, [1, 1, 2], [10, 11, 10])
    stubs.updates.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model=model, availability=marks))
    assert list(top_k(stubs, model, [1], 5).item_ids) == [11]
    assert set(top_k(stubs, model, [1], 5, include_unavailable=True).item_ids) == {10, 11}
    # Item 555 was marked before the model knew it.
    stubs.push(model, [3], [555])
    assert list(top_k(stubs, model, [1], 5).item_ids) == [11]
    marks.available = True
    stubs.updates.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model=model, availability=marks))
    assert set(top_k(stubs, model, [1], 5).item_ids) == {10, 11, 555}


def test_labels_give_names_back(stubs: Stubs) -> None:
    model = stubs.model()
    stubs.push(model, [1, 1], [10, 11])
    named = updates_pb2.Labels(
        side=updates_pb2.SIDE_ITEM, ids=[10, 11, 10], labels=["lamp", "mug", "red lamp"]
    )
    ack = stubs.updates.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model=model, labels=named))
    assert ack.accepted == 3
    answer = top_k(stubs, model, [1], 2, with_labels=True)
    assert dict(zip(answer.item_ids, answer.labels, strict=True)) == {10: "red lamp", 11: "mug"}


def test_labels_without_room_are_rejected_by_row(stubs: Stubs) -> None:
    model = stubs.model(limits=models_pb2.Limits(users_max=3, items_max=1))

    def label(side: int, ids: list[int], texts: list[str]) -> tuple[int, list[int]]:
        message = updates_pb2.Labels(side=side, ids=ids, labels=texts)
        ack = stubs.updates.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model=model, labels=message))
        assert [one.reason for one in ack.rejects] == [
            updates_pb2.REJECT_REASON_LABELS_FULL
        ] * ack.rejected_count
        assert ack.accepted + ack.rejected_count == len(ids)
        return ack.accepted, [one.row for one in ack.rejects]

    users = updates_pb2.SIDE_USER
    assert label(users, [1, 2, 1, 3, 4, 2, 5], ["a", "b", "A", "c", "d", "B", "e"]) == (5, [4, 6])
    assert label(users, [6, 1, 7], ["f", "a", ""]) == (2, [0]), "a label that is there may change"
    assert label(users, [1, 8], ["", "g"]) == (1, [1])
    assert label(users, [8], ["g"]) == (1, []), "what was removed leaves room"
    assert label(updates_pb2.SIDE_ITEM, [1, 2], ["a", "b"]) == (1, [1]), "each side has its own room"
    assert stubs.push(model, [1], [1]).accepted == 1


def test_bad_rows_are_rejected_and_the_batch_is_applied(stubs: Stubs) -> None:
    model = stubs.model("ratings_sgd")
    ack = stubs.push(
        model,
        list(range(7)),
        list(range(7)),
        values=[1, NAN, 3, INF, 5, 2e3, 4],
        weights=[1, 1, 0, 1, -1, 1, NAN],
    )
    reasons = {reject.row: updates_pb2.RejectReason.Name(reject.reason) for reject in ack.rejects}
    assert ack.accepted == 1 and ack.rejected_count == 6
    assert reasons == {
        1: "REJECT_REASON_NOT_FINITE",
        2: "REJECT_REASON_WEIGHT_DOMAIN",
        3: "REJECT_REASON_NOT_FINITE",
        4: "REJECT_REASON_WEIGHT_DOMAIN",
        5: "REJECT_REASON_VALUE_DOMAIN",
        6: "REJECT_REASON_NOT_FINITE",
    }
    assert all(reject.text for reject in ack.rejects)
    assert list(candidates(stubs, model, [0], list(range(7))).item_known) == [True] + [False] * 6


def test_nothing_accepted_still_takes_a_revision(stubs: Stubs) -> None:
    model = stubs.model()
    ack = stubs.push(model, [1], [2], values=[0.5])
    assert (ack.position.revision, ack.accepted, ack.rejected_count) == (1, 0, 1)


def test_full_tables_reject_rows_and_allocate_nothing_for_them(stubs: Stubs) -> None:
    model = stubs.model(limits=models_pb2.Limits(users_max=3, items_max=4))
    ack = stubs.push(model, [1, 2, 3, 4, 1, 1, 1], [1, 2, 3, 9, 4, 5, 1])
    assert [(reject.row, reject.reason) for reject in ack.rejects] == [
        (3, updates_pb2.REJECT_REASON_USERS_FULL),
        (5, updates_pb2.REJECT_REASON_ITEMS_FULL),
    ]
    known = candidates(stubs, model, [1, 4], [1, 2, 3, 4, 5, 9])
    assert list(known.item_known)[:6] == [True] * 4 + [False] * 2 and list(known.user_known) == [True, False]
    again = stubs.push(model, [5, 2], [1, 4])
    assert again.accepted == 1 and again.rejects[0].row == 0


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (updates_pb2.ApplyUpdatesRequest(), "change"),
        (updates_pb2.ApplyUpdatesRequest(interactions=Rows()), "no rows"),
        (
            updates_pb2.ApplyUpdatesRequest(interactions=Rows(user_ids=[1], item_ids=[1, 2])),
            "item_ids has 2 rows, expected 1",
        ),
        (
            updates_pb2.ApplyUpdatesRequest(interactions=Rows(user_ids=[1], item_ids=[1], values=[1, 2])),
            "values has 2 rows",
        ),
        (
            updates_pb2.ApplyUpdatesRequest(interactions=Rows(user_ids=[1] * 65_537, item_ids=[1] * 65_537)),
            "at most 65536",
        ),
        (updates_pb2.ApplyUpdatesRequest(labels=updates_pb2.Labels(ids=[1], labels=["x"])), "side"),
        (updates_pb2.ApplyUpdatesRequest(labels=updates_pb2.Labels(side=1, ids=[1])), "labels has 0 rows"),
    ],
)
def test_message_level_faults_say_what_is_wrong(
    stubs: Stubs, message: updates_pb2.ApplyUpdatesRequest, text: str
) -> None:
    message.model = "default"
    before = stubs.root("default")
    code, details = refusal(lambda: stubs.updates.ApplyUpdates(message))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and text in details
    assert stubs.root("default") == before


def test_squared_loss_needs_values(stubs: Stubs) -> None:
    model = stubs.model("ratings_sgd")
    assert refusal(lambda: stubs.push(model, [1], [1]))[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_malformed_bytes_are_an_invalid_argument_and_show_no_internals(stubs: Stubs) -> None:
    for method in (
        "UpdateService/ApplyUpdates",
        "ScoringService/Score",
        "ModelService/CreateModel",
        "UpdateService/OpenProducer",
    ):
        call = stubs.channel.unary_unary(f"/livefactor.v1.{method}")
        code, details = refusal(lambda call=call: call(b"\xff\xff\xff garbage"))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert not any(word in details for word in ("Traceback", "Error", "/", "python"))


def test_an_unknown_model_is_not_found(stubs: Stubs) -> None:
    assert refusal(lambda: stubs.push("nosuch", [1], [1]))[0] == grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: top_k(stubs, "nosuch", [1], 1))[0] == grpc.StatusCode.NOT_FOUND


def test_an_unknown_model_error_lists_the_models_of_the_server(stubs: Stubs, tmp_path: Path) -> None:
    listed = stubs.models.ListModels(models_pb2.ListModelsRequest()).models
    names = ", ".join(sorted(model.model for model in listed)[:MODELS_LISTED_MAX])
    text = refusal(lambda: top_k(stubs, "nosuch", [1], 1))[1]
    assert text == f"model: 'nosuch' does not exist; there are {names}"

    empty = Hosting(tmp_path, HostingSettings(default_preset=""))
    empty.open_all()
    with pytest.raises(Refused, match="model: 'default' does not exist; there are no models"):
        empty.get("")
    empty.drain()


def test_an_unknown_method_is_unimplemented(stubs: Stubs) -> None:
    call = stubs.channel.unary_unary("/livefactor.v1.UpdateService/Nothing")
    assert refusal(lambda: call(b""))[0] == grpc.StatusCode.UNIMPLEMENTED


def test_bad_score_requests(stubs: Stubs) -> None:
    score = stubs.scoring.Score
    request = scoring_pb2.ScoreRequest
    for message, text in (
        (request(user_ids=[1]), "target"),
        (request(top_k=scoring_pb2.TopK(k=1)), "user_ids"),
        (request(user_ids=[1], top_k=scoring_pb2.TopK(k=0)), "k:"),
        (
            request(user_ids=[1, 2], candidates=scoring_pb2.Candidates(item_ids=[1, 2], offsets=[0, 2])),
            "offsets",
        ),
        (
            request(user_ids=[1, 2], candidates=scoring_pb2.Candidates(item_ids=[1, 2], offsets=[0, 2, 1])),
            "offsets",
        ),
        (request(user_ids=[1] * 2000, top_k=scoring_pb2.TopK(k=1)), "user_ids"),
    ):
        code, details = refusal(lambda message=message: score(message))
        assert code == grpc.StatusCode.INVALID_ARGUMENT and text in details


def test_min_position(stubs: Stubs) -> None:
    model = stubs.model()
    ack = stubs.push(model, [1], [1])
    assert top_k(stubs, model, [1], 1, min_position=ack.position).position.revision == 1
    ahead = updates_pb2.Position(lineage=ack.position.lineage, revision=3)
    request = scoring_pb2.ScoreRequest(
        model=model, user_ids=[1], top_k=scoring_pb2.TopK(k=1), min_position=ahead
    )
    assert refusal(lambda: stubs.scoring.Score(request, timeout=0.3))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    waiting = stubs.scoring.Score.future(request, timeout=30)
    stubs.push(model, [1], [2])
    stubs.push(model, [1], [3])
    assert waiting.result().position.revision == 3
    other = updates_pb2.Position(lineage=b"0" * 16, revision=1)
    request.min_position.CopyFrom(other)
    assert refusal(lambda: stubs.scoring.Score(request))[0] == grpc.StatusCode.FAILED_PRECONDITION


def test_cancelled_waits_for_a_position_free_their_slots(stubs: Stubs) -> None:
    model = stubs.model()
    ack = stubs.push(model, [1], [1])
    next_one = updates_pb2.Position(lineage=ack.position.lineage, revision=2)
    request = scoring_pb2.ScoreRequest(
        model=model, user_ids=[1], top_k=scoring_pb2.TopK(k=1), min_position=next_one
    )
    # The number exceeds the slots for waiting calls.
    for _ in range(40):
        call = stubs.scoring.Score.future(request)
        time.sleep(0.01)
        call.cancel()
    deadline = time.monotonic() + 10
    while True:
        waiting = stubs.scoring.Score.future(request)
        time.sleep(0.1)
        # The call got a slot. A call without one would be refused.
        if not waiting.done():
            break
        assert time.monotonic() < deadline, waiting.details()
    stubs.push(model, [1], [2])
    assert waiting.result(30).position.revision == 2


def test_stream_acknowledges_each_batch_and_a_bad_one_does_not_end_it(stubs: Stubs) -> None:
    model = stubs.model()

    def requests() -> Iterator[updates_pb2.StreamUpdatesRequest]:
        for users in ([1, 2], [1, 2, 3], [4]):
            yield updates_pb2.StreamUpdatesRequest(
                model=model, interactions=Rows(user_ids=users, item_ids=[5] * 2)
            )

    messages = stubs.updates.StreamUpdates(requests(), timeout=30)
    answers = {answer.index: answer for message in messages for answer in message.answers}
    assert answers[0].response.accepted == 2
    assert (
        answers[1].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        and "item_ids" in answers[1].status.message
    )
    assert answers[2].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_cancelled_stream_frees_its_slot(stubs: Stubs) -> None:
    model = stubs.model()
    # The number exceeds the slots for streams.
    for _ in range(40):
        ended = threading.Event()

        def requests(ended: threading.Event = ended) -> Iterator[updates_pb2.StreamUpdatesRequest]:
            yield updates_pb2.StreamUpdatesRequest(model=model, interactions=Rows(user_ids=[1], item_ids=[2]))
            ended.wait(30)

        call = stubs.updates.StreamUpdates(requests(), timeout=30)
        assert next(call).answers[0].response.accepted == 1
        call.cancel()
        ended.set()


def test_models_are_created_described_listed_deleted(stubs: Stubs) -> None:
    model = stubs.model("purchases_sgd", seed=7)
    described = stubs.models.DescribeModel(models_pb2.DescribeModelRequest(model=model)).description
    assert (described.spec.k, described.spec.seed, described.spec.loss) == (8, 7, models_pb2.LOSS_BPR)
    assert described.backend == "cpu" and described.writable and described.position.revision == 0
    names = [entry.model for entry in stubs.models.ListModels(models_pb2.ListModelsRequest()).models]
    assert model in names and "default" in names
    again = models_pb2.CreateModelRequest(model=model)
    assert refusal(lambda: stubs.models.CreateModel(again))[0] == grpc.StatusCode.ALREADY_EXISTS
    stubs.models.DeleteModel(models_pb2.DeleteModelRequest(model=model))
    assert refusal(lambda: stubs.push(model, [1], [1]))[0] == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["", "Upper", "../x", "a/b", "x" * 65, ".hidden", "9x"])
def test_bad_names_are_refused(stubs: Stubs, name: str) -> None:
    request = models_pb2.CreateModelRequest(model=name)
    assert refusal(lambda: stubs.models.CreateModel(request))[0] == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (models_pb2.ModelSpec(k=5000), "k:"),
        (models_pb2.ModelSpec(l2=NAN), "l2"),
        (models_pb2.ModelSpec(optimizer=models_pb2.Optimizer(learning_rate=-1)), "learning_rate"),
        (models_pb2.ModelSpec(limits=models_pb2.Limits(factor_max=1e30)), "factor_max"),
        (models_pb2.ModelSpec(kernel_semantics=99), "kernel_semantics"),
    ],
)
def test_bad_specs_name_the_field(stubs: Stubs, spec: models_pb2.ModelSpec, text: str) -> None:
    code, details = refusal(
        lambda: stubs.models.CreateModel(models_pb2.CreateModelRequest(model="bad", spec=spec))
    )
    assert code == grpc.StatusCode.INVALID_ARGUMENT and text in details


def test_snapshot_list_fetch_restore(stubs: Stubs) -> None:
    model = stubs.model()
    stubs.push(model, [1, 2, 3], [4, 5, 6])
    events = list(stubs.snapshots.Snapshot(snapshots_pb2.SnapshotRequest(model=model)))
    info = events[-1].manifest.info
    assert info.position.revision == 1 and (info.users, info.items) == (3, 3)
    assert stubs.root(model) == (1, info.root_hash)
    stubs.push(model, [9], [9])
    listed = stubs.snapshots.ListSnapshots(snapshots_pb2.ListSnapshotsRequest(model=model)).snapshots
    assert [entry.snapshot_id for entry in listed] == [info.snapshot_id]
    files: dict[str, int] = {}
    for piece in stubs.snapshots.FetchSnapshot(snapshots_pb2.FetchSnapshotRequest(model=model)):
        assert piece.offset == files.get(piece.file_name, 0)
        files[piece.file_name] = piece.offset + len(piece.data)
    assert sum(files.values()) == info.size_bytes and next(iter(files)) == "manifest.json"
    restored = stubs.models.RestoreSnapshot(
        models_pb2.RestoreSnapshotRequest(model=f"{model}-again", source_model=model)
    ).description
    # The ENGINE record of the restored model takes revision 2.
    assert restored.position.revision == 2 and restored.position.lineage != info.position.lineage
    assert restored.users == 3
    both = [candidates(stubs, name, [1, 2], [4, 5, 6]).scores for name in (model, f"{model}-again")]
    ack = stubs.push(f"{model}-again", [9], [9])
    assert ack.position.revision == 3
    assert list(both[0]) != [] and len(both[1]) == 6
    missing = snapshots_pb2.FetchSnapshotRequest(model=model, snapshot_id="../../etc")
    assert refusal(lambda: list(stubs.snapshots.FetchSnapshot(missing)))[0] == grpc.StatusCode.NOT_FOUND
