"""Progressive RMSE: every rating is predicted from all that came before it, then learned. B = 1: one event, one record.

Beside it the same formulas as a plain float64 loop: sequential SGD from the same initial factors (as float64) in the same order,
with the mean of the values so far. A user or item that was never seen counts as a row of zeros, in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from livefactor_kernels.backend import Backend, Update, create_backend
from livefactor_kernels.spec import LANES, Loss, ModelSpec, OptimizerKind
from livefactor_kernels.steps import FLOAT_BYTES, Rows, load1, score
from numba import njit

from benchmarks.progressive_data import Stream


@njit(cache=True, error_model="numpy")
def _predict(users: Any, items: Any, mean: Any, published: Any, user_rows: Any, item_rows: Any, blocks: Any, out: Any) -> None:
    """The scores (float32) that the model would serve; rows at or past the published counts are unknown: zeros."""
    for i in range(user_rows.size):
        user, item = np.uint64(user_rows[i]), np.uint64(item_rows[i])
        if user < published[0] and item < published[1]:
            out[i] = score(mean, users, items, user, item, blocks)
        elif user < published[0]:
            out[i] = mean + load1(users.bias + user * FLOAT_BYTES)
        elif item < published[1]:
            out[i] = mean + load1(items.bias + item * FLOAT_BYTES)
        else:
            out[i] = mean


def model_rmse(spec: ModelSpec, stream: Stream, record_events: int | None = None) -> float:
    """Progressive RMSE of a spec with squared loss. record_events: events predicted before they are learned, as one record
    (default: the spec's micro-batch, so that no prediction is older than learning allows)."""
    model = create_backend("cpu", spec)
    values, size = stream.values, record_events or spec.micro_batch
    # The rows of all keys, in order of first appearance: an event's own `published` counts tell what was known before it.
    user_rows, item_rows = model.users.allocate(stream.user_keys), model.items.allocate(stream.item_keys)
    user_counts, item_counts = (np.maximum.accumulate(rows) + 1 for rows in (user_rows, item_rows))
    predictions = np.empty(len(stream), np.float32)
    rows, blocks = (Rows.of(model.users), Rows.of(model.items)), np.uint64(spec.k_padded // LANES)
    for revision, start in enumerate(range(0, len(stream), size), 1):
        part = slice(start, start + size)
        columns = user_rows[part], item_rows[part]
        published = tuple(map(np.uint64, model.published))
        _predict(*rows, model.mean, published, *columns, blocks, predictions[part])
        model.apply(Update(revision, *columns, values[part], None, int(user_counts[part][-1]), int(item_counts[part][-1])))
    return float(np.sqrt(np.mean((predictions.astype(np.float64) - values) ** 2)))


@njit(cache=True, error_model="numpy")
def _float64_loop(users: Any, items: Any, user_rows: Any, item_rows: Any, values: Any, rates: Any) -> float:
    """Sum of squared errors. users, items: float64[rows, 1 + k], the bias first; rates: factors', biases', their L2."""
    rate, bias_rate, l2, bias_l2 = rates
    users_seen, items_seen, total, squares = 0, 0, 0.0, 0.0
    for t in range(values.size):
        x, y = users[user_rows[t]], items[item_rows[t]]
        mean, dot = total / max(t, 1), 0.0
        for j in range(1, x.size):
            dot += x[j] * y[j]
        served = dot if user_rows[t] < users_seen and item_rows[t] < items_seen else 0.0
        base, value = mean + x[0] + y[0], values[t]
        squares += (base + served - value) ** 2
        e = base + dot - value
        for j in range(1, x.size):
            old = x[j]
            x[j] -= rate * (e * y[j] + l2 * old)
            y[j] -= rate * (e * old + l2 * y[j])
        x[0] -= bias_rate * (e + bias_l2 * x[0])
        y[0] -= bias_rate * (e + bias_l2 * y[0])
        users_seen, items_seen = max(users_seen, user_rows[t] + 1), max(items_seen, item_rows[t] + 1)
        total += value
    return squares


def float64_rmse(spec: ModelSpec, stream: Stream) -> float:
    """Progressive RMSE of plain sequential SGD in float64 with a spec's rates. ValueError if the spec is not squared loss with SGD."""
    if spec.loss != Loss.SQUARED or spec.optimizer.kind != OptimizerKind.SGD:
        raise ValueError("spec: expected squared loss and SGD")
    model = create_backend("cpu", spec)
    user_rows, item_rows = model.users.allocate(stream.user_keys), model.items.allocate(stream.item_keys)
    rates = spec.optimizer.learning_rate, spec.optimizer.bias_learning_rate, spec.l2, spec.bias_l2
    squares = _float64_loop(*_initial_rows(model), user_rows.astype(np.int64), item_rows.astype(np.int64),
                            stream.values.astype(np.float64), rates)  # fmt: skip
    return float(np.sqrt(squares / len(stream)))


def _initial_rows(model: Backend) -> tuple[np.ndarray, np.ndarray]:
    """float64[rows, 1 + k] of users and items: bias 0, then the initial factors."""
    sides = (table.sections(table.allocated) for table in (model.users, model.items))
    users, items = (np.column_stack([part["bias"], part["factors"]]).astype(np.float64) for part in sides)
    return users, items
