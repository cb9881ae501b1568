"""Spans of a client's calls, where the application has set up OpenTelemetry.

The package `opentelemetry` is never imported here first. An application that traces has imported
it, and without it a call costs one look into `sys.modules`. The span of a call is a child of the
current span. Its context goes to the server as the W3C metadata `traceparent`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Metadata = tuple[tuple[str, str], ...]

_NAME = "livefactor"


def call(path: str, metadata: Metadata) -> AbstractContextManager[Metadata]:
    """The span of the call of the RPC `path`. Gives the metadata with which the call is sent."""
    api = sys.modules.get("opentelemetry.trace")
    return nullcontext(metadata) if api is None else _traced(api, path, metadata)


@contextmanager
def _traced(api: Any, path: str, metadata: Metadata) -> Iterator[Metadata]:
    service, method = path.lstrip("/").rsplit("/", 1)
    facts = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    span = api.get_tracer(_NAME).start_as_current_span(
        f"{service}/{method}", kind=api.SpanKind.CLIENT, attributes=facts
    )
    with span as current:
        yield metadata + _parent(current.get_span_context())


def present() -> Metadata:
    """The metadata that makes a call a child of the current span. Empty without one."""
    api = sys.modules.get("opentelemetry.trace")
    return () if api is None else _parent(api.get_current_span().get_span_context())


def _parent(context: Any) -> Metadata:
    if not context.is_valid:
        return ()
    flags = int(context.trace_flags)
    return (("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"),)


_SAMPLED = 1
_FIELD = bytes([11 << 3 | 2, 55])
"""The head of the field `traceparent` of a StreamUpdatesRequest."""


def present_field() -> bytes:
    """The field `traceparent` of a batch of the current span. Empty if that is not sampled."""
    found = present()
    if not found or not int(found[0][1][-2:], 16) & _SAMPLED:
        return b""
    return _FIELD + found[0][1].encode()
