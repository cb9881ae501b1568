"""Disk throughput with and without the log: `python -m benchmarks.speed.disk [FOLDER]`.

The same bytes are written in three ways, in turns: by the log (packed, chained, O_DIRECT,
fdatasync), into a file of zeros, and into a file that is only reserved (`fallocate`). A group has 8
batches of 8,192 events of 20 bytes, one such batch, or one record that fits into 4 KiB. Hashing of
payloads is measured separately, since the server does it outside the log's thread. On a shared disk
figures change between runs, so that only figures of one run are comparable.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from livefactor_server.log.disk import FileIO, aligned_buffer, write_all
from livefactor_server.log.format import GROUP_HEADER_BYTES, HEAD_BYTES, SALT_BYTES
from livefactor_server.log.store import SEGMENT_BYTES, Entry, Kind, Log

EVENT_BYTES = 20
BATCH = 8_192
SHAPES = {"8x8k": (8, BATCH), "8k": (1, BATCH), "4k_bytes": (1, 180)}
"""Records per group and events per record, by name."""
ROUNDS = 3
SECONDS = 1.5
"""Duration of writing for each shape, way and round."""

Way = Callable[[], None]


class RawFile:
    """Aligned writes and syncs to a file of one segment's size, which wrap around."""

    def __init__(self, path: Path, size: int, zeroed: bool) -> None:
        self._io, self._zeroed, self._path, self._at = FileIO(), zeroed, path, 0
        self._buffer = memoryview(aligned_buffer(size))
        self._buffer[:] = np.random.default_rng(1).integers(0, 256, len(self._buffer), np.uint8).data
        self._fd = -1
        self._begin()

    def _begin(self) -> None:
        self.close()
        self._fd = self._io.open(self._path, create=True)
        self._io.fallocate(self._fd, SEGMENT_BYTES)
        if self._zeroed:
            zeros = memoryview(aligned_buffer(1 << 20))
            for offset in range(0, SEGMENT_BYTES, len(zeros)):
                write_all(self._io, self._fd, zeros, offset)
        self._io.fdatasync(self._fd)
        self._at = 0

    def close(self) -> None:
        if self._fd >= 0:
            self._io.close(self._fd)
            self._path.unlink()
            self._fd = -1

    def room(self) -> None:
        """Makes a new file if the old one is full. This is not timed."""
        if self._at + len(self._buffer) > SEGMENT_BYTES:
            self._begin()

    def write(self) -> None:
        write_all(self._io, self._fd, self._buffer, self._at)
        self._io.fdatasync(self._fd)
        self._at += len(self._buffer)


class LogWriter:
    """Appends groups of one shape to one log.

    Only `append` is timed. `hash_s` is the time of the commitments.
    """

    def __init__(self, folder: Path, records: int, events: int, io: FileIO | None = None) -> None:
        self._log = Log.create(folder, b"spec", io=io)
        bodies = np.random.default_rng(2).integers(0, 256, (records, events * EVENT_BYTES), np.uint8)
        self._bodies, self._salts = list(bodies), [os.urandom(SALT_BYTES) for _ in range(records)]
        self._entries: list[Entry] = []
        self._events = events
        self.hash_s: list[float] = []

    def room(self) -> None:
        start = time.perf_counter()
        sealed = [
            self._log.seal(salt, b"", body) for salt, body in zip(self._salts, self._bodies, strict=True)
        ]
        self.hash_s.append(time.perf_counter() - start)
        first = self._log.last_revision + 1
        self._entries = [
            Entry(
                Kind.INTERACTIONS,
                first + i,
                b"producer",
                1,
                first + i,
                0,
                self._events,
                b"",
                body,
                salt,
                commitment,
            )
            for i, (body, salt, commitment) in enumerate(zip(self._bodies, self._salts, sealed, strict=True))
        ]

    def write(self) -> None:
        self._log.append(self._entries)

    def close(self) -> None:
        self._log.close()


def timed(way: RawFile | LogWriter, seconds: float) -> list[float]:
    """Repeats writes for about `seconds`, and returns the seconds of each."""
    took: list[float] = []
    while sum(took) < seconds:
        way.room()
        start = time.perf_counter()
        way.write()
        took.append(time.perf_counter() - start)
    return took


