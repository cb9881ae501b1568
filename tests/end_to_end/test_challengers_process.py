"""The process of a contest beside a server that is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

from contests import events
from livefactor import BatchSettings, Models, Producer
from livefactor_server.snapshots.audit import replay_model
from server_process import Server, wait_until

WAIT_S = 200.0
NOTHING = {"learning_rate": 1e-6, "bias_learning_rate": 1e-6}
MUCH = {"learning_rate": 0.3, "bias_learning_rate": 0.3}


def worker_of(pid: int) -> psutil.Process | None:
    for child in psutil.Process(pid).children():
        if "livefactor_server.challenging.worker" in child.cmdline():
            return child
    return None


def test_a_killed_server_takes_the_process_with_it_and_the_contest_is_held_after_a_restart(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve("--auto-cpu-share", "1")
    with Models(server.target) as models:
        models.create("m", "clicks_sgd", k=8, optimizer=NOTHING)
        batch = BatchSettings(events_max=450)
        with Producer(server.target, "p", model="m", batch=batch) as producer:
            users, items = events(9_600)
            for start in range(0, users.size, 450):
                producer.push(users[start : start + 450], items[start : start + 450])
            producer.flush()
        models.challenge("m", challenger="good", optimizer=MUCH)
        wait_until(lambda: worker_of(server.pid) is not None, "the process", WAIT_S)
        worker = worker_of(server.pid)
        assert worker is not None
        server.kill()
        assert not psutil.wait_procs([worker], 60)[1]
        server.start()
        wait_until(lambda: models.challengers("m").contests == 1, "the verdict", WAIT_S)
        found = models.challengers("m")
        assert (found.winner, found.waiting) == ("good", ())
        settled = models.settle("m", "good")
        root = models.describe("m", with_root_hash=True).root_hash
        server.kill()
        server.start()
        again = models.describe("m", with_root_hash=True)
        assert again.spec_id == settled.spec_id and again.root_hash == root
    report = replay_model(server.data / "models" / "m")
    assert report.good and report.root_hash == root
