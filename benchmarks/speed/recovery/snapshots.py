"""Snapshots and erasures: `python -m benchmarks.speed.recovery.snapshots`.

A model of preset `ratings_sgd` learns events of many users, in this process. Measured are the bytes
that a whole snapshot writes in a second, and the longest time from a push to its acknowledgement
while one is taken, beside the same time without one. Then one per cent of the users have events
with one per cent of the items. Of an incremental snapshot after it, the share of the bytes of the
whole one is measured, and how many bytes of the state it goes through in a second. At last one user
is forgotten. The longest acknowledgement is also measured with tables of 10 MB and of 1 GB. It is
the median of `SNAPSHOTS` snapshots. At last the snapshot of 1 GB is removed, once.
"""

from __future__ import annotations

import json
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import Limits
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import NO_REJECTS
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.engine.engine import Engine, EngineSettings
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.log.store import Log
from livefactor_server.model import spec_codec
from livefactor_server.rpc import decode
from livefactor_server.snapshots.replay import log_folder, recover, snapshot_store

USERS, ITEMS, BATCH = 400_000, 20_000, 8_192
SMALL = 64
FORGOTTEN = 7
SNAPSHOTS = 3
SETTLE_S = 6.0
"""Seconds until a file system has freed the blocks of a removed file."""
SIZES = {"10_mb": 16_000, "1_gb": 3_500_000}
"""Users of a model whose snapshot has about this size."""


class Model:
    """An engine on a folder, and batches that it gets directly."""

    def __init__(self, folder: Path, users: int) -> None:
        limits = Limits(users_max=2 * users, items_max=2 * ITEMS, value_abs_max=5.0, error_max=1e3)
        spec = preset("ratings_sgd", k=64, limits=limits)
        (folder / "snapshots").mkdir(parents=True)
        Log.create(log_folder(folder), spec_codec.encode(spec)).close()
        self.users, self.folder, self.log = users, folder, Log.open(log_folder(folder))
        self.engine = Engine("m", recover(folder, self.log, "cpu"), self.log, EngineSettings())
        self.engine.start()
        self._rng = np.random.default_rng(1)

    def push(self, users: np.ndarray, items: int = ITEMS) -> float:
        """Pushes events of users with the first items. Returns the seconds to the answer."""
        chosen = self._rng.integers(0, items, len(users), np.uint64)
        body = wire.encode_interactions(users, chosen, np.ones(len(users), np.float32))
        request = decode.UpdateRequest("", b"", 0, 0, wire.INTERACTIONS, body)
        change, _ = decode.change_from_wire(request, self.engine.state.spec, 65_536)
        replies = queue.SimpleQueue[Submission]()
        start = time.perf_counter()
        self.engine.submit(
            Submission(change, body, b"", 0, 0, NO_REJECTS, self.log.seal, lambda done: replies.put(done))
        )
        result = replies.get(timeout=60).result
        assert isinstance(result, Ack), result
        return time.perf_counter() - start

    def longest(self, work: Callable[[], object]) -> float:
        """The longest acknowledgement of small pushes while `work` is done, in seconds."""
        thread, found = threading.Thread(target=work), 0.0
        thread.start()
        while thread.is_alive():
            found = max(found, self.push(self._rng.integers(0, self.users, SMALL, np.uint64)))
        thread.join()
        return found


def measure(users: int = USERS, sizes: dict[str, int] = SIZES) -> dict[str, float]:
    """The figures of a model with this number of users, and of models of other sizes."""
    with _filled(users) as (model, keeper):
        figures = _snapshots(model, keeper, users)
        figures |= _forgetting(model, keeper)
    for name, count in sizes.items():
        with _filled(count) as (model, keeper):
            # The first snapshot of a process loads compiled code.
            keeper.take()
            figures[f"snapshot_{name}_ack_max_ms"] = _pause(model, keeper)
            removed = model.longest(lambda: (keeper.store.keep(()), time.sleep(SETTLE_S)))
            figures[f"snapshot_{name}_removed_ack_max_ms"] = removed * 1e3
    return figures


def _pause(model: Model, keeper: Keeper) -> float:
    """The longest acknowledgement while a whole snapshot is taken, in milliseconds."""
    found = []
    for _ in range(SNAPSHOTS):
        model.push(np.arange(SMALL, dtype=np.uint64))
        keeper.store.keep(())
        time.sleep(SETTLE_S)
        found.append(model.longest(keeper.take) * 1e3)
    return statistics.median(found)


@contextmanager
def _filled(users: int) -> Iterator[tuple[Model, Keeper]]:
    """A model that has learned an event of each user."""
    with tempfile.TemporaryDirectory(prefix="livefactor-bench-") as made:
        model = Model(Path(made) / "m", users)
        for start in range(0, users, BATCH):
            model.push(np.arange(start, min(start + BATCH, users), dtype=np.uint64))
        yield model, Keeper(model.engine, snapshot_store(model.folder), KeeperSettings(10**9, 3, None, 50))
        model.engine.drain()


def _snapshots(model: Model, keeper: Keeper, users: int) -> dict[str, float]:
    start = time.perf_counter()
    whole = keeper.take()
    taken = time.perf_counter() - start
    chosen = np.random.default_rng(2).choice(users, users // 100, replace=False).astype(np.uint64)
    model.push(chosen, ITEMS // 100)
    start = time.perf_counter()
    second = keeper.take()
    again = time.perf_counter() - start
    folder = keeper.store.folder / second.snapshot_id
    written = sum(path.stat().st_size for path in folder.iterdir())
    quiet = model.longest(lambda: time.sleep(1.0))
    pause = _pause(model, keeper)
    return {
        "snapshot_mb_per_s": whole.size_bytes / taken / 1e6,
        "snapshot_mb": whole.size_bytes / 1e6,
        "snapshot_ack_max_ms": pause,
        "snapshot_quiet_ack_max_ms": quiet * 1e3,
        "increment_share": written / whole.size_bytes,
        "increment_mb_per_s": second.size_bytes / again / 1e6,
    }


def _forgetting(model: Model, keeper: Keeper) -> dict[str, float]:
    events, start = model.engine.state.events, time.perf_counter()
    forgetter = Forgetter(model.folder, model.engine, keeper)
    forgetter.begin(Subjects((FORGOTTEN,))).outcome.result(600)
    took = time.perf_counter() - start
    forgetter.stop()
    return {"forget_s_per_million_events": took / events * 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
