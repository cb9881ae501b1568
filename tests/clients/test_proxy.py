"""A proxy that the environment names is for other machines, never for this one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import grpc
import pytest

from fake_server import FakeServer
from livefactor.channel import open_channel
from livefactor.errors import Unavailable
from livefactor.models import Models
from livefactor.v1 import models_pb2

LIST_MODELS = "/livefactor.v1.ModelService/ListModels"


class Proxy:
    """A proxy that notes which hosts are asked for, and that refuses all of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer:
                self.asked.append(peer.recv(4096).decode().partition("\r\n")[0])
                peer.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    made = Proxy()
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, made.url)
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.9.9.9", "0.0.0.0", "unix"])
def test_a_server_on_this_machine_is_called_without_a_proxy(
    host: str, proxy: Proxy, fake: FakeServer
) -> None:
    fake.serve(LIST_MODELS, lambda raw, context: models_pb2.ListModelsResponse().SerializeToString())
    with Models(fake.target if host == "unix" else f"{host}:{fake.port}") as models:
        assert models.list() == ()
    assert proxy.asked == []


def test_a_server_on_another_machine_is_called_through_the_proxy(proxy: Proxy) -> None:
    with Models("far.example:50051", connect_s=0.2) as models, pytest.raises(Unavailable):
        models.list()
    assert proxy.asked[0].startswith("CONNECT far.example:50051")


def test_the_caller_can_ask_for_the_proxy(proxy: Proxy) -> None:
    channel = open_channel("localhost:50051", options=[("grpc.enable_http_proxy", 1)])
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(LIST_MODELS)(b"", timeout=1)
    channel.close()
    assert proxy.asked[0].startswith("CONNECT localhost:50051")
