"""Promise 5: one log gives one root hash, for any number of threads, any CPU, any backend and any
way to restart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from history import MODELS, History
from livefactor_server.log.store import Entry, Log, Record
from livefactor_server.snapshots.audit import replay_model, root_of
from livefactor_server.snapshots.replay import log_folder, recover, replay
from server_process import environment

PROGRAM = Path(__file__).with_name("replay_roots.py")
OLDER = ("purchases-batch-float16", "clicks-adagrad", "ratings-float16")
"""The models that an older CPU replays.

It compiles every kernel first, so the short form takes the first model. The golden digests cover
the other kernels.
"""


def roots_in_a_process(
    history: History, backend: str, models: tuple[str, ...], **variables: str
) -> dict[str, list[str]]:
    command = [sys.executable, str(PROGRAM), str(history.data), backend, *models]
    result = subprocess.run(
        command, env={**environment(), **variables}, capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "variables",
    [
        {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        {"NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONHASHSEED": "7"},
    ],
    ids=["1 thread", "2 threads"],
)
def test_every_replay_gives_the_live_root(history: History, variables: dict[str, str]) -> None:
    """Another process replays the whole log, and the snapshot with the records behind it."""
    roots = roots_in_a_process(history, "cpu", tuple(MODELS), **variables)
    assert {model: [history.roots[model].hex()] * 2 for model in MODELS} == roots


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=pytest.mark.long if model != OLDER[0] else ()) for model in OLDER]
)
def test_an_older_cpu_gives_the_live_root(history: History, model: str) -> None:
    """Code for a CPU without AVX-512 has other instructions. Its results must be equal."""
    roots = roots_in_a_process(history, "cpu", (model,), NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="")
    assert {model: [history.roots[model].hex()] * 2} == roots


@pytest.mark.parametrize("model", MODELS)
def test_the_snapshot_and_the_rest_of_the_log_give_the_live_root(history: History, model: str) -> None:
    folder = history.folder(model)
    report = replay_model(folder)
    assert report.root_hash == history.roots[model]
    assert len(report.snapshots) == 1 and report.good
    with Log.open(log_folder(folder), read_only=True) as log:
        assert root_of(recover(folder, log, "cpu")) == history.roots[model]


def test_the_grouping_into_commits_changes_nothing(history: History, tmp_path: Path) -> None:
    """The same records are replayed in commits of 1, of 3 and of 200 records."""
    folder = history.folder("purchases-batch")
    with Log.open(log_folder(folder), read_only=True) as log:
        for size in (1, 3, 200):
            again = tmp_path / str(size)
            with copied(log, again, size) as copy:
                assert copy.last_revision == log.last_revision
                assert root_of(replay(again, copy, "cpu")) == history.roots["purchases-batch"]


def copied(log: Log, folder: Path, size: int) -> Log:
    records = log.read(mapped=False)
    next(records)
    copy = Log.create(
        log_folder(folder), log.spec_body, 0, uuid.UUID(bytes=log.lineage.bytes), hash_name=log.hash_name
    )
    for group in grouped(records, size):
        copy.append([
            Entry(r.kind, r.revision, r.producer, r.epoch, r.sequence, r.time_us, r.count, bytes(r.rejects), bytes(r.body), r.salt,
                  r.commitment)
            for r in group
        ])  # fmt: skip
    return copy


def grouped(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    while group := list(islice(records, size)):
        yield group
