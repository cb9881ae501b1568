"""Producers that push without pause, the acks that they got, and a comparison of these with the
log.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from livefactor.errors import LivefactorError
from livefactor.models import ModelDescription, Models
from livefactor.pushing.batching import BatchSettings, Receipt
from livefactor.pushing.producer import Producer
from livefactor.wire import columns as wire
from livefactor_server.log.store import Kind, Log, LogError
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.audit import root_of
from livefactor_server.snapshots.replay import ReplayError, follow, log_folder, replay
from server_process import Server, wait_until

MODEL = "m"
USERS, ITEMS = 400, 200
IN_FLIGHT_MAX = 24
ROWS_MAX = 120
SERIAL_FIRST = 946_684_800_000_000
"""The serial numbers are microseconds of the year 2000 and later, because they travel as times."""

SERIAL_STEP = 1 << 40

SMALL = {"k": 8, "limits": {"users_max": 10_000, "items_max": 10_000}}
"""Spec of a model with a small state, which can be hashed between two kills."""


def create_model(server: Server, preset: str = "purchases_sgd", **spec: object) -> None:
    """Create the model that the load goes to."""
    with Models(server.target) as models:
        models.create(MODEL, preset, **{**SMALL, **spec})


@dataclass(slots=True)
class Push:
    """One push in one batch.

    Its rows have the serial numbers first, first + 1, ... in their time column.
    """

    first: int
    rows: int
    receipt: Receipt
    # The revision of its ack; 0 before the ack.
    revision: int = 0


class Load:
    """Producers that push batches of random sizes until they are stopped.

    Each has its own thread.
    """

    def __init__(self, server: Server, seed: int, producers: int = 4, pause_s: float = 0.02) -> None:
        self.pushes: list[list[Push]] = [[] for _ in range(producers)]
        self.errors: list[Exception] = []
        self._acked = [0] * producers
        self._server, self._seed, self._pause_s = server, seed, pause_s
        self._stop = threading.Event()
        self._channels: list[grpc.Channel] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(producers)]

    def start(self) -> None:
        """Start all producers."""
        for thread in self._threads:
            thread.start()

    def finish(self, timeout_s: float = 60.0) -> None:
        """Stop pushing, and wait until every batch has its ack or a producer has failed."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), "a producer neither finished nor failed"

    def abandon(self) -> None:
        """Stop at once, without waiting for acks."""
        self._stop.set()
        for channel in self._channels:
            channel.close()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        try:
            channel = self._server.channel()
            self._channels.append(channel)
            with channel, self._producer(number, channel) as producer:
                self._push_until_stopped(number, producer)
        except Exception as error:
            self.errors.append(error)

    def _producer(self, number: int, channel: grpc.Channel) -> Producer:
        # Every push is a batch.
        settings = BatchSettings(latency_ms_max=0)
        return Producer(
            channel, f"producer-{number}", model=MODEL, batch=settings, timeout=30, open_timeout=60
        )

    def _push_until_stopped(self, number: int, producer: Producer) -> None:
        rng, chance = np.random.default_rng([self._seed, number]), random.Random(f"{self._seed}/{number}")
        serial, flying = SERIAL_FIRST + number * SERIAL_STEP, deque[Push]()
        while not self._stop.is_set():
            rows = chance.randint(1, ROWS_MAX)
            receipt = producer.push(
                rng.integers(0, USERS, rows, np.uint64), (rng.zipf(1.3, rows) % ITEMS).astype(np.uint64),
                times=np.arange(serial, serial + rows).view("datetime64[us]"),
            )  # fmt: skip
            flying.append(Push(serial, rows, receipt))
            self.pushes[number].append(flying[-1])
            serial += rows
            while len(flying) > IN_FLIGHT_MAX or (flying and flying[0].receipt.done()):
                self._note(number, flying.popleft())
            time.sleep(self._pause_s * chance.random())
        while flying:
            self._note(number, flying.popleft())

    def _note(self, number: int, push: Push) -> None:
        push.revision = push.receipt.result(60).position.revision
        self._acked[number] = max(self._acked[number], push.revision)

    @property
    def acked_revision(self) -> int:
        """The highest acknowledged revision."""
        return max(self._acked)

    def wait_for_acks(self, timeout_s: float = 30.0) -> None:
        """Wait until every producer has got a new ack, or one has failed."""
        before = list(self._acked)
        wait_until(
            lambda: bool(self.errors) or all(now > old for now, old in zip(self._acked, before, strict=True)),
            "an ack for every producer", timeout_s,
        )  # fmt: skip

    @property
    def acked_pushes(self) -> int:
        """The number of acknowledged pushes."""
        return sum(push.revision > 0 for pushes in self.pushes for push in pushes)

    @property
    def acked_rows(self) -> int:
        """The number of rows in the acknowledged pushes."""
        return sum(push.rows for pushes in self.pushes for push in pushes if push.revision)


