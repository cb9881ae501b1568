"""What a call costs: `python -m benchmarks.speed.calls`.

Calls per second, latency and the server's CPU time of single calls, beside an empty call: a server
of plain grpcio with a handler that returns 100 bytes. 1, 8 and 32 callers in two processes make the
calls (`callers`), on the same machine as the servers. All kinds of calls take turns. Figures are
medians over the rounds. For updates there is also the share of the time that each step of a commit
works, from the server's metrics. If the shares add up to more than 1, the steps overlap.

`python -m benchmarks.speed.calls workers` measures servers with score workers: `Score` calls per
second and per second of CPU time of all their processes, for 500 candidates without histories, and
for 500 candidates and the best 100 of 20,000 items with preset `auto`.

`python -m benchmarks.speed.calls ingest` measures `Score` calls for 500 candidates, and the empty
call, while one producer streams batches of 8,192 events to the same model without pauses, and
without that. The servers have score workers or none.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.speed.callers import (
    APPLY,
    AUTO,
    AUTO_EVENTS,
    AUTO_USERS,
    CALLS,
    LARGE,
    LARGE_ITEMS,
    LIVE,
    METHODS,
    STREAM,
)
from benchmarks.speed.disk import RawFile
from benchmarks.speed.ingest import serving_process
from benchmarks.speed.latency import fill
from benchmarks.speed.paced import ROOT, Load, running
from benchmarks.speed.streams import ITEMS, KEY_STEP, zipf_ids
from livefactor import Models, Producer
from livefactor_server.log.disk import BLOCK_BYTES

CALLERS = (1, 8, 32)
PROCESSES = 2
ROUNDS, SECONDS = 3, 1.0
WORKERS = (0, 1, 2, 4)
WORKER_CALLS, WORKER_CONNECTIONS, WORKER_CALLERS = ("score_500", "auto_500", "auto_top_100"), 8, 16
"""With score workers: the calls, and the numbers of connections and of callers."""

INGEST_WORKERS, INGEST_CALLERS, INGEST_CONNECTIONS, INGEST_BATCH = (0, 1, 2), 8, 4, 8_192
"""Beside a stream at full speed: the numbers of workers, callers and connections, and the events of
a batch.
"""

SYNCS = 100
"""Raw writes of a block in each round."""

_STEP = re.compile(rf'^livefactor_commit_seconds_total{{model="{LIVE}",step="(\w+)"}} (\S+)$', re.M)
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Server(NamedTuple):
    """A running server. `metrics` is the address of its metrics, "" without any."""

    target: str
    pid: int
    metrics: str = ""

    @property
    def steps_s(self) -> dict[str, float]:
        """Seconds that each step of the commits of the model `LIVE` has taken."""
        if not self.metrics:
            return {}
        with urllib.request.urlopen(self.metrics) as answer:
            lines = answer.read().decode()
        return {step: float(seconds) for step, seconds in _STEP.findall(lines)}

    @property
    def cpu_s(self) -> float:
        """CPU time that the process and its score workers have used, in seconds."""
        used = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                # The process has ended.
                continue
            if self.pid in (int(path.parent.name), int(fields[1])):
                used += int(fields[11]) + int(fields[12])
        return used / _TICKS_A_SECOND


@contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ask(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a process of the benchmark ended; its error stands above")
    return line


def _job(
    processes: list[subprocess.Popen[str]], server: Server, name: str, callers: int, seconds: float
) -> dict[str, float]:
    """The figures of one turn: calls per second, milliseconds, and microseconds of server CPU."""
    used = processes[: min(callers, len(processes))]
    before, steps = server.cpu_s, server.steps_s
    for process in used:
        _ask(process, f"{server.target} {name} {callers // len(used)} {seconds}")
    answers = [json.loads(_answer(process)) for process in used]
    cpu, seconds = server.cpu_s - before, max(answer["seconds"] for answer in answers)
    shares = {f"{step}_share": (s - steps.get(step, 0.0)) / seconds for step, s in server.steps_s.items()}
    calls = sum(answer["calls"] for answer in answers)
    p50, p99 = np.percentile([ms for answer in answers for ms in answer["ms"]], (50, 99))
    return {
        "per_s": calls / seconds,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "cpu_us": cpu / calls * 1e6,
    } | (shares if METHODS[name] in (APPLY, STREAM) else {})


def _sync_ms(file: RawFile) -> float:
    """Median time of writing and syncing one block, in milliseconds."""
    taken = []
    for _ in range(SYNCS):
        file.room()
        started = time.perf_counter()
        file.write()
        taken.append((time.perf_counter() - started) * 1e3)
    return statistics.median(taken)


def measure(rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, float]:
    """Flat figures: calls per second, milliseconds, microseconds, and rates relative to the empty
    call of a server with threads.
    """
    taken: dict[str, list[float]] = {}
    with ExitStack() as stack:
        ports, process = stack.enter_context(serving_process(flags=("--metrics-port", "0")))
        target = f"127.0.0.1:{ports[0]}"
        ours = Server(target, process.pid, f"http://127.0.0.1:{ports[1]}/metrics")
        servers = dict.fromkeys(CALLS, ours)
        for name, kind in (("plain", "threads"), ("plain_loop", "loop")):
            plain = stack.enter_context(_process("benchmarks.speed.plain_server", kind))
            servers[name] = Server(f"127.0.0.1:{int(_answer(plain))}", plain.pid)
        fill(target, LIVE, ITEMS)
        fill(target, LARGE, LARGE_ITEMS)
        processes = [stack.enter_context(_process("benchmarks.speed.callers")) for _ in range(PROCESSES)]
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")))
        raw = RawFile(Path(folder) / "raw", BLOCK_BYTES, zeroed=True)
        for number in range(rounds + 1):
            for callers in CALLERS:
                for name, server in servers.items():
                    # The first round warms up.
                    figures = _job(processes, server, name, callers, seconds if number else 0.2)
                    for unit, figure in figures.items() if number else ():
                        taken.setdefault(f"call_{name}_{callers}_{unit}", []).append(figure)
            taken.setdefault("call_raw_sync_p50_ms", []).append(_sync_ms(raw))
        raw.close()
    return _with_ratios({name: statistics.median(values) for name, values in taken.items()})


def measure_workers(rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, float]:
    """Flat figures for each call and number of score workers: calls per second, milliseconds, and
    calls per second of CPU time of the server.
    """
    taken: dict[str, list[float]] = {}
    with ExitStack() as stack:
        servers = {}
        for count in WORKERS:
            ports, process = stack.enter_context(serving_process(flags=("--score-workers", str(count))))
            servers[count] = Server(f"127.0.0.1:{ports[0]}", process.pid)
            fill(servers[count].target, LIVE, ITEMS)
            _fill_auto(servers[count].target)
        callers = [
            stack.enter_context(_process("benchmarks.speed.callers")) for _ in range(WORKER_CONNECTIONS)
        ]
        for number in range(rounds + 1):
            for name, (count, server) in product(WORKER_CALLS, servers.items()):
                figures = _job(callers, server, name, WORKER_CALLERS, seconds)
                figures["per_cpu_s"] = 1e6 / figures.pop("cpu_us")
                # The first round warms up.
                for unit, figure in figures.items() if number else ():
                    taken.setdefault(f"{name}_workers_{count}_{unit}", []).append(figure)
    return {name: statistics.median(values) for name, values in taken.items()}


def measure_under_ingest(rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, float]:
    """Flat figures for each number of score workers, with the ingest and without: calls per second
    and milliseconds, and the events per second beside the calls.
    """
    taken: dict[str, list[float]] = {}
    with ExitStack() as stack:
        plain = stack.enter_context(_process("benchmarks.speed.plain_server", "threads"))
        empty = Server(f"127.0.0.1:{int(_answer(plain))}", plain.pid)
        servers = {}
        for count in INGEST_WORKERS:
            ports, process = stack.enter_context(serving_process(flags=("--score-workers", str(count))))
            servers[count] = Server(f"127.0.0.1:{ports[0]}", process.pid)
            fill(servers[count].target, LIVE, ITEMS)
        callers = [
            stack.enter_context(_process("benchmarks.speed.callers")) for _ in range(INGEST_CONNECTIONS)
        ]
        for number in range(rounds + 1):
            for (count, server), is_beside, name in product(
                servers.items(), (False, True), ("score_500", "plain")
            ):
                asked = empty if name == "plain" else server
                beside = "ingest" if is_beside else "quiet"
                load: Load | None = None
                with ExitStack() as pushing:
                    if is_beside:
                        load = pushing.enter_context(running(server.target, LIVE, 0.0, INGEST_BATCH, ITEMS))
                    figures = _job(callers, asked, name, INGEST_CALLERS, seconds)
                if load is not None:
                    figures["events_per_s"] = load.rate
                # The first round warms up.
                for unit, figure in figures.items() if number else ():
                    taken.setdefault(f"{name}_workers_{count}_{beside}_{unit}", []).append(figure)
    return {name: statistics.median(values) for name, values in taken.items()}


def _fill_auto(target: str) -> None:
    """Makes the model `AUTO`."""
    with Models(target) as models:
        models.create(AUTO, "auto")
    draw = np.random.default_rng(7)
    users = np.repeat(np.arange(AUTO_USERS, dtype=np.uint64), AUTO_EVENTS)
    items = np.concatenate([np.arange(ITEMS), zipf_ids(draw, users.size - ITEMS, ITEMS)]).astype(np.uint64)
    order = draw.permutation(users.size)
    with Producer(target, "fill", model=AUTO) as producer:
        producer.push(users[order] * KEY_STEP, items[order] * KEY_STEP)
        producer.flush(600)


def _with_ratios(figures: dict[str, float]) -> dict[str, float]:
    ratios = {
        f"ratio_call_{name}_{callers}_to_plain": figures[f"call_{name}_{callers}_per_s"]
        / figures[f"call_plain_{callers}_per_s"]
        for name in CALLS
        for callers in CALLERS
        if name != "plain"
    }
    return figures | ratios


if __name__ == "__main__":
    parts = {"": measure, "workers": measure_workers, "ingest": measure_under_ingest}
    print(json.dumps(parts["".join(sys.argv[1:])](), indent=1))
