"""Promise 6: updates go on during a snapshot, it holds the state at one revision, and a restore
gives that state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from livefactor.auditor import Auditor, SnapshotInfo
from livefactor.errors import ResourceExhausted
from livefactor.models import Models
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer
from livefactor.snapshots import files as snapshot_files
from livefactor_server.snapshots.audit import replay_model, root_of
from load import MODEL, Follower, Load, create_model, described
from server_process import Server, wait_until

Serve = Callable[..., Server]

SNAPSHOTS = 10
KEPT = 3
SEED = 20_261_129
# The rows of each side. There are enough of them for a snapshot to take some time.
ROWS = 20_000
AGAIN = "again"


def test_ten_snapshots_under_load_are_the_replayed_states_and_updates_go_on(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve("--snapshots-kept", str(KEPT))
    create_model(server, k=64, limits={"users_max": 2 * ROWS, "items_max": 2 * ROWS})
    fill(server, ROWS)
    load = Load(server, SEED)
    load.start()
    load.wait_for_acks()
    gaps = Gaps(load)
    try:
        with server.channel() as channel:
            taken = [auditor_snapshot(Auditor(channel, model=MODEL), gaps) for _ in range(SNAPSHOTS)]
            listed = Auditor(channel, model=MODEL).list()
            Auditor(channel, model=MODEL).fetch(tmp_path / "fetched")
    finally:
        gaps.stop()
        load.finish()
    assert not load.errors, load.errors
    revisions = [info.position.revision for info in taken]
    assert revisions == sorted(set(revisions)), "no updates between two snapshots"
    assert listed == tuple(taken[-KEPT:])
    follower = Follower(server.model_folder(MODEL))
    for info in taken:
        state = follower.state_at(info.position.revision)
        assert (root_of(state), state.log_hash) == (info.root_hash, info.log_hash), info
        assert (info.users, info.items) == state.backend.published
    assert snapshot_files.verify(tmp_path / "fetched", taken[-1].root_hash).manifest.revision == revisions[-1]
    report = replay_model(server.model_folder(MODEL))
    assert len(report.snapshots) == KEPT and report.good
    print(f"{SNAPSHOTS} snapshots of {taken[-1].size_bytes / 1e6:.0f} MB at revisions {revisions}: {gaps}")


def fill(server: Server, rows: int) -> None:
    """Push rows of both sides to the model."""
    with server.channel() as channel, Producer(channel, "fill", model=MODEL) as producer:
        producer.push(np.arange(rows) + 1000, np.arange(rows) + 1000)


def auditor_snapshot(auditor: Auditor, gaps: Gaps) -> SnapshotInfo:
    before, began = gaps.load.acked_revision, time.monotonic()
    info = auditor.snapshot()
    gaps.during.append((time.monotonic() - began, gaps.load.acked_revision - before))
    wait_until(lambda: gaps.load.acked_revision > info.position.revision, "updates after a snapshot")
    return info


class Gaps:
    """Measures the longest time without an ack for the report.

    It depends on the machine, so no test asserts it.
    """

    def __init__(self, load: Load) -> None:
        self.load = load
        self.during: list[tuple[float, int]] = []
        self.longest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        seen, since = self.load.acked_revision, time.monotonic()
        while not self._stop.wait(0.001):
            now = self.load.acked_revision
            if now != seen:
                self.longest = max(self.longest, time.monotonic() - since)
                seen, since = now, time.monotonic()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def __str__(self) -> str:
        seconds, revisions = (sum(column) for column in zip(*self.during, strict=True))
        return f"{seconds:.2f} s in all, {revisions} revisions acknowledged meanwhile, longest gap {self.longest * 1e3:.0f} ms"


def test_a_model_takes_one_snapshot_at_a_time(serve: Serve) -> None:
    server = serve()
    create_model(server, k=64, limits={"users_max": 200_000, "items_max": 200_000})
    fill(server, 60_000)
    results: list[object] = []

    def take() -> None:
        with server.channel() as channel:
            try:
                results.append(Auditor(channel, model=MODEL).snapshot())
            except ResourceExhausted as error:
                results.append(error)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    infos = [result for result in results if isinstance(result, SnapshotInfo)]
    assert infos and len(results) == 6
    assert replay_model(server.model_folder(MODEL)).good


def test_the_server_takes_snapshots_periodically_and_on_drain(serve: Serve) -> None:
    server = serve("--snapshot-every-events", "1000", "--snapshots-kept", "2")
    create_model(server)
    with server.channel() as channel, Producer(channel, "p", model=MODEL) as producer:
        auditor = Auditor(channel, model=MODEL)
        for taken in (1, 2, 3):
            producer.push([1] * 1000, [1] * 1000).result(30)
            wait_until(
                lambda taken=taken: len(auditor.list()) >= min(taken, 2) and newest(auditor) > taken,
                "a snapshot",
            )
        kept = auditor.list()
        last = producer.push(1, 1).result(30).position.revision
    assert len(kept) == 2
    assert server.stop() == 0
    report = replay_model(server.model_folder(MODEL))
    assert report.good and report.revision == last
    assert max(report.snapshots) > kept[-1].snapshot_id and int(max(report.snapshots).split("-")[0]) == last


def newest(auditor: Auditor) -> int:
    return auditor.list()[-1].position.revision


@pytest.mark.parametrize("preset", ["ratings_sgd", "purchases_sgd"])
def test_a_restored_model_scores_as_the_original_did_and_learns_on(serve: Serve, preset: str) -> None:
    server = serve()
    create_model(server, preset)
    rng = np.random.default_rng(SEED)
    users, items = np.arange(50), np.arange(80)

    def push(model: str, producer_id: str) -> None:
        settings = BatchSettings(events_max=100)
        with (
            server.channel() as channel,
            Producer(channel, producer_id, model=model, batch=settings) as producer,
        ):
            producer.push(
                rng.integers(0, 50, 2000),
                rng.integers(0, 80, 2000),
                rng.integers(1, 5, 2000).astype(np.float32),
            )

    def scores(model: str) -> bytes:
        with server.channel() as channel:
            return Scorer(channel, model=model).score(users, items).scores.tobytes()

    push(MODEL, "first")
    with server.channel() as channel:
        info = Auditor(channel, model=MODEL).snapshot()
        at_snapshot = scores(MODEL)
        # The original model learns more. The copy must begin at the snapshot.
        push(MODEL, "first")
        restored = Models(channel).restore(AGAIN, MODEL, info.snapshot_id)
    assert (
        restored.position.lineage != info.position.lineage
        and restored.position.revision > info.position.revision
    )
    assert scores(AGAIN) == at_snapshot != scores(MODEL)
    # The snapshot holds the producers of the model.
    push(AGAIN, "first")
    check_restored(server, scores(AGAIN))


def check_restored(server: Server, scores: bytes) -> None:
    """Check that the restored model survives a crash and a clean stop, and equals a replay of its
    base and log.
    """
    for end in (server.kill, server.stop):
        with server.channel() as channel:
            live = Models(channel).describe(AGAIN, with_root_hash=True)
        end()
        report = replay_model(server.model_folder(AGAIN))
        assert (report.root_hash, report.log_hash, report.revision) == (
            live.root_hash,
            live.log_hash,
            live.position.revision,
        )
        assert report.good
        server.start()
    with server.channel() as channel:
        assert Models(channel).describe(AGAIN, with_root_hash=True).root_hash == live.root_hash
        assert Scorer(channel, model=AGAIN).score(np.arange(50), np.arange(80)).scores.tobytes() == scores
    original = described(server)
    assert Follower(server.model_folder(MODEL)).equals(original)