class Follower:
    """An independent replay of a log, which goes on while the server is killed and started
    again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state: ModelState | None = None
        self._log: Log | None = None

    def state_at(self, revision: int) -> ModelState:
        """The state at `revision`.

        Revisions must not decrease from call to call. Raises LogError, ReplayError.
        """
        if self._log is None or self._log.last_revision < revision:
            self.close()
            self._log = Log.open(log_folder(self._folder), read_only=True)
        if self._state is None:
            self._state = replay(self._folder, self._log, "cpu", revision)
        return follow(self._state, self._log, revision)

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def equals(self, live: ModelDescription) -> bool:
        """Whether the replay at the revision of the live model has the same hashes."""
        try:
            state = self.state_at(live.position.revision)
        except (LogError, ReplayError, AssertionError):
            return False
        return (
            root_of(state) == live.root_hash
            and state.log_hash == live.log_hash
            and state.events == live.events
        )


@dataclass(slots=True)
class Findings:
    """The numbers of faults by kind. All are 0 for a correct server."""

    acked: int = 0
    lost: int = 0
    twice: int = 0
    partial: int = 0
    # Batches whose ack has another revision than the log.
    moved: int = 0
    # Comparisons in which the live state and the replay have different root hashes.
    unequal: int = 0
    # Restarts after which the revision is below an acknowledged one.
    forgotten: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether there are no faults."""
        counts = (self.lost, self.twice, self.partial, self.moved, self.unequal, self.forgotten)
        return not any(counts) and not self.errors

    def add_log(self, folder: Path, load: Load) -> None:
        """Compare the acknowledged pushes with the rows in the log."""
        found, rows = _logged(folder)
        counts = Counter(serial for first, count in found for serial in range(first, first + count))
        self.twice += sum(count - 1 for count in counts.values()) + sum(len(at) - 1 for at in found.values())
        pushed = {(push.first, push.rows) for pushes in load.pushes for push in pushes}
        self.partial += len(set(found) - pushed)
        for push in (push for pushes in load.pushes for push in pushes if push.revision):
            self.acked += 1
            revisions = found.get((push.first, push.rows), [])
            self.lost += not revisions
            self.moved += bool(revisions) and push.revision not in revisions
        self.errors += [f"{type(error).__name__}: {error}" for error in load.errors]
        assert rows >= sum(counts.values())


def _logged(folder: Path) -> tuple[dict[tuple[int, int], list[int]], int]:
    """The revisions of all interactions in a log by (first serial, rows), and the number of
    rows.
    """
    found: dict[tuple[int, int], list[int]] = {}
    rows = 0
    with Log.open(log_folder(folder), read_only=True) as log:
        for record in log.read():
            if record.kind == Kind.INTERACTIONS:
                times = wire.decode_interactions(bytes(record.body)).times_us
                assert times is not None
                contiguous = bool((np.diff(times) == 1).all())
                found.setdefault((int(times[0]), len(times) if contiguous else -1), []).append(
                    record.revision
                )
                rows += len(times)
    return found, rows


def described(server: Server) -> ModelDescription:
    """The live model with its root hash."""
    with server.channel() as channel, Models(channel) as models:
        return models.describe(MODEL, with_root_hash=True)


def give_up_is_fine(error: Exception) -> bool:
    """Whether a client may get this error while its server is killed."""
    return isinstance(error, LivefactorError) and error.code in (
        "UNAVAILABLE",
        "CANCELLED",
        "DEADLINE_EXCEEDED",
    )
