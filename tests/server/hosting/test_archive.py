"""Archives of segments: in a folder, in the memory of fsspec, and on its local file system."""

from __future__ import annotations

import builtins
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest
import typer

from engine_rig import Rig, batch
from livefactor_server.cli.app import app
from livefactor_server.hosting.forgetting import job as jobs
from livefactor_server.hosting.keeper import RETENTION_FAILED, Keeper, KeeperSettings
from livefactor_server.hosting.retaining.archive import (
    Archive,
    ArchiveUnreachable,
    BadArchive,
    FolderArchive,
    UrlArchive,
    archive_at,
    place_of,
)
from livefactor_server.hosting.retaining.retention import Policy
from livefactor_server.snapshots.replay import snapshot_store
from livefactor_server.statuses import Refused
from test_forgetting import CANARY, found_in, rig_at
from test_forgetting_shortened import GUEST, SUBJECTS, Shop, check_all

fsspec = pytest.importorskip("fsspec")
MemoryFileSystem = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem
known_implementations = pytest.importorskip("fsspec.registry").known_implementations


class ShakyFileSystem(MemoryFileSystem):
    """A file system that a test takes away, or that loses bytes."""

    protocol = "shaky"
    is_away = False
    loses_bytes = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if self.is_away:
            raise ConnectionError("no route to host\n")
        super().__init__(*arguments, **options)

    def put_file(self, lpath: str, rpath: str, *arguments: Any, **options: Any) -> None:
        super().put_file(lpath, rpath, *arguments, **options)
        if self.loses_bytes:
            self.pipe_file(rpath, self.cat_file(rpath)[:-1] + b"\x01")


@pytest.fixture
def shaky() -> Iterator[type[ShakyFileSystem]]:
    fsspec.register_implementation("shaky", ShakyFileSystem, clobber=True)
    yield ShakyFileSystem
    ShakyFileSystem.is_away = ShakyFileSystem.loses_bytes = False


def memory_url() -> str:
    return f"memory://archive-{uuid.uuid4().hex}"


