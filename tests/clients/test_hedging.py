"""Hedged reads: a call without an answer goes to the next target, too; the first answer counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

from fake_scoring import SCORE, Scoring
from fake_server import FakeServer
from livefactor.aio import AsyncScorer
from livefactor.errors import InvalidArgument, NotFound
from livefactor.scorer import Scorer

LONG_S = 60.0
"""A call that waits so long fails its test."""


@pytest.fixture
def second() -> Iterator[FakeServer]:
    with TemporaryDirectory(prefix="lf") as folder:
        server = FakeServer(Path(folder)).start()
        yield server
        server.stop()


Score = Callable[[list[str], float], float]


def score(targets: list[str], hedge_s: float) -> float:
    with Scorer(targets, hedge_s=hedge_s, timeout=LONG_S) as scorer:
        return float(scorer.score(3, [1])[0].scores[0])


def score_in_loop(targets: list[str], hedge_s: float) -> float:
    async def ask() -> float:
        async with AsyncScorer(targets, hedge_s=hedge_s, timeout=LONG_S) as scorer:
            return float((await scorer.score(3, [1]))[0].scores[0])

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("ask", [score, score_in_loop])


@BOTH
def test_a_slow_server_is_overtaken_and_its_call_ends(
    fake: FakeServer, second: FakeServer, ask: Score
) -> None:
    cancelled = threading.Event()

    def slow(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(cancelled.set)
        cancelled.wait(LONG_S)
        return b""

    fake.serve(SCORE, slow)
    scoring = Scoring(second)
    assert ask([fake.target, second.target], 0.05) == 2.0
    assert cancelled.wait(10), "the first call was not cancelled"
    assert len(scoring.queries) == 1


@BOTH
def test_the_second_server_is_not_asked_when_the_first_answers_in_time(
    fake: FakeServer, second: FakeServer, ask: Score
) -> None:
    first, other = Scoring(fake), Scoring(second)
    assert ask([fake.target, second.target], LONG_S) == 2.0
    assert (len(first.queries), len(other.queries)) == (1, 0)


@BOTH
def test_a_slow_answer_counts_when_the_second_server_fails(
    fake: FakeServer, second: FakeServer, ask: Score
) -> None:
    refused = threading.Event()
    scoring = Scoring(fake)

    def late(data: bytes, context: grpc.ServicerContext) -> bytes:
        refused.wait(LONG_S)
        return scoring(data, context)

    def refuse(_: bytes, context: grpc.ServicerContext) -> Any:
        refused.set()
        context.abort(grpc.StatusCode.NOT_FOUND, "the second")

    fake.serve(SCORE, late)
    second.serve(SCORE, refuse)
    assert ask([fake.target, second.target], 0.05) == 2.0


@BOTH
def test_when_both_fail_the_error_is_the_first_one(fake: FakeServer, second: FakeServer, ask: Score) -> None:
    refused = threading.Event()

    def refuse(text: str) -> Callable[[bytes, grpc.ServicerContext], Any]:
        def handle(_: bytes, context: grpc.ServicerContext) -> Any:
            if text == "the first":
                refused.wait(LONG_S)
            refused.set()
            context.abort(grpc.StatusCode.NOT_FOUND, text)

        return handle

    fake.serve(SCORE, refuse("the first"))
    second.serve(SCORE, refuse("the second"))
    with pytest.raises(NotFound, match="the first"):
        ask([fake.target, second.target], 0.05)


@pytest.mark.parametrize(
    ("targets", "hedge_s", "text"),
    [
        ("a:1", 0.1, "expected several targets, got 1"),
        ("a:1,b:1", 0.0, "expected more than 0, got 0.0"),
        ("a:1,b:1", float("nan"), "expected more than 0, got nan"),
    ],
)
def test_hedging_needs_a_time_and_a_second_server(targets: str, hedge_s: float, text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"hedge_s: {text}"):
        Scorer(targets, hedge_s=hedge_s)
