"""Changes bytes of every kind of file of a model, and asks for the place of the damage.

A model of this test has a log of several segments, one of which an erasure has rewritten, a whole
and an incremental snapshot, a signed checkpoint, the report of the erasure, an archive, and a
backup. It is plain, or encrypted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine_rig import Rig, batch
from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.checkpoint import Checkpoint
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.hosting import backup, identity
from livefactor_server.hosting.forgetting import archive as archives
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.hosting.retaining.archive import FolderArchive
from livefactor_server.hosting.retaining.retention import Policy
from livefactor_server.log import sealing
from livefactor_server.log.disk import BLOCK_BYTES
from livefactor_server.log.format import DATA_START
from livefactor_server.log.sealing import KEY_BYTES, Key
from livefactor_server.log.store import Log, LogError, Record
from livefactor_server.snapshots import erasures
from livefactor_server.snapshots.replay import snapshot_store
from livefactor_server.snapshots.signing import check_signature
from livefactor_server.snapshots.store import verify
from tally import Tally, amount

FLIPS = 6
"""Changed bytes of each class in the suite. TORTURE_TAMPERED sets it."""

SILENT = ("first slot of the tail", "second slot of the tail", "zeros behind")
"""Classes of bytes that say nothing in a segment that another one follows. Its stream is whole in
its place, and the bytes behind it were never used. Of the last segment the place of the last block
says nothing while that block stands in the tail slots."""

Finds = Callable[[], str]
Contents = list[tuple[int, bytes, bytes, bytes]]


@dataclass
class Model:
    """A data folder with one model that is closed, its archive and its backup, and who signed."""

    root: Path
    key: Ed25519PrivateKey

    @property
    def folder(self) -> Path:
        return self.root / "data" / "models" / "m"

    @property
    def archive(self) -> Path:
        (found,) = (self.root / "archive").iterdir()
        return found

    @property
    def backup(self) -> Path:
        return self.root / "backup"


@pytest.fixture(scope="module", params=["plain", "encrypted"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    sealing.use(Key(bytes(range(KEY_BYTES))) if request.param == "encrypted" else None)
    made = Model(tmp_path_factory.mktemp("tampering"), Ed25519PrivateKey.generate())
    folder = made.folder
    (folder / "snapshots").mkdir(parents=True)
    rig = Rig(folder)
    identity.write(folder, "m", rig.log.lineage)
    for seed in range(70):
        rig.push(batch(seed))
    policy = Policy.of("1r", made.root / "archive")
    keeper = Keeper(rig.engine, snapshot_store(folder), KeeperSettings(10**9, 5, policy, 3, made.key))
    forgetter = Forgetter(folder, rig.engine, keeper)
    forgetter.begin(Subjects(users=(7,))).outcome.result(60)
    forgetter.stop()
    for seed in range(3):
        rig.push(batch(100 + seed, 2))
    keeper.take()
    keeper._retain()
    rig.close()
    backup.back_up(made.root / "data", made.backup)
    yield made
    sealing.use(None)


def log_place(folder: Path) -> str:
    """What reading the whole log finds."""
    try:
        with Log.open(folder / "log", read_only=True) as log:
            for _ in log.read_groups(log.gap.last + 1 if log.gap else None):
                pass
            return "" if log.tail is None else f"{log.tail.path} has an unsynced tail"
    except LogError as error:
        return str(error)


def log_contents(folder: Path) -> list[Contents]:
    """All records of a log, but for those that retention took out."""
    with Log.open(folder / "log", read_only=True) as log:
        return [contents_of(each) for each in log.read_groups(log.gap.last + 1 if log.gap else None)]


def archive_contents(model: Model) -> list[Contents]:
    """All archived records."""
    with Log.open(model.folder / "log", read_only=True) as log:
        archived, _ = archives.lacking(log, FolderArchive(model.archive), model.folder)
        assert archived is not None
        return [contents_of(each) for each in archived.groups()]


def contents_of(records: Sequence[Record]) -> Contents:
    return [(each.revision, each.hash, each.salt, bytes(each.body)) for each in records]


def archive_place(model: Model) -> str:
    """What an erasure that needs the archive finds."""
    try:
        with Log.open(model.folder / "log", read_only=True) as log:
            archived, reason = archives.lacking(log, FolderArchive(model.archive), model.folder)
            for _ in archived.groups() if archived else ():
                pass
            return reason
    except LogError as error:
        return str(error)


def snapshots_place(folder: Path, key: Ed25519PrivateKey) -> str:
    found = []
    for path in sorted((folder / "snapshots").iterdir()):
        try:
            if path.is_dir():
                verify(path)
            else:
                checkpoint = Checkpoint.from_json(path.read_bytes())
                check_signature(checkpoint, key.public_key())
        except (SnapshotInvalid, ValueError) as error:
            found.append(f"{path.name}: {error}")
    return "; ".join(found)


def report_place(folder: Path) -> str:
    with Log.open(folder / "log", read_only=True) as log:
        return "; ".join(
            f"erasure-{at}.json: {wrong}" for at, (_, wrong) in erasures.check(folder, log).items() if wrong
        )


def identity_place(folder: Path) -> str:
    """What a start finds."""
    with Log.open(folder / "log", read_only=True) as log:
        try:
            identity.check(folder, log.lineage, ())
            return ""
        except identity.ForeignFolder as error:
            return f"{identity.FILE}: {error}"


def backup_place(model: Model) -> str:
    """What a restore finds."""
    try:
        backup.restore(model.backup, model.root / "restored")
        return ""
    except backup.BackupError as error:
        return str(error)
    finally:
        shutil.rmtree(model.root / "restored", ignore_errors=True)


def segment_bytes(path: Path) -> dict[str, np.ndarray]:
    """The bytes of a segment by class."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    used = np.flatnonzero(data)
    records = used[used >= DATA_START]
    end = int(records[-1]) + 1 if records.size else DATA_START
    zeros = np.flatnonzero(data == 0)
    head = records[:200]
    return {
        "first slot of the tail": np.arange(BLOCK_BYTES),
        "second slot of the tail": np.arange(BLOCK_BYTES, DATA_START),
        "first header": head,
        "records": records[200:-64],
        "last record": records[-64:],
        "zeros between": zeros[(zeros > DATA_START) & (zeros < end)],
        "zeros behind": np.arange(end, len(data)),
    }


