"""A restart without a snapshot: `python -m benchmarks.speed.recovery.replay`.

Each record of the log has one event. Opening reads and verifies the log. Replay reads it again,
decodes the records, places their keys and learns. Rates by the wall clock and by CPU time differ if
the machine is busy, and the load average says how busy it was. Rule SOLVE solves two rows for each
event, which takes most of its time.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.speed.streams import zipf_stream
from livefactor.wire.columns import encode_interactions
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.log.disk import FileIO
from livefactor_server.log.format import SALT_BYTES
from livefactor_server.log.store import Entry, Kind, Log
from livefactor_server.model import spec_codec
from livefactor_server.snapshots.replay import log_folder, replay

RECORDS = {"clicks_sgd": 200_000, "clicks": 50_000, "auto": 50_000}
"""Number of records by preset."""

GROUP = 32
PRODUCER = b"benchmark"
ROUNDS = 3


class NoSync(FileIO):
    """Files that are not synced, since only reading is measured."""

    def fdatasync(self, fd: int) -> None:
        """Does nothing."""


def write(folder: Path, spec: ModelSpec, records: int) -> None:
    """Writes the log of a model with this number of records of one event."""
    users, items, _ = zipf_stream(records)
    log = Log.create(log_folder(folder), spec_codec.encode(spec), io=NoSync())
    entries = [Entry(Kind.OPEN_PRODUCER, 1, PRODUCER, 1)]
    for number in range(records):
        body = encode_interactions(users[number : number + 1], items[number : number + 1])
        entries.append(Entry(Kind.INTERACTIONS, number + 2, PRODUCER, 1, number + 1, 0, 1, b"", body))
    for entry in entries:
        entry.salt = os.urandom(SALT_BYTES)
        entry.commitment = log.seal(entry.salt, b"", entry.body)
    for at in range(0, len(entries), GROUP):
        log.append(entries[at : at + GROUP])
    log.close()


def measure(rounds: int = ROUNDS, share: float = 1.0) -> dict[str, float]:
    """The figures. `share` shortens the logs."""
    figures: dict[str, float] = {}
    for name, records in RECORDS.items():
        records = int(records * share)
        with tempfile.TemporaryDirectory(prefix="livefactor-bench-") as made:
            folder = Path(made)
            write(folder, preset(name), records)
            replayed = [_restart(folder) for _ in range(rounds + 1)]
        # The first turn compiles the kernels.
        opened, wall, cpu = (records / median(column) for column in zip(*replayed[1:], strict=True))
        figures[f"recovery_{name}_events_per_s"] = wall
        figures[f"recovery_{name}_cpu_events_per_s"] = cpu
        if name == "clicks_sgd":
            figures["recovery_open_events_per_s"] = opened
    figures["recovery_load"] = os.getloadavg()[0]
    return figures


def _restart(folder: Path) -> tuple[float, float, float]:
    """Seconds of opening, seconds of opening and replay, and CPU seconds of both."""
    start, cpu = time.perf_counter(), time.process_time()
    with Log.open(log_folder(folder), read_only=True) as log:
        opened = time.perf_counter() - start
        replay(folder, log, "cpu")
    return opened, time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
