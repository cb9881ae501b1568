"""The term of a model, and the fence of a leader whose place another server took.

A follower that becomes the leader logs a record TERM, with a term above the one before. A start
reads only the end of a log, so `term.json` in the model's folder repeats the newest term. The same
file keeps a fence: the term of a newer leader, of which this log has no record. A fenced model
takes no updates, also after a restart, until it follows the newer leader.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from livefactor_server.snapshots.safetensors_writer import sync_folder, write_file

FILE = "term.json"
UNKNOWN_LEADER = "another server"
"""What stands in place of the address of a leader that is not known."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the file says.

    Attributes:
        term: the newest term in the log when it was written.
        newer: the term of a newer leader; 0 without a fence.
        leader: the address of the newer leader.
    """

    term: int = 0
    newer: int = 0
    leader: str = ""

    @classmethod
    def load(cls, folder: Path) -> Terms:
        """The terms of a model. 0 without a file.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            fields = json.loads((folder / FILE).read_bytes())
            return cls(int(fields["term"]), int(fields["newer"]), str(fields["leader"]))
        except FileNotFoundError:
            return cls()
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / FILE} is damaged: {error}") from None

    def fence(self, logged: int) -> str:
        """The leader that takes the updates in place of this server, "" for none.

        `logged` is the newest term that the log is known to have.
        """
        return (self.leader or UNKNOWN_LEADER) if self.newer > max(self.term, logged) else ""

    def save(self, folder: Path) -> None:
        """Writes the file durably.

        Raises:
            OSError: it cannot be written.
        """
        draft = folder / f".{FILE}"
        draft.unlink(missing_ok=True)
        fields = {"term": self.term, "newer": self.newer, "leader": self.leader}
        write_file(draft, [json.dumps(fields, sort_keys=True).encode() + b"\n"])
        os.replace(draft, folder / FILE)
        sync_folder(folder)