def measure_shape(folder: Path, name: str, rounds: int, seconds: float) -> dict[str, float]:
    """The figures of one shape, flat. The folder is emptied afterwards."""
    records, events = SHAPES[name]
    size = GROUP_HEADER_BYTES + records * (HEAD_BYTES + events * EVENT_BYTES)
    folder.mkdir()
    ways = {
        "log": LogWriter(folder / "log", records, events),
        "raw_zeroed": RawFile(folder / "zeroed", size, True),
        "raw_reserved": RawFile(folder / "reserved", size, False),
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, writer in ways.items():
            took[way] += timed(writer, seconds)
    figures = {}
    for way, times in took.items():
        ms = np.array(times) * 1e3
        figures |= {
            f"disk_{name}_{way}_p50_ms": round(float(np.median(ms)), 4),
            f"disk_{name}_{way}_p99_ms": round(float(np.quantile(ms, 0.99)), 4),
            f"disk_{name}_{way}_max_ms": round(float(ms.max()), 3),
            f"disk_{name}_{way}_events_per_s": round(records * events * len(times) / sum(times)),
        }
        ways[way].close()
    log = ways["log"]
    assert isinstance(log, LogWriter)
    figures[f"disk_{name}_hash_ns_an_event"] = round(
        float(np.median(log.hash_s)) * 1e9 / (records * events), 2
    )
    shutil.rmtree(folder)
    return figures


class NoDisk(FileIO):
    """Discards all writes, so that only the log's own work remains."""

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return len(data)

    def fdatasync(self, fd: int) -> None:
        pass


def measure_packing(folder: Path, rounds: int) -> dict[str, float]:
    """CPU time of `append` without the disk, per one-click record in a group of 1,000, and per
    event in a group of 8 x 8,192.
    """
    figures = {}
    for name, records, events in (
        ("log_us_a_one_click_record", 1_000, 1),
        ("log_ns_an_event_8x8k", 8, BATCH),
    ):
        writer = LogWriter(folder / name, records, events, NoDisk())
        took = []
        for _ in range(rounds * 10):
            writer.room()
            start = time.thread_time()
            writer.write()
            took.append(time.thread_time() - start)
        scale = 1e6 / records if events == 1 else 1e9 / (records * events)
        figures[name] = round(float(np.median(took)) * scale, 3)
        writer.close()
    return figures


def measure_reading(folder: Path, records: int) -> dict[str, float]:
    """Records per second when a log of one-click records in groups of 1,000 is opened and read."""
    writer = LogWriter(folder / "clicks", 1_000, 1)
    for _ in range(records // 1_000):
        writer.room()
        writer.write()
    writer.close()
    start = time.perf_counter()
    log = Log.open(folder / "clicks", read_only=True)
    opened = time.perf_counter()
    count = sum(1 for _ in log.read())
    done = time.perf_counter()
    return {
        "log_open_records_per_s": round(count / (opened - start)),
        "log_read_records_per_s": round(count / (done - opened)),
    }


def measure(
    folder: Path, rounds: int = ROUNDS, seconds: float = SECONDS, records: int = 100_000
) -> dict[str, float]:
    """All figures, flat. `folder` is an empty folder on the disk to measure."""
    figures: dict[str, float] = {}
    for name in SHAPES:
        figures |= measure_shape(folder / name, name, rounds, seconds)
    return figures | measure_packing(folder, rounds) | measure_reading(folder, records)


def main() -> None:
    parent = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        figures = measure(Path(folder))
    for name in SHAPES:
        print(f"{name:>9}  {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'events/s':>12}")
        for way in ("log", "raw_zeroed", "raw_reserved"):
            p50, p99, worst = (figures[f"disk_{name}_{way}_{what}_ms"] for what in ("p50", "p99", "max"))
            speed = figures[f"disk_{name}_{way}_events_per_s"]
            print(f"{way:>12} {p50:7.3f} {p99:8.3f} {worst:8.1f} {speed:12,.0f}")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
