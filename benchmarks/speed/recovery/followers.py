"""How far a follower is behind: `python -m benchmarks.speed.recovery.followers`.

A leader and a follower run in processes of their own on this machine. One event after the other
goes to the leader. The lag is the time from its acknowledgement to the follower's answer of a Score
that waits for the position. Such a call without a position to wait for is beside it, because the
lag contains a call. Each is measured idle, and while a producer pushes batches of 8,192 events at
half of the peak rate, which is that of both together: events a second until the follower has them.
Idle and loaded blocks take turns.
"""

from __future__ import annotations

import json
import time

import numpy as np

from benchmarks.speed import paced
from benchmarks.speed.ingest import serving
from benchmarks.speed.latency import BATCH, LOAD_SHARE, PAUSE_MAX_S, Clock, fill
from benchmarks.speed.streams import ITEMS, KEY_STEP, USERS
from livefactor import Models, Producer, Scorer
from livefactor.pushing.batching import BatchSettings

MODEL = "live"
START_TIMEOUT_S = 120.0


def measure(rounds: int = 3, events: int = 300, peak_s: float = 3.0) -> dict[str, float]:
    """The figures of this many idle and loaded blocks of `events` events each."""
    with serving() as leader, serving(flags=("--follow", leader)) as follower:
        fill(leader, MODEL, ITEMS)
        probe, clock = Probe(leader, follower), Clock()
        _wait_for_model(follower)
        # The first block waits until the follower has caught up, and warms up.
        probe.block(Clock(), "", 20, START_TIMEOUT_S)
        peak, carried = probe.peak(leader, peak_s), []
        for _ in range(rounds):
            probe.block(clock, "", events)
            with paced.running(leader, MODEL, LOAD_SHARE * peak, BATCH, ITEMS) as load:
                probe.block(clock, "_loaded", events)
            carried.append(load.rate / peak)
        probe.close()
    return clock.quantiles() | {
        "follower_peak_events_per_s": peak,
        "follower_load_share_of_peak": float(np.median(carried)),
    }


def _wait_for_model(follower: str) -> None:
    """Waits until the follower has copied the model."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with Models(follower) as models:
        while MODEL not in [found.name for found in models.list()]:
            if time.monotonic() > deadline:
                raise RuntimeError("the follower did not copy the model")
            time.sleep(0.1)


class Probe:
    """Sends single events to the leader, and asks the follower for Scores that include them."""

    def __init__(self, leader: str, follower: str) -> None:
        self._producer = Producer(leader, "probe", model=MODEL, batch=BatchSettings(latency_ms_max=0.0))
        self._scorer = Scorer(follower, model=MODEL)
        self._generator = np.random.default_rng(6)

    def block(self, clock: Clock, suffix: str, events: int, timeout: float = 60.0) -> None:
        """Sends events one after the other, each at a random time."""
        for _ in range(events):
            time.sleep(self._generator.uniform(0.0, PAUSE_MAX_S))
            user = self._generator.integers(0, USERS, 1, np.uint64) * KEY_STEP
            item = self._generator.integers(0, ITEMS, 1, np.uint64) * KEY_STEP
            position = self._producer.push(user, item, 4.0).result(60).position
            clock.take(
                f"follower_lag{suffix}",
                lambda u=user, i=item, p=position: self._scorer.score(u, i, min_position=p, timeout=timeout),
            )
            clock.take(f"follower_call{suffix}", lambda u=user, i=item: self._scorer.score(u, i))

    def peak(self, leader: str, seconds: float) -> float:
        """Events per second of a producer without pauses, until the follower has the last one."""
        with paced.running(leader, MODEL, 0.0, BATCH, ITEMS) as load:
            time.sleep(seconds)
        started = time.perf_counter()
        self.block(Clock(), "", 1, START_TIMEOUT_S)
        return load.events / (load.seconds + time.perf_counter() - started)

    def close(self) -> None:
        """Closes both connections."""
        self._producer.close()
        self._scorer.close()


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
