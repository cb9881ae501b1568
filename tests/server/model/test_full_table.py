"""A flood of new ids fills the tables of a model that evicts.

Known users notice nothing. What has no room is rejected by row, with the reason. The rows of the
flood leave when they are idle, and others take their places.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SPEC, Rig, replayed_root, state_root
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor_kernels.spec.admission import MIN_IDLE_EVENTS, Admission, Eviction
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_server.changes import REJECT_TEXTS
from livefactor_server.log.store import Kind, Log
from livefactor_server.snapshots.replay import recover

KNOWN, ROOM, FLOOD = 20, 200, 50
# Without negatives and a mean, an event changes its own user and item alone.
PLAIN = replace(SPEC, negatives=0, limits=replace(SPEC.limits, users_max=ROOM, items_max=ROOM))
EVICTED = replace(PLAIN, eviction=Eviction(MIN_IDLE_EVENTS))
USERS_FULL, ITEMS_FULL = updates_pb2.REJECT_REASON_USERS_FULL, updates_pb2.REJECT_REASON_ITEMS_FULL
WAVES = 130


def known(number: int) -> bytes:
    """An event of each known user."""
    items = np.random.default_rng(number).permutation(KNOWN)
    return wire.encode_interactions(np.arange(KNOWN, dtype=np.uint64), items.astype(np.uint64))


def flood(number: int) -> bytes:
    """Events of users and items that no other wave names."""
    ids = 1000 + np.arange(FLOOD * number, FLOOD * (number + 1), dtype=np.uint64)
    return wire.encode_interactions(ids, ids)


def factors(rig: Rig) -> list[bytes]:
    """The factors and the biases of the known users and items."""
    backend, ids = rig.engine.state.backend, np.arange(KNOWN, dtype=np.uint64)
    found = []
    for side, table in ((USERS, backend.users), (ITEMS, backend.items)):
        rows = table.find(ids, backend.published[side])
        assert (rows < backend.published[side]).all()
        found += [each.tobytes() for each in backend.gather(side, rows)]
    return found


def evictions(folder: Path) -> list[int]:
    with Log.open(folder / "log", read_only=True) as log:
        return [record.revision for record in log.read() if record.kind == Kind.EVICT]


@pytest.mark.parametrize("sightings", [0, 2])
def test_known_users_notice_nothing_and_the_flood_leaves_again(tmp_path: Path, sightings: int) -> None:
    rig = Rig(tmp_path / "flooded", replace(EVICTED, admission=Admission(sightings)))
    quiet = Rig(tmp_path / "quiet", PLAIN)
    rejected = []
    for number in range(WAVES):
        # With two sightings, the first event of an id teaches nothing.
        for _ in range(max(1, sightings) if number == 0 else 1):
            assert rig.push(known(number)).accepted == KNOWN
        quiet.push(known(number))
        for _ in range(max(1, sightings)):
            ack = rig.push(flood(number))
            assert {reason for _, reason in ack.rejects.listed} <= {USERS_FULL}
        rejected.append(ack.rejects.count)
        assert max(rig.engine.state.backend.published) <= ROOM
    full = [number for number, count in enumerate(rejected) if count == FLOOD]
    # The tables are full most of the time, and each eviction makes room for some of the flood.
    assert full and max(full) > 100 and 0 in rejected[max(full[:1]) :]
    now, before = factors(rig), factors(quiet)
    rig.close()
    quiet.close()
    assert now == before
    revisions, root = evictions(tmp_path / "flooded"), state_root(rig.engine.state)
    assert len(revisions) >= 2
    assert replayed_root(tmp_path / "flooded") == root
    assert replayed_root(tmp_path / "flooded", "reference") == root
    with Log.open(tmp_path / "flooded" / "log", read_only=True) as log:
        assert state_root(recover(tmp_path / "flooded", log, "cpu")) == root


def test_rows_without_room_are_named_and_the_others_are_learned(tmp_path: Path) -> None:
    rig = Rig(tmp_path, EVICTED)
    rig.push(known(0))
    # 180 users and items are new, and there is room for 180.
    accepted = [rig.push(flood(number)).accepted for number in range(5)]
    assert accepted == [50, 50, 50, 30, 0]
    ack = rig.push(wire.encode_interactions([0, 7777, 1, 2, 8888], [0, 1, 9999, 3, 9999]))
    assert ack.accepted == 2
    assert ack.rejects.listed == ((1, USERS_FULL), (2, ITEMS_FULL), (4, USERS_FULL))
    assert REJECT_TEXTS[USERS_FULL] == "the user is new, and the model has limits.users_max users"
    assert REJECT_TEXTS[ITEMS_FULL] == "the item is new, and the model has limits.items_max items"
    # A restart finds the tables as full as they were.
    root = rig.root()
    rig.close()
    again = Rig(tmp_path, EVICTED)
    assert again.root() == root
    assert again.push(wire.encode_interactions([7777], [0])).rejects.listed == ((0, USERS_FULL),)
    # Events of known users make the rows of the flood idle. Then the refused user has room.
    for number in range(2 * MIN_IDLE_EVENTS // KNOWN):
        assert again.push(known(number)).accepted == KNOWN
    assert again.push(wire.encode_interactions([7777], [9999])).accepted == 1
    again.close()
    assert evictions(tmp_path) and again.engine.state.backend.published == (KNOWN + 1, KNOWN + 1)
    assert replayed_root(tmp_path) == state_root(again.engine.state)


def test_refused_events_make_nothing_idle(tmp_path: Path) -> None:
    """What is not learned does not count, so a flood alone drives nobody out."""
    rig = Rig(tmp_path, EVICTED)
    rig.push(known(0))
    for number in range(2 * MIN_IDLE_EVENTS // FLOOD):
        rig.push(flood(number))
    assert rig.push(known(1)).accepted == KNOWN
    rig.close()
    assert not evictions(tmp_path) and rig.engine.state.backend.published == (ROOM, ROOM)
