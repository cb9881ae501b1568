"""Tables that another process reads: one revision in each answer, grown maps, withdrawal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.scoring.cpu_candidates import CandidateReader
from livefactor_kernels.simd import arena, memory
from livefactor_kernels.spec.model import History, Limits, ModelSpec
from livefactor_kernels.tables.shared import Place, Places, SharedModel, arrays_at

SPEC = ModelSpec(k=16, init_scale=0.0, limits=Limits(users_max=8, items_max=1 << 16))
ITEMS_FIRST, ITEMS_LAST = 40, 40_000
SECONDS = 1.0

READER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[2])
import numpy as np
from livefactor_kernels.simd import arena
from test_shared import candidates, places_from, reads
arena.attach(int(sys.argv[1]))
places = places_from(json.loads(sys.stdin.readline()))
print("ready", flush=True)
for line in sys.stdin:
    if line == "write\\n":
        candidates(places)[0].users.bias[0] = 1
    print(json.dumps(reads(places, float(line))), flush=True)
"""


def places_from(given: list) -> Places:
    return tuple(Place(name, address, tuple(shape), dtype) for name, address, shape, dtype in given)


def candidates(places: Places) -> tuple[SharedModel, CandidateReader]:
    model = SharedModel(SPEC, arrays_at(places))
    return model, CandidateReader(model.head, model.state["mean"], model.users, model.items)


def reads(places: Places, seconds: float) -> dict[str, int]:
    """Read for some time: how many answers there were, and how many of them were wrong.

    At revision r the biases of all users and items are r, and there are min(r, last) items.
    """
    model, reader = candidates(places)
    users, items = np.arange(4, dtype=np.uint64), np.arange(ITEMS_LAST, dtype=np.uint64)[::17].copy()
    counted = dict.fromkeys(("answers", "wrong", "last", "withdrawn"), 0)
    end = time.monotonic() + seconds
    while True:
        found = reader.read(users, items, None)
        if not model.head.is_in_force:
            counted["withdrawn"] += 1
        elif found is not None:
            there = items < np.uint64(min(found.revision, ITEMS_LAST))
            known = np.array_equal(found.item_known, there)
            scores = found.revision + np.where(there, found.revision, 0)
            right = known and np.array_equal(found.scores.reshape(4, -1), np.tile(scores, (4, 1)))
            counted["answers"] += 1
            counted["wrong"] += not right
            counted["last"] = found.revision
        if time.monotonic() >= end:
            return counted


class Writer:
    """A model whose biases all are its revision."""

    def __init__(self) -> None:
        self.model = CpuModel(SPEC)
        self.model.users.allocate(np.arange(4, dtype=np.uint64))

    def write(self, revision: int) -> None:
        model, count = self.model, min(revision, ITEMS_LAST)
        model.items.allocate(np.arange(model.items.allocated, count, dtype=np.uint64))
        model.head.open()
        model.users.bias[:4] = revision
        model.items.bias[:count] = revision
        model.advance(revision, 4, count)


class Reader:
    """A process that reads."""

    def __init__(self, file: int, places: Places) -> None:
        path = json.dumps([each for each in sys.path if each])
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(file), path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(file,), text=True,
        )  # fmt: skip
        self.ask(json.dumps(places))
        assert self.answer() == "ready\n"

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(60)


@pytest.fixture
def shared() -> Iterator[int]:
    made = arena.arena_of_process()
    memory.share_from(made)
    yield made.file
    memory.share_from(None)


def test_another_process_reads_one_revision_while_tables_change_and_grow(shared: int) -> None:
    writer = Writer()
    places = writer.model.places()
    assert places is not None
    writer.write(ITEMS_FIRST)
    reader = Reader(shared, places)
    try:
        # The first reads compile or load the kernels.
        reader.ask("0")
        assert json.loads(reader.answer())["answers"] >= 1
        changes, revision = int(writer.model.items.keymap.shared[-1]), ITEMS_FIRST
        reader.ask(str(SECONDS))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or revision < ITEMS_LAST:
            revision += 200
            writer.write(revision)
            time.sleep(0.002)
        while_writing = json.loads(reader.answer())
        reader.ask("0")
        at_rest = json.loads(reader.answer())
        assert int(writer.model.items.keymap.shared[-1]) > changes, "the map has grown"
        assert while_writing["wrong"] == 0
        assert at_rest == {"answers": 1, "wrong": 0, "last": revision, "withdrawn": 0}

        writer.model.head.withdraw()
        reader.ask("0")
        assert json.loads(reader.answer())["withdrawn"] == 1
        # The memory of a deleted model reads as withdrawn, too.
        del writer
        reader.ask("0")
        assert json.loads(reader.answer())["withdrawn"] == 1
        reader.ask("write")
        assert reader.answer() == ""
    finally:
        assert reader.close() == -11, "a process that writes to the tables of another one ends"


def test_a_model_without_an_arena_is_not_shared(shared: int) -> None:
    spec = ModelSpec(limits=Limits(users_max=8, items_max=8), history=History(users=16))
    assert CpuModel(spec).places() is not None
    memory.share_from(None)
    assert CpuModel(spec).places() is None


def test_a_map_without_addresses_left_is_read_no_more(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CpuModel(SPEC)
    places = model.places()
    assert places is not None
    model.items.allocate(np.arange(100, dtype=np.uint64))
    model.advance(1, 0, 100)
    reader = candidates(places)[1]
    nobody, some = np.zeros(1, np.uint64), np.arange(3, dtype=np.uint64)
    assert reader.read(nobody, some, None) is not None
    monkeypatch.setattr(arena.Arena, "reserve", lambda *_: None)
    model.items.allocate(np.arange(30_000, dtype=np.uint64))
    model.advance(2, 0, 30_000)
    assert reader.read(nobody, some, None) is None
    assert model.try_score(nobody, some, None) is not None
    assert CpuModel(model.spec).places() is None


def test_freed_memory_reads_as_zeros_and_is_not_given_again(shared: int) -> None:
    made = arena.arena_of_process()
    first = made.reserve((4096,), np.uint8)
    assert first is not None
    first[:] = 7
    address = first.__array_interface__["data"][0]
    assert arena.is_shared(first) and not arena.is_shared(memory.reserve((8,), np.uint8))
    del first
    second = made.reserve((4096,), np.uint8)
    assert second is not None and second.__array_interface__["data"][0] != address
    assert not arena.view(address, (4096,), np.uint8).any()
