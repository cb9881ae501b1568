"""How a hostile snapshot is refused: quickly, in little memory, nothing run and nothing outside
opened.
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
SECONDS_MAX = 1.0

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
    """Audit events while it is armed; a hook cannot be removed, so it is one for the whole
    process.
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
    """Nothing may run, and nothing outside `folder` may be opened."""
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
    """All verbs refuse for one reason, quickly, and run nothing."""
    began = time.perf_counter()
    with watched(path):
        errors = []
        for verb in verbs:
            with pytest.raises(SnapshotInvalid) as caught:
                verb(path)
            errors.append(caught.value)
    assert time.perf_counter() - began < SECONDS_MAX
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
