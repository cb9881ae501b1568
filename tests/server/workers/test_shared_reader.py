"""A score worker reads a model in shared memory: the same bytes as the server, at one revision."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine_rig import Rig
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.content import encode_embeddings
from livefactor.wire.factors import encode_factors
from livefactor.wire.scoring import decode_score, encode_score, encode_score_response
from livefactor_kernels.simd import memory
from livefactor_kernels.simd.arena import Arena, arena_of_process
from livefactor_kernels.spec.model import Embeddings, FactorDtype, Loss, ModelSpec, Solve
from livefactor_kernels.spec.presets import PRESET_NAMES, preset
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.head import Changed, HeadReader
from livefactor_server.engine.answering.answers import USUAL
from livefactor_server.engine.readers import Reader
from livefactor_server.log.store import Log
from livefactor_server.model.gate import Gate
from livefactor_server.model.labels import Labels
from livefactor_server.model.shared_labels import BLOCK_BYTES, SharedLabels
from livefactor_server.rpc import decode
from livefactor_server.snapshots.replay import follow, replay
from livefactor_server.workers.crew import entry_of
from livefactor_server.workers.reader import SharedReader

USERS, N_ITEMS = 40, 60
SECONDS = 1.0

SPECS = {name: preset(name, k=8, limits=replace(preset(name).limits, users_max=200, items_max=200))
         for name in PRESET_NAMES}  # fmt: skip
SPECS["float16"] = replace(SPECS["purchases_sgd"], factor_dtype=FactorDtype.FLOAT16)
SPECS["content"] = replace(SPECS["auto"], embeddings=Embeddings(dimension=4, user_dimension=3))
SPECS["starts"] = replace(SPECS["clicks"], solve=Solve(unobserved=1.0, start_events=5.0))


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = arena_of_process()
    memory.share_from(made)
    yield made
    memory.share_from(None)


class Model:
    """A model in the arena, with a reader of the server and one of a worker."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.rig = Rig(folder, spec)
        self.reader = Reader(self.rig.engine)
        hosted: Any = SimpleNamespace(name="m", engine=self.rig.engine, sharing=None)
        entry = entry_of(hosted)
        assert entry is not None
        self.shared = SharedReader(entry)

    def push(self, kind: str, body: bytes) -> int:
        """Push a change, and return its revision."""
        request = decode.UpdateRequest("", b"", 0, 0, kind, body)
        change, _ = decode.change_from_wire(request, self.rig.engine.state.spec, 65_536)
        result = self.rig.send(change, body, b"", 0, 0).get(timeout=60).result
        return int(result.revision)  # type: ignore[union-attr]

    def learn(self, seed: int, events: int = 300) -> int:
        draw = np.random.default_rng(seed)
        users, items = draw.integers(0, USERS, events), draw.zipf(1.5, events) % N_ITEMS
        return self.push(*interactions(self.rig.engine.state.spec, users, items))

    def differences(self, queries: dict[str, bytes]) -> list[str]:
        """The queries to which the worker has another answer than the server."""
        return [name for name, raw in queries.items() if self.answer(raw) != answer_of(self.reader, raw)]

    def answer(self, raw: bytes) -> bytes | None:
        found = self.shared.score(decode_score(raw), USUAL)
        return None if found is None else encode_score_response(found)


def interactions(spec: ModelSpec, users: Any, items: Any) -> tuple[str, bytes]:
    values = np.asarray(users) % 5 + 1.0 if spec.loss == Loss.SQUARED else None
    return wire.INTERACTIONS, wire.encode_interactions(users, items, values)


def answer_of(reader: Reader, raw: bytes) -> bytes:
    return encode_score_response(reader.score(decode_score(raw)))


