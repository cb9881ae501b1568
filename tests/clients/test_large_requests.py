"""Requests that one call does not take, servers without a free slot, and limits that are named."""

from __future__ import annotations

from itertools import count, pairwise
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_scoring import SCORE, Scoring
from fake_server import LINEAGE, FakeServer
from livefactor.auditor import Auditor
from livefactor.calling import cutting
from livefactor.calling.cutting import Lists, ScoreRequest
from livefactor.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from livefactor.models import Models
from livefactor.position import Position
from livefactor.scorer import Scorer
from livefactor.wire.columns import decode_score
from livefactor.wire.limits import MESSAGE_BYTES_MAX, SCORE_ROWS_MAX, over


def test_many_users_are_several_calls_at_revisions_that_never_go_back(fake: FakeServer) -> None:
    scoring = Scoring(fake)

    def learning(data: bytes, context: grpc.ServicerContext) -> bytes:
        scoring.revision += 3
        return scoring(data, context)

    fake.serve(SCORE, learning)
    users = list(range(1000, 3500))
    with Scorer(fake.target) as scorer:
        own = scorer.score(users, [[user % 7] * (user % 3) for user in users])
        shared = scorer.score(users, [1, 404])
        best = scorer.recommend(users, 3, exclude=[[user] for user in users])
    assert [len(query.user_ids) for query in scoring.queries] == [1024, 1024, 452] * 3
    assert own.position == Position(LINEAGE, 15)
    assert own.revisions.tolist() == [15] * 1024 + [18] * 1024 + [21] * 452
    assert (own[-1].revision, own[-1].user_id) == (21, 3499)
    assert [query.min_revision for query in scoring.queries] == [0, 15, 18, 0, 24, 27, 0, 33, 36]
    for user, answer in zip(users, own, strict=True):
        assert answer.scores.tolist() == [user - user % 7] * (user % 3)
    assert [answer.scores.tolist() for answer in shared] == [[user - 1, user - 404] for user in users]
    assert [answer.scores.tolist() for answer in best] == [[user, user - 1] for user in users]
    assert scoring.queries[7].item_ids.tolist() == users[1024:2048]


LISTS = st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=20)


@given(LISTS, st.integers(0, 3), st.booleans(), st.data())
@settings(max_examples=100)
def test_every_call_is_within_the_limits_and_none_is_missing(
    lists: list[list[int]], k: int, shares: bool, data: st.DataObject
) -> None:
    users, offsets = len(lists), np.cumsum([0, *map(len, lists)]).astype(np.uint32)
    ids = np.array([item for one in lists for item in one], np.uint64)
    own, shared = Lists(ids, offsets), Lists(np.arange(data.draw(st.integers(0, 6)), dtype=np.uint64), None)
    fields: dict[str, Any] = {"k": k, "exclude": own, "events": shared}
    if not k:
        fields = {"candidates": shared if shares else own, "events": own}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "SCORE_USERS_MAX", data.draw(st.integers(1, 9)))
        patch.setattr(cutting, "SCORE_ROWS_MAX", data.draw(st.integers(6, 20)))
        patch.setattr(cutting, "MESSAGE_BYTES_MAX", data.draw(st.integers(800, 1200)))
        request = ScoreRequest("shop", np.arange(users, dtype=np.uint64), **fields)
        ranges = request.ranges()
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
        assert ranges[-1][1] == users
        for start, stop in ranges:
            message = request.message(start, stop, (LINEAGE, 2**60))
            query = decode_score(message)
            assert len(message) <= cutting.MESSAGE_BYTES_MAX
            assert 1 <= len(query.user_ids) <= cutting.SCORE_USERS_MAX
            assert len(query.item_ids) <= cutting.SCORE_ROWS_MAX
            repeats = stop - start if query.offsets is None and not k else 1
            assert k * (stop - start) <= cutting.SCORE_ROWS_MAX
            assert len(query.item_ids) * repeats <= cutting.SCORE_ROWS_MAX
            if k or not shares:
                assert query.offsets is not None or not len(ids)
                for user, (first, last) in enumerate(pairwise(query.offsets.tolist() if len(ids) else [])):
                    assert query.item_ids[first:last].tolist() == lists[start + user]


