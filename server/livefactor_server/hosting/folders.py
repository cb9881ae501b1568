"""The folders of the models of one data folder, and what a crash left of their changes.

    <data>/models/<name>                 a model
    <data>/models/<name>.set-aside-<n>   what a model was that could not be opened; never deleted
    <data>/models/.new-<name>            a model that is being made; removed at start
    <data>/models/.instead-<name>        a whole model that takes the place of <name>; after a crash
                                         the next start finishes this
    <data>/models/.gone-<name>           a model that is being deleted; removed at start

A folder is set aside beside its old place, because the system moves a folder without permissions
only there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TextIO

from livefactor.wire.limits import MODEL_NAME
from livefactor_server.snapshots.safetensors_writer import sync_folder
from livefactor_server.text import plain

_NEW, _INSTEAD, _OVER, _GONE = ".new-", ".instead-", ".over-", ".gone-"
_ASIDE = re.compile(rf"{MODEL_NAME.pattern}\.set-aside-\d+")

logger = logging.getLogger(__name__)


class DataFolderBusy(Exception):
    """Another server uses the data folder."""


def hold(path: Path) -> TextIO:
    """Locks a file until it is closed.

    Raises:
        DataFolderBusy: another process has locked it.
    """
    # The file stays open until the server ends.
    file = open(path, "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise DataFolderBusy(f"{path.parent} is in use by another livefactor server") from None
    return file


class Folders:
    """The folders of all models. One thread at a time changes them."""

    def __init__(self, data: Path) -> None:
        self._folder = data / "models"
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The folder of a model."""
        return self._folder / name

    def clean(self) -> None:
        """Finishes what a crash interrupted."""
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith((_NEW, _GONE)):
                shutil.rmtree(path)
            elif path.name.startswith(_INSTEAD):
                self._take_place(path.name.removeprefix(_INSTEAD), keeps=True)
            elif path.name.startswith(_OVER):
                self._take_place(path.name.removeprefix(_OVER), keeps=False)

    def names(self) -> list[str]:
        """The names of all models, in order. Other entries of the folder are ignored."""
        found = []
        for path in sorted(self._folder.iterdir()):
            if MODEL_NAME.fullmatch(path.name):
                found.append(path.name)
            elif not path.name.startswith(".") and not _ASIDE.fullmatch(path.name):
                logger.warning("%s is ignored: its name is no model's name", plain(str(path)))
        return found

    def make(self, name: str, fill: Callable[[Path], None]) -> Path:
        """Makes the folder of a new model, durably. `fill` writes its files.

        After an OSError no part of it remains.
        """
        new = self._filled(name, fill)
        os.rename(new, self.path(name))
        sync_folder(self._folder)
        return self.path(name)

    def replace(self, name: str, fill: Callable[[Path], None], keeps: bool = True) -> Path:
        """Makes the folder of a model, and sets aside what stands there. Returns where that is.

        Without `keeps` what stands there is removed. After a crash one of the two folders stands
        there.
        """
        new = self._filled(name, fill)
        os.rename(new, self._folder / f"{_INSTEAD if keeps else _OVER}{name}")
        sync_folder(self._folder)
        return self._take_place(name, keeps)

    def _filled(self, name: str, fill: Callable[[Path], None]) -> Path:
        new = self._folder / f"{_NEW}{name}"
        try:
            new.mkdir()
            fill(new)
            sync_folder(new)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return new

    def _take_place(self, name: str, keeps: bool) -> Path:
        aside = self.path(name)
        if keeps:
            aside = self.set_aside(name)
        elif aside.exists():
            self.remove(name)
        os.rename(self._folder / f"{_INSTEAD if keeps else _OVER}{name}", self.path(name))
        sync_folder(self._folder)
        return aside

    def set_aside(self, name: str) -> Path:
        """Renames the folder of a model, or the file that stands there. Returns its new path."""
        path = self.path(name)
        if not os.path.lexists(path):
            return path
        aside = next(
            each
            for number in count(1)
            if not os.path.lexists(each := path.with_name(f"{name}.set-aside-{number}"))
        )
        os.rename(path, aside)
        sync_folder(self._folder)
        logger.warning("model %s: what was in its folder is kept in %s", name, aside)
        return aside

    def remove(self, name: str) -> None:
        """Deletes the folder of a model. After a crash it is whole or gone."""
        gone = self._folder / f"{_GONE}{name}"
        os.rename(self.path(name), gone)
        sync_folder(self._folder)
        shutil.rmtree(gone)

    def siblings(self, name: str) -> Iterator[Path]:
        """The folders of the other models."""
        return (self.path(other) for other in self.names() if other != name)
