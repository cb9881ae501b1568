"""Kills of the ingester, the server and the broker while events flow: each is applied once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import pytest

from livefactor.models import Models
from server_process import Child, Server, WarmStart, wait_until

Serve = Callable[..., Server]

KILLS, KILLS_LONG = 3, 50
EVENTS_A_KILL, EVENTS_A_KILL_LONG = 1500, 4000
MODEL = "m"
SEED = 20_261_130

SOURCES = """
model = "m"
producer = "ingest"
target = "{target}"
batch_events = 512

[[sources]]
name = "events"
{source}
fields = {{user = {{from = "u", cast = "integer"}}, item = {{from = "i", cast = "integer"}}}}
"""


class GrowingFile:
    """A file that grows."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"
        self.path.touch()
        self.source = f'kind = "file"\npath = "{self.path}"'

    def add(self, numbers: range) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps({"u": n, "i": n % 50}) + "\n" for n in numbers)

    def kill(self) -> None:
        """A file cannot be killed."""

    stop = kill


class Broker(ABC):
    """A broker that is killed and starts again on its folder.

    It has written a message before it acknowledges it.
    """

    program: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        with socket.socket() as opened:
            opened.bind(("127.0.0.1", 0))
            self.port = int(opened.getsockname()[1])
        self.folder = folder
        self._start()
        self.made()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self.command(), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, self.program)

    def _answers(self) -> bool:
        try:
            return self.answers()
        except OSError:
            return False

    @property
    @abstractmethod
    def source(self) -> str:
        """The settings of the source."""

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool: ...

    def made(self) -> None:  # noqa: B027 - a stream of Redis needs no making
        """Make the stream."""

    @abstractmethod
    def add(self, numbers: range) -> None: ...

    def kill(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class RedisStream(Broker):
    program = "redis-server"

    @property
    def source(self) -> str:
        return f'kind = "redis"\nurl = "redis://127.0.0.1:{self.port}"\nstream = "events"'

    def command(self) -> list[str]:
        return ["redis-server", "--port", str(self.port), "--appendonly", "yes", "--appendfsync", "always"]

    def answers(self) -> bool:
        import redis

        try:
            return bool(redis.Redis(port=self.port).ping())
        except redis.RedisError:
            return False

    def add(self, numbers: range) -> None:
        import redis

        with redis.Redis(port=self.port) as client:
            pipe: Any = client.pipeline()
            for n in numbers:
                pipe.xadd("events", {"u": n, "i": n % 50})
            pipe.execute()


class NatsStream(Broker):
    program = "nats-server"

    @property
    def source(self) -> str:
        return f'kind = "nats"\nurl = "nats://127.0.0.1:{self.port}"\nstream = "EVENTS"'

    def command(self) -> list[str]:
        return ["nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder)]

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1.0) as opened:
            return opened.recv(4) == b"INFO"

    def made(self) -> None:
        async def make(stream: Any) -> None:
            await stream.add_stream(name="EVENTS", subjects=["events"])

        self._run(make)

    def add(self, numbers: range) -> None:
        async def publish(stream: Any) -> None:
            pending = []
            for n in numbers:
                pending.append(
                    await stream.publish_async("events", json.dumps({"u": n, "i": n % 50}).encode())
                )
            await asyncio.gather(*pending)

        self._run(publish)

    def _run(self, work: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        import nats

        async def connected() -> None:
            client = await nats.connect(f"nats://127.0.0.1:{self.port}")
            await work(client.jetstream(publish_async_max_pending=8192))
            await client.close()

        asyncio.run(connected())


def ingester(warm: WarmStart, folder: Path) -> Child:
    return warm.start(["ingest", "--config", str(folder / "sources.toml")], folder / "ingest.log")


def counts(server: Server) -> tuple[int, int]:
    """The events and the users of the model."""
    with Models(server.target) as models:
        found = models.describe(MODEL)
    return found.events, found.users


@pytest.fixture(params=[GrowingFile, RedisStream, NatsStream], ids=["file", "redis", "nats"])
def events(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind: Any = request.param
    if kind is not GrowingFile and shutil.which(kind.program) is None:
        pytest.skip(f"{kind.program} is not installed: make test-brokers")
    made = kind(tmp_path)
    yield made
    made.stop()


def test_kills_of_every_part_lose_and_double_nothing(
    serve: Serve, warm: WarmStart, events: Any, tmp_path: Path, is_long: bool, record: Callable[..., None]
) -> None:
    server = serve()
    with Models(server.target) as models:
        models.create(MODEL, "clicks_sgd", k=8)
    (tmp_path / "sources.toml").write_text(SOURCES.format(target=server.target, source=events.source))
    chance = random.Random(SEED)
    kills, events_a_kill = (KILLS_LONG, EVENTS_A_KILL_LONG) if is_long else (KILLS, EVENTS_A_KILL)
    child = ingester(warm, tmp_path)
    killed = {"ingester": 0, "server": 0, "broker": 0}
    for kill in range(kills):
        numbers = range(kill * events_a_kill, (kill + 1) * events_a_kill)
        adding = threading.Thread(target=events.add, args=(numbers,))
        adding.start()
        victim = list(killed)[kill % 3]
        if victim == "broker":
            # What a writer's broken connection had done is unknown, so nobody writes meanwhile.
            adding.join()
        time.sleep(chance.uniform(0.0, 0.3))
        killed[victim] += 1
        if victim == "ingester":
            os.kill(child.pid, signal.SIGKILL)
            wait_until(lambda child=child: child.poll() is not None, "the ingester's end")
            child = ingester(warm, tmp_path)
        elif victim == "server":
            server.kill()
            server.start()
        else:
            events.kill()
        adding.join()
    count = kills * events_a_kill
    learned = 0
    while learned < count:
        # Events come one a message. How long all of them take depends on the machine.
        wait_until(lambda before=learned: counts(server)[0] > before, f"more than {learned} events", 60)
        learned = counts(server)[0]
    os.kill(child.pid, signal.SIGTERM)
    wait_until(lambda: child.poll() is not None, "the ingester's end")
    assert child.poll() == 0, (tmp_path / "ingest.log").read_text()[-2000:]
    learned, users = counts(server)
    # Each event has a user of its own, so the two counts tell losses from doubles.
    assert (learned, users) == (count, count)
    record(ingest_kills=kills, ingest_lost=count - users, ingest_applied_twice=learned - count)
