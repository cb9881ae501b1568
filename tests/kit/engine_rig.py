"""An engine that tests drive without RPC, and the root hash from a replay of its log."""

from __future__ import annotations

import errno
import queue
import threading
import uuid
from pathlib import Path

import numpy as np

from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import Limits, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import NO_REJECTS, OpenProducerChange
from livefactor_server.engine.engine import Engine, EngineSettings
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.log.disk import FileIO
from livefactor_server.log.store import Log
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState
from livefactor_server.rpc import decode
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import recover, replay
from livefactor_server.snapshots.store import root_hash_of
from livefactor_server.statuses import Refused

SPEC = preset(
    "clicks_sgd", k=8, limits=Limits(users_max=5000, items_max=5000, value_abs_max=1.0, error_max=1e3)
)
# The size is small so that a test fills the disk soon.
SEGMENT_BYTES = 16 << 10


class FaultyIO(FileIO):
    """A disk with faults that a test switches on.

    It can be full, fail its next sync, or delay its syncs until `syncing` is set.
    """

    full = False
    sync_error = False

    def __init__(self) -> None:
        super().__init__()
        self.syncing = threading.Event()
        self.syncing.set()

    def fallocate(self, fd: int, size: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space")
        super().fallocate(fd, size)

    def fdatasync(self, fd: int) -> None:
        assert self.syncing.wait(60), "the test left the disk waiting"
        if self.sync_error:
            raise OSError(errno.EIO, "input/output error")
        super().fdatasync(fd)


class Rig:
    """An engine on a folder, and a producer that calls it directly."""

    def __init__(self, folder: Path, spec: ModelSpec = SPEC, settings: EngineSettings | None = None) -> None:
        self.folder = folder
        self.io = FaultyIO()
        if not (folder / "log").exists():
            Log.create(
                folder / "log",
                spec_codec.encode(spec),
                0,
                uuid.uuid4(),
                io=self.io,
                segment_bytes=SEGMENT_BYTES,
                ahead=False,
            ).close()
        self.log = Log.open(folder / "log", io=self.io, segment_bytes=SEGMENT_BYTES, ahead=False)
        self.engine = Engine("m", recover(folder, self.log, "cpu"), self.log, settings or EngineSettings())
        self.engine.start()
        self.epoch = 0

    def send(
        self, change: object, body: bytes, producer: bytes, epoch: int, sequence: int
    ) -> queue.SimpleQueue[Submission]:
        replies: queue.SimpleQueue[Submission] = queue.SimpleQueue()
        item = Submission(change, body, producer, epoch, sequence, NO_REJECTS, self.log.seal, replies.put)
        self.engine.submit(item)
        return replies

    def open(self, producer: bytes) -> Ack:
        result = self.send(OpenProducerChange(), b"", producer, 0, 0).get(timeout=20).result
        assert isinstance(result, Ack)
        return result

    def push_async(self, body: bytes, producer: bytes = b"", epoch: int = 0, sequence: int = 0):
        request = decode.UpdateRequest("", producer, epoch, sequence, wire.INTERACTIONS, body)
        change, _ = decode.change_from_wire(request, self.engine.state.spec, 65_536)
        return self.send(change, body, producer, epoch, sequence)

    def push(self, body: bytes, producer: bytes = b"", epoch: int = 0, sequence: int = 0) -> Ack:
        result = self.push_async(body, producer, epoch, sequence).get(timeout=20).result
        if isinstance(result, Refused):
            raise result
        assert result is not None
        return result

    def root(self) -> bytes:
        with self.engine.view() as view:
            return root_hash_of(view)[0]

    def close(self) -> None:
        self.engine.drain()


def batch(seed: int, rows: int = 100) -> bytes:
    rng = np.random.default_rng(seed)
    return wire.encode_interactions(
        rng.integers(0, 300, rows, np.uint64), rng.integers(0, 200, rows, np.uint64)
    )


def state_root(state: ModelState) -> bytes:
    return root_hash_of(freeze_idle("m", state, "sha256"))[0]


def replayed_root(folder: Path, backend: str = "cpu") -> bytes:
    log = Log.open(folder / "log", read_only=True)
    root = state_root(replay(folder, log, backend))
    log.close()
    return root