def queries_of(spec: ModelSpec) -> dict[str, bytes]:
    items, unknown = list(range(N_ITEMS + 5)), 10_000
    queries = {
        "candidates": encode_score("m", [3], candidates=items),
        "users": encode_score("m", [1, 2, unknown, 5], candidates=items),
        "lists": encode_score("m", [1, 2], candidates=items[:5], offsets=[0, 2, 5]),
        "labels": encode_score("m", [1, 2], candidates=items, with_labels=True),
        "top_k": encode_score("m", [4], k=10),
        "top_k_of_many": encode_score("m", list(range(20)), k=N_ITEMS, with_labels=True),
        "excluded": encode_score("m", [1, 2], k=10, exclude_ids=items[:9]),
        "own_excluded": encode_score("m", [1, 2], k=10, exclude_ids=items[:9], offsets=[0, 4, 9]),
        "unavailable": encode_score("m", [1], k=N_ITEMS, include_unavailable=True),
        "similar": encode_score("m", [1, unknown, 3], similar=True, k=5),
    }
    if spec.history.users:
        queries |= {
            "seen": encode_score("m", [1, 2, unknown], k=10, exclude_seen=True),
            "events": encode_score("m", [1, 2], k=10, events=[3, 4, unknown, 5]),
            "own_events": encode_score("m", [1, 2], candidates=items, events=[3, 4], event_offsets=[0, 2, 2]),
        }
    if spec.embeddings.dimension:
        vector = np.array([1, 2, 3, 4], np.float32)
        queries["query"] = encode_score("m", [1, 2], k=10, query=vector, query_weight=2.0)
        queries["query_candidates"] = encode_score("m", [1], candidates=items, query=vector)
    return queries


@pytest.mark.parametrize("name", SPECS)
def test_a_worker_has_the_bytes_of_the_server(name: str, arena: Arena, tmp_path: Path) -> None:
    """Before the first event, after events, marks, labels and all else that a model learns."""
    spec = SPECS[name]
    model, queries = Model(tmp_path, spec), queries_of(spec)
    assert model.differences(queries) == []
    if spec.solve.start_events:
        starts = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
        for side in (updates_pb2.SIDE_ITEM, updates_pb2.SIDE_USER):
            model.push("factors", encode_factors(side, np.arange(30), starts, None))
    for seed in range(3):
        model.learn(seed)
        assert model.differences(queries) == []
    if spec.embeddings.dimension:
        vectors = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
        model.push("embeddings", encode_embeddings(updates_pb2.SIDE_ITEM, np.arange(40, 70), vectors))
        model.push("embeddings", encode_embeddings(updates_pb2.SIDE_USER, np.arange(30), vectors[:, :3]))
        model.learn(3)
        assert model.differences(queries) == []
    ids = np.arange(50, 75)
    # 70 to 74 are unknown, and get rows later.
    for change in (
        (wire.AVAILABILITY, wire.encode_availability([1, 2, 70, 71], False)),
        (wire.LABELS, wire.encode_labels(updates_pb2.SIDE_ITEM, ids, [f"item {each} ä" for each in ids])),
        interactions(spec, [1, 2, 3], [70, 72, 75]),
        (wire.AVAILABILITY, wire.encode_availability([2, 3], True)),
        (wire.LABELS, wire.encode_labels(updates_pb2.SIDE_ITEM, [50, 51, 1], ["", "other", "first"])),
    ):
        revision = model.push(*change)
        assert model.shared.revision == revision
        assert model.differences(queries) == []
    model.rig.close()


