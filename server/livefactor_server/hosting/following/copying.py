"""The files of a model on their way from a leader to a follower.

The leader makes a backup of the model, sends its files and removes it. A follower writes them to a
folder that takes its place when it is whole (`folders.py`). What belongs to the leader alone stays
there: a hold of updates, contests, and an erasure in progress.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from livefactor_server.hosting.backup import copy_model
from livefactor_server.log.store import Log, LogGap
from livefactor_server.snapshots.replay import log_folder
from livefactor_server.snapshots.safetensors_writer import sync_folder

PIECE_BYTES = 1 << 20

FILES_MAX = 100_000
"""Maximum number of files of a model that a follower takes."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
_PATH = re.compile(rf"(?:{_PART}/){{0,2}}{_PART}")
_SENT = re.compile(r"log/.*\.log|snapshots/.*|base/.*|model\.json|term\.json|erasure-.*\.json")


class Piece(NamedTuple):
    """Bytes of a file from `offset` on. `path` is relative to the model's folder."""

    path: str
    offset: int
    file_size: int
    data: bytes


class Received(Protocol):
    """A piece as it arrives."""

    path: str
    offset: int
    file_size: int
    data: bytes


class CopyFailed(Exception):
    """The leader sent files that cannot be a model's."""


def pieces(folder: Path, copy: Path) -> Iterator[Piece]:
    """Yields the files of a model in pieces. Zeros may be left out.

    `copy` is a folder that does not exist yet. It holds a copy meanwhile.

    Raises:
        BackupError: no whole copy can be made.
        OSError: the disk reports an error.
    """
    try:
        copy_model(folder, copy)
        for path in sorted(each for each in copy.rglob("*") if each.is_file()):
            name = path.relative_to(copy).as_posix()
            if _SENT.fullmatch(name):
                yield from _pieces_of(path, name)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _pieces_of(path: Path, name: str) -> Iterator[Piece]:
    size = path.stat().st_size
    with path.open("rb") as file:
        for offset in range(0, max(size, 1), PIECE_BYTES):
            data = file.read(PIECE_BYTES)
            is_last = offset + PIECE_BYTES >= size
            if is_last or data.count(0) < len(data):
                yield Piece(name, offset, size, data)


def receive(pieces: Iterable[Received], folder: Path) -> None:
    """Writes the files that a leader sends into an empty folder, durably.

    Raises:
        CopyFailed: a path or a size cannot be a model's, or the log is missing.
        OSError: the disk reports an error.
    """
    files = dict[str, int]()
    for piece in pieces:
        if not _PATH.fullmatch(piece.path) or not _SENT.fullmatch(piece.path):
            raise CopyFailed(f"the leader sent a file with the path {piece.path[:200]!r}")
        if piece.offset + len(piece.data) > piece.file_size or len(files) > FILES_MAX:
            raise CopyFailed(f"the leader sent a wrong size of {piece.path}")
        path = folder / piece.path
        path.parent.mkdir(parents=True, exist_ok=True)
        files[piece.path] = piece.file_size
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(piece.offset)
            file.write(piece.data)
            file.truncate(piece.file_size)
            if piece.offset + PIECE_BYTES >= piece.file_size:
                file.flush()
                os.fsync(file.fileno())
    if not any(name.startswith("log/") for name in files):
        raise CopyFailed("the leader sent no log")
    for inner in sorted((each for each in folder.rglob("*") if each.is_dir()), reverse=True):
        sync_folder(inner)


def receive_after(pieces: Iterable[Received], folder: Path, own: Path) -> None:
    """Receives the files of a model whose log goes on where that of the model in `own` ends.

    Raises:
        CopyFailed: the files cannot be a model's, or the log does not have all records of `own`.
        LogError: one of the logs is damaged.
        OSError: the disk reports an error.
    """
    receive(pieces, folder)
    with (
        Log.open(log_folder(own), read_only=True) as ours,
        Log.open(log_folder(folder), read_only=True) as theirs,
    ):
        last = ours.last_revision
        try:
            found = (
                next((each.hash for each in theirs.read(last)), b"") if last <= theirs.last_revision else b""
            )
        except LogGap as gap:
            raise CopyFailed(f"the logs cannot be compared: {gap}") from None
        if (ours.lineage, ours.last_hash) != (theirs.lineage, found):
            raise CopyFailed(f"its log does not have all records up to revision {last}")