class Class(NamedTuple):
    """A class of bytes: the file, their places in it, what finds a change, what that names, and for
    bytes that may say nothing all that a reader gets.
    """

    path: Path
    places: np.ndarray
    finds: Finds
    name: str
    contents: Callable[[], list[Contents]] | None = None


Places = dict[str, Class]


def places_of_model(folder: Path, model: Model, prefix: str) -> Places:
    found: Places = {}
    segments = sorted((folder / "log").glob("*.log"))
    for number, segment in ((0, segments[0]), (1, segments[1]), (2, segments[-2]), (3, segments[-1])):
        for name, at in segment_bytes(segment).items():
            is_silent = name in SILENT and (number < 3 or name == "zeros behind")
            silent = partial(log_contents, folder) if is_silent else None
            finds = partial(log_place, folder)
            found[f"{prefix}log segment {number}, {name}"] = Class(segment, at, finds, segment.name, silent)
    for path in sorted((folder / "snapshots").rglob("*")):
        if path.is_file():
            owner = path.name if path.parent.name == "snapshots" else path.parent.name
            kind = "checkpoint" if owner == path.name else f"snapshot {'+' if path.stem == 'changes' else ''}"
            every = np.arange(path.stat().st_size)
            finds = partial(snapshots_place, folder, model.key)
            found[f"{prefix}{kind} {owner}/{path.name}"] = Class(path, every, finds, owner)
    (report,) = folder.glob("erasure-*.json")
    every = np.arange(report.stat().st_size)
    found[f"{prefix}report"] = Class(report, every, partial(report_place, folder), report.name)
    own = folder / identity.FILE
    every = np.arange(own.stat().st_size)
    found[f"{prefix}identity"] = Class(own, every, partial(identity_place, folder), identity.FILE)
    return found


def places(model: Model) -> Places:
    found = places_of_model(model.folder, model, "")
    found |= places_of_model(model.backup / "models" / "m", model, "backup, ")
    segment = sorted(model.archive.glob("*.log"))[1]
    for name, at in segment_bytes(segment).items():
        silent = partial(archive_contents, model) if name in SILENT else None
        finds = partial(archive_place, model)
        found[f"archived segment, {name}"] = Class(segment, at, finds, segment.name, silent)
    path = model.backup / backup.MANIFEST
    every = np.arange(path.stat().st_size)
    found["backup, manifest"] = Class(path, every, partial(backup_place, model), backup.MANIFEST)
    return found


@pytest.fixture
def twin(model: Model, tmp_path: Path) -> Model:
    """A copy that a test changes."""
    made = Model(tmp_path / "twin", model.key)
    shutil.copytree(model.root, made.root)
    return made


@pytest.mark.torture
def test_every_class_of_bytes_is_found_and_named_or_says_nothing(twin: Model, tally: Tally) -> None:
    classes = places(twin)
    for what, one in classes.items():
        assert one.finds() == "", what
    rng, missed = np.random.default_rng(3), list[str]()
    for what, one in classes.items():
        good, contents = one.path.read_bytes(), one.contents() if one.contents is not None else None
        chosen = rng.choice(one.places, min(len(one.places), amount("TAMPERED", FLIPS)), replace=False)
        unnoticed = 0
        for at in chosen.tolist():
            changed = bytearray(good)
            changed[at] ^= 1 << int(rng.integers(8))
            one.path.write_bytes(changed)
            said = one.finds()
            if one.name in said or (one.contents is not None and said == "" and one.contents() == contents):
                continue
            unnoticed += 1
            missed.append(f"{what}, byte {at}: {said!r}")
        one.path.write_bytes(good)
        tally.add(f"changed bytes: {what.split(' 0')[0].split(',')[0]}", len(chosen), undetected=unnoticed)
    if missed:
        pytest.fail("\n".join(missed))


def test_every_class_has_bytes(twin: Model) -> None:
    sizes = dict[str, int]()
    for what, one in places(twin).items():
        name = re.sub(r"segment \d", "segment", what).split(" 0")[0]
        sizes[name] = sizes.get(name, 0) + len(one.places)
    assert len(sizes) > 20 and [name for name, size in sizes.items() if not size] == []


def test_damage_in_both_tail_slots_is_named(twin: Model) -> None:
    segment = sorted((twin.folder / "log").glob("*.log"))[-1]
    data = bytearray(segment.read_bytes())
    for at in (100, BLOCK_BYTES + 100):
        data[at] ^= 1
    segment.write_bytes(data)
    assert segment.name in log_place(twin.folder)
