"""Scores of candidates by keys in one compiled call: their bits, and no torn read."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from golden import SPECS
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.scoring import cpu_candidates
from livefactor_kernels.scoring.cpu import score_candidates
from livefactor_kernels.spec.model import Limits, Loss, ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.head import Head
from livefactor_kernels.update import Update
from synthetic import push_random

PAUSE_S = 2e-4
"""Seconds between records. Without a pause hardly any read would find one."""
READERS, USER_KEYS, ITEM_KEYS = 4, np.arange(4, dtype=np.uint64), np.arange(300, dtype=np.uint64)


@pytest.mark.parametrize("name", ["squared", "squared_float16", "logistic_adagrad_bfloat16", "logistic"])
def test_the_bits_are_those_of_the_reference(name: str) -> None:
    """Lists are short and long, shared and not; some users and items are unknown."""
    spec = SPECS[name]
    model, reference = CpuModel(spec), ReferenceModel(spec)
    rng = np.random.default_rng(5)
    for each in (model, reference):
        rng = np.random.default_rng(5)
        for _ in range(4):
            push_random(each, rng, 60, 30, 90)
    user_keys = np.concatenate((model.users.keys[:3], [np.uint64(2**64 - 1)]))
    known = model.items.keys[: model.published[ITEMS]]
    for items in (5, 3000):
        item_keys = np.concatenate((rng.choice(known, items), rng.integers(2**40, 2**41, 3, np.uint64)))
        rng.shuffle(item_keys)
        for offsets in (None, np.array([0, 2, 2, len(item_keys) - 1, len(item_keys)], np.uint32)):
            found = model.try_score(user_keys, item_keys, offsets)
            assert found is not None and found.revision == 4
            user_rows = reference.users.find(user_keys, reference.published[USERS])
            item_rows = reference.items.find(item_keys, reference.published[ITEMS])
            ends = np.array([0, len(item_keys)]) if offsets is None else None
            expected = [
                score_candidates(
                    reference.mean,
                    *reference.gather(USERS, user_rows[u : u + 1]),
                    *reference.gather(ITEMS, part),
                    np.array([0, len(part)]),
                )
                for u in range(4)
                for part in [item_rows if ends is not None else item_rows[offsets[u] : offsets[u + 1]]]
            ]
            assert found.scores.tobytes() == np.concatenate(expected).tobytes()
            assert found.user_known.tolist() == [True, True, True, False]
            assert found.item_known.tolist() == np.isin(item_keys, known).tolist()


def test_rows_that_are_not_published_are_unknown() -> None:
    model = CpuModel(ModelSpec(k=16, limits=Limits(users_max=10, items_max=10)))
    rows = model.users.allocate(USER_KEYS), model.items.allocate(ITEM_KEYS[:4])
    found = model.try_score(USER_KEYS, ITEM_KEYS[:4], None)
    assert found is not None and not found.user_known.any() and not found.item_known.any()
    model.apply(Update(1, *rows, None, None, 2, 3))
    found = model.try_score(USER_KEYS, ITEM_KEYS[:4], None)
    assert found is not None and found.revision == 1
    assert found.user_known.tolist() == [True, True, False, False]
    assert found.item_known.tolist() == [True, True, True, False]


@pytest.fixture
def quick_turns() -> Iterator[None]:
    """Let busy threads pass the GIL on quickly, as in a server."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


def torn_reads(writes: int = 80) -> tuple[int, int]:
    """Answers while a writer applies records that change every row, and those of no revision."""
    spec = ModelSpec(k=64, loss=Loss.LOGISTIC, limits=Limits(users_max=10, items_max=1000))
    model, replayed = CpuModel(spec), CpuModel(spec)
    for each in (model, replayed):
        rows = each.users.allocate(USER_KEYS), each.items.allocate(ITEM_KEYS)
    users = np.resize(rows[0], ITEM_KEYS.size)
    records = [Update(n + 1, users, rows[1], None, None, 4, ITEM_KEYS.size) for n in range(writes)]
    is_over, answers = threading.Event(), [dict[int, set[bytes]]() for _ in range(READERS)]
    started = threading.Barrier(READERS + 1)

    def read(own: dict[int, set[bytes]], many: bool) -> None:
        users = np.resize(USER_KEYS, 8 if many else 4)
        started.wait()
        while not is_over.is_set():
            found = model.try_score(users, ITEM_KEYS, None)
            if found is not None:
                own.setdefault(found.revision, set()).add(found.scores[: 4 * ITEM_KEYS.size].tobytes())

    # Long reads release the GIL, short ones do not.
    assert 4 * ITEM_KEYS.size <= cpu_candidates.SHORT_PAIRS_MAX < 8 * ITEM_KEYS.size
    threads = [threading.Thread(target=read, args=(own, n % 2)) for n, own in enumerate(answers)]
    for thread in threads:
        thread.start()
    started.wait()
    for record in records:
        model.apply(record)
        time.sleep(PAUSE_S)
    is_over.set()
    for thread in threads:
        thread.join(60)
    torn = checked = 0
    for revision, record in enumerate([None, *records]):
        if record is not None:
            replayed.apply(record)
        expected = replayed.try_score(USER_KEYS, ITEM_KEYS, None)
        assert expected is not None
        for own in answers:
            found = own.get(revision, set())
            checked += len(found)
            torn += len(found - {expected.scores.tobytes()})
    return checked, torn


@pytest.mark.usefixtures("quick_turns")
def test_no_read_is_torn_beside_a_writer() -> None:
    checked, torn = torn_reads()
    assert checked > 10 and torn == 0


@pytest.mark.usefixtures("quick_turns")
def test_without_the_version_reads_are_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""

    def publish(self: Head, *numbers: int) -> None:
        self.words[1:4] = numbers

    monkeypatch.setattr(Head, "open", lambda self: None)
    monkeypatch.setattr(Head, "close", publish)
    assert torn_reads()[1] > 0


def test_a_reader_gives_up_while_rows_change() -> None:
    model = CpuModel(ModelSpec(k=16, limits=Limits(users_max=10, items_max=10)))
    model.head.open()
    assert model.try_score(USER_KEYS, USER_KEYS, None) is None
    model.advance(1)
    found = model.try_score(USER_KEYS, USER_KEYS, None)
    assert found is not None and found.revision == 1


def test_a_map_that_grew_after_the_reader_looked_at_it_does_not_hide_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reader takes the maps before it takes the version."""
    model = CpuModel(ModelSpec(k=16, limits=Limits(users_max=10, items_max=100_000)))
    kernel, many = cpu_candidates._short_kernel, np.arange(50_000, dtype=np.uint64)
    grown = []

    def grow_first(*arguments: object) -> int:
        if not grown:
            grown.append(model.items.allocate(many))
            model.advance(1, 0, many.size)
        return int(kernel(*arguments))

    monkeypatch.setattr(cpu_candidates, "_short_kernel", grow_first)
    found = model.try_score(USER_KEYS, many[-100:], None)
    assert found is not None and found.revision == 1 and found.item_known.all()
