"""Events that gave no row: a file of JSON lines with the reason and the origin of each.

`livefactor ingest --replay` reads the file as a source of its own, after the mapping was mended or
the events were. What fails again is a dead letter again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import time_ns
from typing import Any

_NAME = "dead-letters.jsonl"
_REPLAY = "replay-*.jsonl"


class DeadLettersFull(RuntimeError):
    """The file of dead letters has reached its limit. Nothing more is read until it is smaller."""


class DeadLetters:
    """The file of dead letters in a state folder.

    A letter first goes into the journal with the progress of its partition, and then into the file.
    So a crash loses none and doubles none. mb_max: megabytes that the file may have. journaled: the
    letters of the journal's newest entry, which a crash may have kept from the file.
    """

    def __init__(self, folder: Path, mb_max: int, journaled: list[str]) -> None:
        self.path = folder / _NAME
        self._file = self.path.open("a+b")
        self._bytes_max = mb_max << 20
        self._pending: list[str] = []
        self._bytes = self._file.seek(0, os.SEEK_END)
        self.count = 0
        """How many this process added."""
        self._recover(journaled)

    def add(self, source: str, partition: str, position: int, number: int, reason: str, event: Any) -> None:
        """Add one. It is kept until `pending` and `write` are called. Raises DeadLettersFull."""
        letter = {
            "source": source,
            "partition": partition,
            "position": position,
            "number": number,
            "reason": reason,
            "event": event,
        }
        line = json.dumps(letter)
        self._bytes += len(line) + 1
        if self._bytes > self._bytes_max:
            raise DeadLettersFull(
                f"{self.path}: the limit of {self._bytes_max >> 20} MB is reached (dead_letters_mb_max); the last "
                f"reason: {reason}"
            )
        self._pending.append(line)
        self.count += 1

    def pending(self) -> list[str]:
        """The letters that were added since the last call, for the journal."""
        lines, self._pending = self._pending, []
        return lines

    def write(self, lines: list[str]) -> None:
        """Write letters of the journal into the file."""
        if lines:
            self._file.write("".join(line + "\n" for line in lines).encode())
            self._file.flush()
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _recover(self, journaled: list[str]) -> None:
        size = sum(len(line) + 1 for line in journaled)
        self._file.seek(max(0, self._bytes - size))
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        # A torn line is written again as a whole.
        self._file.truncate(self._bytes - len(content) + len(whole))
        there = set(whole.decode().split("\n"))
        self.write([line for line in journaled if line not in there])
        self._bytes = self._file.seek(0, os.SEEK_END)


def replay_file(folder: Path) -> Path | None:
    """The file of a replay: that of one that was cut short, else all dead letters so far.

    None if there are none. It must be called before `DeadLetters` opens the file.
    """
    earlier = sorted(folder.glob(_REPLAY))
    if earlier:
        return earlier[0]
    letters = folder / _NAME
    if not letters.exists() or not letters.stat().st_size:
        return None
    # The name is new each time, because the progress of a replay stands under it.
    return letters.rename(folder / f"replay-{time_ns()}.jsonl")


def replay_done(path: Path) -> Path:
    """Put the file of a finished replay aside; returns its new place."""
    return path.rename(path.with_name(path.name.replace("replay-", "replayed-", 1)))
