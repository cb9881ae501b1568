"""A producer in a separate process, at a steady rate or at full speed: the load of
`benchmarks.speed.latency`.

`python -m benchmarks.speed.paced TARGET MODEL RATE BATCH ITEMS` pushes batches of the Zipf stream
over ITEMS items. It prints "ready" after the first acks, and runs until its standard input ends.
Then it prints the number of events and the seconds. RATE is in events per second; 0 means no pause.
If the producer falls behind, it does not catch up.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks.speed.streams import KEY_STEP, USERS, zipf_ids
from livefactor import BatchSettings, Producer

ROOT = Path(__file__).resolve().parents[2]
EVENTS = 1 << 21
"""Number of distinct events, which are pushed repeatedly."""

LATE_S = 0.1
FLUSH_S = 60.0


@dataclass(slots=True)
class Load:
    """The results of a load, which are known after it ends."""

    events: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Acknowledged events per second."""
        return self.events / self.seconds


@contextmanager
def running(target: str, model: str, rate: float, batch: int, items: int) -> Iterator[Load]:
    """Runs a load while the context is active."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.paced",
        target,
        model,
        str(rate),
        str(batch),
        str(items),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    load = Load()
    try:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the load did not start")
        yield load
        process.stdin.close()
        events, seconds = process.stdout.readline().split()
        load.events, load.seconds = int(events), float(seconds)
    finally:
        process.kill()
        process.wait()


def peak(target: str, model: str, batch: int, items: int, seconds: float) -> float:
    """Events per second of one producer's stream without pauses."""
    with running(target, model, 0.0, batch, items) as load:
        time.sleep(seconds)
    return load.rate


def _push(target: str, model: str, rate: float, batch: int, items: int) -> None:
    generator = np.random.default_rng(11)
    users, wanted = (
        zipf_ids(generator, EVENTS, USERS) * KEY_STEP,
        zipf_ids(generator, EVENTS, items) * KEY_STEP,
    )
    values = generator.normal(3.5, 1.0, EVENTS).astype(np.float32)
    parts = cycle(slice(start, start + batch) for start in range(0, EVENTS - batch + 1, batch))
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    settings = BatchSettings(events_max=batch, latency_ms_max=None)
    with Producer(target, f"load-{model}", model=model, batch=settings) as producer:
        for part in (next(parts) for _ in range(8)):
            producer.push(users[part], wanted[part], values[part])
        producer.flush(FLUSH_S)
        print("ready", flush=True)
        events, started = 0, time.perf_counter()
        due = started
        while not over.is_set():
            part = next(parts)
            producer.push(users[part], wanted[part], values[part])
            events += batch
            due += batch / rate if rate else 0.0
            pause = due - time.perf_counter()
            if pause > 0:
                over.wait(pause)
            elif pause < -LATE_S:
                due = time.perf_counter()
        producer.flush(FLUSH_S)
        print(events, time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    _push(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
