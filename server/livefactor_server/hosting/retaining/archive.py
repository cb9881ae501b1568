"""The one seam to archived segments: a folder of this machine, or a URL of fsspec.

A copy is verified: it is read back and compared before the segment may be deleted. An interrupted
copy is done again by the next one, because it differs.
"""

from __future__ import annotations

import filecmp
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from livefactor_server.log.disk import FileIO
from livefactor_server.snapshots.safetensors_writer import sync_folder
from livefactor_server.text import plain

PIECE_BYTES = 1 << 20
"""Bytes that are compared, or overwritten with zeros, at a time."""

INSTALL_HINT = 'pip install "livefactor[archive]"'
_CHARACTERS_MAX = 300
_FOLDER_SCHEMES = ("file", "local")


class BadArchive(ValueError):
    """An archive can never be used: its scheme is unknown, or a package is missing."""


class ArchiveUnreachable(OSError):
    """The place of an archive did not do what it was asked for. A later try may succeed."""


class Archive(Protocol):
    """The archived segments of one model. Their names are those of the files in the log.

    All methods raise OSError if the place cannot be reached, read or written.
    """

    @property
    def text(self) -> str:
        """The place in words, without credentials."""

    def sizes(self) -> dict[str, int]:
        """Names -> bytes of all segments. Empty if there is none yet."""

    def put(self, source: Path) -> bool:
        """Makes the segment of this name equal to a file, durably, and compares the two.

        Returns False if it was equal before. An older one is overwritten.
        """

    def fetch(self, name: str, target: Path) -> None:
        """Copies a segment to a new file, durably."""

    def read(self, name: str) -> memoryview:
        """The bytes of a segment, read-only. The view's `obj` has a method `find`."""


