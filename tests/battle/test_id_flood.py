"""A flood of new ids from one producer: the memory is bounded, and known users notice nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from hostile import MODEL, Target
from livefactor.v1 import models_pb2, scoring_pb2, scoring_pb2_grpc, updates_pb2, updates_pb2_grpc
from server_process import Server

Serve = Callable[..., Server]

KEYS, KEYS_LONG = 400_000, 50_000_000
"""New keys of the flood. Half of them are users, the other half items."""

NEW_IDS = 3000
MEMORY_BYTES = 64 << 20
SECONDS_MAX = 1200.0
"""A slow machine sends fewer keys. `id_flood_keys` says how many."""

USERS, ITEMS = 200, 50
LIMITS = models_pb2.Limits(users_max=1 << 22, items_max=1 << 22)


class Producer:
    """Sends unary updates with consecutive sequences."""

    def __init__(self, target: Target, name: str, model: str = MODEL, value: float = 3.0) -> None:
        self._stub, self._model, self._value = (
            updates_pb2_grpc.UpdateServiceStub(target.channel),
            model,
            value,
        )
        opened = self._stub.OpenProducer(updates_pb2.OpenProducerRequest(model=model, producer_id=name))
        self._stamp = updates_pb2.ProducerStamp(id=name, epoch=opened.epoch)

    def push(self, users: np.ndarray, items: np.ndarray) -> updates_pb2.ApplyUpdatesResponse:
        self._stamp.sequence += 1
        rows = updates_pb2.Interactions(
            user_ids=users.tolist(), item_ids=items.tolist(), values=[self._value] * len(users)
        )
        request = updates_pb2.ApplyUpdatesRequest(model=self._model, producer=self._stamp, interactions=rows)
        return self._stub.ApplyUpdates(request, timeout=60)


def test_a_flood_of_new_ids_stops_at_the_quota_of_its_producer(
    serve: Serve, is_long: bool, record: Callable[..., None]
) -> None:
    server = serve("--memory-bytes-max", str(MEMORY_BYTES), "--producer-new-ids-per-minute", str(NEW_IDS))
    with server.channel() as channel:
        target = Target(server, channel)
        # It draws no negatives, so new ids touch no known row.
        target.create(MODEL, "ratings_sgd", k=16, limits=LIMITS)
        scores = scoring_pb2_grpc.ScoringServiceStub(channel)
        question = scoring_pb2.ScoreRequest(
            model=MODEL, user_ids=range(USERS), candidates=scoring_pb2.Candidates(item_ids=range(ITEMS))
        )
        shop, mallory = Producer(target, "shop"), Producer(target, "mallory")
        draw = np.random.default_rng(1)
        shop.push(np.arange(USERS), draw.integers(0, ITEMS, USERS))
        shop.push(draw.integers(0, USERS, 2000), draw.integers(0, ITEMS, 2000))
        before, rss = scores.Score(question, timeout=60).scores, target.rss

        began, sent, step = time.monotonic(), 0, 10_000
        while sent < (KEYS_LONG if is_long else KEYS) and time.monotonic() - began < SECONDS_MAX:
            new = np.arange(1_000_000 + sent // 2, 1_000_000 + sent // 2 + step)
            answer = mallory.push(new, new)
            reasons = {reject.reason for reject in answer.rejects}
            assert reasons <= {updates_pb2.REJECT_REASON_NEW_IDS, updates_pb2.REJECT_REASON_MEMORY_FULL}
            sent += 2 * step
        minutes = (time.monotonic() - began) / 60

        described = target.models.DescribeModel(models_pb2.DescribeModelRequest(model=MODEL)).description
        added = described.users + described.items - USERS - ITEMS
        assert NEW_IDS - 2 <= added <= NEW_IDS * (1 + minutes)
        assert described.memory_bytes < MEMORY_BYTES
        grown = target.rss - rss
        assert grown < 120 << 20
        assert scores.Score(question, timeout=60).scores == before
        # Another producer adds its new users meanwhile.
        assert shop.push(np.arange(5000, 5100), np.zeros(100, np.int64)).accepted == 100
    record(id_flood_keys=sent, id_flood_rows_added=added, id_flood_memory_growth_mb=grown / 1e6)


IDLE_EVENTS, STEP = 20_000, 10_000
EVICTION_SECONDS_MAX = 400.0


def test_ids_of_a_flood_leave_again_and_known_users_notice_nothing(
    serve: Serve, is_long: bool, record: Callable[..., None]
) -> None:
    """The scores of known users are to the bit those of a model that was not flooded."""
    server = serve("--memory-bytes-max", str(MEMORY_BYTES))
    with server.channel() as channel:
        target = Target(server, channel)
        # Without negatives and a mean an event changes its own user and item alone.
        plain = {"k": 16, "limits": LIMITS, "negatives": 0}
        target.create(MODEL, "clicks_sgd", **plain, eviction=models_pb2.Eviction(idle_events=IDLE_EVENTS))
        target.create("quiet", "clicks_sgd", **plain)
        scores = scoring_pb2_grpc.ScoringServiceStub(channel)
        question = scoring_pb2.ScoreRequest(
            user_ids=range(USERS), candidates=scoring_pb2.Candidates(item_ids=range(ITEMS))
        )
        shops = [Producer(target, "shop", model, 1.0) for model in (MODEL, "quiet")]
        mallory = Producer(target, "mallory", MODEL, 1.0)
        draw, known = np.random.default_rng(2), np.arange(USERS)
        began, sent, rows_max, rss_max = time.monotonic(), 0, 0, 0
        while sent < (KEYS_LONG if is_long else KEYS) and time.monotonic() - began < EVICTION_SECONDS_MAX:
            items = draw.permutation(USERS) % ITEMS
            for shop in shops:
                assert shop.push(known, items).accepted == USERS
            new = np.arange(1_000_000 + sent // 2, 1_000_000 + sent // 2 + STEP)
            assert mallory.push(new, new).accepted == STEP
            sent += 2 * STEP
            described = target.models.DescribeModel(models_pb2.DescribeModelRequest(model=MODEL)).description
            assert described.memory_bytes < MEMORY_BYTES
            rows_max, rss_max = max(rows_max, described.users, described.items), max(rss_max, target.rss)
        assert rows_max < 3 * IDLE_EVENTS
        answers = []
        for model in (MODEL, "quiet"):
            question.model = model
            answers.append(list(scores.Score(question, timeout=60).scores))
        assert answers[0] == answers[1] and len(set(answers[0])) > USERS
    record(id_flood_evicted_keys=sent, id_flood_rows_max=rows_max, id_flood_rss_max_mb=rss_max / 1e6)
