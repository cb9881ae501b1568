"""The table of RPCs.

The table has the RPCs of the contract with the contract's kinds of calls. Each call ends in one of
the allowed statuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from contract import METHODS
from livefactor.v1 import updates_pb2
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.guards import CallKind
from livefactor_server.rpc.service import PACKAGE, RPCS, Rpc, Services

STREAMS = {
    CallKind.UNARY: (False, False),
    CallKind.STREAM_OUT: (False, True),
    CallKind.STREAM_BOTH: (True, True),
}
"""Whether requests are a stream, and whether answers are."""

each_rpc = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Rpc, bytes], list[bytes]]]:
    """Provide a function that calls an RPC of a server without free slots."""
    folder: Path = tmp_path_factory.mktemp("full")
    hosting = Hosting(folder, HostingSettings())
    settings = ServiceSettings(streams_max=0, update_slots=0, score_slots=0, snapshot_slots=0)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(tuple(Services(hosting, settings).generic_handlers()))
    server.add_insecure_port(f"unix:{folder / 'rpc.sock'}")
    server.start()
    with grpc.insecure_channel(f"unix:{folder / 'rpc.sock'}") as channel:
        yield lambda rpc, raw: called(channel, rpc, raw)
    server.stop(None)
    hosting.drain()


def called(channel: grpc.Channel, rpc: Rpc, raw: bytes) -> list[bytes]:
    path = "/{}.{}/{}".format(PACKAGE, *rpc.name.split("."))
    if rpc.kind is CallKind.UNARY:
        return [channel.unary_unary(path)(raw, timeout=20)]
    if rpc.kind is CallKind.STREAM_OUT:
        return list(channel.unary_stream(path)(raw, timeout=20))
    return list(channel.stream_stream(path)(iter([raw]), timeout=20))


def test_the_table_is_the_contract() -> None:
    paths = {"{}.{}/{}".format(PACKAGE, *rpc.name.split(".")): rpc for rpc in RPCS}
    assert paths.keys() == METHODS.keys() and len(RPCS) == len(METHODS)
    for path, rpc in paths.items():
        method = METHODS[path]
        assert STREAMS[rpc.kind] == (method.client_streaming, method.server_streaming), rpc.name


@each_rpc
def test_a_call_without_a_free_slot_is_refused(rpc: Rpc, call: Callable[[Rpc, bytes], list[bytes]]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(rpc, b"\xff")
    # Calls that need no slot reach the parser.
    expected = grpc.StatusCode.INVALID_ARGUMENT if rpc.slots is None else grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.code() == expected


@each_rpc
def test_malformed_bytes_are_an_invalid_argument(rpc: Rpc, stubs) -> None:
    if rpc.kind is CallKind.STREAM_BOTH:
        (answer,) = called(stubs.channel, rpc, b"\xff")
        (one,) = updates_pb2.StreamUpdatesResponse.FromString(answer).answers
        assert one.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        return
    with pytest.raises(grpc.RpcError) as caught:
        called(stubs.channel, rpc, b"\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
