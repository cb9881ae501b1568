"""Changes bytes of every kind of file of a model, and asks for the place of the damage.

A model of this test has a log of several segments, one of which an erasure has rewritten, a whole
and an incremental snapshot, a signed checkpoint, the report of the erasure, and an archive.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine_rig import Rig, batch
from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.checkpoint import Checkpoint
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.hosting.forgetting import archive as archives
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.hosting.retention import Policy
from livefactor_server.log.format import DATA_START
from livefactor_server.log.store import Log, LogError
from livefactor_server.snapshots import erasures
from livefactor_server.snapshots.replay import snapshot_store
from livefactor_server.snapshots.signing import check_signature
from livefactor_server.snapshots.store import verify
from tally import Tally, amount

FLIPS = 12
"""Changed bytes of each class in the suite. TORTURE_TAMPERED sets it."""


@dataclass
class Model:
    """The folders of a model that is closed, and who signed."""

    folder: Path
    archive: Path
    key: Ed25519PrivateKey


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    root, key = tmp_path_factory.mktemp("tampering"), Ed25519PrivateKey.generate()
    folder = root / "m"
    (folder / "snapshots").mkdir(parents=True)
    rig = Rig(folder)
    for seed in range(70):
        rig.push(batch(seed))
    policy = Policy.of("1r", root / "archive")
    keeper = Keeper(rig.engine, snapshot_store(folder), KeeperSettings(10**9, 5, policy, 3, key))
    forgetter = Forgetter(folder, rig.engine, keeper)
    forgetter.begin(Subjects(users=(7,))).outcome.result(60)
    forgetter.stop()
    for seed in range(3):
        rig.push(batch(100 + seed, 2))
    keeper.take()
    keeper._retain()
    rig.close()
    (archive,) = (root / "archive").iterdir()
    return Model(folder, archive, key)


def log_place(model: Model) -> str:
    """What reading the whole log finds."""
    try:
        with Log.open(model.folder / "log", read_only=True) as log:
            for _ in log.read_groups(log.gap.last + 1 if log.gap else None):
                pass
            return "" if log.tail is None else f"{log.tail.path} has an unsynced tail"
    except LogError as error:
        return str(error)


def archive_place(model: Model) -> str:
    """What an erasure that needs the archive finds."""
    try:
        with Log.open(model.folder / "log", read_only=True) as log:
            archived, reason = archives.lacking(log, model.archive, model.folder)
            for _ in archived.groups() if archived else ():
                pass
            return reason
    except LogError as error:
        return str(error)


def snapshots_place(model: Model) -> str:
    found = []
    for path in sorted((model.folder / "snapshots").iterdir()):
        try:
            if path.is_dir():
                verify(path)
            else:
                checkpoint = Checkpoint.from_json(path.read_bytes())
                check_signature(checkpoint, model.key.public_key())
        except (SnapshotInvalid, ValueError) as error:
            found.append(f"{path.name}: {error}")
    return "; ".join(found)


def report_place(model: Model) -> str:
    with Log.open(model.folder / "log", read_only=True) as log:
        return "; ".join(
            f"erasure-{at}.json: {wrong}"
            for at, (_, wrong) in erasures.check(model.folder, log).items()
            if wrong
        )


def segment_bytes(path: Path) -> dict[str, np.ndarray]:
    """The bytes of a segment by class. Zeros after the last group say nothing and are left out."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    used = np.flatnonzero(data)
    records = used[used >= DATA_START]
    head = records[:200]
    return {"first header": head, "records": records[200:-64], "last record": records[-64:]}


def places(model: Model) -> dict[str, tuple[Path, np.ndarray, Callable[[Model], str], str]]:
    """Class of bytes -> (file, places, what finds the damage, what it names)."""
    found: dict[str, tuple[Path, np.ndarray, Callable[[Model], str], str]] = {}
    segments = sorted((model.folder / "log").glob("*.log"))
    for number, segment in ((0, segments[0]), (1, segments[1]), (2, segments[-2])):
        for name, at in segment_bytes(segment).items():
            found[f"log segment {number}, {name}"] = segment, at, log_place, segment.name
    for name, at in segment_bytes(sorted(model.archive.glob("*.log"))[1]).items():
        segment = sorted(model.archive.glob("*.log"))[1]
        found[f"archived segment, {name}"] = segment, at, archive_place, segment.name
    for path in sorted((model.folder / "snapshots").rglob("*")):
        if path.is_file():
            owner = path.name if path.parent.name == "snapshots" else path.parent.name
            kind = "checkpoint" if owner == path.name else f"snapshot {'+' if path.stem == 'changes' else ''}"
            every = np.arange(path.stat().st_size)
            found[f"{kind} {owner}/{path.name}"] = path, every, snapshots_place, owner
    (report,) = model.folder.glob("erasure-*.json")
    found["report"] = report, np.arange(report.stat().st_size), report_place, report.name
    return found


@pytest.mark.torture
def test_every_class_of_bytes_is_found_and_named(model: Model, tmp_path: Path, tally: Tally) -> None:
    twin = Model(tmp_path / "m", tmp_path / "archive", model.key)
    shutil.copytree(model.folder, twin.folder)
    shutil.copytree(model.archive, twin.archive)
    for finds in (log_place, archive_place, snapshots_place, report_place):
        assert finds(twin) == ""
    rng, missed = np.random.default_rng(3), list[str]()
    for what, (path, every, finds, name) in places(twin).items():
        good = path.read_bytes()
        chosen = rng.choice(every, min(len(every), amount("TAMPERED", FLIPS)), replace=False)
        unnoticed = 0
        for at in chosen.tolist():
            changed = bytearray(good)
            changed[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            said = finds(twin)
            if name not in said:
                unnoticed += 1
                missed.append(f"{what}, byte {at}: {said!r}")
        path.write_bytes(good)
        tally.add(f"changed bytes: {what.split(' 0')[0].split(',')[0]}", len(chosen), undetected=unnoticed)
    assert missed == []
