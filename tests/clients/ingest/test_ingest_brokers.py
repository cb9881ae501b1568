"""Real brokers and HTTP, into the fake server: positions, restarts of the broker, refusals.

nats-server and redis-server come from Debian (`make test-brokers`). Kafka is librdkafka's own mock
broker.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from fake_server import FakeServer
from livefactor.ingest.config import FieldRule, IngestConfig, SourceConfig
from livefactor.ingest.ingester import Ingester, make_source
from livefactor.ingest.intake import Message
from livefactor.ingest.journal import Progress
from livefactor.ingest.sources import SourceError

pytest.importorskip("faststream")

FIELDS = {"user": FieldRule(("u",), "integer"), "item": FieldRule(("i",), "integer")}
WAIT_S = 30.0


def config(fake: FakeServer, folder: Path, kind: str, **options: Any) -> IngestConfig:
    source = SourceConfig("s", kind, "json", options, FIELDS)
    return IngestConfig(model="m", producer="p", target=fake.target, folder=folder, sources=(source,))


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


class Running:
    """An ingester in a thread."""

    def __init__(self, settings: IngestConfig) -> None:
        self.told: list[str] = []
        self._ingester = Ingester(settings, settings.folder / "state", say=self.told.append)
        self._thread = threading.Thread(target=self._ingester.run)
        self._thread.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._ingester.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


def await_true(condition: Callable[[], bool]) -> None:
    end = monotonic() + WAIT_S
    while not condition():
        assert monotonic() < end
        sleep(0.02)


def event(number: int) -> dict[str, int]:
    return {"u": number, "i": number % 7}


def rows(numbers: range) -> Counter[tuple[int, int]]:
    return Counter((number, number % 7) for number in numbers)


class Broker(ABC):
    """A broker in a folder: it can be stopped and started again, and keeps its messages."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def options(self) -> dict[str, str]: ...

    @abstractmethod
    def add(self, numbers: range) -> None: ...

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder
        )
        end = monotonic() + WAIT_S
        while True:
            try:
                return self.add(range(0))
            except Exception:
                assert monotonic() < end
                sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Nats(Broker):
    program = "nats-server"

    def command(self) -> list[str]:
        return ["nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder)]

    def options(self) -> dict[str, str]:
        return {"url": f"nats://127.0.0.1:{self.port}", "stream": "EVENTS", "subject": "events.a"}

    def add(self, numbers: range) -> None:
        asyncio.run(self._add(numbers))

    async def _add(self, numbers: range) -> None:
        import nats

        async def ignore(_: Exception) -> None:
            pass

        client = await nats.connect(
            f"nats://127.0.0.1:{self.port}", allow_reconnect=False, error_cb=ignore, connect_timeout=1
        )
        stream = client.jetstream()
        await stream.add_stream(name="EVENTS", subjects=["events.*"])
        for start in range(numbers.start, numbers.stop, 10):
            batch = [event(number) for number in numbers[start - numbers.start :][:10]]
            await stream.publish("events.a", json.dumps(batch).encode())
            # Sequences of the stream have gaps for a source of one subject.
            await stream.publish("events.b", b"{}")
        await client.close()


class Redis(Broker):
    program = "redis-server"

    def command(self) -> list[str]:
        return ["redis-server", "--port", str(self.port), "--appendonly", "yes", "--appendfsync", "always"]

    def options(self) -> dict[str, str]:
        return {"url": f"redis://127.0.0.1:{self.port}", "stream": "events"}

    def add(self, numbers: range) -> None:
        import redis

        with redis.Redis(port=self.port) as client:
            client.ping()
            for number in numbers:
                client.xadd("events", event(number))


@pytest.fixture(params=[Nats, Redis], ids=["nats", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    kind: type[Any] = request.param
    if shutil.which(kind.program) is None:
        pytest.skip(f"{kind.program} is not installed: make test-brokers")
    folder = tmp_path / "broker"
    folder.mkdir()
    running = kind(folder)
    running.start()
    yield running
    running.stop()


def test_events_of_a_broker_arrive_once_across_restarts_of_both(
    broker: Broker, fake: FakeServer, tmp_path: Path
) -> None:
    settings = config(fake, tmp_path, type(broker).__name__.lower(), **broker.options())
    broker.add(range(100))
    with Running(settings) as running:
        await_true(lambda: len(fake.applied) >= 100)
        broker.stop()
        await_true(lambda: any("the broker is away" in text for text in running.told))
        broker.start()
        broker.add(range(100, 150))
        await_true(lambda: len(fake.applied) >= 150)
        assert any("connected" in text for text in running.told)
    broker.add(range(150, 170))
    with Running(settings):
        await_true(lambda: len(fake.applied) >= 170)
    assert Counter(fake.applied) == rows(range(170))


def test_a_broker_that_is_away_at_the_start_is_waited_for(
    broker: Broker, fake: FakeServer, tmp_path: Path
) -> None:
    broker.add(range(10))
    broker.stop()
    with Running(config(fake, tmp_path, type(broker).__name__.lower(), **broker.options())) as running:
        await_true(lambda: any("the broker is away" in text for text in running.told))
        broker.start()
        await_true(lambda: len(fake.applied) >= 10)
    assert Counter(fake.applied) == rows(range(10))


def test_messages_that_the_source_has_not_read_are_behind(broker: Broker, tmp_path: Path) -> None:
    """Also those that the broker has sent and the library still holds."""
    broker.add(range(400))
    count = 40 if isinstance(broker, Nats) else 400
    options = broker.options()
    source = make_source(SourceConfig("s", type(broker).__name__.lower(), "json", options, FIELDS), tmp_path)
    stop, taken, told = threading.Event(), list[Message](), list[str]()

    def put(message: Message, wait: bool = True) -> bool:
        """The queue of a slow ingester, which has room for five."""
        if len(taken) == 5:
            return False
        taken.append(message)
        return True

    arguments = put, lambda _: Progress(), stop, told.append
    thread = threading.Thread(target=source.run, args=arguments)
    thread.start()
    try:
        # The next one is in the hands of the source.
        await_true(lambda: len(taken) == 5 and source.behind() in (count - 6, count - 5))
    finally:
        stop.set()
        thread.join()


def test_all_partitions_of_a_kafka_topic_are_read_once(fake: FakeServer, tmp_path: Path) -> None:
    from confluent_kafka import Producer

    # A producer with this setting runs a broker in its process.
    producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    (mock, *_) = producer.list_topics("events", WAIT_S).brokers.values()
    settings = config(fake, tmp_path, "kafka", brokers=f"{mock.host}:{mock.port}", topic="events")

    def add(numbers: range) -> None:
        for number in numbers:
            producer.produce("events", json.dumps(event(number)).encode(), partition=number % 4)
        producer.flush(WAIT_S)

    add(range(200))
    # What is no event must not stop its partition, nor be lost in silence.
    producer.produce("events", b"nonsense", partition=1, headers={"content-type": "application/json"})
    with Running(settings):
        await_true(lambda: len(fake.applied) >= 200)
    add(range(200, 240))
    with Running(settings):
        await_true(lambda: len(fake.applied) >= 240)
    assert Counter(fake.applied) == rows(range(240))
    (letter,) = (tmp_path / "state" / "dead-letters.jsonl").read_text().splitlines()
    assert json.loads(letter)["partition"] == "s/events-1"
    assert json.loads(letter)["reason"] == "it is not JSON"


def post(port: int, body: bytes, token: str = "") -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}/", body, headers), timeout=WAIT_S) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def test_a_webhook_answers_once_the_events_are_in_the_journal(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "secret")
    port = free_port()
    settings = config(fake, tmp_path, "http", port=port, token_env="HOOK")
    for start in (0, 50):
        with Running(settings):
            await_true(lambda: is_listening(port))
            assert post(port, json.dumps(event(start)).encode(), "wrong")[0] == 401
            assert post(port, b"", "secret")[0] == 400
            assert post(port, b"x" * (5 << 20), "secret")[0] == 413
            body = json.dumps([event(number) for number in range(start, start + 50)]).encode()
            assert post(port, body, "secret") == (200, {"dead_letters": 0})
            assert post(port, b'{"u": 1}', "secret") == (200, {"dead_letters": 1})
    assert Counter(fake.applied) == rows(range(100))


def is_listening(port: int) -> bool:
    try:
        post(port, b"")
    except OSError:
        return False
    return True


def test_a_webhook_beyond_loopback_needs_a_token(fake: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not loopback, so it needs token_env"):
        Ingester(config(fake, tmp_path, "http", port=1, host="0.0.0.0"), tmp_path / "state")
