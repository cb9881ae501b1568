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

    def __init__(self, target: Target, name: str) -> None:
        self._stub = updates_pb2_grpc.UpdateServiceStub(target.channel)
        opened = self._stub.OpenProducer(updates_pb2.OpenProducerRequest(model=MODEL, producer_id=name))
        self._stamp = updates_pb2.ProducerStamp(id=name, epoch=opened.epoch)

    def push(self, users: np.ndarray, items: np.ndarray) -> updates_pb2.ApplyUpdatesResponse:
        self._stamp.sequence += 1
        rows = updates_pb2.Interactions(
            user_ids=users.tolist(), item_ids=items.tolist(), values=[3.0] * len(users)
        )
        request = updates_pb2.ApplyUpdatesRequest(model=MODEL, producer=self._stamp, interactions=rows)
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
