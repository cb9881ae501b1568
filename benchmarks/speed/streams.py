"""The synthetic stream of all speed benchmarks: 100 thousand users, 20 thousand items, both Zipf, k
= 64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

USERS, ITEMS, K = 100_000, 20_000, 64
KEY_STEP = np.uint64(0x9E3779B97F4A7C15)
"""Spreads small numbers over all 64-bit keys."""

Run = Callable[[], float]
"""One turn of a benchmark: does its work once and returns its events per second."""


def zipf_ids(generator: np.random.Generator, count: int, distinct: int) -> np.ndarray:
    """Random numbers below `distinct`, uint64[count].

    Popularity is proportional to 1 / rank; ranks are assigned at random.
    """
    weights = 1.0 / np.arange(1, distinct + 1)
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), generator.random(count))
    return generator.permutation(distinct).astype(np.uint64)[np.minimum(ranks, distinct - 1)]


def zipf_stream(events: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User keys uint64[n], item keys uint64[n] and values float32[n] of n events."""
    generator = np.random.default_rng(seed)
    users = zipf_ids(generator, events, USERS) * KEY_STEP
    items = zipf_ids(generator, events, ITEMS) * KEY_STEP
    return users, items, generator.normal(3.5, 1.0, events).astype(np.float32)
