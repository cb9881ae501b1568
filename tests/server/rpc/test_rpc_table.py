"""The table of RPCs.

The table has the RPCs of the contract with the contract's kinds of calls, and malformed bytes are
an invalid argument.
"""

from __future__ import annotations

import grpc
import pytest

from livefactor.v1 import models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor_server.rpc.service import PACKAGE, RPCS, Form, Rpc

METHODS = {
    f"{service.name}.{method.name}": method
    for file in (updates_pb2, scoring_pb2, snapshots_pb2, models_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
each_rpc = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


def called(channel: grpc.Channel, rpc: Rpc, raw: bytes) -> list[bytes]:
    path, method = "/{}.{}/{}".format(PACKAGE, *rpc.name.split(".")), METHODS[rpc.name]
    if method.client_streaming:
        return list(channel.stream_stream(path)(iter([raw]), timeout=20))
    if method.server_streaming:
        return list(channel.unary_stream(path)(raw, timeout=20))
    return [channel.unary_unary(path)(raw, timeout=20)]


def test_the_table_is_the_contract() -> None:
    assert [rpc.name for rpc in RPCS] == list(METHODS)
    for rpc in RPCS:
        method = METHODS[rpc.name]
        assert (rpc.form is Form.STREAM) == (method.client_streaming or method.server_streaming), rpc.name


@each_rpc
def test_malformed_bytes_are_an_invalid_argument(rpc: Rpc, stubs) -> None:
    if METHODS[rpc.name].client_streaming:
        (answer,) = called(stubs.channel, rpc, b"\xff")
        (one,) = updates_pb2.StreamUpdatesResponse.FromString(answer).answers
        assert one.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        return
    with pytest.raises(grpc.RpcError) as caught:
        called(stubs.channel, rpc, b"\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
