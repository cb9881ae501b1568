"""An encrypted log: nothing of it is plain on the disk, and it reads and grows as a plain one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash_io import CrashIO
from livefactor_server.changes import show
from livefactor_server.log import sealing
from livefactor_server.log.errors import LogDamaged, WrongKey
from livefactor_server.log.format import GROUP_HEADER_BYTES, GROUP_MAGIC
from livefactor_server.log.parsing import read_group_head
from livefactor_server.log.sealing import NONCE_BYTES, GroupSeal, Key
from livefactor_server.log.store import Log
from logs import append, body_of
from test_log_recovery import ROOT, SEED, check_all, write_a_log

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))


@pytest.fixture(autouse=True)
def key() -> Iterator[None]:
    sealing.use(KEY)
    yield
    sealing.use(None)


def written(folder: Path, groups: int = 12) -> list[bytes]:
    """Write a log with small and large groups, and return the chain hashes."""
    with Log.create(folder, b"spec", segment_bytes=64 << 10, ahead=False) as log:
        for number in range(groups):
            append(log, 1 + number % 3)
        append(log, 2, size=90_000)
        append(log, 1)
        log.mark()
    with Log.open(folder, read_only=True) as log:
        return [record.hash for record in log.read()]


def groups_in(folder: Path) -> Iterator[tuple[bytes, int]]:
    """Yield (bytes of the file, byte of a group) for each group of a log, also those in slots."""
    for path in sorted(folder.glob("*.log")):
        data = path.read_bytes()
        at = data.find(GROUP_MAGIC)
        while at >= 0:
            yield data, at
            at = data.find(GROUP_MAGIC, at + 1)


def test_nothing_of_a_record_is_plain_on_the_disk(tmp_path: Path) -> None:
    written(tmp_path / "log")
    disk = b"".join(path.read_bytes() for path in (tmp_path / "log").iterdir())
    assert b"spec" not in disk
    assert not any(body_of(revision)[:16] in disk for revision in range(1, 25))
    assert bytes([3]) * 16 not in disk
    sealing.use(None)
    written(tmp_path / "plain")
    plain = b"".join(path.read_bytes() for path in (tmp_path / "plain").iterdir())
    assert b"spec" in plain and body_of(2)[:16] in plain


def test_no_nonce_repeats_although_the_last_block_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonces: list[bytes] = []
    places: list[int] = []
    close = GroupSeal.close

    def watched(seal: GroupSeal, buffer: memoryview, at: int, size: int) -> None:
        close(seal, buffer, at, size)
        nonces.append(bytes(buffer[at + size - NONCE_BYTES : at + size]))
        places.append(read_group_head(buffer, at, at, tmp_path).place)

    monkeypatch.setattr(GroupSeal, "close", watched)
    for _ in range(2):
        # The second round begins as a restored backup does: with the same log and the same place.
        shutil.rmtree(tmp_path / "log", ignore_errors=True)
        if (tmp_path / "backup").exists():
            shutil.copytree(tmp_path / "backup", tmp_path / "log")
        else:
            Log.create(tmp_path / "log", b"spec", ahead=False).close()
            shutil.copytree(tmp_path / "log", tmp_path / "backup")
        with Log.open(tmp_path / "log", ahead=False) as log:
            for _ in range(40):
                append(log, 1, size=40)
    assert len(nonces) == len(set(nonces)) == 81
    # Most writes hold the same group again.
    assert len(set(places)) < 10


def test_an_encrypted_log_reads_and_grows_as_a_plain_one(tmp_path: Path) -> None:
    hashes = written(tmp_path / "log")
    for _ in range(2):
        with Log.open(tmp_path / "log", segment_bytes=64 << 10, ahead=False) as log:
            last = log.last_revision
            append(log, 2)
            assert [record.hash for record in log.read()][: len(hashes)] == hashes
            assert bytes(next(iter(log.read(last + 2))).body) == body_of(last + 2)
    shown = list(show.rows(tmp_path / "log"))
    assert len(shown) == len(hashes) + 4 and not any(map(show.is_damaged, shown))
    with Log.open(tmp_path / "log", since=last, segment_bytes=64 << 10, ahead=False) as log:
        assert list(log.check_earlier())


def test_another_key_no_key_and_a_key_for_plain_data_are_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path / "log")
    sealing.use(OTHER)
    with pytest.raises(WrongKey, match=f"with the key {KEY.id.hex()}, and the given key is {OTHER.id.hex()}"):
        Log.open(tmp_path / "log")
    sealing.use(None)
    with pytest.raises(WrongKey, match="and no key is given"):
        Log.open(tmp_path / "log")
    written(tmp_path / "plain")
    sealing.use(KEY)
    with pytest.raises(WrongKey, match="is not encrypted, and a key is given"):
        Log.open(tmp_path / "plain")


def test_a_changed_byte_is_damage(tmp_path: Path) -> None:
    written(tmp_path / "log")
    path = min((tmp_path / "log").glob("*.log"))
    whole, draw = path.read_bytes(), random.Random(1)
    places = [at for data, at in groups_in(tmp_path / "log") if data == whole and at >= 8192]
    for at in places[:6]:
        head = read_group_head(memoryview(whole), at, at, path)
        for byte in (at + GROUP_HEADER_BYTES, at + head.size - 1, at + draw.randrange(160, head.size)):
            changed = bytearray(whole)
            changed[byte] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(LogDamaged, match="do not match its tag"):
                Log.open(tmp_path / "log", read_only=True)
    path.write_bytes(whole)


def test_every_power_cut_recovers_what_was_acknowledged() -> None:
    io = CrashIO(ROOT, short=random.Random(SEED))
    write_a_log(io, 3)
    assert check_all(io, tears=2) > 50
