"""Promise 1 under power cuts: a server loses its file system in the middle of writes while four
producers push.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from livefactor.errors import NotFound
from load import MODEL, Findings, Follower, Load, create_model, described
from loop_disk import LoopFileSystem
from server_process import Server, WarmStart
from tally import Tally, amount

CUTS = amount("CUTS", 10)
CUTS_A_MODEL = 50
"""A restart compares the whole log, so a long run begins with a new model now and then."""

PLANTED_CUTS = 10
SEED = 20_261_125
DISK_BYTES = 256 << 20
RUN_S = (0.0, 0.2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopFileSystem]:
    try:
        made = LoopFileSystem(tmp_path, DISK_BYTES)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"{CUTS} power cuts not made: they need root, loop devices and mkfs.ext4 ({error})")
    yield made
    made.remove()


class Cutting:
    """A server with its data on `disk`, in a folder of this name.

    Its text log and its ports are elsewhere, because they need not survive.
    """

    def __init__(
        self, disk: LoopFileSystem, warm: WarmStart, folder: Path, *plants: str, seed: int = SEED
    ) -> None:
        self.disk, self.chance = disk, random.Random(seed)
        folder.mkdir(exist_ok=True)
        self.folder = disk.folder / folder.name
        self.folder.mkdir()
        (folder / "data").symlink_to(self.folder)
        self.server = Server(warm, folder / "data", "--preset", "", plants=("small_segments", *plants))
        self.server.start()
        create_model(self.server)
        self.load = Load(self.server, seed, pause_s=0.06)
        self.findings = Findings()
        self.follower = Follower(self.server.model_folder(MODEL))
        self.cuts = 0

    def cut(self) -> None:
        """Cut the power, and start the server again on the contents of the disk."""
        self.load.wait_for_acks()
        # The cut comes at a random moment.
        time.sleep(self.chance.uniform(*RUN_S))
        self.disk.cut()
        self.server.kill()
        acked = self.load.acked_revision
        self.disk.unmount()
        self.disk.mount()
        self.cuts += 1
        self.server.start()
        live = described(self.server)
        self.findings.forgotten += live.position.revision < acked
        self.findings.unequal += not self.follower.equals(live)
        # An open log would keep the disk mounted.
        self.follower.close()

    def finish(self) -> None:
        """Wait until every push has its ack, and compare the acks with the log."""
        self.load.finish()
        live = described(self.server)
        self.findings.unequal += not self.follower.equals(live)
        self.findings.add_log(self.server.model_folder(MODEL), self.load)
        print(f"seed {SEED}: {self.cuts} power cuts: {self.findings}")


@pytest.mark.torture
@pytest.mark.timeout(7200 if CUTS > 10 else 300)
def test_nothing_acknowledged_is_lost_by_power_cuts(
    disk: LoopFileSystem, warm: WarmStart, tmp_path: Path, tally: Tally
) -> None:
    for first in range(0, CUTS, CUTS_A_MODEL):
        cuts = min(CUTS_A_MODEL, CUTS - first)
        cutting = Cutting(disk, warm, tmp_path / f"from-{first}", seed=SEED + first)
        try:
            cutting.load.start()
            for _ in range(cuts):
                cutting.cut()
            cutting.finish()
        finally:
            cutting.server.kill()
        found = cutting.findings
        tally.add("power cuts", cutting.cuts, lost=found.lost + found.forgotten, twice=found.twice)
        assert found.sound, found
        assert found.acked > 10 * cuts
        shutil.rmtree(cutting.folder)


@pytest.mark.torture
@pytest.mark.parametrize("plant", ["no_sync", "ack_before_sync"])
def test_a_planted_bug_is_caught(
    plant: str, disk: LoopFileSystem, warm: WarmStart, tmp_path: Path, tally: Tally
) -> None:
    """The first cuts reveal the bug: the model is missing, its log is damaged, or it is behind an
    acknowledged revision.

    A single cut may miss it, if every acknowledged batch happened to be on the disk at that moment.
    """
    cutting = Cutting(disk, warm, tmp_path / "planted", plant)
    try:
        cutting.load.start()
        while not cutting.findings.forgotten and cutting.cuts < PLANTED_CUTS:
            cutting.cut()
        caught = cutting.findings.forgotten > 0
    except (AssertionError, NotFound) as error:
        caught = any(text in str(error) for text in ("the server did not start", "'m' does not exist"))
    finally:
        cutting.server.kill()
        cutting.load.abandon()
    assert cutting.load.acked_revision
    assert caught
    tally.catch({"no_sync": "no sync of files", "ack_before_sync": "answer before the sync"}[plant])
