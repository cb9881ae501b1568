"""Sums of float32 in the order of the semantics, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.spec.model import LANES

CHUNK = 32
"""Occurrences of a row that are summed from left to right before their sum joins the row's."""


def lane_sum(lanes: np.ndarray) -> Any:
    """The sum of 16 lanes, float32[16] or [16, n].

    The upper half is added to the lower one until one lane is left.
    """
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def dot(x: np.ndarray, y: np.ndarray) -> Any:
    """The dot product of two float32[k_padded] in 16 lanes.

    Each lane is summed from left to right, and then the lanes in a tree. For float32[k_padded, n]
    it is the dot products of the columns.
    """
    lanes = x[:LANES] * y[:LANES]
    for start in range(LANES, len(x), LANES):
        lanes = lanes + x[start : start + LANES] * y[start : start + LANES]
    return lane_sum(lanes)


def chunked_sum(terms: list[Any]) -> Any:
    """The sum of arrays or float32 in their order, in chunks of 32.

    Chunks are summed from left to right, and then their sums likewise.
    """
    sums = []
    for start in range(0, len(terms), CHUNK):
        total = terms[start]
        for term in terms[start + 1 : start + CHUNK]:
            total = total + term
        sums.append(total)
    return sums[0] if len(sums) == 1 else left_to_right(sums)


def left_to_right(terms: list[Any]) -> Any:
    """The sum of arrays or float32 from left to right."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
