"""Replay of small records in bulk gives the state of a replay record by record, to the bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from livefactor.wire.columns import encode_availability, encode_interactions
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import EventType, FactorDtype, Loss, ModelSpec, OptimizerKind, Replay
from livefactor_server.changes import InteractionsChange, Rejects, encode_rejects
from livefactor_server.log import walk
from livefactor_server.log.store import Entry, Kind, Log
from livefactor_server.model import producers, spec_codec
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.audit import root_of
from specs import softmax_spec, solve_spec
from synthetic import make_spec

SGD = OptimizerKind.SGD
SPECS = {
    "squared": make_spec(Loss.SQUARED, SGD, negatives=0, micro_batch=1),
    "logistic": make_spec(Loss.LOGISTIC, SGD, negatives=2, micro_batch=1),
    "bpr": make_spec(Loss.BPR, SGD, negatives=3, micro_batch=1),
    "bpr-narrow": make_spec(Loss.BPR, SGD, negatives=2, micro_batch=1, factor_dtype=FactorDtype.BFLOAT16),
    "bpr-batches": make_spec(Loss.BPR, OptimizerKind.ADAGRAD, negatives=2, micro_batch=4),
    "bpr-replay": make_spec(Loss.BPR, SGD, negatives=2, micro_batch=1, replay=Replay(8, 1)),
    "solve": solve_spec(),
    "softmax": softmax_spec(),
}
TYPES = (EventType(3, 0.5), EventType(7, 2.0, True))


def bodies(spec: ModelSpec, rng: np.random.Generator) -> bytes:
    """A message of 0 to 4 events. Optional columns are there or not, and one message is unusual."""
    n = int(rng.integers(0, 5))
    users, items = (rng.integers(0, 12, n).astype(np.uint64) * np.uint64(2**60 + 7) for _ in range(2))
    columns = {
        "values": np.where(rng.random(n) < 0.5, 0.0, 1.0),
        "weights": rng.random(n) + 0.5,
        "event_types": rng.integers(0, 9, n),
        "times_us": rng.integers(0, 10**15, n),
    }
    given = {name: column for name, column in columns.items() if rng.random() < 0.5}
    if spec.loss == Loss.SQUARED and n:
        given["values"] = columns["values"]
    body = encode_interactions(users, items, **given)
    if n > 1 and rng.random() < 0.1:
        # The columns of users and items come twice, as a peer may send them.
        body = encode_interactions(users[:1], items[:1]) + encode_interactions(users[1:], items[1:])
        if "values" in given:
            body += encode_interactions([], [], None) + _values(columns["values"])
    return body


def _values(values: np.ndarray) -> bytes:
    whole = encode_interactions(np.zeros(len(values), np.uint64), np.zeros(len(values), np.uint64), values)
    return whole[-(2 + 4 * len(values)) :]


def write(folder: Path, spec: ModelSpec, records: int) -> None:
    rng = np.random.default_rng(5)
    log = Log.create(folder / "log", spec_codec.encode(spec), hash_name="sha256")
    sequences = {b"a": 0, b"b": 0}
    entries = [Entry(Kind.OPEN_PRODUCER, r, name, 1) for r, name in enumerate(sequences, 1)]
    for revision in range(3, 3 + records):
        name = (b"a", b"b", b"")[int(rng.integers(0, 3))]
        kind, body, rejects = Kind.INTERACTIONS, bodies(spec, rng), b""
        if rng.random() < 0.05:
            kind, body = Kind.AVAILABILITY, encode_availability([revision % 12], bool(revision % 2))
        elif rng.random() < 0.2:
            rejects = encode_rejects(Rejects(2, ((0, 1), (9, 3))), bytes(32))
        if name:
            sequences[name] += 1
        count = 1 if kind == Kind.AVAILABILITY else InteractionsChange.from_log(body).rows
        entries.append(Entry(kind, revision, name, 1, sequences.get(name, 0), 0, count, rejects, body))
    for entry in entries:
        entry.salt = os.urandom(16)
        entry.commitment = log.seal(entry.salt, entry.rejects, entry.body)
    at = 0
    while at < len(entries):
        size = int(rng.integers(1, 30))
        log.append(entries[at : at + size])
        at += size
    log.close()


def everything(state: ModelState) -> Sequence[object]:
    return root_of(state), state.revision, state.log_hash, state.events, state.backend.published


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("types", [(), TYPES], ids=["", "types"])
def test_bulk_replay_gives_the_same_state(tmp_path: Path, name: str, types: tuple[EventType, ...]) -> None:
    spec = check(replace(SPECS[name], event_types=types))
    write(tmp_path, spec, 300)
    calls = []
    with pytest.MonkeyPatch.context() as patch, Log.open(tmp_path / "log", read_only=True) as log:
        mixed = everything(replay.replay(tmp_path, log, "cpu"))
        patch.setattr(replay, "COLUMNS_MIN", 1)
        real = replay.changes.apply_columns
        patch.setattr(replay.changes, "apply_columns", lambda *a: calls.append(real(*a)) or calls[-1])
        bulk = everything(replay.replay(tmp_path, log, "cpu"))
        state = replay.replay(tmp_path, log, "cpu", until=171)
        middle = everything(state)
        # The second call has nothing to do.
        for until in (171, 171, log.last_revision):
            assert replay.follow(state, log, until).revision == until
        assert everything(state) == bulk == mixed
        assert sum(calls) > 200
        patch.setattr(walk.ColumnReader, "read", lambda *_: None)
        done = len(calls)
        assert bulk == everything(replay.replay(tmp_path, log, "cpu"))
        assert middle == everything(replay.replay(tmp_path, log, "cpu", until=171))
        assert len(calls) == done


def test_many_outcomes_of_one_producer_leave_the_last_ones() -> None:
    tables = [producers.ProducerTable(), producers.ProducerTable()]
    outcomes = [
        producers.Outcome(sequence, sequence + 5, 1, 0, (), bytes(16), bytes(32))
        for sequence in range(1, 201)
    ]
    for table in tables:
        table.open(b"p", 1)
    for outcome in outcomes:
        tables[0].record(b"p", outcome)
    for start, end in ((0, 30), (30, 120), (120, 200)):
        sequences = np.arange(start + 1, end + 1).astype(np.uint64)
        tables[1].record_all(b"p", sequences, outcomes[max(start, end - producers.RING) : end])
    assert producers.encode(tables[0].freeze()) == producers.encode(tables[1].freeze())
    with pytest.raises(AssertionError):
        tables[1].record_all(b"p", np.array([202], np.uint64), [])


def test_progress_is_told_about_once_for_many_records(tmp_path: Path) -> None:
    write(tmp_path, SPECS["squared"], 3000)
    told: list[tuple[int, int]] = []
    with Log.open(tmp_path / "log", read_only=True) as log:
        replay.replay(tmp_path, log, "cpu", progress=lambda *at: told.append(at))
    assert told[-1] == (3002, 3002)
    assert len(told) <= 4
