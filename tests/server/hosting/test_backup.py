"""Backups while a server writes, further backups, restores, and crashes in the middle."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer

import livefactor
from livefactor.in_process import Local, local
from livefactor_server.cli.app import app
from livefactor_server.hosting import backup as backups
from livefactor_server.hosting.backup import BackupError, back_up, restore
from livefactor_server.log.store import Log
from livefactor_server.snapshots.audit import replay_model
from tally import Tally

SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Local, Path]]:
    with local("", tmp_path / "data") as server:
        with livefactor.Models(channel=server.channel) as models:
            models.create("m", "clicks_sgd", **SPEC)
        yield server, tmp_path / "data"


def push(server: Local, batches: int) -> int:
    """Push batches and return the revision of the last one."""
    with livefactor.Producer(producer_id="p", channel=server.channel, model="m") as producer:
        for number in range(batches):
            ids = np.arange(number, number + 20)
            producer.push(ids % 50, ids % 30).result(30)
        return producer.flush().revision


def snapshot(server: Local) -> None:
    with livefactor.Auditor(channel=server.channel, model="m") as auditor:
        auditor.snapshot()


def root(data: Path) -> tuple[int, str]:
    with local("", data) as server, livefactor.Models(channel=server.channel) as models:
        found = models.describe("m", with_root_hash=True)
    return found.position.revision, found.root_hash.hex()


def test_a_backup_of_a_running_server_restores_to_the_same_model(
    running: tuple[Local, Path], tmp_path: Path
) -> None:
    server, data = running
    push(server, 30)
    snapshot(server)
    last = push(server, 10)
    (made,) = back_up(data, tmp_path / "backup")
    assert (made.model, made.revision) == ("m", last)
    assert made.snapshot
    with livefactor.Models(channel=server.channel) as models:
        live = models.describe("m", with_root_hash=True)
    (restored,) = restore(tmp_path / "backup", tmp_path / "other" / "data")
    assert restored.revision == last
    assert root(tmp_path / "other" / "data") == (last, live.root_hash.hex())
    assert replay_model(tmp_path / "other" / "data" / "models" / "m").root_hash == live.root_hash


def test_a_further_backup_copies_what_is_new(running: tuple[Local, Path], tmp_path: Path) -> None:
    server, data = running
    push(server, 5)
    snapshot(server)
    (first,) = back_up(data, tmp_path / "backup")
    push(server, 5)
    (second,) = back_up(data, tmp_path / "backup")
    assert second.revision > first.revision
    assert second.snapshot == first.snapshot
    # The snapshot is not copied again: of it and the log the log's last segment is left.
    assert second.copied_files < first.copied_files
    # A snapshot that the server deleted leaves the backup, too.
    for _ in range(4):
        push(server, 1)
        snapshot(server)
    back_up(data, tmp_path / "backup")
    kept = {path.name for path in (data / "models" / "m" / "snapshots").iterdir()}
    assert {path.name for path in (tmp_path / "backup" / "models" / "m" / "snapshots").iterdir()} == kept


def test_backups_while_the_server_writes_lack_nothing_acknowledged(
    running: tuple[Local, Path], tmp_path: Path
) -> None:
    server, data = running
    stop, acked, errors = threading.Event(), [push(server, 1)], []

    def work() -> None:
        try:
            while not stop.is_set():
                acked.append(push(server, 5))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(5):
        before = acked[-1]
        (made,) = back_up(data, tmp_path / "backup")
        assert made.revision >= before
        with Log.open(tmp_path / "backup" / "models" / "m" / "log", read_only=True) as log:
            assert log.last_revision == made.revision
    stop.set()
    thread.join()
    assert errors == []
    restore(tmp_path / "backup", tmp_path / "restored")
    assert root(tmp_path / "restored")[0] == made.revision


@pytest.mark.torture
@pytest.mark.parametrize("after", range(0, 9))
def test_an_interrupted_backup_stays_whole(
    running: tuple[Local, Path], tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    server, data = running
    push(server, 3)
    snapshot(server)
    (first,) = back_up(data, tmp_path / "backup")
    push(server, 3)
    snapshot(server)
    left, copied = [after], backups._Copies.file

    def failing(self: Any, source: Path, target: Path) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        copied(self, source, target)

    with monkeypatch.context() as patched:
        patched.setattr(backups._Copies, "file", failing)
        with contextlib.suppress(OSError):
            back_up(data, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    assert root(tmp_path / "restored")[0] >= first.revision
    # The next one completes it.
    (second,) = back_up(data, tmp_path / "backup")
    assert second.snapshot > first.snapshot
    assert not list((tmp_path / "backup").rglob(".tmp-*"))
    tally.add("crashes in a backup")


def test_what_is_no_backup_is_refused_by_name(running: tuple[Local, Path], tmp_path: Path) -> None:
    server, data = running
    push(server, 1)
    with pytest.raises(BackupError, match="is no backup"):
        restore(data, tmp_path / "new")
    with pytest.raises(BackupError, match="is no data folder"):
        back_up(tmp_path / "nothing", tmp_path / "backup")
    with pytest.raises(BackupError, match="is the data folder of a server"):
        back_up(data, data)
    back_up(data, tmp_path / "backup")
    with pytest.raises(BackupError, match="has models already"):
        restore(tmp_path / "backup", data)
    # Another model of the same name must not be mixed with it.
    with livefactor.Models(channel=server.channel) as models:
        models.delete("m")
        models.create("m", "clicks_sgd", **SPEC)
    with pytest.raises(BackupError, match="another model of this name"):
        back_up(data, tmp_path / "backup")


def test_the_commands(running: tuple[Local, Path], tmp_path: Path) -> None:
    server, data = running
    push(server, 1)

    def typed(*words: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(typer.main.get_command(app), words)

    made = typed("backup", str(data), str(tmp_path / "backup"))
    assert made.exit_code == 0 and "MiB in" in made.stdout, made.output
    again = typed("restore", str(tmp_path / "backup"), str(tmp_path / "restored"), "--json")
    assert again.exit_code == 0 and '"revision": 2' in again.stdout, again.output
    assert typed("restore", str(data), str(tmp_path / "x")).exit_code == 1
