"""Forgetting with context, vectors, features and sightings: as a model that never saw the subjects.

The other model gets batches that are drawn again without the subjects, not cut by the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SPEC, Rig, state_root
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.content import BagColumns, encode_embeddings, encode_features
from livefactor_kernels.spec.admission import Admission
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.content import Context, Embeddings, Features
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import OpenProducerChange
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.rpc import decode
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.erasures import learned_root
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import snapshot_store
from livefactor_server.snapshots.store import root_hash_of

USERS, ITEMS = (7, 11), (5,)
NOBODY: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
SOLVE = replace(preset("clicks"), k=8, limits=SPEC.limits)
DIMENSION = 6

SPECS: dict[str, ModelSpec] = {
    "context": replace(SPEC, context=Context(40)),
    "context-solve": replace(SOLVE, context=Context(40)),
    "content": replace(SOLVE, embeddings=Embeddings(DIMENSION, 3.0), features=Features(64, 4)),
    "sightings": replace(SPEC, admission=Admission(2)),
}
Without = tuple[Sequence[int], Sequence[int]]
Batch = tuple[str, Callable[[Without], bytes]]


def kept(ids: np.ndarray, without: Sequence[int]) -> np.ndarray:
    return np.flatnonzero(~np.isin(ids, np.array(without, np.uint64)))


def bags(rng: np.random.Generator, rows: int) -> list[list[int]]:
    return [sorted(rng.choice(30, rng.integers(0, 4), replace=False).tolist()) for _ in range(rows)]


def columns_of(chosen: list[list[int]]) -> BagColumns:
    """The names are sorted, so those of fewer bags come in the same order."""
    used = sorted({number for bag in chosen for number in bag})
    flat = [used.index(number) for bag in chosen for number in bag]
    sizes = np.array([len(bag) for bag in chosen], np.uint32)
    names = [f"name {number:02d}" for number in used]
    return BagColumns(sizes, names, np.array(flat, np.uint32), np.ones(len(flat), np.float32))


def events(seed: int, with_context: bool) -> Batch:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 40, 30, np.uint64), rng.integers(0, 25, 30, np.uint64)
    context = bags(rng, 30)

    def body(without: Without) -> bytes:
        rows = np.intersect1d(kept(users, without[0]), kept(items, without[1]))
        if not rows.size:
            return b""
        given = columns_of([context[row] for row in rows]) if with_context else None
        return wire.encode_interactions(users[rows], items[rows], context=given)

    return wire.INTERACTIONS, body


def vectors(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    ids = rng.choice(25, 10, replace=False).astype(np.uint64)
    numbers = rng.normal(size=(10, DIMENSION)).astype(np.float32)

    def body(without: Without) -> bytes:
        rows = kept(ids, without[1])
        return encode_embeddings(updates_pb2.SIDE_ITEM, ids[rows], numbers[rows]) if rows.size else b""

    return wire.EMBEDDINGS, body


def features(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    side = seed % 2
    ids, chosen = rng.choice(25, 10, replace=False).astype(np.uint64), bags(rng, 10)

    def body(without: Without) -> bytes:
        rows = kept(ids, without[side])
        if not rows.size:
            return b""
        found = columns_of([chosen[row] for row in rows])
        name = (updates_pb2.SIDE_USER, updates_pb2.SIDE_ITEM)[side]
        return encode_features(name, ids[rows], found.counts, found.names, found.features, found.weights)

    return wire.FEATURES, body


def batches(name: str) -> list[Batch]:
    made = []
    for seed in range(24):
        kind = seed % 4 if name == "content" else 0
        made.append(
            vectors(seed) if kind == 1 else features(seed) if kind > 1 else events(seed, "context" in name)
        )
    return made


def rig_at(folder: Path, spec: ModelSpec) -> Rig:
    (folder / "snapshots").mkdir(parents=True)
    return Rig(folder, spec)


def send(rig: Rig, batch: Batch, without: Without = NOBODY) -> None:
    """Sends a batch, or something without effect if nothing of it is left."""
    kind, body = batch[0], batch[1](without)
    if not body:
        rig.send(OpenProducerChange(), b"", b"nobody", 0, 0).get(timeout=60)
        return
    request = decode.UpdateRequest("", b"", 0, 0, kind, body)
    change, _ = decode.change_from_wire(request, rig.engine.state.spec, 65_536)
    result = rig.send(change, body, b"", 0, 0).get(timeout=60).result
    assert getattr(result, "revision", 0), result


@pytest.mark.parametrize("name", SPECS)
def test_the_state_is_that_of_a_model_that_never_saw_them(tmp_path: Path, name: str) -> None:
    spec = check(SPECS[name])
    rig, other = rig_at(tmp_path / "m", spec), rig_at(tmp_path / "other", spec)
    for each in batches(name):
        send(rig, each)
        send(other, each, (USERS, ITEMS))
    forgetter = Forgetter(
        rig.folder, rig.engine, Keeper(rig.engine, snapshot_store(rig.folder), KeeperSettings(10**9, 3))
    )
    found = forgetter.begin(Subjects(USERS, ITEMS)).outcome.result(60)
    forgetter.stop()
    assert found.rows > 0
    while other.engine.revision < found.revision:
        other.send(OpenProducerChange(), b"", b"nobody", 0, 0).get(timeout=60)
    state = other.engine.state
    expected = learned_root(state.revision, root_hash_of(freeze_idle("m", state, "sha256"))[1])
    assert bytes.fromhex(found.learned_root_hash) == expected
    root = rig.root()
    assert state_root(rig.engine.state) == root
    rig.close()
    other.close()
    report = replay_model(rig.folder)
    assert report.good and report.root_hash == root
