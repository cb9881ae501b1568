"""How long starts of a server take: `python -m benchmarks.speed.recovery.starts`.

Restart: a process hosts a model with the default settings of `livefactor serve`, pushes records of
one event through its engine, and ends by SIGKILL. Then `livefactor serve` starts on the folder. It
takes time to load Python, and to replay what follows the newest snapshot. The keeper takes
snapshots so that this replay stays short.

First start: `livefactor serve` starts on an empty folder, and no kernels were compiled before. CPU
time, also that of processes that compile, counts until the server is ready for calls. Then 50
events are sent, and the first list of best items is asked for. `python -m
benchmarks.speed.recovery.starts first` measures only this. After `make wheel` it measures the
kernels of the wheel with `PYTHONPATH=build/wheel/clients:build/wheel/kernels:build/wheel/server`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import livefactor
from benchmarks.speed.streams import zipf_stream
from livefactor.wire.columns import encode_interactions

RECORDS = {"clicks": 1_000_000, "auto": 300_000}
"""Number of records by preset. `auto` learns fewer events a second, so its log takes as long."""

FIRST_STARTS = ("auto", "clicks", "clicks_sgd", "purchases_sgd")
IN_FLIGHT = 64
"""Batches in flight, as many as one producer may have (`model.producers.RING`)."""

PRODUCER = b"benchmark"
START_TIMEOUT_S = 600.0
POLL_S = 0.02


def grow(folder: Path, preset: str, records: int) -> None:
    """Pushes records of one event to the model of a folder, and ends this process by SIGKILL."""
    from livefactor_server.changes import NO_REJECTS, InteractionsChange, OpenProducerChange
    from livefactor_server.cli.serve.settings import ServerSettings
    from livefactor_server.engine.submission import Ack, Submission
    from livefactor_server.hosting.host import Hosting

    # A contest changes no log, unless it promotes a challenger.
    hosting = Hosting(folder, ServerSettings(preset=preset, auto_cpu_share=0.0).hosting())
    hosting.open_all()
    engine = hosting.get("").engine
    room = threading.Semaphore(IN_FLIGHT)

    def reply(item: Submission) -> None:
        assert isinstance(item.result, Ack), item.result
        room.release()

    def send(change: InteractionsChange | OpenProducerChange, body: bytes, epoch: int, sequence: int) -> None:
        room.acquire()
        engine.submit(Submission(change, body, PRODUCER, epoch, sequence, NO_REJECTS, engine.log.seal, reply))

    send(OpenProducerChange(), b"", 0, 0)
    users, items, _ = zipf_stream(records)
    for number in range(records):
        body = encode_interactions(users[number : number + 1], items[number : number + 1])
        send(InteractionsChange.from_log(body), body, 1, number + 1)
    for _ in range(IN_FLIGHT):
        room.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


class Started(NamedTuple):
    """A start until the server was ready, and the first list of best items after 50 events.

    `cpu_s` includes processes of the server that have ended.
    """

    wall_s: float
    cpu_s: float
    top_k_s: float = 0.0


def start(folder: Path, preset: str, caches: Path | None = None) -> Started:
    """Starts `livefactor serve` and ends it.

    `caches` is the folder of compiled kernels. None means the usual one, and no events are sent.
    """
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    ports = "--port", "0", "--metrics-port", "-1", "--port-file", str(ready)
    environment = dict(os.environ) | ({} if caches is None else {"NUMBA_CACHE_DIR": str(caches)})
    began = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "livefactor", "serve", "--data", str(folder), "--preset", preset, *ports],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not ready.exists():
            if server.poll() is not None or time.perf_counter() - began > START_TIMEOUT_S:
                raise RuntimeError(f"the server did not start (exit code {server.returncode})")
            time.sleep(POLL_S)
        wall = time.perf_counter() - began
        fields = Path(f"/proc/{server.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        # User and system time of the process, and of its children that have ended.
        cpu = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        port = ready.read_text(encoding="utf-8").split()[0]
        return Started(wall, cpu, 0.0 if caches is None else _first_list(f"127.0.0.1:{port}"))
    finally:
        server.kill()
        server.wait()


def _first_list(target: str) -> float:
    ids = np.arange(1, 51, dtype=np.uint64)
    with livefactor.Producer(target, "benchmark") as producer:
        producer.push(ids % 7 + 1, ids).result()
    with livefactor.Scorer(target) as scorer:
        began = time.perf_counter()
        scorer.recommend([1], k=10)
        return time.perf_counter() - began


def replayed_records(folder: Path) -> int:
    """Number of records that a restart applies: those after the newest snapshot."""
    from livefactor_server.log.store import Log
    from livefactor_server.snapshots.replay import log_folder, snapshot_store

    model = next((folder / "models").iterdir())
    newest = max((info.revision for info in snapshot_store(model).list()), default=0)
    with Log.open(log_folder(model), read_only=True, since=newest) as log:
        return log.last_revision - newest


def measure(share: float = 1.0) -> dict[str, float]:
    """The figures. `share` shortens the logs."""
    figures: dict[str, float] = {}
    for preset, records in RECORDS.items():
        with tempfile.TemporaryDirectory(prefix="livefactor-bench-") as made:
            folder = Path(made)
            count = str(int(records * share))
            command = [sys.executable, "-m", "benchmarks.speed.recovery.starts", str(folder), preset, count]
            code = subprocess.run(command, check=False).returncode
            if code != -signal.SIGKILL:
                raise RuntimeError(f"the log was not written (exit code {code})")
            figures[f"restart_{preset}_replayed_records"] = replayed_records(folder)
            started = start(folder, preset)
            figures[f"restart_{preset}_wall_s"] = started.wall_s
            figures[f"restart_{preset}_cpu_s"] = started.cpu_s
    return figures | measure_first()


def measure_first() -> dict[str, float]:
    """The figures of first starts."""
    figures: dict[str, float] = {}
    for preset in FIRST_STARTS:
        with tempfile.TemporaryDirectory(prefix="livefactor-bench-") as made:
            folder, caches = Path(made, "data"), Path(made, "caches")
            folder.mkdir()
            caches.mkdir()
            started = start(folder, preset, caches)
            figures |= {f"first_start_{preset}_{name}": value for name, value in started._asdict().items()}
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 4:
        grow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    else:
        print(json.dumps(measure_first() if sys.argv[1:] == ["first"] else measure(), indent=1))
