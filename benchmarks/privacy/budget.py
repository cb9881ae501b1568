"""Random schedules against the ledger: `python -m benchmarks.privacy.budget`.

A schedule has a budget of its own, a clock that jumps in both directions, calls with right and
wrong numbers, restarts from the section of a snapshot, and crashes after the record was written and
before the answer. For each window the epsilon of what was released follows from the number of its
records alone, by the formula of Balle and Wang (ICML 2018) with SciPy's normal distribution.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from scipy.special import log_ndtr, ndtr

from benchmarks.privacy.results import keep
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.spec.privacy import Privacy
from livefactor_server.changes.content.release import ReleaseChange
from livefactor_server.changes.content.releasing import Releaser
from livefactor_server.model.gate import Gate
from livefactor_server.model.ledger import Ledger
from livefactor_server.statuses import Refused

SCHEDULES, STEPS, DELTA = 10_000, 60, 1e-6
JUMPS = (0, 1, 30, 3600, -30, -7200)
"""What the clock does before a call, seconds."""

NUMBERS = (1, 1, 1, 1, 0, 2)
"""The number of a call, from that of the last release on."""

SPEC = preset("clicks_sgd", k=2)
SLACK = 1e-9
"""What rounding may add to delta, as a share of it."""


class Crash(Exception):
    """The process ends after the record is durable."""


class Writer:
    """An engine whose log is a list: a record is charged as it is applied."""

    def __init__(self, privacy: Privacy, records: list[ReleaseChange], crashes: Any) -> None:
        self.ledger, self.records, self.gate, self.crashes = Ledger(privacy), records, Gate(), crashes
        items = SimpleNamespace(keys=np.arange(2, dtype=np.uint64))
        backend = SimpleNamespace(items=items, published=(0, 2))
        self.state: Any = SimpleNamespace(ledger=self.ledger, spec=SPEC, backend=backend)

    @property
    def revision(self) -> int:
        return len(self.records)

    def append(self, change: Any) -> int:
        # As `ReleaseChange.apply` does. A charge that is refused there ends the server.
        self.ledger.charge(change.window, change.number)
        self.records.append(change)
        if self.crashes():
            raise Crash
        return self.revision


def schedule(rng: np.random.Generator) -> tuple[int, int, float]:
    """One schedule. Returns its releases, its refusals, and the largest delta of a window over the
    promised one.
    """
    epsilon, noise = float(rng.uniform(0.5, 10)), float(rng.uniform(1, 20))
    length = int(rng.choice([0, 60, 3600]))
    privacy = Privacy(epsilon, DELTA, length, 1.0, noise)
    records: list[ReleaseChange] = []
    refused, clock = 0, float(rng.integers(1, 10**6))
    if any(privacy.problems(merges=True)):
        return 0, 0, 0.0
    writer = Writer(privacy, records, lambda: rng.random() < 0.1)
    releaser = Releaser(writer)
    now = SimpleNamespace(time=lambda: clock)
    with mock.patch("livefactor_server.changes.content.releasing.time", now):
        for _ in range(STEPS):
            clock = max(0.0, clock + float(rng.choice(JUMPS)))
            try:
                releaser.make(writer.ledger.all_releases + int(rng.choice(NUMBERS)))
            except Refused:
                refused += 1
            except Crash:
                writer = _restarted(writer, from_snapshot=rng.random() < 0.5)
                releaser = Releaser(writer)
    counts = np.unique([change.window for change in records], return_counts=True)[1]
    worst = max((delta_of(int(n), noise, epsilon) for n in counts), default=0.0)
    return len(records), refused, worst / DELTA


def _restarted(writer: Writer, from_snapshot: bool) -> Writer:
    """A server that starts again takes a snapshot, or replays its log."""
    again = Writer(writer.ledger.privacy, writer.records, writer.crashes)
    if from_snapshot:
        again.ledger.load(writer.ledger.arrays()["privacy"])
    else:
        for change in writer.records:
            again.ledger.charge(change.window, change.number)
    return again


def delta_of(releases: int, noise: float, epsilon: float) -> float:
    """The delta of Gaussian noise at an epsilon."""
    m = np.sqrt(releases) / noise
    return float(ndtr(m / 2 - epsilon / m) - np.exp(epsilon + log_ndtr(-m / 2 - epsilon / m)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=SCHEDULES)
    given = parser.parse_args()
    rng = np.random.default_rng(19)
    done = [schedule(rng) for _ in range(given.schedules)]
    releases, refused = sum(each[0] for each in done), sum(each[1] for each in done)
    over = sum(each[2] > 1 + SLACK for each in done)
    print(f"{given.schedules} schedules, {releases} releases, {refused} refused, {over} over the budget")
    keep(schedules=given.schedules, releases=releases, refused=refused, over_budget=over)
    if over or not refused:
        raise SystemExit("a schedule went over its budget, or none reached it")


if __name__ == "__main__":
    main()
