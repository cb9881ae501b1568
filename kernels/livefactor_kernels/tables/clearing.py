"""Clears rows: they become what rows of their keys are before their first record.

    factors, state of the optimiser   as drawn for a new row
    everything else but the key       0: the bias, the history, the vector, the bag, the start

What the rows have given to others stays: other rows, the mean, weights of experts, sums of
popularity, past events for replay, and events in the histories of other rows. Before the rows of a
model with embeddings or features are cleared, their vectors and bags are removed as by a record.
With rule SOLVE the Gram matrix of the side loses each row that is part of it (`solve/__init__.py`),
in the order of the rows: M = M - [x, 1] [x, 1]'.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from livefactor_kernels.spec.model import ModelSpec


def rows_in_gram(spec: ModelSpec, array_of: Callable[[str], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """[x, 1] float64[m, k + 1] of those of the rows uint32[n] that are part of the Gram matrix."""
    is_in = array_of("seen_count")[rows] > 0
    if spec.solve.start_events:
        is_in |= array_of("start_events")[rows] > 0
    return np.append(array_of("factors")[rows[is_in], : spec.k], np.ones((int(is_in.sum()), 1)), axis=1)


def clear_gram(gram: np.ndarray, side: int, removed: np.ndarray) -> None:
    """Takes rows float64[m, k + 1] out of the Gram matrices float64[2, k + 1, k + 1]."""
    own, product = gram[side], np.empty_like(gram[side])
    for row in removed.astype(np.float64):
        np.multiply.outer(row, row, out=product)
        np.subtract(own, product, out=own)
