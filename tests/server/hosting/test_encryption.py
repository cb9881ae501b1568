"""An encrypted data folder: its models, snapshots, backups and commands work with the key alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import livefactor
from livefactor.errors import SnapshotInvalid
from livefactor.in_process import Local, local
from livefactor.snapshots.files import SEALED_FILE
from livefactor.snapshots.files import verify as verify_plain
from livefactor_server.challenging.messages import Task
from livefactor_server.cli.app import app
from livefactor_server.hosting.keys import BadKey, read_key
from livefactor_server.log import sealing
from livefactor_server.log.sealing import Key
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.sealed import SealedSnapshot
from livefactor_server.snapshots.store import SnapshotStore
from server_process import Server
from serving import serve, warm

__all__ = ["serve", "warm"]

SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}
SECRET = bytes(range(32))


@pytest.fixture(autouse=True)
def no_key() -> Iterator[None]:
    sealing.use(None)
    yield
    sealing.use(None)


def key_file(folder: Path, secret: bytes = SECRET) -> Path:
    path = folder / f"{secret[:2].hex()}.key"
    path.touch(mode=0o600)
    path.write_text(secret.hex() + "\n")
    return path


def push(server: Local, batches: int) -> None:
    with livefactor.Producer(producer_id="p", channel=server.channel, model="m") as producer:
        for number in range(batches):
            ids = np.arange(number, number + 20)
            producer.push(ids % 50, ids % 30).result(60)
        producer.push_labels("item", [1], ["a canary of a label"])
        producer.flush()


def fill(data: Path, fetched: Path | None = None) -> None:
    """Make a model with a log, a snapshot and more log."""
    with local("", data) as server:
        with livefactor.Models(channel=server.channel) as models:
            models.create("m", "clicks_sgd", **SPEC)
        push(server, 20)
        with livefactor.Auditor(channel=server.channel, model="m") as auditor:
            auditor.snapshot()
            if fetched is not None:
                auditor.fetch(fetched)
        push(server, 5)


def root(data: Path) -> tuple[int, bytes]:
    with local("", data) as server, livefactor.Models(channel=server.channel) as models:
        found = models.describe("m", with_root_hash=True)
        return found.position.revision, found.root_hash


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def run(*words: object, code: int = 0) -> str:
    sealing.use(None)
    ran = CliRunner().invoke(app, [str(word) for word in words])
    assert ran.exit_code == code, ran.output
    return ran.output


def test_an_encrypted_folder_works_with_its_key_and_shows_nothing(tmp_path: Path) -> None:
    data, model = tmp_path / "data", tmp_path / "data" / "models" / "m"
    key = ("--encryption-key-file", key_file(tmp_path))
    sealing.use(Key(SECRET))
    fill(data, tmp_path / "fetched")
    made = root(data)
    assert b"canary" not in bytes_of(data) and b"safetensors" not in bytes_of(data)
    # A client gets a plain snapshot, which it verifies itself.
    sealing.use(None)
    assert b"canary" in bytes_of(tmp_path / "fetched")
    assert verify_plain(tmp_path / "fetched").manifest.model == "m"

    snapshot = max((model / "snapshots").iterdir())
    with pytest.raises(SnapshotInvalid, match="is encrypted; fetch the snapshot"):
        livefactor.load(snapshot)
    assert "no key is given" in run("verify", snapshot, code=1)
    assert "valid: m at revision" in run("verify", snapshot, *key)
    assert "equal to the replay" in run("verify", "--replay", model, *key)
    assert "no key is given" in run("log", "show", data, "-m", "m", code=1)
    assert "INTERACTIONS" in run("log", "show", data, "-m", "m", *key)
    assert "no key is given" in run("backup", data, tmp_path / "none", code=1)
    run("backup", data, tmp_path / "backup", *key)
    run("restore", tmp_path / "backup", tmp_path / "restored", *key)
    assert b"canary" not in bytes_of(tmp_path / "restored")
    sealing.use(Key(SECRET))
    assert root(tmp_path / "restored") == made
    with local("", data) as server, livefactor.Models(channel=server.channel) as models:
        models.restore("again", "m")
    assert b"canary" not in bytes_of(data)


def test_a_plain_folder_is_encrypted_and_gets_another_key(tmp_path: Path) -> None:
    plain, other = tmp_path / "plain", bytes(32)
    fill(plain)
    made = root(plain)
    first, second = key_file(tmp_path), key_file(tmp_path, other)
    run("encrypt", plain, tmp_path / "one", "--encryption-key-file", first)
    run("encrypt", plain, tmp_path / "one", "--encryption-key-file", first, code=1)
    again = ("encrypt", tmp_path / "one", tmp_path / "two", "--encryption-key-file", second)
    assert "no key is given" in run(*again, code=1)
    run(*again[:2], tmp_path / "three", *again[3:], "--old-key-file", first)
    assert "give the new key" in run("encrypt", plain, tmp_path / "four", code=2)
    assert b"canary" in bytes_of(plain)
    for folder, secret in (("one", SECRET), ("three", other)):
        assert b"canary" not in bytes_of(tmp_path / folder)
        sealing.use(Key(secret))
        assert root(tmp_path / folder) == made
        report = replay_model(tmp_path / folder / "models" / "m")
        assert report.good and report.snapshots


def test_a_changed_byte_of_a_snapshot_is_found(tmp_path: Path) -> None:
    sealing.use(Key(SECRET))
    fill(tmp_path / "data")
    store = SnapshotStore(tmp_path / "data" / "models" / "m" / "snapshots")
    _, path = store.open()
    file = path / SEALED_FILE
    whole = file.read_bytes()
    step = max(1, len(whole) // 97)
    for at in (*range(0, len(whole), step), len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 4
        file.write_bytes(changed)
        with pytest.raises(SnapshotInvalid):
            store.verify()
    file.write_bytes(whole[:-1])
    with pytest.raises(SnapshotInvalid):
        store.verify()
    file.write_bytes(whole)
    assert store.verify().manifest.model == "m"
    with SealedSnapshot(path) as sealed:
        assert sealed.size("manifest.json") == len(sealed.manifest())
    sealing.use(Key(bytes(32)))
    with pytest.raises(SnapshotInvalid, match=f"with the key {Key(SECRET).id.hex()}, and the given key is"):
        store.verify()


def test_a_server_refuses_to_start_with_another_key_or_none(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    sealing.use(Key(SECRET))
    fill(tmp_path / "data")
    command = f"cat {key_file(tmp_path)}"
    server = serve("--encryption-key-command", command)
    assert server.stop() == 0
    for flags, fault in (
        ((), "is encrypted with the key"),
        (("--encryption-key-file", str(key_file(tmp_path, bytes(32)))), "and the given key is"),
    ):
        with pytest.raises(AssertionError, match="exit code 1") as refusal:
            serve(*flags)
        assert fault in str(refusal.value)
        assert SECRET.hex() not in server.log


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "64 hexadecimal digits"), ("ab" * 31, "64 hexadecimal"), ("xy" * 32, "64 hexadecimal")],
)
def test_a_bad_key_is_refused_and_not_shown(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "bad.key"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(BadKey, match=fault) as refusal:
        read_key(path, "")
    assert not text or text not in str(refusal.value)


def test_a_key_that_others_read_and_a_command_that_fails_are_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    path.chmod(0o644)
    cases: list[tuple[Path | None, str, str]] = [
        (path, "", "others can read"),
        (tmp_path / "none", "", "No such file"),
        (path, "echo", "exclude each other"),
        (None, "false", "ended with code 1"),
        (None, "/no/such/command", "cannot be run"),
        (None, "'", "cannot be run"),
    ]
    for file, command, fault in cases:
        with pytest.raises(BadKey, match=fault):
            read_key(file, command)
    assert read_key(None, "") is None
    found = read_key(None, f"printf {SECRET.hex()}")
    assert found is not None and found.secret == SECRET


def test_the_process_of_a_contest_gets_the_key_and_shows_it_nowhere() -> None:
    made = Task("m", "folder", (), 0, 1.0, 1, SECRET.hex())
    assert Task.from_line(made.to_line()).key == SECRET.hex()
    assert SECRET.hex() not in repr(made)
    assert SECRET.hex() not in repr(Key(SECRET))
