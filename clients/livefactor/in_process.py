"""The same API without a server to start: `livefactor.local()` runs one inside this process.

The server listens on a Unix-domain socket and is found through the entry point group
`livefactor.local`, so this package never imports it.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

import grpc

from livefactor.auditor import Auditor
from livefactor.channel import open_channel
from livefactor.errors import LivefactorError
from livefactor.extra import load_entry_point
from livefactor.models import Models
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer

LOCAL_GROUP = "livefactor.local"
CLOSE_PRODUCER_S = 5.0
"""How long the end of a server waits for a producer that is still open to send its rows,
seconds.
"""

log = logging.getLogger("livefactor")

Client = TypeVar("Client", Producer, Scorer, Auditor, Models)


class Local:
    """A server in this process, made by `local()`.

    It runs until `close`, until the end of a `with` block, or until neither it nor a client that it
    made is in use any more. In a forked child, `close` leaves the parent's server alone. target:
    its address, for other clients. channel: the channel of the clients made here.
    """

    def __init__(self, target: str, channel: grpc.Channel, stop: Callable[[], None]) -> None:
        self.target = target
        self.channel = channel
        self._producers: weakref.WeakSet[Producer] = weakref.WeakSet()
        self._end = os.getpid(), self._producers, channel, stop
        self._finalizer = weakref.finalize(self, _end_in_a_thread, *self._end)
        _OPEN.add(self)
        _close_before_threads_are_joined()

    def producer(self, producer_id: str = "local", **options: Any) -> Producer:
        """A `Producer` of this server; options: Producer's."""
        made = Producer(producer_id=producer_id, channel=self.channel, **options)
        self._producers.add(made)
        return self._bound(made)

    def scorer(self, **options: Any) -> Scorer:
        """A `Scorer` of this server; options: Scorer's."""
        return self._bound(Scorer(channel=self.channel, **options))

    def auditor(self, **options: Any) -> Auditor:
        """An `Auditor` of this server; options: Auditor's."""
        return self._bound(Auditor(channel=self.channel, **options))

    def models(self) -> Models:
        """The `Models` of this server."""
        return self._bound(Models(channel=self.channel))

    @property
    def closed(self) -> bool:
        """Whether the server was stopped."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Close the producers made here, stop the server and remove its temporary folder.

        A second call does nothing.
        """
        if self._finalizer.detach() is not None:
            _end(*self._end)

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "a livefactor server in this process"
        return f"Local({self.target!r}, {state})"

    def _bound(self, client: Client) -> Client:
        # A client in use keeps the server running, also where nobody holds the `Local`.
        client._connection.keep_alive = self
        return client


def local(preset: str | None = None, data: str | os.PathLike[str] | None = None) -> Local:
    """Run a server in this process: no port, the same API, the same guarantees.

    Use the result in a `with` block, or call its `close`. A forgotten one ends with its last
    reference or with the process.

    preset: of the model "default", as `Models.create` names presets; the model is made if the
    folder has none. None: the server's default. data: the data folder, which one server at a time
    may use; None: a temporary folder, which `close` removes. Raises ServerMissing if the server
    extra is not installed.
    """
    start = load_entry_point(LOCAL_GROUP)
    server = start(preset=preset, data=data)
    return Local(server.target, open_channel(server.target), server.stop)


def _end(
    pid: int, producers: weakref.WeakSet[Producer], channel: grpc.Channel, stop: Callable[[], None]
) -> None:
    if os.getpid() != pid:
        # The server runs in the parent of this forked child, and so do its threads.
        return
    try:
        for producer in list(producers):
            try:
                producer.close(CLOSE_PRODUCER_S)
            except LivefactorError as error:
                log.warning("producer %s: closed with its server: %s", producer.producer_id, error)
        channel.close()
    finally:
        stop()


_OPEN: weakref.WeakSet[Local] = weakref.WeakSet()
_ENDING: set[threading.Thread] = set()


def _end_in_a_thread(pid: int, *arguments: Any) -> None:
    """End a server that nobody refers to any more.

    The garbage collector runs in whichever thread allocates memory: perhaps in one of the server's
    own, which must not wait for itself, or in one that holds a lock.
    """
    if os.getpid() != pid:
        return

    def end() -> None:
        try:
            _end(pid, *arguments)
        finally:
            _ENDING.discard(thread)

    thread = threading.Thread(target=end, name="livefactor-close")
    _ENDING.add(thread)
    thread.start()


@cache
def _close_before_threads_are_joined() -> None:
    # A process that ends joins its threads before it runs finalizers, and the server's threads wait
    # for work. A server that nobody closed would keep the process for ever. Only `threading` has a
    # hook that runs earlier.
    threading._register_atexit(_close_all)  # type: ignore[attr-defined]


def _close_all() -> None:
    for server in list(_OPEN):
        server.close()
    for thread in list(_ENDING):
        thread.join()
