"""The leader is killed under load, again and again: nothing acknowledged is lost or learned twice.

Two servers take turns. Each acknowledges a batch only when the other one has it on disk. The leader
is killed, the follower takes the lead, and the killed server begins with a new copy, because its
log can have records that nobody else has.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from livefactor.errors import FailedPrecondition, Unavailable
from livefactor.models import ModelDescription, Models
from livefactor.pushing.producer import Producer
from server_process import Server, wait_until
from tally import Tally, amount

Serve = Callable[..., Server]

MODEL = "m"
KILLS, KILLS_LONG = 1, 100
BATCHES_A_KILL, ROWS = 20, 7
FLAGS = ("--preset", "", "--ack-after-followers", "1", "--ack-wait-s", "5", "--auto-cpu-share", "0")
LIMITS = {"users_max": 5000, "items_max": 5000}


class Load:
    """A producer that has several batches in flight, and counts what was acknowledged."""

    def __init__(self, targets: list[str]) -> None:
        self._producer = Producer(producer_id="load", target=targets, model=MODEL, open_timeout=60.0)
        self._stopped = threading.Event()
        self.rows = self.acked = 0
        self.acked_at = time.monotonic()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        waiting: list[Any] = []
        try:
            while not self._stopped.is_set() or waiting:
                if not self._stopped.is_set() and len(waiting) < 8:
                    ids = np.arange(self.rows, self.rows + ROWS)
                    waiting.append(self._producer.push(ids % 500, ids % 50))
                    self.rows += ROWS
                    continue
                self.acked += waiting.pop(0).result(120).accepted
                self.acked_at = time.monotonic()
        except BaseException as error:
            self.error = error

    def await_more(self, rows: int) -> None:
        """Wait until so many more rows are acknowledged."""
        wanted = self.acked + rows
        wait_until(lambda: self.acked >= wanted or self.error is not None, "acknowledgements", 120)
        assert self.error is None

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._producer.close()
        assert self.error is None


def described(server: Server) -> ModelDescription:
    with Models(server.target) as models:
        return models.describe(MODEL, with_root_hash=True)


def take_lead(server: Server) -> None:
    with Models(server.target) as models:

        def done() -> bool:
            with suppress(FailedPrecondition, Unavailable):
                models.take_lead(address=server.target)
                return True
            return False

        wait_until(done, "the follower takes the lead", 30)


def follow(server: Server, leader: Server) -> None:
    """Start a server with an empty folder, which follows another one. It does not wait."""
    shutil.rmtree(server.data, ignore_errors=True)
    server.flags = (*FLAGS, "--follow", leader.target)
    server.launch()


@pytest.mark.torture
def test_a_killed_leader_loses_nothing_that_was_acknowledged(
    serve: Serve, is_long: bool, record: Callable[..., None], tally: Tally
) -> None:
    leader = serve(*FLAGS, name="one")
    with Models(leader.target) as models:
        models.create(MODEL, "clicks_sgd", k=8, limits=LIMITS)
    other = serve(*FLAGS, "--follow", leader.target, name="two")
    load = Load([leader.target, other.target])
    kills, waits = KILLS_LONG if is_long else amount("LEADER_KILLS", KILLS), []
    for _ in range(kills):
        load.await_more(ROWS * BATCHES_A_KILL)
        leader.kill()
        killed = time.monotonic()
        take_lead(other)
        follow(leader, other)
        leader.start()
        load.await_more(ROWS)
        waits.append(load.acked_at - killed)
        leader, other = other, leader
    load.stop()
    wait_until(
        lambda: described(other).position == described(leader).position, "the follower has all records", 60
    )
    found, copy = described(leader), described(other)
    lost, twice = max(0, load.acked - found.events), max(0, found.events - load.rows)
    record(
        leader_kills=kills, leader_kills_lost=lost, leader_kills_twice=twice,
        leader_kills_wait_s_median=float(np.median(waits)), leader_kills_wait_s_max=max(waits),
    )  # fmt: skip
    tally.add("kill -9 of a leader", kills, lost=lost, twice=twice)
    assert (lost, twice, load.acked) == (0, 0, load.rows)
    assert found.events == load.rows and found.root_hash == copy.root_hash
    assert found.term == kills
