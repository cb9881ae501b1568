"""A file that grows: JSON lines or csv with a header."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import IO

from livefactor.ingest.config import SourceConfig
from livefactor.ingest.intake import Message
from livefactor.ingest.journal import Progress
from livefactor.ingest.sources import WAIT_S, Put, Say, SourceError

LINES_MAX = 1000
BYTES_MAX = 1 << 20
"""A message ends at so many lines, or at the line that reaches so many bytes."""

LINE_BYTES_MAX = 4 << 20
"""A longer line ends the source, because it is no event."""


class FileSource:
    """Reads a file to its end, and then waits for further lines.

    A position is the end of the last line of a message, in bytes. A line counts once its newline is
    there.
    """

    unit = "bytes"

    def __init__(self, source: SourceConfig, folder: Path) -> None:
        self._name, self._form = source.name, source.format
        self._path: Path = folder / source.options["path"]
        self._at = 0

    def behind(self) -> int | None:
        """Bytes of the file that were not read."""
        try:
            return max(0, self._path.stat().st_size - self._at)
        except FileNotFoundError:
            return None

    def run(self, put: Put, resume: Callable[[str], Progress], stop: Event, say: Say) -> None:
        """Give the lines of the file until `stop` is set.

        Raises SourceError if the file is shorter than what was read, or a line is too long.
        """
        if not self._path.exists():
            say(f"source {self._name!r}: waits for the file {self._path}")
        while not self._path.exists():
            if stop.wait(WAIT_S):
                return
        partition = f"{self._name}/{self._path.name}"
        progress = resume(partition)
        with self._path.open("rb") as file:
            header = b""
            while self._form == "csv" and not header.endswith(b"\n"):
                file.seek(0)
                header = file.readline()
                if not header.endswith(b"\n") and stop.wait(WAIT_S):
                    return
            self._at = max(progress.after or 0, len(header))
            # A message that was done in part must end where it ended then.
            ends = sorted(progress.partial)
            while not stop.is_set():
                if self._path.stat().st_size < self._at:
                    raise SourceError(
                        f"source {self._name!r}: {self._path} has become shorter than the {self._at} bytes that were "
                        "read; give the new file another name"
                    )
                end = ends.pop(0) if ends else None
                payload = self._lines(file, end)
                if payload:
                    put(Message(self._name, partition, self._at, header + payload))
                else:
                    stop.wait(WAIT_S)

    def _lines(self, file: IO[bytes], end: int | None) -> bytes:
        """The next whole lines, up to the position `end` if one is given."""
        file.seek(self._at)
        if end is not None:
            self._at, payload = end, file.read(end - self._at)
            return payload
        lines: list[bytes] = []
        while len(lines) < LINES_MAX and file.tell() - self._at < BYTES_MAX:
            line = file.readline(LINE_BYTES_MAX)
            if not line.endswith(b"\n"):
                if len(line) == LINE_BYTES_MAX:
                    raise SourceError(
                        f"source {self._name!r}: {self._path}: the line at byte {self._at} is longer than 4 MiB"
                    )
                break
            lines.append(line)
        payload = b"".join(lines)
        self._at += len(payload)
        return payload


class ReplaySource:
    """Reads a file of dead letters once. Each letter goes to the source that it came from."""

    unit = "bytes"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.sources: set[str] = set()
        self.is_done = False

    def behind(self) -> int | None:
        """Bytes of the file that were not read."""
        return self._path.stat().st_size - self._at

    def run(self, put: Put, resume: Callable[[str], Progress], stop: Event, say: Say) -> None:
        """Give the events of all letters. A position is the end of the letter's line."""
        with self._path.open("rb") as file:
            for line in file:
                if stop.is_set():
                    return
                self._at += len(line)
                letter = json.loads(line)
                event = letter["event"]
                self.sources.add(letter["source"])
                payload = event if isinstance(event, dict) else str(event).encode()
                put(Message(letter["source"], self.partition(letter["source"]), self._at, payload))
        self.is_done = True

    def partition(self, source: str) -> str:
        """The partition of the letters of a source."""
        return f"{source}/{self._path.stem}"
