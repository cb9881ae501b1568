"""Exact top-k lists and candidate scoring in process, contrasted with faiss: `python -m
benchmarks.speed.reads`.

k = 64; the 100 best of 100 thousand and of a million items, for one user and for a batch of 64, in
one thread. The opponent is faiss's exact `IndexFlatIP` on the same rows (inner products only: no
biases, keys or revisions). The candidates take turns, and figures are median milliseconds of wall
time. The memory bandwidth of one core is measured with them, by a sum of the same rows as integers.
Without faiss its figures are missing, and the output says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.spec.model import Limits, ModelSpec
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.cpu import Table

try:
    import faiss
except ImportError:
    faiss = None

K, TOP, MANY, CANDIDATES = 64, 100, 64, 500
SIZES = {"100k": 100_000, "1m": 1_000_000}
ROUNDS = {"100k": 31, "1m": 15}
ROUNDS_MANY = {"100k": 7, "1m": 3}
CANDIDATE_CALLS = 200


class _Still:
    """A pin without any changes."""

    def __init__(self, items: int) -> None:
        self.counts, self.mean = (0, items), np.float32(0.0)

    def copies(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.empty(0, np.uint32), np.empty((0, K), np.float32), np.empty(0, np.float32)


def _random_items(count: int) -> Table:
    table = Table(ModelSpec(k=K, limits=Limits(users_max=1, items_max=count)), ITEMS)
    generator = np.random.default_rng(count)
    table.allocate(generator.permutation(count).astype(np.uint64))
    for start in range(0, count, 1 << 17):
        part = table.factors[start : min(start + (1 << 17), count)]
        part[:] = generator.standard_normal(part.shape, dtype=np.float32)
    return table


@njit(nogil=True)
def _sum_words(words: Any) -> Any:
    total = np.uint64(0)
    for i in range(np.uint64(words.size)):
        total += words[i]
    return total


def _medians_ms(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each action. They take turns, and the first turn is not counted."""
    turns: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if turn:
                turns[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(times) for name, times in turns.items()}


def _measure_top_k(name: str, count: int, share: float) -> dict[str, float]:
    table, pin = _random_items(count), _Still(count)
    users = np.random.default_rng(2).standard_normal((MANY, K)).astype(np.float32)
    bias = np.zeros(MANY, np.float32)
    index = None if faiss is None else faiss.IndexFlatIP(K)
    if index is not None:
        index.add(table.factors[:count])
        rows, _, _ = scoring.top_k(pin, table, users[:1], bias[:1], TOP)
        _check_same(rows, index.search(users[:1], TOP)[1][0])
    results: dict[str, float] = {}
    one = f"topk_{TOP}_of_{name}"
    for label, n, rounds in ((one, 1, ROUNDS), (f"{one}_{MANY}_users", MANY, ROUNDS_MANY)):
        queries, query_bias = users[:n], bias[:n]
        actions = {f"{label}_ms": lambda q=queries, b=query_bias: scoring.top_k(pin, table, q, b, TOP)}
        if index is not None:
            actions[f"{label}_faiss_ms"] = lambda q=queries: index.search(q, TOP)
        if n == 1:
            actions["read"] = lambda: _sum_words(table.factors[:count].view(np.uint64).reshape(-1))
        times = _medians_ms(actions, max(1, round(rounds[name] * share)))
        if n == 1:
            gigabytes = count * K * 4 / 1e9
            results[f"{label}_gb_per_s"] = gigabytes / times[f"{label}_ms"] * 1e3
            results[f"memory_read_{name}_gb_per_s"] = gigabytes / times.pop("read") * 1e3
        results |= times
        if index is not None:
            results[f"{label}_ratio_to_faiss"] = times[f"{label}_faiss_ms"] / times[f"{label}_ms"]
    return results


def _check_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Checks that both did the same work.

    Random scores are rarely close enough for a different order.
    """
    common = np.intersect1d(ours, theirs).size
    if common < TOP - 1:
        raise AssertionError(f"top {TOP} of livefactor and faiss have {common} items in common")


def _measure_candidates() -> dict[str, float]:
    """500 candidates of one user out of a million items: gather and score, without the server."""
    table = _random_items(SIZES["1m"])
    generator = np.random.default_rng(3)
    user, bias = generator.standard_normal((1, K)).astype(np.float32), np.zeros(1, np.float32)
    lists = iter(generator.integers(0, SIZES["1m"], (CANDIDATE_CALLS + 1, CANDIDATES), dtype=np.uint32))
    offsets, mean = np.array([0, CANDIDATES], np.uint32), np.float32(0.0)

    def one_call() -> None:
        scoring.score_candidates(mean, user, bias, *scoring.gather(table, next(lists)), offsets)

    return {f"score_{CANDIDATES}_of_1m_kernel_ms": _medians_ms({"call": one_call}, CANDIDATE_CALLS)["call"]}


def measure(share: float = 1.0) -> dict[str, float]:
    """Flat figures: milliseconds, GB/s, and speeds relative to faiss (over 1 is faster).

    `share` is the share of the usual number of turns.
    """
    scoring.compile_kernels()
    _sum_words(np.zeros(1, np.uint64))
    with threadpool_limits(1):
        if faiss is not None:
            faiss.omp_set_num_threads(1)
        results = _measure_candidates()
        for name, count in SIZES.items():
            results |= _measure_top_k(name, count, share)
    return results


if __name__ == "__main__":
    if faiss is None:
        print("faiss is not installed: its figures and ratios are missing")
    for label, value in measure().items():
        print(f"{label:46} {value:10.3f}")
