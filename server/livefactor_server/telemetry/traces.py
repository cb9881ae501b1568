"""Spans of calls, and of the steps of an update: queue, log and apply.

    client's span ─▶ call ─┬▶ queue   from the decoded batch to its group
    (traceparent)          ├▶ log     write and sync of the group
                           └▶ apply   the run of records with it

A call whose `traceparent` says that it is sampled has a span. So has a share of the calls without a
`traceparent`. Each batch of an update stream counts as a call, and may have a
`traceparent` of its own. A call without a span costs one
comparison, or the draw of a number. `opentelemetry` is imported by `set_up` alone.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterable
from typing import Any

KEY = "traceparent"
FLUSH_S = 2.0
"""Seconds that the end of a server waits for spans to be sent."""

_SAMPLED = 1
_FIELD = re.compile(rb"\x5a\x37(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})")
"""The field 11 with 55 bytes."""
_FIELD_BYTES = 57

Metadata = Iterable[tuple[str, str | bytes]] | None


class TracingMissing(ValueError):
    """The packages of the extra `otel` are not installed."""


class Traces:
    """Makes the spans of a server."""

    def __init__(self, provider: Any, sample: float) -> None:
        """Takes a `TracerProvider` of OpenTelemetry.

        `sample` is the share of the calls without a traceparent that have a span.
        """
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._sample = provider, sample
        self._tracer = provider.get_tracer("livefactor_server")
        self._kind, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._extract = TraceContextTextMapPropagator().extract
        # Spans take the time of the system. The server measures with another clock.
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()

    def call(self, rpc: str, metadata: Metadata, is_batch: bool) -> Trace | None:
        """The trace of a call that begins now, or None.

        Of the batches of a stream without a traceparent of their own only the share `sample` has a
        span, in any case.
        """
        parent = _parent(metadata)
        chosen = _is_sampled(parent) if parent and not is_batch else random.random() < self._sample
        if not chosen or (parent and not _is_sampled(parent)):
            return None
        context = self._extract({KEY: parent}) if parent else None
        service, _, method = f"livefactor.v1.{rpc}".rpartition(".")
        facts = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        span = self._tracer.start_span(f"{service}/{method}", context, self._kind, attributes=facts)
        return Trace(self, span)

    def step(self, span: Any, name: str, began: float, ended: float) -> None:
        """Makes a child of a span. The times are seconds of `time.perf_counter`."""
        from opentelemetry.trace import set_span_in_context

        child = self._tracer.start_span(name, set_span_in_context(span), start_time=self._ns(began))
        child.end(self._ns(ended))

    def _ns(self, at: float) -> int:
        return self._epoch_ns + int(at * 1e9)

    def end(self, span: Any, code: str, text: str, facts: dict[str, str | int]) -> None:
        """Ends a span with the status of its call."""
        span.set_attributes({"rpc.grpc.status": code} | facts)
        if code != "OK":
            span.set_status(self._error, text)
        span.end()

    def flush(self) -> None:
        """Sends the spans that have ended. It gives up after FLUSH_S."""
        sending = threading.Thread(target=self._provider.force_flush, name="spans", daemon=True)
        sending.start()
        # The exporter keeps to no time of its own while it tries again.
        sending.join(FLUSH_S)


class Trace:
    """The span of one call or of one batch of a stream. Thread-safe."""

    __slots__ = ("_span", "_traces")

    def __init__(self, traces: Traces, span: Any) -> None:
        self._traces, self._span = traces, span

    def step(self, name: str, began: float, ended: float) -> None:
        """Adds a step that has ended. The times are seconds of `time.perf_counter`."""
        self._traces.step(self._span, name, began, ended)

    def end(self, code: str, text: str = "", **facts: str | int) -> None:
        """The call has ended. Facts that are empty are left out."""
        known = {f"livefactor.{name}": value for name, value in facts.items() if value not in ("", 0)}
        self._traces.end(self._span, code, text, known)


def cut(raw: bytes) -> tuple[bytes, Metadata]:
    """A message of an update stream without its traceparent, and that as the metadata of a call.

    It is the last field of the message, if it has one.
    """
    found = _FIELD.match(raw, len(raw) - _FIELD_BYTES) if len(raw) > _FIELD_BYTES else None
    return (raw, None) if found is None else (raw[:-_FIELD_BYTES], ((KEY, found[1].decode()),))


def _parent(metadata: Metadata) -> str:
    for name, value in metadata or ():
        if name == KEY and isinstance(value, str):
            return value
    return ""


def _is_sampled(parent: str) -> bool:
    try:
        return bool(int(parent[53:55], 16) & _SAMPLED)
    except ValueError:
        return False


_active: list[Traces] = []


def use(traces: Traces | None) -> None:
    """Sets what makes the spans of this process. None makes no spans."""
    _active[:] = [] if traces is None else [traces]


def begin(rpc: str, metadata: Metadata, is_batch: bool = False) -> Trace | None:
    """The trace of a call or of a batch that begins now, or None."""
    return _active[0].call(rpc, metadata, is_batch) if _active else None


def flush() -> None:
    """Sends what is left, at the end of the process."""
    if _active:
        _active[0].flush()


def set_up(endpoint: str, sample: float, version: str) -> None:
    """Sends spans to an OTLP endpoint (gRPC) from now on. Plain text for http://.

    Raises:
        TracingMissing: the extra `otel` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingMissing('--trace-endpoint needs OpenTelemetry: pip install "livefactor[otel]"') from None
    resource = Resource.create({"service.name": "livefactor", "service.version": version})
    # The process calls `flush` at its end.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    use(Traces(provider, sample))
