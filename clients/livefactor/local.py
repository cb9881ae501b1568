"""The same API without a server to start: `livefactor.local()` runs one in this process, behind a unix-domain
socket.

The server is found through the entry point group `livefactor.local`, so that this package never imports it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

import grpc

from livefactor.auditor import Auditor
from livefactor.channel import open_channel
from livefactor.errors import ServerMissing
from livefactor.models import Models
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer

LOCAL_GROUP = "livefactor.local"
INSTALL_HINT = 'pip install "livefactor[server]"'


class Local:
    """A server in this process. target: its address, for other clients. channel: what the clients made here
    use.
    """

    def __init__(self, target: str, channel: grpc.Channel) -> None:
        self.target = target
        self.channel = channel

    def producer(self, producer_id: str = "local", **options: Any) -> Producer:
        """A `Producer` of this server; options: Producer's."""
        return Producer(producer_id=producer_id, channel=self.channel, **options)

    def scorer(self, **options: Any) -> Scorer:
        """A `Scorer` of this server; options: Scorer's."""
        return Scorer(channel=self.channel, **options)

    def auditor(self, **options: Any) -> Auditor:
        """An `Auditor` of this server; options: Auditor's."""
        return Auditor(channel=self.channel, **options)

    def models(self) -> Models:
        """The `Models` of this server."""
        return Models(channel=self.channel)


@contextmanager
def local(preset: str | None = None, data: str | os.PathLike[str] | None = None) -> Iterator[Local]:
    """Run a server in this process for the length of a `with` block: no port, the same API, the same
    guarantees.

    preset: of the model "default" (as `Models.create` names them), made if the folder has none; None:
    the server's default; "": make no model.
    data: the data folder, kept and held by one server at a time; None: a temporary one. Raises
    ServerMissing if the server extra is not installed.
    """
    start = load_entry_point(LOCAL_GROUP)
    server = start(preset=preset, data=data)
    try:
        channel = open_channel(server.target)
        try:
            yield Local(server.target, channel)
        finally:
            channel.close()
    finally:
        server.stop()


def load_entry_point(group: str) -> Callable[..., Any]:
    """What the server registered under `group`. Raises ServerMissing naming the pip command."""
    found = list(entry_points(group=group))
    if not found:
        raise ServerMissing(f"the server is not installed: {INSTALL_HINT}")
    try:
        return found[0].load()  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        # The code of the server is in every wheel; the packages it needs come with the extra.
        raise ServerMissing(f"the server's module {error.name} is not installed: {INSTALL_HINT}") from error
