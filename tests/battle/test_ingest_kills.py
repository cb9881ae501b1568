"""Kills of the ingester, the server and the broker while events flow: each is applied once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from livefactor.models import Models
from server_process import Child, Server, WarmStart, wait_until

Serve = Callable[..., Server]

KILLS, KILLS_LONG = 3, 50
EVENTS_A_KILL = 4000
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


class RedisStream:
    """A stream in a server that is killed and starts again on its folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as opened:
            opened.bind(("127.0.0.1", 0))
            self._port = int(opened.getsockname()[1])
        self._folder = folder
        self.source = f'kind = "redis"\nurl = "redis://127.0.0.1:{self._port}"\nstream = "events"'
        self._start()

    def _start(self) -> None:
        import redis

        self._client = redis.Redis(port=self._port)
        self._process = subprocess.Popen(
            ["redis-server", "--port", str(self._port), "--appendonly", "yes", "--appendfsync", "always"],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, "Redis")

    def _answers(self) -> bool:
        import redis

        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def add(self, numbers: range) -> None:
        pipe: Any = self._client.pipeline()
        for n in numbers:
            pipe.xadd("events", {"u": n, "i": n % 50})
        pipe.execute()

    def kill(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def ingester(warm: WarmStart, folder: Path) -> Child:
    return warm.start(["ingest", "--config", str(folder / "sources.toml")], folder / "ingest.log")


def counts(server: Server) -> tuple[int, int]:
    """The events and the users of the model."""
    with Models(server.target) as models:
        found = models.describe(MODEL)
    return found.events, found.users


@pytest.fixture(params=[GrowingFile, RedisStream], ids=["file", "redis"])
def events(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param is RedisStream and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: make test-brokers")
    made = request.param(tmp_path)
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
    kills = KILLS_LONG if is_long else KILLS
    child = ingester(warm, tmp_path)
    killed = {"ingester": 0, "server": 0, "broker": 0}
    for kill in range(kills):
        adding = threading.Thread(
            target=events.add, args=(range(kill * EVENTS_A_KILL, (kill + 1) * EVENTS_A_KILL),)
        )
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
    count = kills * EVENTS_A_KILL
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
