"""The key map: nanoseconds per key of look-ups, inserts and a rebuild: `python -m
benchmarks.speed.keymap [KEYS...]`.

The maps have 100 thousand, a million and 10 million random keys (or the sizes in the arguments).
Look-ups use `QUERIES` random known keys in batches of 8,192 and 65,536. All candidates take turns,
and figures are medians over the rounds. They are wall time of one thread, so that a busy machine
gives higher figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from livefactor_kernels.tables.keymap import KeyMap, compile_kernels

SIZES = (100_000, 1_000_000, 10_000_000)
BATCHES = (8_192, 65_536)
QUERIES = 1 << 20
ROUNDS = 7
INSERT_BATCH = 65_536


def _ns_each(action: Callable[[np.ndarray], object], keys: np.ndarray, batch: int) -> float:
    """Nanoseconds per key when `action` is called on batches of the keys."""
    start = time.perf_counter()
    for i in range(0, keys.size, batch):
        action(keys[i : i + batch])
    return (time.perf_counter() - start) / keys.size * 1e9


def _filled(keys: np.ndarray) -> tuple[KeyMap, float]:
    """A map of the keys, and the nanoseconds per key of the inserts, with the growth of the map."""
    keymap = KeyMap(1)
    return keymap, _ns_each(lambda part: keymap.insert_missing(part, len(keymap)), keys, INSERT_BATCH)


def _measure_size(count: int) -> dict[str, float]:
    generator = np.random.default_rng(count)
    keys = np.unique(generator.integers(0, 2**64, count, dtype=np.uint64))
    generator.shuffle(keys)
    keymap, insert_ns = _filled(keys)
    rebuild_ns = _ns_each(keymap.rebuild, keys, keys.size)
    known = keys[generator.integers(0, keys.size, QUERIES)]
    actions: dict[str, Callable[[np.ndarray], object]] = {
        "find": keymap.find,
        "insert_known": lambda part: keymap.insert_missing(part, len(keymap)),
        "count_new": keymap.count_new,
    }
    turns: dict[str, list[float]] = {f"{name}_{batch}_ns": [] for name in actions for batch in BATCHES}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            for batch in BATCHES:
                turns[f"{name}_{batch}_ns"].append(_ns_each(action, known, batch))
    results = {name: median(times) for name, times in turns.items()}
    results |= {"insert_new_ns": insert_ns, "rebuild_ns": rebuild_ns}
    results["bytes_a_key"] = keymap.nbytes / keys.size
    return results


def measure(sizes: tuple[int, ...] = SIZES) -> dict[str, float]:
    """Flat figures: keymap_<keys>_<what>_<batch>_ns and keymap_<keys>_bytes_a_key."""
    compile_kernels()
    return {f"keymap_{size}_{name}": value for size in sizes for name, value in _measure_size(size).items()}


if __name__ == "__main__":
    for label, value in measure(tuple(map(int, sys.argv[1:])) or SIZES).items():
        print(f"{label:42} {value:8.1f}")
