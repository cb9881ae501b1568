"""One order of batches gives one state, whatever the number of producers, reads and snapshots."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine_rig import Rig, batch, replayed_root
from livefactor_server.changes import OpenProducerChange
from livefactor_server.snapshots.erasures import learned_root
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import snapshot_store
from livefactor_server.snapshots.store import root_hash_of
from tally import Tally, amount

PRODUCERS = 8
BATCHES = amount("ROUNDS", 1) * 5


def rig_at(folder: Path) -> Rig:
    (folder / "snapshots").mkdir(parents=True)
    return Rig(folder)


def learned(rig: Rig) -> bytes:
    state = rig.engine.state
    return learned_root(state.revision, root_hash_of(freeze_idle("m", state, "sha256"))[1])


def together(rig: Rig) -> None:
    """Eight producers push at the same time, while others read and take snapshots."""
    epochs = [rig.open(b"p%d" % number).epoch for number in range(PRODUCERS)]
    done, errors = threading.Event(), []

    def push(number: int) -> None:
        try:
            for sequence in range(1, BATCHES + 1):
                seed = 1000 * number + sequence
                rig.push(batch(seed, 1 + seed % 90), b"p%d" % number, epochs[number], sequence)
        except Exception as error:
            errors.append(error)

    def watch() -> None:
        while not done.is_set():
            with rig.engine.view() as view:
                snapshot_store(rig.folder).take(view)

    pushing = [threading.Thread(target=push, args=(number,)) for number in range(PRODUCERS)]
    watching = threading.Thread(target=watch)
    for thread in (*pushing, watching):
        thread.start()
    for thread in pushing:
        thread.join()
    done.set()
    watching.join()
    assert errors == []


def recorded(rig: Rig) -> Iterator[tuple[int, bytes]]:
    """The batches in the order of the log: their revisions and bodies."""
    for record in rig.log.read():
        if record.producer and record.sequence:
            yield record.revision, bytes(record.body)


def again(folder: Path, batches: list[tuple[int, bytes]], producers: int) -> bytes:
    """The state of a model that gets the batches in this order from so many producers."""
    rig = rig_at(folder)
    epochs = [rig.open(b"q%d" % number).epoch for number in range(producers)]
    while rig.engine.revision < PRODUCERS:
        rig.send(OpenProducerChange(), b"", b"nobody", 0, 0).get(timeout=20)
    sequences = np.zeros(producers, int)
    for number, (revision, body) in enumerate(batches):
        who = number % producers
        sequences[who] += 1
        ack = rig.push(body, b"q%d" % who, epochs[who], int(sequences[who]))
        assert ack.revision == revision
    found = learned(rig)
    root = rig.root()
    rig.close()
    assert replayed_root(folder) == root
    return found


@pytest.mark.torture
def test_one_order_gives_one_root(tmp_path: Path, tally: Tally) -> None:
    rig = rig_at(tmp_path / "together")
    together(rig)
    batches, found, root = list(recorded(rig)), learned(rig), rig.root()
    rig.close()
    assert len(batches) == PRODUCERS * BATCHES
    assert replayed_root(tmp_path / "together") == root
    for producers in (1, 2, 8):
        assert again(tmp_path / str(producers), batches, producers) == found
        tally.add("orders of 8 producers sent again by 1, 2 and 8")
