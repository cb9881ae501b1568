"""Servers: a leader and its followers in this process, on sockets that stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from livefactor.access import Access
from livefactor_server.access.entry import OPEN, Entry
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.hosting.following.leader import Leader
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.hosting.keeper import KeeperSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer

SETTINGS = HostingSettings(
    default_preset="", engine=EngineSettings(), keeper=KeeperSettings(snapshots_kept=2), auto_cpu_share=0.0
)


class Node:
    """A server in this process. It can stop, vanish and come back on its folder and its socket."""

    def __init__(self, folder: Path, name: str) -> None:
        self.data = folder / name
        self.target = f"unix:{folder / name}.sock"
        self.is_up = False

    def start(
        self,
        follow: str = "",
        token: str = "",
        entry: Entry = OPEN,
        ca: Path | None = None,
        **settings: object,
    ) -> Node:
        self.data.mkdir(exist_ok=True)
        Path(self.target.removeprefix("unix:")).unlink(missing_ok=True)
        leader = Leader(follow, Access(token=token, ca=ca)) if follow else None
        self.hosting = Hosting(self.data, replace(SETTINGS, leader=leader, **settings))  # type: ignore[arg-type]
        self.server = RpcServer(self.hosting, ServiceSettings(), self.target, entry)
        self.hosting.open_all()
        self.server.start()
        self.is_up = True
        return self

    def vanish(self) -> None:
        """End all calls at once, as the death of the process does. Nothing is finished."""
        self.server.stop()
        self.hosting.drain()
        self.is_up = False

    def stop(self) -> None:
        if self.is_up:
            self.server.drain(5.0)
            self.is_up = False


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[[str], Node]]:
    """Provide `node(name)`, a server that is not started yet. All end with the test."""
    nodes: list[Node] = []

    def make(name: str) -> Node:
        nodes.append(Node(tmp_path, name))
        return nodes[-1]

    yield make
    for each in reversed(nodes):
        each.stop()