def test_a_server_with_lower_limits_gets_smaller_calls(fake: FakeServer) -> None:
    scoring = Scoring(fake)

    def small(data: bytes, context: grpc.ServicerContext) -> bytes:
        users = len(decode_score(data).user_ids)
        if users > 300:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, over("user_ids", 300, users, "users a call"))
        return scoring(data, context)

    fake.serve(SCORE, small)
    with Scorer(fake.target) as scorer:
        answers = scorer.recommend(np.arange(2000), 2)
        assert answers.scores.tolist() == list(range(2000))
        assert {len(query.user_ids) for query in scoring.queries} == {256, 244}


def test_an_answer_that_labels_make_too_large_is_asked_for_in_parts(fake: FakeServer) -> None:
    scoring = Scoring(fake)
    scoring.label = "{} " + "x" * 1000
    with Scorer(fake.target) as scorer:
        few = scorer.score([1, 2, 3, 4], range(2000), with_labels=True)
        assert [len(answer.labels) for answer in few] == [2000] * 4
        assert [len(query.user_ids) for query in scoring.queries] == [4, 2, 2]
        with pytest.raises(InvalidArgument, match=r"model 'default': answer: at most 4194304 bytes, got \d+"):
            scorer.score([1], range(5000), with_labels=True)


def test_a_full_server_is_asked_again_until_the_deadline(fake: FakeServer) -> None:
    scoring, tries = Scoring(fake), count()

    def full(data: bytes, context: grpc.ServicerContext) -> bytes:
        if next(tries) < 3:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "scores: all slots are in use")
        return scoring(data, context)

    fake.serve(SCORE, full)
    with Scorer(fake.target) as scorer:
        assert scorer.score(3, [1])[0].scores.tolist() == [2.0]
        assert next(tries) == 4
        tries = count()
        with pytest.raises(ResourceExhausted, match="slots"):
            scorer.score(3, [1], timeout=0.1)


def test_the_deadline_is_that_of_all_calls_together(fake: FakeServer) -> None:
    scoring = Scoring(fake)

    def slow(data: bytes, context: grpc.ServicerContext) -> bytes:
        fake.gate.wait(0.15)
        return scoring(data, context)

    fake.gate.clear()
    fake.serve(SCORE, slow)
    with Scorer(fake.target, timeout=0.4) as scorer, pytest.raises(DeadlineExceeded):
        scorer.recommend(np.arange(9000), 2)
    fake.gate.set()
    assert len(scoring.queries) <= 4


MANY = range(SCORE_ROWS_MAX + 1)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda s: s.recommend(1, 2**40), "k: at most 262144, got 1099511627776"),
        (lambda s: s.recommend(1, 0), "k: expected at least 1, got 0"),
        (lambda s: s.recommend([], 3), "users: expected at least 1, got 0"),
        (lambda s: s.recommend(1, exclude=MANY), "exclude: at most 262144 ids a user, got 262145"),
        (lambda s: s.score([1, 2], [[5], MANY]), "items: at most 262144 ids a user, got 262145"),
        (lambda s: s.score(1, [1], events=MANY), "events: at most 262144 ids a user, got 262145"),
        (
            lambda s: s.recommend(1, exclude=MANY[1:], events=MANY[1:]),
            f"request: at most {MESSAGE_BYTES_MAX} bytes a user, got 4194824",
        ),
    ],
)
def test_a_limit_is_named_before_anything_is_sent(ask: Any, said: str) -> None:
    with Scorer("127.0.0.1:1") as scorer, pytest.raises(InvalidArgument) as raised:
        ask(scorer)
    assert (str(raised.value), raised.value.code) == (said, "INVALID_ARGUMENT")


@pytest.mark.parametrize("name", ["Shop", "a" * 65, "a" * 10_000, "ä", "1st"])
def test_a_name_that_no_model_can_have_is_refused_before_a_call(name: str) -> None:
    calls = (
        lambda: Scorer("127.0.0.1:1", model=name),
        lambda: Auditor("127.0.0.1:1", model=name),
        lambda: Models("127.0.0.1:1").create(name),
    )
    for call in calls:
        with pytest.raises(InvalidArgument, match="model: expected 1 to 64 characters") as raised:
            call()
        assert len(str(raised.value)) < 200
