"""Scorer, Models and Auditor against a server with scripted answers: their requests, results and
errors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import snapshot_samples as samples
from fake_scoring import SCORE, Scoring
from fake_server import LINEAGE, FakeServer
from livefactor import auditor as auditor_module
from livefactor import errors
from livefactor import models as models_module
from livefactor.auditor import Auditor, SnapshotInfo, SnapshotProgress
from livefactor.calling import retries
from livefactor.errors import ColumnError, LivefactorError, SnapshotInvalid
from livefactor.models import Models
from livefactor.position import Position
from livefactor.results.answers import Recommendations, Scores
from livefactor.scorer import Scorer
from livefactor.snapshots.format import FILES
from livefactor.v1 import models_pb2, snapshots_pb2
from livefactor.wire.columns import ScoreColumns, encode_score_response
from livefactor.wire.keys import key_of

HERE = Position(LINEAGE, 12)


def test_candidates_come_back_as_asked_for_one_user_or_many(fake: FakeServer) -> None:
    scoring = Scoring(fake)
    with Scorer(fake.target, model="shop") as scorer:
        one = scorer.score(9, [1, 404])
        assert isinstance(one, Scores)
        assert (one.position, len(one), one[0].scores.tolist()) == (HERE, 1, [8.0, -395.0])
        assert (one[0].known, one[0].item_known.tolist(), list(one[0].labels)) == (True, [True, False], [])
        shared = scorer.score(np.array([5, 404], np.uint64), np.array([1, 2]), with_labels=True)
        assert [user.scores.tolist() for user in shared] == [[4.0, 3.0], [403.0, 402.0]]
        assert [user.known for user in shared] == [True, False]
        assert list(shared[-1].labels) == ["item 1", "item 2"]
        own = scorer.score([5, 6, 7], [[1], [], [2, 3]])
        assert [user.item_ids.tolist() for user in own] == [[1], [], [2, 3]]
        with pytest.raises(IndexError):
            own[3]
    assert [query.model for query in scoring.queries] == ["shop"] * 3
    assert scoring.queries[1].offsets is None


def test_strings_are_hashed_with_the_secret(fake: FakeServer) -> None:
    scoring = Scoring(fake)
    with Scorer(fake.target, secret=b"s") as scorer:
        scorer.score(["ann"], ["milk", "bread"])
        scorer.recommend("ann", 3, exclude=[["milk"]])
    assert scoring.queries[0].user_ids.tolist() == [key_of("ann", b"s")]
    assert scoring.queries[0].item_ids.tolist() == [key_of("milk", b"s"), key_of("bread", b"s")]
    assert scoring.queries[1].item_ids.tolist() == [key_of("milk", b"s")]


def test_recommend_asks_for_top_items_without_excluded_ones(fake: FakeServer) -> None:
    scoring = Scoring(fake)
    with Scorer(fake.target) as scorer:
        best = scorer.recommend(
            [5, 6], 4, exclude=[[1, 2], []], include_unavailable=True, min_position=HERE, with_labels=True
        )
        scorer.recommend(5, exclude=[7])
        with pytest.raises(ValueError, match="k: expected at least 1"):
            scorer.recommend(5, 0)
    assert isinstance(best, Recommendations)
    assert [user.item_ids.tolist() for user in best] == [[0, 1, 2], [0, 1, 2]]
    query = scoring.queries[0]
    assert (query.k, query.include_unavailable, query.with_labels) == (4, True, True)
    assert (query.min_lineage, query.min_revision) == (LINEAGE, 12)
    assert query.offsets is not None
    assert (query.item_ids.tolist(), query.offsets.tolist()) == ([1, 2], [0, 2, 2])
    assert (scoring.queries[1].k, scoring.queries[1].offsets, scoring.queries[1].item_ids.tolist()) == (
        10,
        None,
        [7],
    )


def test_lists_that_do_not_fit_and_answers_that_do_not_fit_are_refused(fake: FakeServer) -> None:
    Scoring(fake)
    with Scorer(fake.target) as scorer:
        with pytest.raises(ColumnError, match="items has 3 lists, expected 2"):
            scorer.score([1, 2], [[1], [2], [3]])
        with pytest.raises(ColumnError, match=r"items\[1\]\[0\]: expected"):
            scorer.score([1, 2], [[1], [-1]])
        none = np.empty(0, np.uint64)
        empty = ScoreColumns(
            LINEAGE, 1, none, np.empty(0, np.float32), np.zeros(1, np.uint32), none > 0, none > 0, []
        )
        fake.serve(SCORE, lambda data, context: encode_score_response(empty))
        with pytest.raises(ColumnError, match="user_known has 0 rows, expected 1"):
            scorer.score(1, [1])


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_is_one_error_with_its_text(fake: FakeServer, code: grpc.StatusCode) -> None:
    fake.serve(SCORE, lambda data, context: context.abort(code, "why"))
    with (
        Scorer(fake.target, timeout=0.5) as scorer,
        pytest.raises(LivefactorError, match=r"model 'default': why") as raised,
    ):
        scorer.score(1, [1])
    assert (raised.value.code, raised.value.details) == (code.name, "why")
    name = "".join(word.capitalize() for word in code.name.split("_"))
    assert type(raised.value) is getattr(errors, name, errors.UnexpectedStatus)


def test_reads_are_tried_again_while_the_server_is_unavailable(fake: FakeServer) -> None:
    scoring, tries = Scoring(fake), iter(range(9))

    def second_time(data: bytes, context: grpc.ServicerContext) -> bytes:
        if next(tries) == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return scoring(data, context)

    fake.serve(SCORE, second_time)
    with Scorer(fake.target) as scorer:
        assert scorer.score(3, [1])[0].scores.tolist() == [2.0]
    assert next(tries) == 2


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_reads_are_retried_for_a_time_and_writes_are_not(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode
) -> None:
    tried: list[str] = []

    def away(method: str) -> Callable[[bytes, Any], bytes]:
        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            tried.append(method)
            context.abort(code, "away")

        return handle

    monkeypatch.setattr(models_module, "READ_RETRY_S", 0.3)
    monkeypatch.setattr(auditor_module, "READ_RETRY_S", 0.3)
    for method in (SCORE, MODELS + "ListModels", MODELS + "DeleteModel", SNAPSHOTS + "ListSnapshots"):
        fake.serve(method, away(method))
    with (
        Scorer(fake.target, timeout=0.3) as scorer,
        Models(fake.target) as models,
        Auditor(fake.target) as auditor,
    ):
        calls = (lambda: scorer.score(1, [1]), models.list, lambda: models.delete("m"), auditor.list)
        for call, is_read in zip(calls, (True, True, False, True), strict=True):
            tried.clear()
            with pytest.raises((errors.Unavailable, errors.ResourceExhausted), match="away"):
                call()
            assert len(tried) >= 3 if is_read else len(tried) == 1
        monkeypatch.setattr(retries, "BACKOFF_S", 60.0)
        tried.clear()
        with pytest.raises((errors.Unavailable, errors.ResourceExhausted)):
            scorer.score(1, [1], timeout=0.4)
        assert len(tried) == 1, "the next try would lie behind the deadline"


def test_a_deadline_ends_a_call(fake: FakeServer) -> None:
    fake.gate.clear()
    fake.serve(SCORE, lambda data, context: fake.gate.wait() and b"")
    with Scorer(fake.target) as scorer, pytest.raises(TimeoutError):
        scorer.score(1, [1], timeout=0.05)
    fake.gate.set()


MODELS = "/livefactor.v1.ModelService/"


def description(name: str, spec: models_pb2.ModelSpec | None = None) -> models_pb2.ModelDescription:
    return models_pb2.ModelDescription(
        model=name, position={"lineage": LINEAGE, "revision": 3}, spec=spec, users=4, items=5, events=6,
        backend="cpu",
        log_hash=b"h", log_bytes=7, memory_bytes=8, writable=True, root_hash=b"r",
    )  # fmt: skip


def test_models_are_created_from_a_preset_and_changes(fake: FakeServer) -> None:
    seen: list[models_pb2.CreateModelRequest] = []

    def create(data: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(models_pb2.CreateModelRequest.FromString(data))
        made = description(seen[-1].model, seen[-1].spec)
        return models_pb2.CreateModelResponse(description=made).SerializeToString()

    fake.serve(MODELS + "CreateModel", create)
    with Models(fake.target) as models:
        spec = {
            "k": 32,
            "loss": "bpr",
            "optimizer": {"kind": "adagrad", "eps": 0.5},
            "limits": {"users_max": 9},
        }
        made = models.create("shop", "purchases_sgd", **spec)
        models.create("plain")
    assert (seen[0].preset, seen[0].spec.loss, seen[0].spec.optimizer.kind) == ("purchases_sgd", 3, 2)
    assert seen[0].spec.optimizer.HasField("eps")
    assert not seen[0].spec.optimizer.HasField("learning_rate")
    assert seen[1].spec == models_pb2.ModelSpec()
    assert (made.name, made.position, made.users, made.root_hash) == ("shop", Position(LINEAGE, 3), 4, b"r")
    assert (made.spec["k"], made.spec["loss"], made.spec["optimizer"]["kind"]) == (32, "bpr", "adagrad")
    assert made.spec["limits"]["users_max"] == 9


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        ({"factors": 3}, TypeError, "spec.factors: no such field; the fields are k, loss"),
        ({"optimizer": {"rate": 1}}, TypeError, "spec.optimizer.rate: no such field"),
        ({"optimizer": "sgd"}, TypeError, "spec.optimizer: expected a dict, got 'sgd'"),
        (
            {"loss": "hinge"},
            ValueError,
            "spec.loss: expected one of squared, logistic, bpr, implicit, softmax, got 'hinge'",
        ),
        ({"k": "many"}, TypeError, "spec.k: "),
        ({"k": -1}, ValueError, "spec.k: "),
    ],
)
def test_an_unknown_spec_field_is_refused_before_the_call(
    spec: dict[str, Any], kind: type, text: str
) -> None:
    with Models("127.0.0.1:1") as models, pytest.raises(kind, match=text):
        models.create("shop", **spec)


def test_models_are_described_listed_restored_and_deleted(fake: FakeServer) -> None:
    asked: list[Any] = []

    def answer(request: type, response: Any) -> Callable[[bytes, Any], bytes]:
        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            asked.append(request.FromString(data))  # type: ignore[attr-defined]
            return bytes(response.SerializeToString())

        return handle

    one = description("shop")
    fake.serve(
        MODELS + "DescribeModel",
        answer(models_pb2.DescribeModelRequest, models_pb2.DescribeModelResponse(description=one)),
    )
    fake.serve(
        MODELS + "ListModels",
        answer(models_pb2.ListModelsRequest, models_pb2.ListModelsResponse(models=[one, one])),
    )
    fake.serve(
        MODELS + "DeleteModel", answer(models_pb2.DeleteModelRequest, models_pb2.DeleteModelResponse())
    )
    fake.serve(
        MODELS + "RestoreSnapshot",
        answer(models_pb2.RestoreSnapshotRequest, models_pb2.RestoreSnapshotResponse(description=one)),
    )
    with Models(fake.target) as models:
        assert models.describe("shop", with_root_hash=True).events == 6
        assert [model.name for model in models.list()] == ["shop", "shop"]
        models.delete("old")
        assert models.restore("new", "shop", "id").log_bytes == 7
    assert asked[0] == models_pb2.DescribeModelRequest(model="shop", with_root_hash=True)
    assert asked[2].model == "old"
    assert asked[3] == models_pb2.RestoreSnapshotRequest(model="new", source_model="shop", snapshot_id="id")


SNAPSHOTS = "/livefactor.v1.SnapshotService/"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return samples.taken(tmp_path / "store", samples.view(30, 20, 5, samples.ADAGRAD))


def chunks(folder: Path, size: int = 1000) -> list[snapshots_pb2.FetchSnapshotResponse]:
    made = []
    for name in FILES:
        data = (folder / name).read_bytes()
        for start in range(0, len(data), size):
            part = data[start : start + size]
            made.append(
                snapshots_pb2.FetchSnapshotResponse(
                    file_name=name, offset=start, file_size=len(data), data=part
                )
            )
    return made


def serve_chunks(fake: FakeServer, made: list[snapshots_pb2.FetchSnapshotResponse]) -> None:
    fake.serve(
        SNAPSHOTS + "FetchSnapshot", lambda data, context: (chunk.SerializeToString() for chunk in made)
    )


def test_a_snapshot_is_taken_with_progress_and_listed(fake: FakeServer) -> None:
    info = snapshots_pb2.SnapshotInfo(
        snapshot_id="s", position={"lineage": LINEAGE, "revision": 3}, root_hash=b"r", log_hash=b"l",
        size_bytes=4,
        created_us=5, users=6, items=7,
    )  # fmt: skip
    asked = []

    def take(data: bytes, context: grpc.ServicerContext) -> Any:
        asked.append(snapshots_pb2.SnapshotRequest.FromString(data))
        yield snapshots_pb2.SnapshotResponse(progress={"bytes_done": 1, "bytes_total": 2}).SerializeToString()
        if asked[-1].model != "broken":
            yield snapshots_pb2.SnapshotResponse(manifest={"info": info}).SerializeToString()

    fake.serve(SNAPSHOTS + "Snapshot", take)
    listed = snapshots_pb2.ListSnapshotsResponse(snapshots=[info, info])
    fake.serve(SNAPSHOTS + "ListSnapshots", lambda data, context: listed.SerializeToString())
    progress: list[SnapshotProgress] = []
    expected = SnapshotInfo("s", Position(LINEAGE, 3), b"r", b"l", 4, 5, 6, 7)
    with Auditor(fake.target, model="shop") as auditor:
        assert auditor.snapshot(min_position=HERE, on_progress=progress.append) == expected
        assert auditor.list() == (expected, expected)
    assert [(one.bytes_done, one.bytes_total) for one in progress] == [(1, 2)]
    assert (asked[0].model, asked[0].min_position.revision) == ("shop", 12)
    with (
        Auditor(fake.target, model="broken") as auditor,
        pytest.raises(LivefactorError, match="without a manifest"),
    ):
        auditor.snapshot()


def test_a_fetched_snapshot_is_verified_before_its_folder_appears(
    fake: FakeServer, stored: Path, tmp_path: Path
) -> None:
    serve_chunks(fake, chunks(stored))
    counted: list[int] = []
    with Auditor(fake.target) as auditor:
        fetched = auditor.fetch(tmp_path / "mine", stored.name, on_bytes=counted.append)
        assert auditor.verify(tmp_path / "mine").manifest == fetched.manifest
        with pytest.raises(FileExistsError):
            auditor.fetch(tmp_path / "mine")
    assert fetched.manifest.snapshot_id == stored.name
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(FILES)
    assert counted[-1] == fetched.bytes_checked


def spoil(
    made: list[snapshots_pb2.FetchSnapshotResponse], how: str
) -> list[snapshots_pb2.FetchSnapshotResponse]:
    last = made[-1]
    if how == "a bit":
        last.data = last.data[:-1] + bytes([last.data[-1] ^ 1])
    elif how == "a path":
        last.file_name = "../" + last.file_name
    elif how == "another file":
        last.file_name = "model.pkl"
    elif how == "a gap":
        last.offset += 1
    elif how == "the end":
        made.pop()
    elif how == "a file":
        made = [chunk for chunk in made if chunk.file_name != last.file_name]
    return made


@pytest.mark.parametrize(
    "how", ["a bit", "a path", "another file", "a gap", "the end", "a file", "nothing but the id"]
)
def test_an_invalid_snapshot_of_a_server_leaves_no_file(
    fake: FakeServer, stored: Path, tmp_path: Path, how: str
) -> None:
    serve_chunks(fake, spoil(chunks(stored), how))
    target = tmp_path / "in" / "mine"
    target.parent.mkdir()
    wanted = stored.name if how != "nothing but the id" else f"{9:020d}-{0:08x}"
    with Auditor(fake.target) as auditor, pytest.raises(SnapshotInvalid):
        auditor.fetch(target, wanted)
    assert list(target.parent.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "store"]


def test_a_broken_fetch_leaves_no_file_and_a_bad_id_makes_no_call(
    fake: FakeServer, stored: Path, tmp_path: Path
) -> None:
    def breaks(data: bytes, context: grpc.ServicerContext) -> Any:
        yield chunks(stored)[0].SerializeToString()
        context.abort(grpc.StatusCode.NOT_FOUND, "pruned meanwhile")

    fake.serve(SNAPSHOTS + "FetchSnapshot", breaks)
    with Auditor(fake.target) as auditor:
        with pytest.raises(errors.NotFound, match="pruned meanwhile"):
            auditor.fetch(tmp_path / "mine")
        with pytest.raises(ValueError, match="snapshot_id: expected"):
            auditor.fetch(tmp_path / "mine", "../../etc")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
