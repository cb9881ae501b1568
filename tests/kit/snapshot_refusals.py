"""Checks that a hostile snapshot is refused quickly and in little memory.

The refusal must run no code and open no file outside the snapshot's folder.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import files as snapshot_files

PEAK_BYTES_MAX = 8 << 20
CPU_SECONDS_MAX = 1.0
"""Processor time of this thread, since other processes share the machine."""

FORBIDDEN_EVENTS = (
    "pickle.",
    "marshal.",
    "exec",
    "compile",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "ctypes.",
    "socket.",
    "shutil.",
    "os.remove",
    "os.rename",
)


class Watch:
    """A listener to Python's audit events. It listens while it is armed.

    Python cannot remove an audit hook, so the whole process shares one.
    """

    def __init__(self) -> None:
        self.armed_thread = 0
        self.forbidden: list[str] = []
        self.opened: set[str] = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if threading.get_ident() != self.armed_thread:
            return
        if event.startswith(FORBIDDEN_EVENTS):
            self.forbidden.append(event)
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            self.opened.add(os.fsdecode(args[0]))


WATCH = Watch()


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Fail if the block runs code or opens a file outside `folder`."""
    WATCH.forbidden, WATCH.opened = [], set()
    WATCH.armed_thread = threading.get_ident()
    try:
        yield
    finally:
        WATCH.armed_thread = 0
    assert WATCH.forbidden == []
    outside = {path for path in WATCH.opened if Path(os.path.normpath(path)).parent != folder}
    assert outside == set()


VERBS = (snapshot_files.verify, snapshot_files.load)


def refused(path: Path, verbs: Sequence[Callable[[Path], object]] = VERBS) -> SnapshotInvalid:
    """Check that all verbs refuse quickly, for one reason, without running code."""
    began = time.thread_time()
    with watched(path):
        errors = []
        for verb in verbs:
            with pytest.raises(SnapshotInvalid) as caught:
                verb(path)
            errors.append(caught.value)
    assert time.thread_time() - began < CPU_SECONDS_MAX
    assert len({str(error) for error in errors}) == 1
    return errors[0]


def refused_in_little_memory(path: Path) -> SnapshotInvalid:
    tracemalloc.start()
    try:
        error = refused(path)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES_MAX
    finally:
        tracemalloc.stop()
    return error
