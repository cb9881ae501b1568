"""Each limit of a call has a name, a field, a figure and INVALID_ARGUMENT.

What can never succeed is never answered with a status that means "later".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from livefactor.v1 import models_pb2, scoring_pb2, updates_pb2
from livefactor_server.engine.answering import answers
from livefactor_server.rpc import guards
from livefactor_server.statuses import Refused
from stubs import Stubs

TopK, Candidates = scoring_pb2.TopK, scoring_pb2.Candidates
ROWS = 262_144
LABEL = "x" * 1000


@pytest.fixture(scope="module")
def model(stubs: Stubs) -> str:
    """A model of 6,000 items with labels of 1,000 bytes."""
    name = stubs.model()
    ids = list(range(6000))
    stubs.push(name, ids, ids)
    for start in (0, 3000):
        part = ids[start : start + 3000]
        labels = updates_pb2.Labels(side=updates_pb2.SIDE_ITEM, ids=part, labels=[LABEL] * len(part))
        stubs.updates.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model=name, labels=labels), timeout=30)
    return name


def refused(call: Callable[[], Any]) -> str:
    """Return the text of the INVALID_ARGUMENT with which a call ends."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    return caught.value.details()


def score(stubs: Stubs, **fields: Any) -> Any:
    return stubs.scoring.Score(scoring_pb2.ScoreRequest(**fields), timeout=30)


@pytest.mark.parametrize(
    ("fields", "name", "figure"),
    [
        ({"user_ids": range(1025), "top_k": TopK(k=1)}, "user_ids", 1024),
        ({"user_ids": [1], "top_k": TopK(k=0)}, "k", 1),
        ({"user_ids": [1], "top_k": TopK(k=2**32 - 1)}, "k", ROWS),
        ({"user_ids": range(1024), "top_k": TopK(k=257)}, "k", ROWS // 1024),
        ({"user_ids": [1], "top_k": TopK(k=1, exclude_ids=range(300_000))}, "exclude_ids", ROWS),
        ({"user_ids": [1], "top_k": TopK(k=1, exclude_ids=[1], offsets=[0, 2])}, "offsets", 1),
        ({"user_ids": [1], "candidates": Candidates(item_ids=range(300_000))}, "candidates", ROWS),
        (
            {"user_ids": range(1000), "candidates": Candidates(item_ids=range(300))},
            "candidates",
            ROWS,
        ),
        ({"user_ids": [1], "candidates": Candidates(item_ids=[1], offsets=[0, 2])}, "offsets", 1),
        (
            {"user_ids": [1], "top_k": TopK(k=1), "events": scoring_pb2.Events(item_ids=range(300_000))},
            "events",
            ROWS,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_limit_names_its_field_and_its_figure(
    stubs: Stubs, model: str, fields: dict[str, Any], name: str, figure: int
) -> None:
    text = refused(lambda: score(stubs, model=model, **fields))
    assert text.startswith(name + ":") and str(figure) in text


@pytest.mark.parametrize("what", ["excludes", "labels"])
def test_a_message_above_the_limit_is_never_answered_with_later(stubs: Stubs, model: str, what: str) -> None:
    if what == "excludes":
        text = refused(lambda: score(stubs, user_ids=[1], top_k=TopK(k=1, exclude_ids=range(600_000))))
    else:
        labels = updates_pb2.Labels(side=updates_pb2.SIDE_ITEM, ids=range(5000), labels=[LABEL] * 5000)
        request = updates_pb2.ApplyUpdatesRequest(model=model, labels=labels)
        text = refused(lambda: stubs.updates.ApplyUpdates(request, timeout=30))
        (message,) = stubs.updates.StreamUpdates(
            iter([updates_pb2.StreamUpdatesRequest(model=model, labels=labels)]), timeout=30
        )
        assert message.answers[0].status.message == text
    assert text.startswith("request: at most 4194304 bytes, got ")


def test_a_top_k_call_compares_a_limited_number_of_pairs(stubs: Stubs, model: str) -> None:
    with pytest.raises(Refused) as caught:
        answers.check_pairs(11, 6000, 60_000)
    assert caught.value.text == "user_ids: at most 10 users a call for 6000 items, got 11"
    answers.check_pairs(10, 6000, 60_000)
    answers.check_pairs(1, 60_001, 60_000)


@pytest.mark.parametrize("target", ["top_k", "candidates"])
def test_an_answer_with_labels_is_measured_before_it_is_built(stubs: Stubs, model: str, target: str) -> None:
    fields: dict[str, Any] = {"model": model, "user_ids": [1], "with_labels": True}
    fields[target] = TopK(k=5000) if target == "top_k" else Candidates(item_ids=range(5000))
    text = refused(lambda: score(stubs, **fields))
    assert text.startswith("answer: at most 4194304 bytes with its labels, got 509")
    fields[target] = TopK(k=4000) if target == "top_k" else Candidates(item_ids=range(4000))
    assert set(score(stubs, **fields).labels) == {LABEL}


def test_any_answer_above_the_limit_is_an_invalid_argument(
    stubs: Stubs, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "MESSAGE_BYTES_MAX", 100)
    text = refused(lambda: stubs.models.ListModels(models_pb2.ListModelsRequest(), timeout=10))
    assert text.startswith("answer: at most 100 bytes, got ")
