"""The package for its users: names, imports, the command, `local()`, targets and the tree of
errors.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

import livefactor
from fake_server import FakeServer
from livefactor import __main__ as command
from livefactor import errors, extra
from livefactor.calling.blocking import Connection
from livefactor.channel import DEFAULT_PORT, OPTIONS, open_channel, parse_target
from livefactor.errors import LivefactorError, ServerMissing


def test_every_public_name_exists_and_every_error_is_public() -> None:
    assert [name for name in livefactor.__all__ if not hasattr(livefactor, name)] == []
    tree = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, LivefactorError)
    }
    public = {name: getattr(livefactor, name) for name in livefactor.__all__}
    raised = {name for name, kind in public.items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert raised == tree
    drawn = errors.__doc__ or ""
    assert [name for name in tree if name not in drawn] == []


def test_importing_it_loads_no_table_library_and_nothing_of_the_server() -> None:
    code = "import sys, livefactor; print(*(set(sys.modules) & {%s}))"
    heavy = ("numba", "pandas", "pyarrow", "scipy", "livefactor_server", "livefactor_kernels")
    code %= ", ".join(map(repr, heavy))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=python_path()
    )
    assert done.stdout.split() == []


def python_path() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(livefactor.__file__).parents[1])}


def entry(monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any] | None) -> None:
    """Make `load` return the one entry point of the server. With None, there is none."""
    found = [] if load is None else [SimpleNamespace(load=load)]
    monkeypatch.setattr(extra, "entry_points", lambda group: found)


def missing() -> Any:
    return EntryPoint("main", "no_such_module_of_an_extra:main", "livefactor.cli").load()


@pytest.mark.parametrize("load", [None, missing])
def test_without_the_server_the_command_prints_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], load: Callable[[], Any] | None
) -> None:
    entry(monkeypatch, load)
    assert command.main() == 2
    assert 'pip install "livefactor[server]"' in capsys.readouterr().err
    with pytest.raises(ServerMissing, match="pip install"), livefactor.local():
        pass


@pytest.mark.parametrize(("result", "code"), [(None, 0), (3, 3)])
def test_the_command_is_the_servers(monkeypatch: pytest.MonkeyPatch, result: int | None, code: int) -> None:
    entry(monkeypatch, lambda: lambda: result)
    assert command.main() == code


class Embedded:
    """A server's entry point for `local()`, around the fake server."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake, self.target = fake, fake.target
        self.options: dict[str, Any] = {}
        self.stopped = 0
        self.ended_by: threading.Thread | None = None
        self.ended = threading.Event()

    def start(self, **options: Any) -> Embedded:
        self.options = options
        return self

    def stop(self) -> None:
        self.stopped += 1
        self.ended_by = threading.current_thread()
        self.ended.set()


@pytest.fixture
def embedded(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    server = Embedded(fake)
    entry(monkeypatch, lambda: server.start)
    yield server
    assert server.stopped == 1


def test_local_is_the_same_api_and_ends_its_server(embedded: Embedded) -> None:
    with livefactor.local(preset="clicks_sgd", data="folder") as here:
        assert here.target == embedded.target
        with here.producer("p") as producer:
            assert isinstance(producer, livefactor.Producer)
            producer.push(["ann"], ["milk"])
        assert isinstance(here.scorer(model="m"), livefactor.Scorer)
        assert isinstance(here.auditor(), livefactor.Auditor)
        assert isinstance(here.models(), livefactor.Models)
    assert embedded.options == {"preset": "clicks_sgd", "data": "folder"}
    assert len(embedded.fake.applied) == 1


def test_local_ends_its_server_after_an_error_too(embedded: Embedded) -> None:
    with pytest.raises(KeyError), livefactor.local():
        raise KeyError


def test_local_works_without_a_with_block_and_has_a_repr(embedded: Embedded) -> None:
    here = livefactor.local()
    assert repr(here) == f"Local({embedded.target!r}, a livefactor server in this process)"
    producer = here.producer("p")
    producer.push(["ann"], ["milk"])
    here.close()
    here.close()
    assert here.closed and "closed" in repr(here)
    assert len(embedded.fake.applied) == 1, "what was pushed is sent before the server ends"
    with pytest.raises(livefactor.ProducerClosed):
        producer.push(["ann"], ["milk"])


def test_a_forgotten_local_ends_with_its_last_client(embedded: Embedded) -> None:
    scorer = livefactor.local().scorer()
    gc.collect()
    assert embedded.stopped == 0
    del scorer
    gc.collect()
    assert embedded.ended.wait(10)
    # The collector runs in any thread, also in one of the server's, which cannot wait for itself.
    assert embedded.ended_by is not threading.current_thread()


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("localhost", f"localhost:{DEFAULT_PORT}"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::1]:9", "[::1]:9"),
        ("[::1]", f"[::1]:{DEFAULT_PORT}"),
        (" host:1 ", "host:1"),
        ("unix:/tmp/a.sock", "unix:/tmp/a.sock"),
    ],
)
def test_targets(target: str, address: str) -> None:
    assert parse_target(target) == address


@pytest.mark.parametrize(
    "target",
    ["", "http://host:1", "host:", "host:0", "host:65536", ":80", "::1:80", "host:x", "unix:", "a/b"],
)
def test_an_invalid_target_is_refused_at_once(target: str) -> None:
    with pytest.raises(ValueError, match="target: expected"):
        open_channel(target)


def test_the_transport_does_not_retry_by_itself() -> None:
    """With its own retries, a stream could wait for ever: see channel.OPTIONS."""
    assert dict(OPTIONS)["grpc.enable_retries"] == 0


def test_a_channel_of_the_callers_is_not_closed(fake: FakeServer) -> None:
    channel = open_channel(fake.target)
    Connection(channel, None).close()
    Connection("ignored", channel).close()
    grpc.channel_ready_future(channel).result(20)
    channel.close()
    connection = Connection(channel, None)
    with pytest.raises(LivefactorError, match="doing it: Cannot invoke RPC"):
        connection.run(connection.unary("/a/b", b"", 1.0, "doing it"))


def test_a_position_reads_well() -> None:
    assert str(livefactor.Position(bytes(16), 7)) == "00000000-0000-0000-0000-000000000000:7"
    assert str(livefactor.Position(b"\x01", 7)) == "01:7"
