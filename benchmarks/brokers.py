"""`livefactor ingest` from real brokers: `python -m benchmarks --only brokers`.

A stream of NATS JetStream and one of Redis are filled with MESSAGES messages of 1,000 events each,
as JSON. Then an ingester starts in a process of its own and pushes to a server in another one. The
rate counts from the first applied event to the last one, each of them durable in the journal of the
ingester and in the log of the server. The broker runs on the same machine. A broker that is not
installed is reported as missing (Debian: `apt-get install nats-server redis-server`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.speed.ingest import serving
from benchmarks.speed.streams import K
from livefactor import Models

MESSAGES = 2_000
EVENTS = 1_000
"""Events of a message."""

USERS, ITEMS = 100_000, 20_000
START_S, ALL_S = 30.0, 300.0
SUBJECT = "events"

CONFIG = """
model = "bench"
producer = "ingest"
target = "{target}"

[[sources]]
name = "events"
{source}
fields = {{user = {{from = "u", cast = "integer"}}, item = {{from = "i", cast = "integer"}}}}
"""


def messages(count: int) -> Iterator[bytes]:
    """Messages of EVENTS events: an array of objects."""
    random = np.random.default_rng(1)
    for _ in range(count):
        users, items = random.integers(0, USERS, EVENTS), random.zipf(1.3, EVENTS) % ITEMS
        rows = [{"u": u, "i": i} for u, i in zip(users.tolist(), items.tolist(), strict=True)]
        yield json.dumps(rows, separators=(",", ":")).encode()


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def fill_nats(port: int, count: int) -> str:
    """Fills a stream and returns the settings of the source."""
    import nats

    async def fill() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        stream = client.jetstream()
        await stream.add_stream(name="EVENTS", subjects=[SUBJECT])
        for message in messages(count):
            await stream.publish(SUBJECT, message)
        await client.close()

    asyncio.run(fill())
    return f'kind = "nats"\nurl = "nats://127.0.0.1:{port}"\nstream = "EVENTS"'


def fill_redis(port: int, count: int) -> str:
    """Fills a stream and returns the settings of the source."""
    import redis

    with redis.Redis(port=port) as client:
        for message in messages(count):
            client.xadd(SUBJECT, {"events": message})
    return f'kind = "redis"\nurl = "redis://127.0.0.1:{port}"\nstream = "{SUBJECT}"\npayload = "events"'


BROKERS = {
    "nats": (["nats-server", "-a", "127.0.0.1", "-js", "-sd", ".", "-p"], fill_nats),
    "redis": (["redis-server", "--bind", "127.0.0.1", "--port"], fill_redis),
}


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[int]:
    """Runs a broker in `folder`, and yields its port."""
    port = free_port()
    with open(folder / "broker.log", "wb") as log:
        process = subprocess.Popen([*command, str(port)], cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start") from None
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def rate(target: str, folder: Path, source: str, count: int) -> float:
    """Events a second of an ingester that reads `count` messages."""
    with Models(target) as models:
        models.create("bench", "clicks_sgd", k=K, negatives=1)
        (folder / "sources.toml").write_text(CONFIG.format(target=target, source=source), encoding="utf-8")
        command = [sys.executable, "-m", "livefactor", "ingest", "--config", str(folder / "sources.toml")]
        with open(folder / "ingest.log", "wb") as log:
            ingester = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline, first, began = time.monotonic() + ALL_S, 0, 0.0
            while (applied := models.describe("bench").events) < count * EVENTS:
                if ingester.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "ingest.log").read_text()[-1000:])
                if applied and not first:
                    first, began = applied, time.monotonic()
                time.sleep(0.02)
            return (count * EVENTS - first) / (time.monotonic() - began)
        finally:
            ingester.terminate()
            ingester.wait(30)
            models.delete("bench")


def measure(count: int = MESSAGES) -> dict[str, float | None]:
    """The rate of each broker, None where it is not installed."""
    figures: dict[str, float | None] = {}
    with serving() as target:
        for name, (command, fill) in BROKERS.items():
            figures[f"brokers_{name}_events_per_s"] = None
            if shutil.which(command[0]) is None:
                continue
            with tempfile.TemporaryDirectory(
                prefix="livefactor-bench-", dir=os.environ.get("BENCH_DIR")
            ) as made:
                folder = Path(made)
                with running(command, folder) as port:
                    figures[f"brokers_{name}_events_per_s"] = rate(target, folder, fill(port, count), count)
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
