"""The table of RPCs.

The table has the RPCs of the contract with the contract's kinds of calls, and malformed bytes are
an invalid argument.
"""

from __future__ import annotations

import grpc
import pytest

from contract import METHODS
from livefactor.v1 import updates_pb2
from livefactor_server.rpc.service import PACKAGE, RPCS, Form, Rpc

each_rpc = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


def path_of(rpc: Rpc) -> str:
    return "{}.{}/{}".format(PACKAGE, *rpc.name.split("."))


def called(channel: grpc.Channel, rpc: Rpc, raw: bytes) -> list[bytes]:
    path, method = "/" + path_of(rpc), METHODS[path_of(rpc)]
    if method.client_streaming:
        return list(channel.stream_stream(path)(iter([raw]), timeout=20))
    if method.server_streaming:
        return list(channel.unary_stream(path)(raw, timeout=20))
    return [channel.unary_unary(path)(raw, timeout=20)]


def test_the_table_is_the_contract() -> None:
    paths = {path_of(rpc): rpc for rpc in RPCS}
    assert paths.keys() == METHODS.keys() and len(RPCS) == len(METHODS)
    for path, rpc in paths.items():
        method = METHODS[path]
        assert (rpc.form is Form.STREAM) == (method.client_streaming or method.server_streaming), rpc.name


@each_rpc
def test_malformed_bytes_are_an_invalid_argument(rpc: Rpc, stubs) -> None:
    if METHODS[path_of(rpc)].client_streaming:
        (answer,) = called(stubs.channel, rpc, b"\xff")
        (one,) = updates_pb2.StreamUpdatesResponse.FromString(answer).answers
        assert one.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        return
    with pytest.raises(grpc.RpcError) as caught:
        called(stubs.channel, rpc, b"\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
