"""Files of snapshots are removed in steps, and nobody who reads them loses a byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from livefactor_server.snapshots import removal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of five steps."""
    monkeypatch.setattr(removal, "STEP_BYTES", 1000)
    made = tmp_path / "snapshot"
    made.mkdir()
    (made / "large").write_bytes(bytes(4500))
    (made / "small").write_bytes(bytes(10))
    return made


def test_a_large_file_shrinks_step_by_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(removal.time, "sleep", lambda _: sizes.append((folder / "large").stat().st_size))
    removal.remove(folder)
    assert sizes == [3500, 2500, 1500, 500]
    assert not folder.exists()


@contextmanager
def _reader(path: Path) -> Iterator[Path]:
    with path.open("rb") as file:
        yield Path(f"/proc/self/fd/{file.fileno()}")


@contextmanager
def _second_name(path: Path) -> Iterator[Path]:
    other = path.parent.parent / "other"
    os.link(path, other)
    yield other


@pytest.mark.parametrize("holder", [_reader, _second_name])
def test_a_file_that_others_hold_keeps_its_bytes(folder: Path, holder: object) -> None:
    with holder(folder / "large") as held:  # type: ignore[operator]
        removal.remove(folder)
        assert not folder.exists()
        assert held.read_bytes() == bytes(4500)
