"""Spans of calls and of the steps of an update, in a collector in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import livefactor
from livefactor.in_process import Local, local
from livefactor.v1 import updates_pb2
from livefactor_server.telemetry import traces
from stubs import Stubs

APPLY, SCORE = "livefactor.v1.UpdateService/ApplyUpdates", "livefactor.v1.ScoringService/Score"
STREAM = "livefactor.v1.UpdateService/StreamUpdates"
STEPS = ["apply", "log", "queue"]


@pytest.fixture(scope="module")
def server() -> Iterator[Local]:
    with local("") as running:
        with livefactor.Models(channel=running.channel) as models:
            models.create("m", "clicks_sgd", k=8, limits={"users_max": 100, "items_max": 100})
        yield running


class Collector:
    """Spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, name: str, count: int = 1, kind: str = "SERVER") -> list[ReadableSpan]:
        """Wait for `count` spans of this name. The end of a call may reach its client earlier."""
        until = time.monotonic() + 20
        while True:
            found = [
                span
                for span in self._exporter.get_finished_spans()
                if span.name == name and span.kind.name == kind
            ]
            if len(found) >= count or time.monotonic() > until:
                assert len(found) == count, [span.name for span in self._exporter.get_finished_spans()]
                return found
            time.sleep(0.01)

    def children(self, of: ReadableSpan) -> list[ReadableSpan]:
        spans = self._exporter.get_finished_spans()
        mine = [span for span in spans if span.parent and span.parent.span_id == of.context.span_id]
        return sorted(mine, key=lambda span: span.name)

    @property
    def count(self) -> int:
        return len(self._exporter.get_finished_spans())


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    found = Collector()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", found.provider)
    yield found
    traces.use(None)


def apply(server: Local, parent: str = "", model: str = "m") -> Any:
    rows = updates_pb2.Interactions(user_ids=[1], item_ids=[2])
    return Stubs(server.channel).updates.ApplyUpdates(
        updates_pb2.ApplyUpdatesRequest(model=model, interactions=rows),
        metadata=(("traceparent", parent),) if parent else (),
        timeout=60,
    )


def check_steps(collector: Collector, span: ReadableSpan) -> None:
    apply, log, queue = collector.children(span)
    assert [apply.name, log.name, queue.name] == STEPS
    assert span.start_time <= queue.start_time + 50_000_000
    assert queue.start_time <= queue.end_time == log.start_time <= log.end_time <= apply.start_time
    assert apply.start_time <= apply.end_time <= span.end_time + 50_000_000


def test_a_sampled_update_has_its_steps_as_spans(server: Local, collector: Collector) -> None:
    traces.use(traces.Traces(collector.provider, 0.0))
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    answer = apply(server, parent)
    (span,) = collector.named(APPLY)
    assert f"{span.context.trace_id:x}" == "ab" * 16
    assert span.parent is not None and f"{span.parent.span_id:x}" == "cd" * 8
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc", "rpc.service": "livefactor.v1.UpdateService", "rpc.method": "ApplyUpdates",
        "rpc.grpc.status": "OK", "livefactor.model": "m", "livefactor.revision": answer.position.revision,
        "livefactor.request_id": (span.attributes or {})["livefactor.request_id"],
    }  # fmt: skip
    check_steps(collector, span)


def test_a_call_that_is_not_sampled_has_no_span(server: Local, collector: Collector) -> None:
    traces.use(traces.Traces(collector.provider, 0.0))
    for parent in ("", f"00-{'ab' * 16}-{'cd' * 8}-00", "nonsense", "00-" + "0" * 60):
        apply(server, parent)
    traces.use(None)
    apply(server, f"00-{'ab' * 16}-{'cd' * 8}-01")
    # This one comes last, so the spans of the others would be there.
    traces.use(traces.Traces(collector.provider, 1.0))
    with pytest.raises(grpc.RpcError):
        apply(server, model="none")
    (span,) = collector.named(APPLY)
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.attributes or {})["rpc.grpc.status"] == "NOT_FOUND"
    assert "does not exist" in (span.status.description or "")
    assert collector.count == 1


def test_the_spans_of_clients_are_the_parents(server: Local, collector: Collector) -> None:
    traces.use(traces.Traces(collector.provider, 0.0))
    with livefactor.Scorer(channel=server.channel, model="m") as scorer:
        scorer.score(1, [2])
    (client,), (span,) = collector.named(SCORE, kind="CLIENT"), collector.named(SCORE)
    assert span.parent is not None and span.parent.span_id == client.context.span_id

    async def ask() -> None:
        async with livefactor.aio.AsyncScorer(server.target, model="m") as scorer:
            await scorer.score(1, [2])

    asyncio.run(ask())
    clients, spans = collector.named(SCORE, 2, "CLIENT"), collector.named(SCORE, 2)
    assert {span.parent.span_id for span in spans if span.parent} == {
        each.context.span_id for each in clients
    }


def test_the_batches_of_a_producer_are_children_of_the_span_that_made_it(
    server: Local, collector: Collector
) -> None:
    traces.use(traces.Traces(collector.provider, 1.0))
    with collector.provider.get_tracer("test").start_as_current_span("import") as own:
        producer = livefactor.Producer(producer_id="p", channel=server.channel, model="m")
    for number in range(3):
        producer.push([1], [number]).result(60)
    producer.close()
    for sequence, span in enumerate(collector.named(STREAM, 3), 1):
        assert span.parent is not None and span.parent.span_id == own.get_span_context().span_id
        facts = span.attributes or {}
        assert (facts["livefactor.producer"], facts["livefactor.sequence"]) == ("p", sequence)
        check_steps(collector, span)


def test_each_push_of_a_producer_has_the_trace_of_its_caller(server: Local, collector: Collector) -> None:
    traces.use(traces.Traces(collector.provider, 0.0))
    owns, tracer = [], collector.provider.get_tracer("test")
    with livefactor.Producer(producer_id="each", channel=server.channel, model="m") as producer:
        for number in range(3):
            with tracer.start_as_current_span(f"order {number}") as own:
                producer.push([1], [number]).result(60)
            owns.append(own.get_span_context())
        # Nobody traces this one.
        producer.push([1], [7]).result(60)
    spans = collector.named(STREAM, 3)
    for own, span in zip(owns, spans, strict=True):
        assert span.parent is not None and span.parent.span_id == own.span_id
        assert span.context.trace_id == own.trace_id
        check_steps(collector, span)
    assert len({own.trace_id for own in owns}) == 3


def test_only_a_traceparent_is_cut_from_a_message() -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    message = updates_pb2.StreamUpdatesRequest(
        model="m", interactions=updates_pb2.Interactions(user_ids=[1], item_ids=[2])
    )
    plain = message.SerializeToString()
    assert traces.cut(plain) == (plain, None)
    message.traceparent = parent
    assert traces.cut(message.SerializeToString()) == (plain, (("traceparent", parent),))
    message.traceparent = parent.replace("ab", "AB")
    assert traces.cut(message.SerializeToString())[1] is None
    assert traces.cut(b"") == (b"", None)


def test_an_endpoint_that_is_away_delays_neither_calls_nor_the_end(server: Local) -> None:
    traces.set_up("http://127.0.0.1:9", 1.0, "0")
    try:
        apply(server)
        began = time.monotonic()
        traces.flush()
        assert time.monotonic() - began < 10
        apply(server)
    finally:
        traces.use(None)