@pytest.fixture(params=["folder", "memory", "local"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    folder = tmp_path / "archive"
    if request.param == "folder":
        return FolderArchive(folder / "m-1")
    # The local file system of fsspec stands for one that keeps files elsewhere.
    return UrlArchive(f"{memory_url() if request.param == 'memory' else f'file://{folder}'}/m-1")


def test_a_segment_comes_back_as_it_went(archive: Archive, tmp_path: Path) -> None:
    assert archive.sizes() == {}
    source = tmp_path / "00000000000000000007.log"
    source.write_bytes(bytes(range(256)) * 8192 + b"end")
    assert archive.put(source) and not archive.put(source)
    assert archive.sizes() == {source.name: source.stat().st_size}
    view = archive.read(source.name)
    assert view.readonly and bytes(view) == source.read_bytes()
    assert view.obj.find(b"end", 100) == len(view) - 3
    back = tmp_path / "back"
    archive.fetch(source.name, back)
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("wrong", [b"", b"half", b"\x00" * 2000])
def test_a_copy_that_differs_is_made_again(archive: Archive, tmp_path: Path, wrong: bytes) -> None:
    """An interrupted copy, and one from before an erasure."""
    source = tmp_path / "00000000000000000007.log"
    source.write_bytes(wrong)
    archive.put(source)
    assert bytes(archive.read(source.name)) == wrong
    source.write_bytes(b"\x01" * 2000)
    assert archive.put(source) and bytes(archive.read(source.name)) == b"\x01" * 2000


def test_what_is_not_there_is_an_error_of_the_disk(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="00000000000000000007"):
        archive.read("00000000000000000007.log")
    with pytest.raises(OSError, match="00000000000000000007"):
        archive.fetch("00000000000000000007.log", tmp_path / "back")


def test_what_is_a_folder_and_what_is_a_url(tmp_path: Path) -> None:
    assert place_of("archive/logs") == Path("archive/logs")
    assert place_of(f"file://{tmp_path}") == place_of(f"local://{tmp_path}") == tmp_path
    assert isinstance(archive_at(tmp_path, "m-1"), FolderArchive)
    assert place_of("memory://logs") == "memory://logs"
    found = archive_at("memory://user:secret@logs/", "m-1")
    assert isinstance(found, UrlArchive) and found.text == "memory://logs/m-1"


def test_what_can_never_be_used_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadArchive, match=r"^nosuch://host/logs: fsspec knows no scheme nosuch$"):
        place_of("nosuch://user:secret@host/logs")
    monkeypatch.setitem(known_implementations, "bare", {"class": "nosuch.Bare", "err": "Install barefs"})
    with pytest.raises(BadArchive, match="the scheme bare needs a package: Install barefs"):
        place_of("bare://logs")
    command = typer.main.get_command(app)
    asked = click.testing.CliRunner().invoke(
        command, ["serve", "--log-keep", "1d", "--log-archive", "nosuch://logs"]
    )
    assert asked.exit_code == 2 and "fsspec knows no scheme nosuch" in " ".join(asked.output.split())


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "fsspec":
            raise ModuleNotFoundError("No module named 'fsspec'", name="fsspec")
        return given(name, *arguments, **options)

    for name in [each for each in sys.modules if each.partition(".")[0] == "fsspec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadArchive, match=r"pip install \"livefactor\[archive\]\""):
        place_of("s3://bucket/logs")
    # Folders need no package.
    assert place_of(str(tmp_path)) == place_of(f"file://{tmp_path}") == tmp_path


# ---------------------------------------------------------------------- retention


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    folder = tmp_path / "models" / "m"
    (folder / "snapshots").mkdir(parents=True)
    made = Rig(folder)
    for seed in range(60):
        made.push(batch(seed))
    yield made
    made.close()


def keeper(rig: Rig, url: str) -> Keeper:
    store = snapshot_store(rig.folder)
    return Keeper(rig.engine, store, KeeperSettings(10**9, 3, Policy.of("1r", url)))


def files(rig: Rig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (rig.folder / "log").glob("*.log")}


def failed() -> float:
    return RETENTION_FAILED.labels("m")._value.get()


def test_segments_go_to_a_url(rig: Rig) -> None:
    url, before = memory_url(), files(rig)
    made = keeper(rig, url)
    made.take()
    made._retain()
    assert rig.log.gap is not None and rig.log.gap.note is not None and rig.log.gap.note.archived
    gone = {name: data for name, data in before.items() if name not in files(rig)}
    assert len(gone) > 3
    archive = archive_at(url, f"m-{rig.log.lineage}")
    assert {name: bytes(archive.read(name)) for name in archive.sizes()} == gone
    assert failed() == 0


def test_a_place_that_is_away_keeps_the_log_until_a_later_look(
    rig: Rig, shaky: type[ShakyFileSystem]
) -> None:
    url, before = f"shaky://archive-{uuid.uuid4().hex}", set(files(rig))
    made = keeper(rig, url)
    made.take()
    for fault in ("is_away", "loses_bytes"):
        setattr(shaky, fault, True)
        made._retained = 0.0
        made._retain()
        assert set(files(rig)) >= before and rig.log.gap is None and failed() == 1
        setattr(shaky, fault, False)
    made._retained = 0.0
    made._retain()
    assert rig.log.gap is not None and failed() == 0


def test_the_text_of_a_failure_is_one_line_without_credentials(shaky: type[ShakyFileSystem]) -> None:
    shaky.is_away = True
    with pytest.raises(ArchiveUnreachable) as failure:
        UrlArchive("shaky://user:secret@place/m-1").sizes()
    assert str(failure.value) == "the archive shaky://place/m-1: ConnectionError: no route to host\\n"


def test_a_stop_ends_between_two_segments(rig: Rig) -> None:
    url, asked, before = memory_url(), list[int](), set(files(rig))
    made = keeper(rig, url)
    made.take()

    def is_stopped() -> bool:
        asked.append(1)
        return len(asked) > 2

    assert made._retention is not None
    assert made._retention.run(is_stopped) == 0
    assert rig.log.gap is None and set(files(rig)) >= before
    assert len(archive_at(url, f"m-{rig.log.lineage}").sizes()) == 2
    assert made._retention.run() > 2


# ---------------------------------------------------------------------- erasures


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(rig_at(tmp_path / "data" / "models" / "m"), memory_url())
    made.push(range(1, 100))
    made.push_guest()
    made.push(range(300, 340))
    made.shorten()
    yield made
    made.rig.close()


def archive_of(shop: Shop) -> Archive:
    found = shop.keeper.archive
    assert found is not None
    return found


def names_guest(archive: Archive) -> bool:
    guest = CANARY.to_bytes(8, "little")
    return any(guest in bytes(archive.read(name)) for name in archive.sizes())


def test_an_erasure_puts_segments_back_from_a_url_and_rewrites_them(shop: Shop, tmp_path: Path) -> None:
    archive = archive_of(shop)
    moved = archive.sizes()
    assert names_guest(archive)
    assert shop.forgetter().cost(GUEST).put_back == sum(moved.values())
    found = shop.forget(GUEST)
    assert set(found.put_back) == set(moved) and found.archives == () and found.archives_changed
    assert found_in(shop.rig.folder) == [] and not names_guest(archive)
    check_all(shop, found, GUEST, tmp_path)


def test_a_damaged_segment_at_a_url_is_named_with_its_place(shop: Shop) -> None:
    archive = archive_of(shop)
    name = sorted(archive.sizes())[1]
    path = f"{str(shop.archive).removeprefix('memory:/')}/m-{shop.rig.log.lineage}/{name}"
    good = MemoryFileSystem().cat_file(path)
    MemoryFileSystem().pipe_file(path, good[:9000] + bytes([good[9000] ^ 1]) + good[9001:])
    with pytest.raises(Refused, match=rf"the log is damaged: memory://archive-.*/{name}, byte "):
        shop.forgetter().cost(SUBJECTS)
    MemoryFileSystem().pipe_file(path, good)
    assert shop.forgetter().cost(SUBJECTS).put_back > 0
    MemoryFileSystem().rm_file(path)
    with pytest.raises(Refused):
        shop.forgetter().cost(SUBJECTS)


def test_an_erasure_does_not_begin_while_the_archive_is_away(
    tmp_path: Path, shaky: type[ShakyFileSystem]
) -> None:
    shop = Shop(rig_at(tmp_path / "m"), f"shaky://archive-{uuid.uuid4().hex}")
    shop.push(range(1, 100))
    shop.shorten()
    root = shop.rig.root()
    shaky.is_away = True
    each = shop.forgetter()
    with pytest.raises(Refused, match="ConnectionError: no route to host"):
        each.begin(SUBJECTS).outcome.result(60)
    each.stop()
    assert shop.rig.root() == root and not (shop.rig.folder / jobs.FILE).exists()
    shaky.is_away = False
    assert shop.forget(SUBJECTS).put_back
    shop.rig.close()


def test_names_in_an_archive_that_are_no_segments_are_told(shop: Shop) -> None:
    """A file that nobody knows may name a subject."""
    archive = archive_of(shop)
    path = f"{str(shop.archive).removeprefix('memory:/')}/m-{shop.rig.log.lineage}/copy.log"
    MemoryFileSystem().pipe_file(path, b"who knows")
    found = shop.forget(GUEST)
    assert found.archives == (f"{archive.text}/copy.log",)
