"""The file that says that a job is unfinished, and whom it is about."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from livefactor_server.changes.history.erase import Subjects
from livefactor_server.snapshots.safetensors_writer import sync_folder

FILE = "forget.json"
_NAMES = ("segments", "snapshots", "tails", "put_back")


@dataclass(frozen=True, slots=True)
class Job:
    """An erasure that is not finished.

    Attributes:
        subjects: who is forgotten.
        after: the last revision when it was asked for. The ERASE record comes later.
        segments: names of the segments that are rewritten, once it is known.
        snapshots: ids of the snapshots that are removed, once it is known.
        tails: names of the removed copies of unsynced tails.
        put_back: names of the archived segments that were put back into the log.
        began_with: the id of the snapshot with which the replay began. It stays. Empty if that was
            the beginning.
    """

    subjects: Subjects
    after: int
    segments: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    tails: tuple[str, ...] = ()
    put_back: tuple[str, ...] = ()
    began_with: str = ""

    def save(self, folder: Path) -> None:
        """Writes the file durably."""
        fields = {
            "users": self.subjects.users,
            "items": self.subjects.items,
            "after": self.after,
            "began_with": self.began_with,
            **{name: getattr(self, name) for name in _NAMES},
        }
        draft = folder / f".{FILE}"
        with draft.open("w") as file:
            json.dump(fields, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, folder / FILE)
        sync_folder(folder)

    @classmethod
    def load(cls, folder: Path) -> Job | None:
        """The unfinished job of a model. None if there is none.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            fields = json.loads((folder / FILE).read_text())
            users, items = (tuple(int(each) for each in fields[name]) for name in ("users", "items"))
            # An earlier version did not write the last ones.
            segments, snapshots, tails, put_back = (tuple(map(str, fields.get(name, ()))) for name in _NAMES)
            begun = str(fields.get("began_with", ""))
            subjects, after = Subjects(users, items), int(fields["after"])
            return cls(subjects, after, segments, snapshots, tails, put_back, begun)
        except FileNotFoundError:
            return None
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / FILE} is damaged: {error}") from None


def is_unfinished(folder: Path) -> bool:
    """Whether a model has an unfinished job, or is gone."""
    return not folder.is_dir() or (folder / FILE).exists()


def end(folder: Path) -> None:
    """Overwrites the file with zeros and removes it, durably."""
    path = folder / FILE
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync_folder(folder)
