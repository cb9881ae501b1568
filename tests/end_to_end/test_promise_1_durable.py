"""Promise 1: an acknowledged batch survives `kill -9` and is applied once, and a replay of the log
gives equal tables.

Only a power cut can show that the server syncs. test_power_cut_server.py makes power cuts.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from livefactor.auditor import Auditor
from livefactor.errors import LivefactorError
from livefactor_server.snapshots.audit import replay_model
from load import MODEL, Findings, Follower, Load, create_model, described, give_up_is_fine
from server_process import Server
from tally import Tally, amount

KILLS = amount("KILLS", 12)
KILLS_A_MODEL = 50
"""A restart compares the whole log, so a long run begins with a new model now and then."""

SEED = 20_261_124
RUN_S = (0.0, 0.2)
"""Range of the time from the producers' first new acks to the kill, seconds.

In some rounds the server is killed a second time, during recovery.
"""

Serve = Callable[..., Server]


class Killing:
    """Kills a server many times while four producers push, and compares it with a replay after
    every restart.
    """

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.chance = server, random.Random(seed)
        self.findings = Findings()
        self.load = Load(server, seed)
        self.follower = Follower(server.model_folder(MODEL))
        self.kills = self.kills_in_recovery = self.compared = self.snapshots = 0
        self.surprises: list[Exception] = []

    def round(self) -> None:
        """Let the load run, kill the server, start it again and compare it with a replay.

        Some rounds take a snapshot meanwhile. Some kill the server again during recovery.
        """
        snapshot = threading.Thread(target=self._snapshot)
        if self.chance.random() < 0.5:
            snapshot.start()
        self.load.wait_for_acks()
        # The kill comes at a random moment.
        time.sleep(self.chance.uniform(*RUN_S))
        acked = self.load.acked_revision
        self.server.kill()
        self.kills += 1
        if snapshot.ident is not None:
            snapshot.join()
        if self.chance.random() < 0.25:
            self.server.launch()
            time.sleep(self.chance.uniform(0, 0.15))
            self.server.kill()
            self.kills_in_recovery += 1
        self.server.start()
        self._compare(acked)

    def _compare(self, acked: int) -> None:
        live = described(self.server)
        self.compared += 1
        self.findings.forgotten += live.position.revision < acked
        self.findings.unequal += not self.follower.equals(live)

    def _snapshot(self) -> None:
        try:
            with Auditor(self.server.target, model=MODEL) as auditor:
                auditor.snapshot()
            self.snapshots += 1
        except LivefactorError as error:
            if not give_up_is_fine(error):
                self.surprises.append(error)

    def finish(self) -> None:
        """Wait until every push has its ack, and compare the acks with the log."""
        self.load.finish()
        live = described(self.server)
        self.findings.unequal += not self.follower.equals(live)
        if not self.load.errors:
            self.findings.twice += live.events - self.load.acked_rows
        self.findings.add_log(self.server.model_folder(MODEL), self.load)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills under load and {self.kills_in_recovery} in recovery, {self.snapshots} snapshots, "
            f"{self.load.acked_pushes} batches acknowledged, {self.compared} restarts compared: {self.findings}"
        )


def kill_often(server: Server, kills: int, seed: int) -> Killing:
    create_model(server)
    killing = Killing(server, seed)
    killing.load.start()
    try:
        for _ in range(kills):
            killing.round()
    finally:
        killing.finish()
    print(f"seed {seed}: {killing}")
    return killing


def check_sound(killing: Killing, kills: int) -> None:
    assert not killing.surprises, killing.surprises
    assert killing.findings.sound, killing.findings
    assert killing.findings.acked > 20 * kills
    report = replay_model(killing.server.model_folder(MODEL))
    live = described(killing.server)
    assert (report.root_hash, report.log_hash) == (live.root_hash, live.log_hash)
    assert report.good


@pytest.mark.torture
@pytest.mark.timeout(7200 if KILLS > 12 else 300)
def test_nothing_acknowledged_is_lost_or_applied_twice_by_kills(serve: Serve, tally: Tally) -> None:
    for first in range(0, KILLS, KILLS_A_MODEL):
        kills = min(KILLS_A_MODEL, KILLS - first)
        server = serve(plants=("small_segments",), name=f"from-{first}")
        killing = kill_often(server, kills, SEED + first)
        found = killing.findings
        tally.add("kill -9 under load", killing.kills, lost=found.lost + found.forgotten, twice=found.twice)
        tally.add("kill -9 in recovery", killing.kills_in_recovery)
        check_sound(killing, kills)
        assert killing.compared == kills
        server.kill()


@pytest.mark.parametrize(
    ("plant", "seen"),
    [
        ("ack_before_write", lambda found: found.lost or found.forgotten),
        ("apply_twice", lambda found: found.twice and found.unequal),
        ("retries_are_new", lambda found: found.twice),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_planted_bug_is_caught(serve: Serve, plant: str, seen: Callable[[Findings], int]) -> None:
    killing = kill_often(serve(plants=("small_segments", plant)), 4, SEED)
    assert seen(killing.findings), killing.findings
