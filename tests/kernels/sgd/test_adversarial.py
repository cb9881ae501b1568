"""Adversarial training: the gradients at moved rows, what it refuses, and the bytes of old specs.

The conformance kit compares the kernel with the reference.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from livefactor_kernels.backend import Update, create_backend
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import Loss, ModelSpec, Regularization, SpecError
from synthetic import make_spec

WEIGHT, SHARE, RATE = 0.8, 0.3, 1e-3
ATTACK = Regularization(adversarial_weight=WEIGHT, adversarial_share=SHARE)


def spec_of(loss: Loss, **changes: object) -> ModelSpec:
    part = {"regularization": ATTACK, "l2": 0.0, "bias_l2": 0.0, "k": 16, "negatives": int(loss == Loss.BPR)}
    spec = make_spec(loss, init_scale=1.0, **(part | changes))
    rates = replace(spec.optimizer, learning_rate=RATE, bias_learning_rate=RATE)
    return check(replace(spec, optimizer=rates))


def rows_of(backend: object) -> tuple[np.ndarray, np.ndarray]:
    users, items = backend.users, backend.items
    return users.factors[: users.allocated].astype(np.float64), items.factors[: items.allocated].astype(
        np.float64
    )


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.linalg.norm(row)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + np.exp(-x))


def stepped(loss: Loss, value: float) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """The rows before and after one event of user 0 with item 0, beside an item 1."""
    spec = spec_of(loss)
    backend = create_backend("cpu", spec)
    rows = (
        backend.users.allocate(np.array([5], np.uint64)),
        backend.items.allocate(np.array([7, 8], np.uint64)),
    )
    before = rows_of(backend)
    values = None if loss == Loss.BPR else np.array([value], np.float32)
    backend.apply(Update(1, rows[0], rows[1][:1], values, None, 1, 2))
    return before, rows_of(backend)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_step_of_logistic_loss_is_the_sum_of_two_gradients(value: float) -> None:
    (users, items), after = stepped(Loss.LOGISTIC, value)
    x, y = users[0], items[0]
    e = sigmoid(x @ y) - value
    signed = np.sign(e) * SHARE
    moved_x = x + signed * np.linalg.norm(x) * unit(y)
    moved_y = y + signed * np.linalg.norm(y) * unit(x)
    other = WEIGHT * (sigmoid(moved_x @ moved_y) - value)
    np.testing.assert_allclose(after[0][0], x - RATE * (e * y + other * moved_y), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after[1][0], y - RATE * (e * x + other * moved_x), rtol=1e-5, atol=1e-7)
    # The move makes the loss worse.
    assert abs(other) > WEIGHT * abs(e)


def test_a_step_of_bpr_is_the_sum_of_two_gradients() -> None:
    (users, items), after = stepped(Loss.BPR, 1.0)
    x, p, n = users[0], items[0], items[1]
    e = -sigmoid(x @ (n - p))
    moved_x = x - SHARE * np.linalg.norm(x) * unit(p - n)
    away = SHARE / 2 * np.linalg.norm(p - n) * unit(x)
    other = -WEIGHT * sigmoid(moved_x @ ((n + away) - (p - away)))
    of_user = e * (p - n) + other * ((p - away) - (n + away))
    of_item = e * x + other * moved_x
    np.testing.assert_allclose(after[0][0], x - RATE * of_user, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after[1][0], p - RATE * of_item, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after[1][1], n + RATE * of_item, rtol=1e-5, atol=1e-7)
    assert other < WEIGHT * e < 0


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("loss", [Loss.LOGISTIC, Loss.BPR])
def test_rows_of_zeros_stay_finite(loss: Loss, backend: str) -> None:
    spec = spec_of(loss, micro_batch=4)
    model = create_backend(backend, replace(spec, init_scale=0.0))
    users, items = (
        model.users.allocate(np.arange(3, dtype=np.uint64)),
        model.items.allocate(np.arange(4, dtype=np.uint64)),
    )
    model.apply(Update(1, users[[0, 1, 2, 0]], items[[0, 1, 1, 3]], None, None, 3, 4))
    assert all(np.isfinite(rows).all() for rows in rows_of(model))


def test_what_does_not_go_together_is_refused() -> None:
    good = spec_of(Loss.BPR)
    for changes, text in (
        ({"regularization": replace(ATTACK, adversarial_weight=11.0)}, "adversarial_weight: expected 0..10"),
        ({"regularization": replace(ATTACK, adversarial_share=0.0)}, "adversarial_share: expected above 0"),
        ({"regularization": replace(ATTACK, adversarial_weight=0.0)}, "adversarial_share: expected above 0"),
        ({"regularization": replace(ATTACK, dropout=0.5)}, "adversarial_weight: expected 0 with dropout"),
        ({"loss": Loss.SQUARED, "negatives": 0}, "adversarial_weight: expected 0 without rule sgd"),
    ):
        with pytest.raises(SpecError, match=text):
            check(replace(good, **changes))
    with pytest.raises(SpecError, match="adversarial_weight: expected 0 on backend cuda"):
        check_cuda(good)
