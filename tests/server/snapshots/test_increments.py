"""Incremental snapshots restore to the same state, are small, and are checked as whole ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import snapshot_samples as samples
from engine_rig import Rig, state_root
from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots import format as fmt
from livefactor.snapshots.files import CHANGES_FILE
from livefactor.wire import columns as wire
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import History, Limits, OptimizerKind
from livefactor_kernels.spec.presets import preset
from livefactor_server.hosting.encrypting import encrypt
from livefactor_server.log import sealing
from livefactor_server.log.sealing import Key
from livefactor_server.snapshots import chains, replay
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.increments import ChangesWriter
from livefactor_server.snapshots.store import SnapshotStore

BASE = preset(
    "clicks_sgd", k=8, limits=Limits(users_max=5000, items_max=5000, value_abs_max=1.0, error_max=1e3)
)
SPEC = check(
    replace(
        BASE,
        optimizer=replace(BASE.optimizer, kind=OptimizerKind.ADAGRAD),
        history=History(users=16, items=16, paged=True),
    )
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "snapshots").mkdir()
    made = Rig(tmp_path, SPEC)
    yield made
    made.close()


def push(rig: Rig, seed: int, rows: int = 4) -> None:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 2000 + 4 * seed, rows, np.uint64)
    rig.push(wire.encode_interactions(users, rng.integers(0, 1000 + seed, rows, np.uint64)))


def take(rig: Rig, chain_max: int = 1000) -> str:
    frozen = freeze_idle("m", rig.engine.state, "sha256")
    return replay.snapshot_store(rig.folder).take(frozen, chain_max=chain_max).snapshot_id


def is_incremental(rig: Rig, snapshot_id: str) -> bool:
    return chains.is_incremental(rig.folder / "snapshots" / snapshot_id)


def test_a_chain_of_20_restores_to_each_state(rig: Rig, tmp_path: Path) -> None:
    push(rig, 0, 6000)
    store, taken, roots = replay.snapshot_store(rig.folder), [], []
    for seed in range(1, 22):
        push(rig, seed)
        taken.append(take(rig))
        roots.append(rig.root())
    assert not is_incremental(rig, taken[0]) and all(is_incremental(rig, each) for each in taken[1:])
    for at in range(0, 21, 4):
        state = replay.from_snapshot(store, taken[at], rig.log, "cpu")
        assert state_root(state) == roots[at]
    # What a client fetches is the whole snapshot, with the bytes of one that was never incremental.
    whole = SnapshotStore(tmp_path / "whole")
    frozen = freeze_idle("m", rig.engine.state, "sha256")
    made = whole.folder / whole.take(frozen).snapshot_id
    copy = tmp_path / "fetched"
    snapshot_files.save((tuple(piece) for piece in store.pieces(taken[-1])), copy)
    for name in fmt.TENSOR_FILES:
        assert (copy / name).read_bytes() == (made / name).read_bytes()
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]


def test_one_per_cent_of_the_rows_takes_below_two_per_cent(tmp_path: Path) -> None:
    state = samples.view(20_000, 5_000, 64, samples.ADAGRAD)
    store = SnapshotStore(tmp_path)
    whole = store.take(state)
    rng = np.random.default_rng(1)
    for table, rows in zip(state.pin.tables, state.pin.counts, strict=True):
        chosen = rng.choice(rows, rows // 100, replace=False)
        for name in set(table) - {"keys"}:
            table[name][chosen] *= np.float32(1.5)
    made = store.take(replace(state, revision=8), chain_max=5)
    folder = tmp_path / made.snapshot_id
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert 0.01 < size / whole.size_bytes < 0.02
    assert store.verify().manifest == made and store.load().manifest.root_hash == made.root_hash


def test_a_chain_ends_with_a_whole_snapshot(rig: Rig) -> None:
    push(rig, 0, 6000)
    kinds = []
    for seed in range(1, 8):
        push(rig, seed)
        kinds.append(is_incremental(rig, take(rig, chain_max=2)))
    assert kinds == [False, True, True, False, True, True, False]
    push(rig, 9, 9000)
    assert not is_incremental(rig, take(rig))


def test_parents_stay_and_leave_with_the_last_one_that_needs_them(rig: Rig) -> None:
    push(rig, 0, 6000)
    store, taken = replay.snapshot_store(rig.folder), []
    for seed in range(1, 7):
        push(rig, seed)
        taken.append(take(rig, chain_max=2))
    assert store.prune(2) == tuple(taken[:3])
    assert store.ids() == tuple(taken[3:])
    # Whatever is older than the last one goes, and the last one becomes whole.
    assert store.remove_before(int(taken[5][:20])) == tuple(taken[3:5])
    assert store.ids() == (taken[5],) and not is_incremental(rig, taken[5])
    assert store.verify().manifest.root_hash == rig.root()


@pytest.mark.parametrize("at", [0, 9, 600, -300, -60, -45, -20, -1])
def test_a_changed_byte_of_an_increment_is_found(rig: Rig, at: int) -> None:
    push(rig, 0, 6000)
    take(rig)
    push(rig, 1)
    taken = take(rig)
    path = rig.folder / "snapshots" / taken / CHANGES_FILE
    data = bytearray(path.read_bytes())
    data[at] ^= 8
    path.write_bytes(data)
    store = replay.snapshot_store(rig.folder)
    with pytest.raises(SnapshotInvalid, match=CHANGES_FILE):
        store.verify(taken)
    push(rig, 2)
    assert not is_incremental(rig, take(rig))


def test_a_damaged_parent_is_found_and_a_missing_one_named(rig: Rig) -> None:
    push(rig, 0, 6000)
    first = take(rig)
    push(rig, 1)
    second = take(rig)
    store = replay.snapshot_store(rig.folder)
    path = rig.folder / "snapshots" / first / "users.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotInvalid):
        store.verify(second)
    # Nothing is built on a damaged one.
    push(rig, 2)
    third = take(rig)
    assert not is_incremental(rig, third) and store.verify(third)
    shutil.rmtree(path.parent)
    with pytest.raises(SnapshotInvalid, match="is missing"):
        store.verify(second)
    # A start uses what can be read.
    assert state_root(replay.recover(rig.folder, rig.log, "cpu")) == rig.root()
    with pytest.raises(SnapshotInvalid, match="fetch the snapshot from its server"):
        snapshot_files.load(rig.folder / "snapshots" / second)


def test_encrypted_increments(tmp_path: Path) -> None:
    sealing.use(Key(bytes(range(32))))
    try:
        folder = tmp_path / "data" / "models" / "m"
        (folder / "snapshots").mkdir(parents=True)
        rig = Rig(folder, SPEC)
        push(rig, 0, 6000)
        taken = [take(rig)]
        for seed in range(1, 4):
            push(rig, seed)
            taken.append(take(rig))
        assert [is_incremental(rig, each) for each in taken] == [False, True, True, True]
        root, store = rig.root(), replay.snapshot_store(folder)
        assert store.verify().manifest.root_hash == root
        replay.adopt(store.folder / taken[-1], tmp_path / "other")
        assert replay.base_store(tmp_path / "other").verify().manifest.root_hash == root
        store.detach(taken[-1])
        assert not is_incremental(rig, taken[-1]) and store.verify().manifest.root_hash == root
        rig.close()
        old, new = Key(bytes(range(32))), Key(bytes(32))
        encrypt(tmp_path / "data", tmp_path / "again", old, new)
        sealing.use(new)
        copied = replay.snapshot_store(tmp_path / "again" / "models" / "m")
        assert copied.ids() == tuple(taken) and copied.verify(taken[2]).manifest.snapshot_id == taken[2]
    finally:
        sealing.use(None)


@pytest.mark.parametrize("rows", [[4_000_000_000], [0] * 5])
def test_an_index_that_does_not_fit_is_refused(rig: Rig, rows: list[int]) -> None:
    """The hashes of the file are right, as if an attacker had written it."""
    push(rig, 0, 6000)
    take(rig)
    push(rig, 1)
    taken = take(rig)
    folder = rig.folder / "snapshots"
    chain = chains.open_chain(folder / taken)
    parent = chains.read_manifest(folder / replay.snapshot_store(rig.folder).ids()[0])
    made = bytearray()

    class Forged:
        def append(self, data: bytes | memoryview) -> None:
            made.extend(data)

    writer = ChangesWriter(Forged(), 1 << 20)
    writer.frame("users.factors", np.array(rows), np.zeros(4, np.uint8))
    writer.finish(parent, 1, 0)
    (folder / taken / CHANGES_FILE).write_bytes(made)
    assert chain.depth == 1
    with pytest.raises(SnapshotInvalid):
        replay.snapshot_store(rig.folder).verify(taken)