@pytest.mark.parametrize(("name", "is_checked"), [("auto", True), ("auto", False), ("clicks_sgd", True)])
def test_an_answer_is_of_the_revision_that_it_names(
    name: str, is_checked: bool, arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads read while the model learns. Then a replay answers at each revision again.

    Without the look at the version after a read, some answers differ.
    """
    model = Model(tmp_path, SPECS[name])
    model.learn(0, 4000)
    queries = queries_of(SPECS[name])
    asked = [queries[each] for each in ("candidates", "users", "top_k", "top_k_of_many")]
    stop, found = threading.Event(), list[tuple[bytes, bytes]]()
    errors: list[Exception] = []
    if not is_checked:
        monkeypatch.setattr(HeadReader, "check", lambda *_: None)
        monkeypatch.setattr(HeadReader, "version", lambda _: 0)

    def read() -> None:
        try:
            while not stop.is_set():
                for raw in asked:
                    answer = model.answer(raw)
                    if answer is not None:
                        found.append((raw, answer))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    end, seed = time.monotonic() + SECONDS, 1
    while time.monotonic() < end or (len(found) < 100 and time.monotonic() < end + 60):
        model.learn(seed, 64)
        if seed % 4 == 0:
            body = wire.encode_availability(np.arange(seed % 7, N_ITEMS, 7), seed % 8 == 0)
            model.push(wire.AVAILABILITY, body)
        seed += 1
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    model.rig.close()
    torn = wrong_answers(tmp_path, found)
    assert (torn == 0) is is_checked, f"{torn} of {len(found)} answers, {seed} batches"


def wrong_answers(folder: Path, found: list[tuple[bytes, bytes]]) -> int:
    """The number of answers that differ from those of a replay at their revisions."""
    by_revision: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
    for raw, answer in found:
        by_revision[scored_at(answer)].append((raw, answer))
    log, wrong = Log.open(folder / "log", read_only=True), 0
    state = replay(folder, log, "cpu", min(by_revision))
    for revision in sorted(by_revision):
        state = follow(state, log, revision)
        reader = Reader(SimpleNamespace(state=state, torn=False, gate=Gate()))  # type: ignore[arg-type]
        right = {raw: answer_of(reader, raw) for raw in {raw for raw, _ in by_revision[revision]}}
        wrong += sum(right[raw] != answer for raw, answer in by_revision[revision])
    log.close()
    return wrong


def scored_at(answer: bytes) -> int:
    from livefactor.v1 import scoring_pb2

    return scoring_pb2.ScoreResponse.FromString(answer).position.revision


def test_marks_of_another_revision_are_not_taken(arena: Arena, tmp_path: Path) -> None:
    model = Model(tmp_path, SPECS["auto"])
    model.learn(0)
    state = model.rig.engine.state
    lists = {
        "top_k": encode_score("m", [1], k=5),
        "all": encode_score("m", [1], k=5, include_unavailable=True),
    }
    state.marks.put(np.arange(5, dtype=np.uint64), available=False)
    assert model.answer(lists["top_k"]) is None
    assert model.answer(lists["all"]) is not None
    # A revision whose marks are not there yet.
    state.marks.publish()
    assert model.answer(lists["top_k"]) is not None
    state.backend.advance(2)
    assert model.answer(lists["top_k"]) is None
    model.rig.close()


def test_a_state_that_was_withdrawn_answers_nothing(arena: Arena, tmp_path: Path) -> None:
    model = Model(tmp_path, SPECS["auto"])
    model.learn(0)
    raw = encode_score("m", [1], candidates=[1, 2])
    assert model.answer(raw) is not None
    model.rig.engine.withdraw()
    assert model.answer(raw) is None
    model.rig.close()


def test_labels_are_read_whatever_was_replaced(arena: Arena) -> None:
    labels = Labels(shared=True)
    shared, keys = SharedLabels(labels.shared), np.arange(3000, dtype=np.uint64)
    for turn in range(8):
        texts = [f"{turn} {key} " + "x" * (key % 900) for key in keys.tolist()]
        texts[turn] = ""
        labels.put(keys, texts)
        assert shared.of(keys) == texts
    # All that was written is several times what is left, and was dropped.
    assert len(labels._sharing._blocks) * BLOCK_BYTES < 6 * sum(map(len, texts))  # type: ignore[union-attr]
    assert shared.of(np.array([5000], np.uint64)) == [""]
    loaded = Labels(shared=True)
    loaded.load(labels.freeze().arrays())
    assert SharedLabels(loaded.shared).of(keys) == texts


def test_labels_that_found_no_addresses_are_not_read(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels(shared=True)
    shared, keys = SharedLabels(labels.shared), np.arange(3, dtype=np.uint64)
    labels.put(keys[:1], ["first"])
    assert shared.of(keys) == ["first", "", ""]
    monkeypatch.setattr(Arena, "reserve", lambda *_: None)
    labels.put(np.arange(2000, dtype=np.uint64), ["x" * 1000] * 2000)
    with pytest.raises(Changed):
        shared.of(keys)
    labels.put(keys[:1], ["second"])
    assert labels.get(0) == "second"
    with pytest.raises(Changed):
        shared.of(keys)


def test_a_model_that_a_challenger_shares_is_left_to_the_head(arena: Arena, tmp_path: Path) -> None:
    model = Model(tmp_path, SPECS["auto"])
    hosted: Any = SimpleNamespace(name="m", engine=model.rig.engine, sharing=object())
    assert entry_of(hosted) is None
    assert len(model.rig.engine.state.labels[ITEMS]) == 0
    model.rig.close()
