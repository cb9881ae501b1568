"""Factor dropout in kernels of micro-batches (semantics: `sgd/__init__.py`).

It has the scores and the occurrences of an event with dropped columns. `word` is the random word of
the event (`random.dropout_word`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import (
    VECTOR_BYTES,
    bits_of,
    broadcast,
    choose,
    lane_numbers,
    real_of,
    tree_sum,
)
from livefactor_kernels.numbers.narrow import load_factors
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import column_word
from livefactor_kernels.simd.gradients import add_block
from livefactor_kernels.simd.steps import ONE, ZERO, real, row_bytes
from livefactor_kernels.spec.model import LANES

_LANES = np.uint64(LANES)


@inlined
def keep_scales(word: Any, c: Any, rates: Any) -> Any:
    """The factors of dropout on block c of a row (vec16): 1 / (1 - p), or 0 in dropped columns."""
    columns = lane_numbers() + c * _LANES
    nothing = columns & ZERO
    scale = nothing + bits_of(rates.keep_scale)
    return real_of(choose(column_word(word, columns), rates.keep_below, scale, nothing))


@inlined
def dropped_score(model: Any, mean: Any, user: Any, item: Any, word: Any) -> Any:
    """Score (float32) of a user's row and an item's row without the dropped columns."""
    users, items, blocks, rates = model.users, model.items, model.blocks, model.rates
    x, y = user * row_bytes(blocks), item * row_bytes(blocks)
    lanes = load_factors(users.factors, x) * (load_factors(items.factors, y) * keep_scales(word, ZERO, rates))
    for c in range(ONE, blocks):
        at = c * VECTOR_BYTES
        other = load_factors(items.factors, y + at) * keep_scales(word, c, rates)
        lanes = lanes + load_factors(users.factors, x + at) * other
    return scalar.score(mean, real(users.bias, user), real(items.bias, item), tree_sum(lanes))


@inlined
def add_dropped(target: Any, fresh: Any, occurrence: Any, word: Any, blocks: Any, rates: Any) -> None:
    """Like `gradients.add_occurrence`, with (e * (d * other)). `keep_scales` returns d."""
    e, weights = occurrence.e, occurrence.weights
    for c in range(blocks):
        at = c * VECTOR_BYTES
        y = load_factors(occurrence.other, occurrence.other_start + at) * keep_scales(word, c, rates)
        x = load_factors(occurrence.own, occurrence.own_start + at)
        add_block(target, c, fresh, scalar.pull(e, y, weights.l2, x))
    add_block(target, blocks, fresh, broadcast(scalar.bias_pull(e, weights.bias_l2, occurrence.bias)))
