"""A hold stops interactions until an operator releases it.

It survives a restart in a file of the model's folder. The file is JSON: {"reason": text,
"revision": revision of the violation, "time_us": its time in µs since 1970, "good_revision": newest
revision within bounds}.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from livefactor_server.snapshots.safetensors_writer import sync_folder


@dataclass(frozen=True, slots=True)
class Hold:
    """The reason and the time of a hold.

    `good_revision` is the newest revision whose figures were within all bounds, 0 if none is known.
    `time_us` is in microseconds since 1970.
    """

    reason: str
    revision: int
    time_us: int
    good_revision: int


class HoldFile:
    """The hold of one model, if there is one. With `path` None it exists in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.current: Hold | None = None
        if path is not None and path.exists():
            self.current = Hold(**json.loads(path.read_text(encoding="utf-8")))

    def engage(self, hold: Hold) -> None:
        """Starts a hold and writes its file durably.

        An earlier hold stays. After OSError it is in memory only.
        """
        if self.current is not None:
            return
        self.current = hold
        if self._path is not None:
            temporary = self._path.with_suffix(".new")
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(asdict(hold), file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, self._path)
            sync_folder(self._path.parent)

    def release(self) -> bool:
        """Ends the hold and returns True, or returns False if there is none.

        If the file cannot be removed, OSError is raised and the hold stays.
        """
        if self.current is None:
            return False
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            sync_folder(self._path.parent)
        self.current = None
        return True
