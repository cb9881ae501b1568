"""Fixtures of the attacks: servers, and a snapshot with a copy for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import snapshot_samples as samples
from livefactor.snapshots import files as snapshot_files
from serving import serve, warm

__all__ = ["serve", "warm"]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the folder of a snapshot that no test changes."""
    path = samples.taken(tmp_path_factory.mktemp("store"), samples.view(40, 30, 5, samples.ADAGRAD))
    # The call triggers every lazy import. The tests forbid imports while a snapshot is read.
    snapshot_files.load(path).score(1, [1])
    return path


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Path:
    """Provide a copy of the snapshot's folder that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))
