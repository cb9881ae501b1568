"""Sample states for snapshots.

Plain arrays replace the model, so that the tests need no kernels.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from livefactor.snapshots.sections import optimizer_state
from livefactor.v1 import models_pb2
from livefactor_server.snapshots.store import FrozenState, SnapshotStore

LINEAGE = uuid.UUID("6f1c1b3e-0000-4000-8000-00000000beef")
LABELS = {3: "café", 4: "", 7: "日本", 2**64 - 1: "last"}


SGD, ADAGRAD = models_pb2.OPTIMIZER_KIND_SGD, models_pb2.OPTIMIZER_KIND_ADAGRAD
FLOAT32 = models_pb2.FACTOR_DTYPE_FLOAT32
FLOAT16 = models_pb2.FACTOR_DTYPE_FLOAT16
BFLOAT16 = models_pb2.FACTOR_DTYPE_BFLOAT16
FACTOR_DTYPES = (FLOAT32, FLOAT16, BFLOAT16)


class ArrayPin:
    """Both tables as arrays. Reads return copies.

    Factors are padded to a multiple of 16 columns, as in memory.
    """

    def __init__(
        self, users: int, items: int, k: int, optimizer: int, seed: int = 0, factor_dtype: int = FLOAT32
    ) -> None:
        random = np.random.default_rng(seed)
        self.counts = (users, items)
        self.tables = [_table(random, count, k, optimizer, factor_dtype) for count in self.counts]
        self.rows_read_max = 0

    def read_rows(self, side: int, start: int, stop: int) -> Mapping[str, np.ndarray]:
        self.rows_read_max = max(self.rows_read_max, stop - start)
        return {name: array[start:stop].copy() for name, array in self.tables[side].items()}


def _table(
    random: np.random.Generator, count: int, k: int, optimizer: int, factor_dtype: int
) -> dict[str, np.ndarray]:
    factors = np.zeros((count, -(-k // 16) * 16), np.float32)
    factors[:, :k] = random.standard_normal((count, k), np.float32)
    keys = random.permutation(np.arange(count, dtype=np.uint64) * np.uint64(11) + np.uint64(1))
    table = {"keys": keys, "factors": factors, "bias": random.standard_normal(count, np.float32)}
    shapes = {"factor": factors, "powers": np.ones((count, 2), np.float32)}
    for name in optimizer_state(_spec(k, optimizer)):
        table[name] = shapes.get(name.partition("_")[0], table["bias"]) ** 2
    if factor_dtype == FLOAT16:
        table["factors"] = factors.astype(np.float16)
    if factor_dtype == BFLOAT16:
        table["factors"] = (factors.view(np.uint32) >> 16).astype(np.uint16)
    return table


def labels(names: dict[int, str]) -> dict[str, np.ndarray]:
    """Return the label sections of one side."""
    texts = [text.encode() for _, text in sorted(names.items())]
    return {
        "keys": np.array(sorted(names), np.uint64),
        "offsets": np.cumsum([0, *map(len, texts)]).astype(np.uint64),
        "text": np.frombuffer(b"".join(texts), np.uint8),
    }


def spec_bytes(k: int, optimizer: int, factor_dtype: int = FLOAT32) -> bytes:
    """Return logged spec bytes with the fields that the snapshot format depends on.

    The dtype float32 is left out, as in a log.
    """
    return _spec(k, optimizer, factor_dtype).SerializeToString()


def _spec(k: int, optimizer: int, factor_dtype: int = FLOAT32) -> models_pb2.ModelSpec:
    message = models_pb2.Optimizer(kind=optimizer, learning_rate=0.05)  # type: ignore[arg-type]
    return models_pb2.ModelSpec(
        k=k,
        loss=1,
        optimizer=message,
        kernel_semantics=1,
        seed=9,
        factor_dtype=0 if factor_dtype == FLOAT32 else factor_dtype,
    )


def view(
    users: int = 30,
    items: int = 20,
    k: int = 5,
    optimizer: int = SGD,
    *,
    revision: int = 7,
    seed: int = 0,
    created_us: int = 1_700_000_000_000_000,
    factor_dtype: int = FLOAT32,
) -> FrozenState:
    """Return a state with random tables and with labels on both sides."""
    spec = spec_bytes(k, optimizer, factor_dtype)
    small = {
        "events": np.array([1234], np.uint64),
        "mean": np.array([7_654_321, 3], np.int64),
        "producers": np.frombuffer(b"\x01\x00p" + bytes(18), np.uint8),
        "spec": np.frombuffer(spec, np.uint8),
        "unavailable": np.array([1, 12, 2**64 - 1], np.uint64),
    }
    for side, names in (("user", LABELS), ("item", {1: "one"})):
        small |= {f"labels.{side}.{name}": array for name, array in labels(names).items()}
    pin = ArrayPin(users, items, k, optimizer, seed, factor_dtype)
    return FrozenState(
        revision, LINEAGE, spec, bytes(range(32)), "blake3", created_us, 1, "default", pin, small
    )


def taken(folder: Path, state: FrozenState | None = None) -> Path:
    """Take a snapshot of `state`, by default of `view()`, and return its folder."""
    store = SnapshotStore(folder)
    return folder / store.take(state or view()).snapshot_id


def files_of(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder, by name."""
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}


def pieces_of(path: Path, size: int = 100) -> list[tuple[str, int, int, bytes]]:
    """Return a snapshot in pieces, as a server streams it."""
    return [
        (name, start, len(data), data[start : start + size])
        for name, data in sorted(files_of(path).items(), key=lambda entry: entry[0] != "manifest.json")
        for start in range(0, len(data), size)
    ]
