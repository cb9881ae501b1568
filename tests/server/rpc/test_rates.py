"""A producer that sends too many rows: unary calls are refused with a hint, and streams wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from livefactor.v1 import updates_pb2
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.engine.quotas import QuotaSettings
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer
from stubs import Stubs

ROWS_PER_S = 100


@pytest.fixture
def stubs(tmp_path: Path) -> Iterator[Stubs]:
    engine = EngineSettings(quotas=QuotaSettings(rows_per_s=ROWS_PER_S))
    hosting = Hosting(tmp_path, HostingSettings(default_preset="", engine=engine))
    hosting.open_all()
    server = RpcServer(hosting, ServiceSettings(), "127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Stubs(channel)
    server.stop()
    hosting.drain()


class Producer:
    """Makes requests with consecutive sequences."""

    def __init__(self, stubs: Stubs, model: str, name: str) -> None:
        request = updates_pb2.OpenProducerRequest(model=model, producer_id=name)
        self._epoch = stubs.updates.OpenProducer(request).epoch
        self._model, self._name, self._sequence = model, name, 0

    def batch(self, kind: type[Any], rows: int) -> Any:
        self._sequence += 1
        stamp = updates_pb2.ProducerStamp(id=self._name, epoch=self._epoch, sequence=self._sequence)
        columns = updates_pb2.Interactions(user_ids=[1] * rows, item_ids=[*range(rows)])
        return kind(model=self._model, producer=stamp, interactions=columns)


def test_a_call_with_too_many_rows_is_refused_for_a_while(stubs: Stubs) -> None:
    model = stubs.model()
    greedy, modest = (Producer(stubs, model, name) for name in ("greedy", "modest"))
    revisions = [
        stubs.updates.ApplyUpdates(each.batch(updates_pb2.ApplyUpdatesRequest, rows)).position.revision
        for each, rows in ((greedy, 8000), (modest, 10))
    ]
    with pytest.raises(grpc.RpcError) as refusal:
        stubs.updates.ApplyUpdates(greedy.batch(updates_pb2.ApplyUpdatesRequest, 1))
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"more than {ROWS_PER_S} rows a second" in refusal.value.details()
    hints = dict(refusal.value.trailing_metadata())
    assert 1 <= int(hints["grpc-retry-pushback-ms"]) <= 80_000
    # Nothing of the refused batch was logged, and other producers go on.
    applied = stubs.updates.ApplyUpdates(modest.batch(updates_pb2.ApplyUpdatesRequest, 10))
    assert applied.position.revision == revisions[-1] + 1


def test_a_stream_with_too_many_rows_waits(stubs: Stubs) -> None:
    steady = Producer(stubs, stubs.model(), "steady")
    batches = [steady.batch(updates_pb2.StreamUpdatesRequest, 150) for _ in range(2)]
    began = time.monotonic()
    messages = list(stubs.updates.StreamUpdates(iter(batches), timeout=60))
    answers = [answer for message in messages for answer in message.answers]
    assert [answer.response.accepted for answer in answers] == [150, 150]
    # After the first batch the bucket lacks 50 rows.
    assert time.monotonic() - began > 0.5
