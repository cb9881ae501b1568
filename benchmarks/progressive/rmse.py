"""Progressive RMSE: each rating is predicted from the records before its own, and then learned.

By default a record is one event. The opponent computes the same formulas in a plain float64 loop:
sequential SGD from the same initial factors, in the same order, with the running mean of the
values. It clips errors only on demand. Both treat an unknown user or item as a zero row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.progressive.data import Stream
from livefactor_kernels.backend import Update, create_backend
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.simd.steps import Rows, score
from livefactor_kernels.spec.model import LANES, Loss, ModelSpec, OptimizerKind
from livefactor_kernels.tables.cpu import Table


def rmse(errors: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))


@compiled(nogil=False)
def served(
    users: Any, items: Any, mean: Any, user_rows: Any, item_rows: Any, published: Any, zeros: Any,
    blocks: Any, out: Any,
) -> None:  # fmt: skip
    """Writes the scores (float32) that `Score` returns at `published`.

    `zeros` is a zero row on each side.
    """
    for i in range(user_rows.size):
        user = user_rows[i] if user_rows[i] < published[0] else zeros[0]
        item = item_rows[i] if item_rows[i] < published[1] else zeros[1]
        out[i] = score(mean, users, items, np.uint64(user), np.uint64(item), blocks)


def model_errors(spec: ModelSpec, stream: Stream, record_events: int = 1) -> np.ndarray:
    """Prediction minus value of each event, float64[n].

    A record is predicted as a whole, then learned.
    """
    model = create_backend("cpu", spec)
    tables = Rows.of(model.users), Rows.of(model.items)
    # The initial values of a row depend only on its key, so all rows are made at once. `published`
    # separates known rows.
    user_rows, item_rows = model.users.allocate(stream.user_keys), model.items.allocate(stream.item_keys)
    user_counts, item_counts = ((np.maximum.accumulate(rows) + 1).tolist() for rows in (user_rows, item_rows))
    # These rows are never assigned, so they stay zero.
    zeros = model.users.allocated, model.items.allocated
    predictions, blocks = np.empty(len(stream), np.float32), np.uint64(spec.k_padded // LANES)
    for revision, start in enumerate(range(0, len(stream), record_events), 1):
        stop = min(start + record_events, len(stream))
        columns = user_rows[start:stop], item_rows[start:stop]
        served(*tables, model.mean, *columns, model.published, zeros, blocks, predictions[start:stop])
        counts = user_counts[stop - 1], item_counts[stop - 1]
        model.apply(Update(revision, *columns, stream.values[start:stop], None, *counts))
    return predictions.astype(np.float64) - stream.values


@compiled(nogil=False)
def _sequential_sgd(
    users: Any, items: Any, user_rows: Any, item_rows: Any, values: Any, numbers: Any, errors: Any
) -> None:
    """Learns in place. `users` and `items` are float64[rows, 1 + k] with the bias first.

    `numbers` holds the learning rates, the L2 of factors and biases, and the maximum error.
    """
    rate, bias_rate, l2, bias_l2, error_max = numbers
    users_seen, items_seen, total = 0, 0, 0.0
    for t in range(values.size):
        user, item, value = user_rows[t], item_rows[t], values[t]
        x, y = users[user], items[item]
        dot = 0.0
        for j in range(1, x.size):
            dot += x[j] * y[j]
        base = total / max(t, 1) + x[0] + y[0]
        e = base + dot - value
        errors[t] = e if user < users_seen and item < items_seen else base - value
        e = max(-error_max, min(error_max, e))
        for j in range(1, x.size):
            old = x[j]
            x[j] -= rate * (e * y[j] + l2 * old)
            y[j] -= rate * (e * old + l2 * y[j])
        x[0] -= bias_rate * (e + bias_l2 * x[0])
        y[0] -= bias_rate * (e + bias_l2 * y[0])
        users_seen, items_seen, total = max(users_seen, user + 1), max(items_seen, item + 1), total + value


def float64_errors(spec: ModelSpec, stream: Stream, error_max: float = np.inf) -> np.ndarray:
    """Prediction minus value of each event in the float64 loop, float64[n].

    Raises ValueError for other specs.
    """
    if spec.loss != Loss.SQUARED or spec.optimizer.kind != OptimizerKind.SGD:
        raise ValueError("spec: expected squared loss and SGD")
    model, optimizer = create_backend("cpu", spec), spec.optimizer
    user_rows, item_rows = model.users.allocate(stream.user_keys), model.items.allocate(stream.item_keys)
    numbers = optimizer.learning_rate, optimizer.bias_learning_rate, spec.l2, spec.bias_l2, float(error_max)
    errors, values = np.empty(len(stream)), stream.values.astype(np.float64)
    columns = user_rows.astype(np.int64), item_rows.astype(np.int64), values
    _sequential_sgd(_initial(model.users), _initial(model.items), *columns, numbers, errors)
    return errors


def _initial(table: Table) -> np.ndarray:
    """The biases and the initial factors, float64[rows, 1 + k]."""
    part = table.sections(table.allocated)
    return np.column_stack([part["bias"], part["factors"]]).astype(np.float64)
