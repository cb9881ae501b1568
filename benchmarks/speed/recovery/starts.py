"""How long starts of a server take: `python -m benchmarks.speed.recovery.starts`.

Restart: a process hosts a model with the default settings of `livefactor serve`, pushes records of
one event through its engine, and ends by SIGKILL. Then `livefactor serve` starts on the folder. It
takes time to load Python, and to replay what follows the newest snapshot. The keeper takes
snapshots so that this replay stays short.

First start: `livefactor serve` starts on an empty folder, and no kernels were compiled before. CPU
time counts until the server is ready for calls.
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


def start(folder: Path, preset: str, caches: Path | None = None) -> tuple[float, float]:
    """Wall-clock and CPU seconds of `livefactor serve` from its start until it is ready.

    `caches` is the folder of compiled kernels. None means the usual one.
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
        return wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    finally:
        server.kill()
        server.wait()


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
            wall, cpu = start(folder, preset)
            figures[f"restart_{preset}_wall_s"] = wall
            figures[f"restart_{preset}_cpu_s"] = cpu
    for preset in FIRST_STARTS:
        with tempfile.TemporaryDirectory(prefix="livefactor-bench-") as made:
            folder, caches = Path(made, "data"), Path(made, "caches")
            folder.mkdir()
            caches.mkdir()
            figures[f"first_start_{preset}_cpu_s"] = start(folder, preset, caches)[1]
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 4:
        grow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    else:
        print(json.dumps(measure(), indent=1))
