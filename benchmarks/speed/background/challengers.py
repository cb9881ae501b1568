"""What challengers cost: `python -m benchmarks.speed.background.challengers`.

Two servers take turns: one with the default settings, which holds contests of its model `auto`, and
one with `--auto-cpu-share 0`, where the champion is alone. Each gets the same stream at the same
rate: the Zipf stream of `streams`, slowly at first and then faster, in batches of BATCH events.
Measured are

- the CPU time of the server with all its children, also of those that have ended,
- the time from the push of a batch to its acknowledgement,
- the memory of these processes, where pages that they share count once (PSS): its peak, and what is
  left after the stream when no contest runs any more.

What a process of a contest takes for its start counts. Compiling does not, because a turn that is
not counted comes first. Figures are medians over the rounds, and ratios are ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import psutil

from benchmarks.speed.ingest import serving_process
from benchmarks.speed.streams import zipf_stream
from livefactor import BatchSettings, Models, Producer

MODEL, PRESET = "m", "auto"
BATCH = 512
ROUNDS = 1
SAMPLE_S = 0.5
"""Seconds between two looks at the memory."""

SETTLE_S = 900.0
"""Seconds after the stream within which the last contest must end."""

QUIET_S = 3.0
"""A server without a contest for so long has settled."""

PRODUCER_WAIT_S = 120.0
ALONE, BESIDE = "alone", "beside"
FLAGS = {ALONE: ("--auto-cpu-share", "0"), BESIDE: ()}
DEFAULTS = ("--snapshot-every-events", "20000000")
"""The default that `serving_process` changes."""


class Stage(NamedTuple):
    """A part of the stream: it ends after `events` events, and comes with `rate` events/s."""

    name: str
    events: int
    rate: float


STAGES = (
    Stage("200k", 200_000, 8_000.0),
    Stage("1m", 1_000_000, 10_000.0),
    Stage("end", 1_600_000, 10_000.0),
)
QUICK = (Stage("200k", 20_000, 8_000.0), Stage("1m", 30_000, 20_000.0), Stage("end", 36_000, 20_000.0))
"""The stages of a quick run, under the names of those of a full one."""

WARM_UP = (Stage("end", 36_000, 20_000.0),)
"""Enough events for one whole contest."""


class Family:
    """A process with its children."""

    def __init__(self, pid: int) -> None:
        self._server = psutil.Process(pid)

    @property
    def children(self) -> list[psutil.Process]:
        """The children that run, and theirs."""
        return [each for each in self._server.children(recursive=True) if each.is_running()]

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all, also of children that have ended."""
        own = self._server.cpu_times()
        used = own.user + own.system + own.children_user + own.children_system
        for child in self.children:
            try:
                times = child.cpu_times()
            except psutil.Error:
                # It ended just now. Its parent counts it from then on.
                continue
            used += times.user + times.system + times.children_user + times.children_system
        return used

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory of all, where shared pages count once."""
        held = 0
        for each in (self._server, *self.children):
            try:
                held += each.memory_full_info().pss
            except psutil.Error:
                continue
        return held


class Peak:
    """Follows the memory of processes, and keeps the largest value."""

    def __init__(self, family: Family) -> None:
        self.bytes = 0
        self._family, self._over = family, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.bytes = max(self.bytes, self._family.memory_bytes)

    @contextmanager
    def followed(self) -> Iterator[Peak]:
        """Follows while the context is active."""
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()


class Turn(NamedTuple):
    """What one server took: CPU seconds up to the end of each stage, and after the last contest.

    `ack_s` are the seconds to the acknowledgement of each batch. The memory is in bytes.
    """

    cpu_s: dict[str, float]
    settled_cpu_s: float
    ack_s: np.ndarray
    peak_bytes: int
    settled_bytes: int
    contests: int


def turn(flags: Sequence[str], stages: Sequence[Stage]) -> Turn:
    """Streams to a new server, and waits until its contests are over."""
    users, items, _ = zipf_stream(stages[-1].events)
    with serving_process(flags=(*DEFAULTS, *flags)) as (ports, process):
        target, family = f"127.0.0.1:{ports[0]}", Family(process.pid)
        with Models(target) as models:
            models.create(MODEL, PRESET)
            began_s, used, acks = family.cpu_s, {}, []
            settings = BatchSettings(events_max=BATCH, latency_ms_max=0.0)
            with Peak(family).followed() as peak:
                with Producer(target, "bench", model=MODEL, batch=settings) as producer:
                    start = 0
                    for stage in stages:
                        part = slice(start, stage.events)
                        acks += _paced(producer, users[part], items[part], stage.rate)
                        used[stage.name] = family.cpu_s - began_s
                        start = stage.events
                _wait_until_settled(family)
                settled = family.cpu_s - began_s, family.memory_bytes
            has_contests = FLAGS[ALONE] != tuple(flags)
            contests = models.challengers(MODEL).contests if has_contests else 0
    return Turn(used, settled[0], np.array(acks), peak.bytes, settled[1], contests)


def _paced(producer: Producer, users: np.ndarray, items: np.ndarray, rate: float) -> list[float]:
    """Pushes events at a rate, and waits for them. Returns the seconds to each acknowledgement.

    The rate counts from the start, so batches that are late come one after the other.
    """
    acks: list[float] = []
    due = time.perf_counter()
    for start in range(0, users.size, BATCH):
        pause = due - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        pushed = time.perf_counter()
        receipt = producer.push(users[start : start + BATCH], items[start : start + BATCH])
        receipt.add_done_callback(lambda _, since=pushed: acks.append(time.perf_counter() - since))
        due += BATCH / rate
    producer.flush(PRODUCER_WAIT_S)
    return acks


def _wait_until_settled(family: Family) -> None:
    """Waits until the server has had no children for a while."""
    deadline = time.monotonic() + SETTLE_S
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < QUIET_S:
        if time.monotonic() > deadline:
            raise RuntimeError("a contest did not end")
        if family.children:
            quiet_since = time.monotonic()
        time.sleep(SAMPLE_S)


def figures_of(turns: dict[str, list[Turn]]) -> dict[str, float]:
    """The figures of the turns of both servers: medians, and their quotients."""
    found: dict[str, float] = {}
    for who, each in turns.items():
        ends: dict[str, list[float]] = {}
        for one in each:
            for stage, seconds in one.cpu_s.items():
                ends.setdefault(stage, []).append(seconds)
        late = [one.settled_cpu_s - one.cpu_s["1m"] for one in each]
        values = {f"{stage}_cpu_s": taken for stage, taken in ends.items() if stage != "end"}
        values |= {
            "beyond_1m_cpu_s": late,
            "ack_p50_ms": [1e3 * float(np.quantile(one.ack_s, 0.5)) for one in each],
            "ack_p99_ms": [1e3 * float(np.quantile(one.ack_s, 0.99)) for one in each],
            "peak_mb": [one.peak_bytes / 1e6 for one in each],
            "settled_mb": [one.settled_bytes / 1e6 for one in each],
        }
        found |= {f"challengers_{who}_{name}": statistics.median(taken) for name, taken in values.items()}
    for name in [name.removeprefix(f"challengers_{ALONE}_") for name in found if f"_{ALONE}_" in name]:
        over, under = (found[f"challengers_{who}_{name}"] for who in (BESIDE, ALONE))
        found[f"ratio_challengers_{name.rpartition('_')[0]}"] = over / under
    found["challengers_contests"] = statistics.median(one.contests for one in turns[BESIDE])
    return found


def measure(rounds: int = ROUNDS, stages: Sequence[Stage] = STAGES) -> dict[str, float]:
    """All figures. The first turn of the server with contests compiles, and does not count."""
    turn(FLAGS[BESIDE], WARM_UP)
    turns: dict[str, list[Turn]] = {who: [] for who in FLAGS}
    for _ in range(rounds):
        for who, flags in FLAGS.items():
            turns[who].append(turn(flags, stages))
    return figures_of(turns)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="a few seconds of the stream")
    arguments = parser.parse_args()
    stages = QUICK if arguments.quick else STAGES
    print(json.dumps(measure(arguments.rounds, stages), indent=1))


if __name__ == "__main__":
    main()
