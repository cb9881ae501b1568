"""The steps of the weights and of the blend, in compiled code.

The semantics are in `reading/__init__.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.reading import (
    BLEND_MAX,
    BLEND_RATE,
    EXPERTS,
    LEARNED_BLEND,
    POPULARITY,
    POPULARITY_MIN,
    REPEATS,
    STEP_MAX,
)

_F1, _F2, _D0, _D1 = np.float32(1.0), np.float32(2.0), np.float64(0.0), np.float64(1.0)


@compiled
def step_weights(weights: Any, z: Any, odds: Any, size: Any, is_new: Any, rate: Any, room: Any) -> None:
    """Steps weights float64[EXPERTS] for the first `size` candidates. The event's is the first.

    If `is_new`, all but the weight of repeats step, and else that weight alone.
    """
    scores, differences, sums, total, first = room.scores, room.differences, np.zeros(EXPERTS), _D0, _D0
    highest = -np.inf
    for c in range(size):
        score = weights[0] * z[c, 0]
        for expert in range(1, EXPERTS):
            score += weights[expert] * z[c, expert]
        scores[c] = score
        highest = max(highest, score)
    for c in range(size):
        differences[c] = np.float32(scores[c] - highest)
    for c in range(size):
        differences[c] = scalar.exp(differences[c])
    for c in range(size):
        q = odds[c] * np.float64(differences[c])
        total += q
        for expert in range(EXPERTS):
            sums[expert] += q * z[c, expert]
    first = odds[0] * np.float64(differences[0])
    factor = np.sqrt(first / total) if is_new else _D1
    for expert in range(EXPERTS):
        if (expert != REPEATS) == is_new:
            step = min(max((sums[expert] / total - z[0, expert]) * factor, -STEP_MAX), STEP_MAX)
            least = POPULARITY_MIN if expert == POPULARITY else 0.0
            weights[expert] = max(weights[expert] - rate * step, least)


@compiled
def logarithm(count: Any) -> Any:
    """log(1 + count) of the semantics."""
    mantissa, exponent = math.frexp(_F1 + count)
    return np.float32(exponent - 1) + (_F2 * np.float32(mantissa) - _F1)


@compiled
def step_blend(mix: Any, counts: Any, size: Any, unit: Any, rate: Any, room: Any) -> None:
    """Steps the learned blend after `step_weights` for the same candidates.

    `counts` float32[any, 2] are those of the items. `unit` is the weight of popularity before the
    step times its scale.
    """
    total, summed, rows = _D0, _D0, room.rows
    for c in range(size):
        q = room.odds[c] * np.float64(room.differences[c])
        total += q
        summed += q * np.float64(logarithm(counts[np.uint64(rows[c]), 1]))
    first = room.odds[0] * np.float64(room.differences[0])
    away = summed / total - np.float64(logarithm(counts[np.uint64(rows[0]), 1]))
    step = min(max((away * unit) * np.sqrt(first / total), -STEP_MAX), STEP_MAX)
    mix[LEARNED_BLEND] = min(max(mix[LEARNED_BLEND] - (rate * BLEND_RATE) * step, 0.0), BLEND_MAX)