class FolderArchive:
    """An archive in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def text(self) -> str:
        """The path of the folder."""
        return str(self._folder)

    def sizes(self) -> dict[str, int]:
        """See `Archive`. Unfinished copies are among them."""
        return {path.name: path.stat().st_size for path in sorted(self._folder.glob("*.log"))}

    def put(self, source: Path) -> bool:
        """See `Archive`. What was there before is overwritten with zeros."""
        folder, target = self._folder, self._folder / source.name
        if target.exists() and filecmp.cmp(source, target, shallow=False):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{source.name}"
        copy_durably(source, draft)
        if target.exists():
            _destroy(target)
        os.replace(draft, target)
        for each in (folder, folder.parent):
            sync_folder(each)
        return True

    def fetch(self, name: str, target: Path) -> None:
        """See `Archive`."""
        copy_durably(self._folder / name, target)

    def read(self, name: str) -> memoryview:
        """See `Archive`."""
        return FileIO().map(self._folder / name)


class UrlArchive:
    """An archive at a URL of fsspec, such as an object store. It connects at the first call."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._opened: tuple[Any, str] | None = None

    @property
    def text(self) -> str:
        """The URL."""
        return without_credentials(self._url)

    def sizes(self) -> dict[str, int]:
        """See `Archive`."""
        with self._asking() as (files, folder):
            try:
                found = files.ls(folder, detail=True)
            except FileNotFoundError:
                return {}
            sizes = {str(each["name"]).rsplit("/", 1)[-1]: each for each in found}
            return {name: int(each["size"]) for name, each in sorted(sizes.items()) if name.endswith(".log")}

    def put(self, source: Path) -> bool:
        """See `Archive`."""
        with self._asking() as (files, folder):
            target = f"{folder}/{source.name}"
            if files.exists(target) and _is_equal(files, target, source):
                return False
            files.makedirs(folder, exist_ok=True)
            files.put_file(str(source), target)
            if not _is_equal(files, target, source):
                raise OSError(f"the copy of {source.name} differs")
            return True

    def fetch(self, name: str, target: Path) -> None:
        """See `Archive`. Whoever fetches a segment verifies its records."""
        with self._asking() as (files, folder):
            files.get_file(f"{folder}/{name}", str(target))
            with target.open("rb") as copy:
                os.fsync(copy.fileno())

    def read(self, name: str) -> memoryview:
        """See `Archive`."""
        with self._asking() as (files, folder):
            data = files.cat_file(f"{folder}/{name}")
        if not data:
            return memoryview(b"")
        found = mmap.mmap(-1, len(data))
        found[:] = data
        return memoryview(found).toreadonly()

    @contextmanager
    def _asking(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path of the archive in it. Turns every failure into one kind."""
        try:
            if self._opened is None:
                self._opened = open_url(self._url)
            # Another process may have changed what is there.
            self._opened[0].invalidate_cache()
            yield self._opened
        except Exception as error:
            # A connection that has broken would stay broken.
            self._opened = None
            reason = f"{type(error).__name__}: {plain(str(error))[:_CHARACTERS_MAX]}"
            raise ArchiveUnreachable(f"the archive {self.text}: {reason}") from error


def archive_at(place: Path | str, model: str) -> Archive:
    """The archive of a model in a folder, or at a URL. `model` names a folder in it."""
    if isinstance(place, Path):
        return FolderArchive(place / model)
    return UrlArchive(f"{place.rstrip('/')}/{model}")


def place_of(text: str) -> Path | str:
    """The folder that a text names, or its URL. `file://` and `local://` are folders.

    Raises:
        BadArchive: no file system has the scheme of the URL, or a package is missing.
    """
    scheme, found, rest = text.partition("://")
    if not found:
        return Path(text)
    if scheme in _FOLDER_SCHEMES:
        return Path(rest)
    _check_scheme(text)
    return text


def open_url(url: str) -> tuple[Any, str]:
    """A file system of fsspec with connections of its own, and the path in it.

    Raises:
        BadArchive: the scheme is unknown, or a package is missing.
        Exception: whatever the file system raises if it cannot be reached.
    """
    _check_scheme(url)
    from fsspec.core import url_to_fs

    files, path = url_to_fs(url, skip_instance_cache=True)
    return files, str(path).rstrip("/")


def _check_scheme(url: str) -> None:
    try:
        from fsspec import get_filesystem_class
    except ModuleNotFoundError:
        raise BadArchive(f"an archive at a URL needs fsspec: {INSTALL_HINT}") from None
    scheme, place = re.split(r"://|::", url, maxsplit=1)[0], without_credentials(url)
    try:
        get_filesystem_class(scheme)
    except ValueError:
        raise BadArchive(f"{place}: fsspec knows no scheme {scheme}") from None
    except ImportError as error:
        raise BadArchive(f"{place}: the scheme {scheme} needs a package: {error}") from None


def without_credentials(url: str) -> str:
    """A URL without a user and a password."""
    return re.sub(r"://[^/@]*@", "://", url)


def copy_durably(source: Path, target: Path) -> None:
    """Copies a file, syncs the copy, and compares it with the file.

    Raises:
        OSError: the disk reports an error, or the copy differs.
    """
    shutil.copyfile(source, target)
    with target.open("rb") as copy:
        os.fsync(copy.fileno())
    if not filecmp.cmp(source, target, shallow=False):
        raise OSError(f"{target}: the copy differs from {source}")


def _is_equal(files: Any, target: str, source: Path) -> bool:
    if int(files.size(target)) != source.stat().st_size:
        return False
    with files.open(target, "rb") as copy, source.open("rb") as original:
        while piece := original.read(PIECE_BYTES):
            if copy.read(len(piece)) != piece:
                return False
    return True


def _destroy(path: Path) -> None:
    """Overwrites a file with zeros, durably."""
    with path.open("r+b") as old:
        size = path.stat().st_size
        for at in range(0, size, PIECE_BYTES):
            old.write(bytes(min(PIECE_BYTES, size - at)))
        old.flush()
        os.fsync(old.fileno())
