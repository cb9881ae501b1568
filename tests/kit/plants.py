"""Bugs that tests plant in a server.

Each is a function that changes the server's classes before its command runs. The test of a promise
must catch every bug that breaks the promise. Otherwise the test proves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from livefactor_kernels.pins.cpu import PinBoard
from livefactor_kernels.tables.head import Head
from livefactor_server.changes import InteractionsChange, Record
from livefactor_server.engine.admission import Admission
from livefactor_server.engine.commit import Commit
from livefactor_server.engine.readers import Reader
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.hosting import trial
from livefactor_server.hosting.host import Hosting
from livefactor_server.log.disk import FileIO
from livefactor_server.log.store import Log
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.store import SnapshotStore

SMALL_SEGMENT_BYTES = 128 << 10
LATE_S = 0.1


def small_segments() -> None:
    """Make segments small, so that a short test reaches many segment ends. This is no bug."""
    for verb in (Log.create, Log.open):
        verb.__func__.__kwdefaults__["segment_bytes"] = SMALL_SEGMENT_BYTES  # type: ignore[attr-defined]


def sync_on_trial() -> None:
    """Make syncs fail while a file "sync-fails" lies beside the log's files. This is no bug."""
    real = FileIO.fdatasync

    def fdatasync(self: FileIO, fd: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{fd}")).with_name("sync-fails").exists():
            raise OSError(errno.EIO, "planted")
        real(self, fd)

    FileIO.fdatasync = fdatasync  # type: ignore[method-assign]


def scores_and_snapshots_never_end() -> None:
    """Make every Score call compute for ever, and every snapshot. This is no bug.

    The trial of a new model reads, too, so there is none.
    """

    def hang(self: object, *arguments: object) -> None:
        time.sleep(3600)

    Reader.score = hang  # type: ignore[assignment, method-assign]
    Reader.score_at_once = lambda *arguments: None  # type: ignore[assignment, method-assign]
    Reader.answer_at_once = lambda *arguments: None  # type: ignore[assignment, method-assign]
    SnapshotStore.take = hang  # type: ignore[assignment, method-assign]
    trial.run = lambda *arguments: None  # type: ignore[assignment]


def models_open_on_trial() -> None:
    """Make the start wait while a file "models-wait" lies beside the data folder.

    This is no bug.
    """
    real = Hosting.open_all

    def open_all(self: Hosting, *arguments: Any) -> None:
        while (self.data.parent / "models-wait").exists():
            time.sleep(0.01)
        real(self, *arguments)

    Hosting.open_all = open_all  # type: ignore[method-assign]


def _through_the_page_cache() -> None:
    def buffered(self: FileIO, path: Path, create: bool = False) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0), 0o640)

    FileIO.open = buffered  # type: ignore[method-assign]


def no_sync() -> None:
    """Make every sync do nothing."""
    _through_the_page_cache()
    FileIO.fdatasync = FileIO.fsync_dir = lambda self, _: None  # type: ignore[assignment, method-assign, misc]


def ack_before_sync() -> None:
    """Begin each sync and report it as done at once."""
    _through_the_page_cache()
    real = FileIO.fdatasync

    def later(self: FileIO, fd: int) -> None:
        copy = os.dup(fd)

        def sync() -> None:
            with contextlib.suppress(OSError):
                real(self, copy)
            os.close(copy)

        threading.Timer(LATE_S, sync).start()

    FileIO.fdatasync = later  # type: ignore[method-assign]


def ack_before_write() -> None:
    """Acknowledge a batch first and write it a little later."""
    real = Commit.append

    def append(self: Commit) -> None:
        for batch, entry in zip(self.batches, self.entries, strict=True):
            batch.finish(Ack(entry.revision, batch.change.rows, batch.rejects, epoch=batch.epoch))
            batch.reply = lambda _: None
        time.sleep(LATE_S / 10)
        real(self)

    Commit.append = append  # type: ignore[method-assign]


def apply_twice() -> None:
    """Apply each record of interactions twice."""
    real = InteractionsChange.apply

    def apply(state: ModelState, records: Sequence[Record]) -> None:
        real(state, records)
        real(state, records)

    InteractionsChange.apply = staticmethod(apply)  # type: ignore[assignment, method-assign]


def retries_are_new() -> None:
    """Log a batch again when it is sent again."""
    real = Admission.sequence

    def sequence(self: Admission, item: Submission) -> bool:
        lane = self._lane(item.producer) if item.producer else None
        if lane is None or item.epoch != lane.epoch or not 1 <= item.sequence <= lane.last_sequence:
            return real(self, item)
        number, reply = item.sequence, item.reply

        def answer(done: Submission) -> None:
            done.sequence = number
            reply(done)

        item.producer, item.sequence, item.reply = b"", 0, answer
        return True

    Admission.sequence = sequence  # type: ignore[method-assign]


def no_turns() -> None:
    """Let readers and the writer run at the same time, and copy nothing for pins."""
    Gate.reading = Gate.writing = lambda self: contextlib.nullcontext()  # type: ignore[assignment, method-assign, misc, return-value]
    PinBoard.protect = lambda *_, **__: None  # type: ignore[assignment, method-assign]


def no_version() -> None:
    """Let the writer change rows without a change of their version."""

    def close(self: Head, *numbers: int) -> None:
        self.words[1:4] = numbers

    Head.open = lambda self: None  # type: ignore[method-assign]
    Head.close = close  # type: ignore[method-assign]
