"""A folder that an earlier version wrote opens, answers the same, learns on, and replays."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

import livefactor
from livefactor_server.snapshots.audit import replay_model
from repository_data import OLDER_FOLDER


@pytest.fixture
def older(tmp_path: Path) -> Path:
    with tarfile.open(OLDER_FOLDER) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def expected(older: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((older / "expected.json").read_text())
    assert set(found) == {"clicks", "purchases", "ratings"}
    return found


@pytest.mark.parametrize("with_snapshots", [True, False])
def test_an_older_folder_opens_with_the_same_bits(older: Path, with_snapshots: bool) -> None:
    if not with_snapshots:
        for folder in (older / "models").iterdir():
            shutil.rmtree(folder / "snapshots")
    with livefactor.local("", older) as server, livefactor.Models(channel=server.channel) as models:
        assert {model.name for model in models.list()} == set(expected(older))
        for name, told in expected(older).items():
            found = models.describe(name, with_root_hash=True)
            assert found.position.revision == told["revision"]
            assert found.root_hash.hex() == told["root_hash"]
            with livefactor.Scorer(channel=server.channel, model=name) as scorer:
                listed = scorer.recommend("user 7", k=5)
            assert [float(score) for score in listed.scores] == told["scores"]


def test_an_older_model_learns_on_and_replays(older: Path) -> None:
    with livefactor.local("", older) as server, livefactor.Models(channel=server.channel) as models:
        for name in expected(older):
            with livefactor.Producer(producer_id="till", channel=server.channel, model=name) as producer:
                producer.push(["user 7", "somebody new"], ["item 3", "item 4"], [1.0, 1.0])
        learned = {name: models.describe(name, with_root_hash=True) for name in expected(older)}
    for name, told in expected(older).items():
        assert learned[name].position.revision > told["revision"]
        assert replay_model(older / "models" / name, "cpu").root_hash == learned[name].root_hash
