"""Rows that begin with the factors of another model: a warm start.

A record of factors has rows of one side, each once, with d factors, d at most k, and perhaps a
bias. Let x be the row's k new factors: the given ones, clamped to +-factor_max, and after them 0
for a user, and the present factors for an item. So scores are those of the other model, and
learning can use all k factors.

With rule SGD and SOFTMAX the row gets x, rounded like the factors of a step of micro-batch 0 of the
record (`ModelSpec`), the clamped bias, and the state of the optimiser that follows from the factors
(`optimizers.initial_state`). A record without biases leaves the biases.

Rule SOLVE solves a row for its events, and the events behind x are unknown. So it keeps x as the
section `factors_start` float32[k], and s = `solve.start_events` as `start_events` float32, which is
0 for other rows. A row without events gets x as its factors. It has a start from then on, and the
rule solves it towards x (`solve/__init__.py`). Biases are ignored, because implicit loss has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.narrow import rounded, widened
from livefactor_kernels.numbers.random import ROUNDING_DOMAIN, column_word, domain_key, rounding_word
from livefactor_kernels.optimizers import initial_state, optimizer_sections
from livefactor_kernels.spec.model import ITEMS, FactorDtype, ModelSpec, Rule
from livefactor_kernels.tables import unpadded


class Start(NamedTuple):
    """A record of factors.

    Attributes:
        side: `USERS` or `ITEMS`.
        rows: distinct rows, uint32[n].
        factors: float32[n, d].
        bias: float32[n], or None.
        revision: of the record.
        user_count, item_count: sizes of the tables after it.
    """

    side: int
    rows: np.ndarray
    factors: np.ndarray
    bias: np.ndarray | None
    revision: int
    user_count: int
    item_count: int


class Begun(NamedTuple):
    """What a record of factors changed with rule SOLVE.

    Attributes:
        before, after: the factors of each row without events, and 1 after them, float64[n, k + 1].
            `before` is 0 for a row that had no start.
        started: number of rows of the record that had no start.
    """

    before: np.ndarray
    after: np.ndarray
    started: int


def begin(spec: ModelSpec, array_of: Callable[[str], np.ndarray], start: Start) -> Begun | None:
    """Writes the rows of a record to the arrays of their side, which `array_of` gives by name.

    Returns what has changed with rule SOLVE, and None with other rules.
    """
    rows, limit, stored = start.rows, np.float32(spec.limits.factor_max), array_of("factors")
    x = np.zeros((len(rows), spec.k_padded), np.float32)
    if start.side == ITEMS:
        x[:] = widened(stored[rows])
    x[:, : start.factors.shape[1]] = np.clip(start.factors, -limit, limit)
    if spec.rule == Rule.SOLVE:
        return _begin_solved(spec, array_of, rows, x)
    stored[rows] = rounded_rows(spec, start.side, rows, start.revision, x)
    if start.bias is not None:
        array_of("bias")[rows] = np.clip(start.bias, -limit, limit)
    for name in optimizer_sections(spec):
        state = array_of(name)
        new = np.zeros((len(rows), *state.shape[1:]), state.dtype)
        unpadded(name, new, spec.k)[:] = initial_state(spec, name, stored[rows][:, : spec.k])
        state[rows] = new
    return None


def _begin_solved(
    spec: ModelSpec, array_of: Callable[[str], np.ndarray], rows: np.ndarray, x: np.ndarray
) -> Begun:
    factors, events = array_of("factors"), array_of("start_events")
    is_new, is_empty = events[rows] == 0, array_of("seen_count")[rows] == 0
    ones = np.ones((len(rows), 1))
    before = np.append(factors[rows, : spec.k], ones, axis=1) * ~is_new[:, None]
    array_of("factors_start")[rows] = x
    events[rows] = np.float32(spec.solve.start_events)
    factors[rows[is_empty]] = x[is_empty]
    after = np.append(x[:, : spec.k], ones, axis=1)
    return Begun(before[is_empty], after[is_empty], int(np.count_nonzero(is_new)))


def rounded_rows(spec: ModelSpec, side: int, rows: np.ndarray, revision: int, x: np.ndarray) -> np.ndarray:
    """The stored form of factors float32[n, k_padded] of rows, as after a step of micro-batch 0."""
    if spec.factor_dtype == FactorDtype.FLOAT32:
        return x
    key, counters = domain_key(spec.seed, ROUNDING_DOMAIN), (revision, 0, side)
    words = [rounding_word(key, *map(np.uint64, (*counters, row))) for row in rows.tolist()]
    columns = np.arange(spec.k_padded, dtype=np.uint64)
    return rounded(spec.factor_dtype, x, column_word(np.array(words, np.uint64)[:, None], columns))
