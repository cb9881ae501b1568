"""The process ends at operations of the disk while a model is rolled back or its log is shortened.

A restart has every acknowledged batch, and the state of its log.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from engine_rig import FaultyIO, Rig, batch, replayed_root
from livefactor_server.hosting.acts.rollback import to_moment
from livefactor_server.hosting.earlier import Moment
from livefactor_server.hosting.retaining.retention import Policy, Retention
from livefactor_server.log.store import LogGap
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import snapshot_store
from tally import Tally, amount

BATCHES = 60
CRASHES = amount("CRASHES", 6)
CHANGING = ("open", "pwrite", "fdatasync", "fsync_dir", "fallocate", "rename", "unlink")


class Crash(OSError):
    """The process ends here. The engine takes it as a disk that fails for good."""


class Countdown:
    """Lets operations of a disk pass. From operation `left` on, each of them fails."""

    def __init__(self, io: FaultyIO, left: int) -> None:
        self.left = left
        for name in CHANGING:
            setattr(io, name, partial(self._do, getattr(io, name)))

    def _do(self, operation: Callable[..., object], *arguments: object, **named: object) -> object:
        self.left -= 1
        if self.left < 0:
            raise Crash("the process has ended")
        return operation(*arguments, **named)


def roll_back(rig: Rig) -> None:
    rollback = to_moment(rig.log, Moment(BATCHES // 2))
    start = partial(replay.start_of, rig.folder, rig.log, "cpu", skipped=rollback.skipped)
    rig.engine.promote(rig.engine.state.spec, start, act=rollback)


def shorten(rig: Rig) -> None:
    Retention(rig.engine, snapshot_store(rig.folder), Policy.of("1r")).run()


ACTS: dict[str, Callable[[Rig], None]] = {"rollback": roll_back, "retention": shorten}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crashes") / "m"
    (folder / "snapshots").mkdir(parents=True)
    rig = Rig(folder)
    for seed in range(BATCHES):
        rig.push(batch(seed))
    snapshot_store(folder).take(freeze_idle("m", rig.engine.state, "sha256"))
    rig.close()
    return folder


def crashed(template: Path, to: Path, act: Callable[[Rig], None], at: int) -> tuple[bool, bool]:
    """Crashes at operation `at` of an act. Returns (whether it came to that, was a batch lost)."""
    shutil.copytree(template, to)
    rig = Rig(to)
    countdown = Countdown(rig.io, at)
    acked = rig.engine.revision
    with contextlib.suppress(Exception):
        act(rig)
        acked = rig.push(batch(1000)).revision
    is_over = countdown.left < 0
    # What the process would have done after its end does not reach the disk.
    countdown.left = 0
    with contextlib.suppress(Exception):
        rig.close()
    again = Rig(to)
    lost = again.engine.revision < acked
    root = again.root()
    act(again)
    assert again.push(batch(2000)).accepted == 100
    last = again.root()
    again.close()
    with contextlib.suppress(LogGap):
        assert replayed_root(to) == last
    report = replay_model(to)
    assert report.good and report.root_hash == last and root
    return is_over, lost


@pytest.mark.torture
@pytest.mark.parametrize("name", ACTS)
def test_a_crash_in_an_act_loses_nothing(template: Path, tmp_path: Path, name: str, tally: Tally) -> None:
    for at in range(CRASHES):
        is_over, lost = crashed(template, tmp_path / str(at), ACTS[name], at)
        if not is_over:
            break
        tally.add(f"crashes in a {name}", lost=lost)
        assert not lost, at
        shutil.rmtree(tmp_path / str(at))
    assert at > 2
