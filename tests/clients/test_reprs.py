"""Each public object has a repr of one short line, for notebooks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import snapshot_samples as samples
from livefactor import (
    Ack,
    Auditor,
    Judgement,
    ModelDescription,
    Models,
    Position,
    Recommendations,
    RowReject,
    Scorer,
    Scores,
    SnapshotInfo,
    load,
    verify,
)
from livefactor.models import fill, plain
from livefactor.v1 import models_pb2

HERE = Position(bytes(range(16)), 12)


def answers(kind: Any, users: int, items: int) -> Any:
    m = users * items
    return kind(
        HERE,
        np.array([f"user {u}" for u in range(users)], object),
        np.array([f"item {i}" for i in range(m)], object),
        np.linspace(1, 0, m, dtype=np.float32),
        np.arange(0, m + 1, items, dtype=np.uint32),
        np.ones(users, bool),
        np.ones(m, bool),
        [f"item {i}" for i in range(m)],
        np.arange(m, dtype=np.uint64),
        np.full(users, 12, np.uint64),
    )


DESCRIPTION = ModelDescription(
    "shop", HERE, {"rule": "sgd", "k": 64}, 1, 2, 3, "cpu", b"h" * 32, 4, 5, True, b"r" * 32,
    Judgement(0, 12, 3, 2, 1, (), (), 0, 1.0, 0.0, True),
)  # fmt: skip
ONE_LINE = {
    "position": (HERE, "Position(00010203-0405-0607-0809-0a0b0c0d0e0f:12)"),
    "ack": (Ack(HERE, 3), "Ack(3 accepted, revision 12)"),
    "rejects": (
        Ack(HERE, 3, 2, (RowReject(1, "NOT_FINITE", "value is not finite"),) * 2, duplicate=True),
        "Ack(3 accepted, 2 rejected, duplicate, revision 12)",
    ),
    "one user": (
        answers(Recommendations, 1, 2),
        "Recommendations(1 user, 2 items, revision 12: UserAnswer('user 0', {'item 0': 1, 'item 1': 0}))",
    ),
    "many items": (
        answers(Scores, 1, 100)[0],
        "UserAnswer('user 0', {'item 0': 1, 'item 1': 0.9899, 'item 2': 0.9798, 'item 3': 0.9697, "
        "'item 4': 0.9596, ... 95 more})",
    ),
    "many users": (answers(Scores, 50, 10), "Scores(50 users, 500 items, revision 12)"),
    "model": (
        DESCRIPTION,
        "ModelDescription('shop', rule sgd, k 64, 1 users, 2 items, 3 events, revision 12)",
    ),
    "judgement": (
        DESCRIPTION.judgement,
        "Judgement(3 judged events, 0 figures, 0 notices, revision 12)",
    ),
    "snapshot": (
        SnapshotInfo("0012-ab", HERE, b"r" * 32, b"h" * 32, 12_345, 0, 7, 8),
        "SnapshotInfo(0012-ab, 7 users, 8 items, 12,345 bytes)",
    ),
    "scorer": (Scorer("unix:/none", model="shop"), "Scorer('unix:/none', model='shop')"),
    "auditor": (Auditor("unix:/none"), "Auditor('unix:/none', model='default')"),
    "models": (Models("unix:/none"), "Models('unix:/none')"),
}


@pytest.mark.parametrize("name", ONE_LINE)
def test_results_and_clients_are_one_short_line(name: str) -> None:
    value, text = ONE_LINE[name]
    assert repr(value) == text


def test_snapshots_are_one_short_line(tmp_path: Path) -> None:
    path = samples.taken(tmp_path)
    for value in (load(path), load(path).manifest, verify(path)):
        assert re.fullmatch(r"\w+\(.{10,250}\)", repr(value))
        assert load(path).manifest.snapshot_id in repr(value)


@pytest.mark.parametrize("value", [0.1, 0.05, 1e-8, 0.0, 3.0, 1 / 3])
def test_a_spec_shows_the_number_that_was_set(value: float) -> None:
    spec = models_pb2.ModelSpec()
    fill(spec, {"l2": value, "optimizer": {"learning_rate": value}}, "spec")
    shown = plain(spec)
    numbers = shown["l2"], shown["optimizer"]["learning_rate"]
    assert [np.float32(number) for number in numbers] == [np.float32(value)] * 2, "the same float32"
    if value != 1 / 3:
        assert numbers == (value, value)
    assert all(len(repr(number)) <= 11 for number in numbers)
