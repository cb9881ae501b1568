"""Why an address cannot be bound, in the words of the system."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from livefactor_server.rpc import binding


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1:1"), ("localhost", "localhost:1"), ("::1", "[::1]:1"), ("[::1]", "[::1]:1")],
)
def test_an_ipv6_address_gets_brackets(host: str, address: str) -> None:
    assert binding.host_and_port(host, 1) == address


def test_the_reason_is_the_systems() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert binding.fault(f"127.0.0.1:{taken.getsockname()[1]}") == "Address already in use"
    assert binding.fault("127.0.0.1:0") is None
    assert "assign" in str(binding.fault("192.0.2.1:50051"))
    assert "nown" in str(binding.fault("nosuch.invalid:50051"))


def test_the_path_of_a_socket_is_short_and_its_folder_exists(tmp_path: Path) -> None:
    assert binding.fault(f"unix:/{'x' * 106}") is None
    assert binding.fault(f"unix:/{'x' * 107}") == "the path of a socket has at most 107 bytes, got 108"
    assert binding.fault(f"unix:{tmp_path}/a/b") == f"the folder {tmp_path}/a does not exist"
