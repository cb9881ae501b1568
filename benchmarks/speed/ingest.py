"""Throughput of gRPC ingest, from `Producer.push` in one process to a durable, visible ack from
another.

The stream is that of benchmarks/speed/kernels.py (k = 64, SGD, B = 1; 100 thousand users, 20
thousand items, Zipf). It is streamed in batches of 65,536 and 8,192, sent in unary calls, and sent
to a log without syncs, which shows the cost of durability. All variants take turns in one run, and
figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.speed.streams import K, Run, zipf_stream
from livefactor import BatchSettings, Models, Producer
from livefactor.channel import open_channel
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire

START_TIMEOUT_S = 120.0
ROUND_EVENTS = 8 << 20
ROUNDS = 5
UNSYNCED = """
from livefactor_server.log.disk import FileIO
FileIO.fdatasync = lambda self, fd: None
from livefactor.__main__ import main
main()
"""
"""A server whose log is never synced, to measure the cost of durability. It is not for use."""

SPECS = {
    "squared": {"preset": "ratings_sgd", "k": K},
    "logistic": {"preset": "clicks_sgd", "k": K, "negatives": 1},
    "labels": {"preset": "clicks_sgd", "k": K, "negatives": 0},
}


@contextmanager
def serving(program: list[str] | None = None, flags: Sequence[str] = ()) -> Iterator[str]:
    """Runs a server process on an empty folder, and yields its target.

    `flags` are added to `serve`.
    """
    with serving_process(program, flags) as (ports, _):
        yield f"127.0.0.1:{ports[0]}"


@contextmanager
def serving_process(
    program: list[str] | None = None, flags: Sequence[str] = ()
) -> Iterator[tuple[list[int], subprocess.Popen[bytes]]]:
    """Does as `serving`, and yields the ports of gRPC and of the metrics, and the process."""
    with tempfile.TemporaryDirectory(prefix="livefactor-bench-", dir=os.environ.get("BENCH_DIR")) as name:
        ports = Path(name) / "ports"
        command = program or ["-m", "livefactor"]
        process = subprocess.Popen(
            [sys.executable, *command, "serve", "--data", f"{name}/data", "--port", "0", "--metrics-port", "-1", "--preset", "",
             "--port-file", str(ports), "--log-level", "warning", "--snapshot-every-events", "0", *flags],
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not ports.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server did not start")
                time.sleep(0.05)
            yield [int(port) for port in ports.read_text().split()], process
        finally:
            process.kill()
            process.wait()


class Load:
    """The columns of the stream, cut into batches.

    `kind` is a key of `SPECS` and determines the values.
    """

    def __init__(self, events: int, batch: int, kind: str = "squared") -> None:
        self.users, self.items, values = zipf_stream(events)
        self.values: np.ndarray | None = values
        if kind == "labels":
            self.values = (values > np.median(values)).astype(np.float32)
        elif kind == "logistic":
            # All events are positive, and the server samples their negatives.
            self.values = None
        self.batch = batch

    def slices(self) -> Iterator[slice]:
        """The batches."""
        for start in range(0, len(self.users), self.batch):
            yield slice(start, start + self.batch)

    def columns(self, part: slice) -> dict[str, np.ndarray | None]:
        """The arguments of `Producer.push`."""
        return {
            "user_ids": self.users[part],
            "item_ids": self.items[part],
            "values": None if self.values is None else self.values[part],
        }


def stream_rate(target: str, model: str, load: Load) -> float:
    """Events per second of one producer's stream, until the last ack."""
    settings = BatchSettings(events_max=load.batch, latency_ms_max=None)
    with Producer(target, "bench", model=model, batch=settings) as producer:
        started = time.perf_counter()
        for part in load.slices():
            producer.push(**load.columns(part))
        producer.flush(120)
        return len(load.users) / (time.perf_counter() - started)


def unary_rate(target: str, model: str, load: Load) -> float:
    """Events per second of unary calls, one after the other."""
    with open_channel(target) as channel:
        call = channel.unary_unary("/livefactor.v1.UpdateService/ApplyUpdates")
        started = time.perf_counter()
        for part in load.slices():
            body = wire.encode_interactions(**load.columns(part))
            answer = call(wire.encode_apply(model, wire.Stamp("", 0, 0), wire.INTERACTIONS, body), timeout=60)
            assert updates_pb2.ApplyUpdatesResponse.FromString(answer).accepted == part.stop - part.start
        return len(load.users) / (time.perf_counter() - started)


def measure(
    rounds: int = ROUNDS, events: int = ROUND_EVENTS, beside: dict[str, Run] | None = None
) -> dict[str, float]:
    """Medians of all figures, in events per second.

    `beside` adds other runs by name, which take turns with these.
    """
    taken: dict[str, list[float]] = {}
    loads = {("squared", 8_192): Load(events, 8_192)} | {
        (kind, 65_536): Load(events, 65_536, kind) for kind in SPECS
    }
    with serving() as durable, serving(["-c", UNSYNCED]) as unsynced:
        for target in (durable, unsynced):
            with Models(target) as models:
                for name, spec in SPECS.items():
                    models.create(name, **spec)  # type: ignore[arg-type]

        def run(rate: Callable[[str, str, Load], float], target: str, model: str, batch: int) -> Run:
            return lambda: rate(target, model, loads[model, batch])

        runs: dict[str, Run] = {
            "ingest_stream_durable_events_per_s": run(stream_rate, durable, "squared", 65_536),
            "ingest_stream_durable_8k_events_per_s": run(stream_rate, durable, "squared", 8_192),
            "ingest_stream_unsynced_events_per_s": run(stream_rate, unsynced, "squared", 65_536),
            "ingest_unary_durable_events_per_s": run(unary_rate, durable, "squared", 65_536),
            "ingest_unary_durable_8k_events_per_s": run(unary_rate, durable, "squared", 8_192),
            "ingest_stream_durable_logistic_events_per_s": run(stream_rate, durable, "logistic", 65_536),
            "ingest_stream_durable_labels_events_per_s": run(stream_rate, durable, "labels", 65_536),
        }
        for number in range(rounds + 1):
            for name, one in (runs | (beside or {})).items():
                rate = one()
                # The first round warms up.
                if number:
                    taken.setdefault(name, []).append(rate)
    return {name: statistics.median(rates) for name, rates in taken.items()}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--events", type=int, default=ROUND_EVENTS)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.rounds, arguments.events), indent=1))


if __name__ == "__main__":
    main()
