"""A hold: no further interactions are accepted until an operator has looked. It outlives a restart, in a file of the model's folder.

{"reason": text, "revision": the model's when the bound was passed, "time_us": then, "good_revision": newest within bounds}
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from livefactor_server.snapshots.safetensors_writer import sync_folder


@dataclass(frozen=True, slots=True)
class Hold:
    """Why and since when. good_revision: the newest revision whose figures were within all bounds, 0 if none is known."""

    reason: str
    revision: int
    time_us: int
    good_revision: int


class HoldFile:
    """The hold of one model, if there is one. `path` None: in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.current: Hold | None = None
        if path is not None and path.exists():
            self.current = Hold(**json.loads(path.read_text(encoding="utf-8")))

    def engage(self, hold: Hold) -> None:
        """Hold from now on; the file follows, durable when this returns. A hold that stands already stays. OSError: only in memory."""
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
        """End the hold; False if there was none. OSError, and the hold stays, if the file cannot be removed."""
        if self.current is None:
            return False
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            sync_folder(self._path.parent)
        self.current = None
        return True
