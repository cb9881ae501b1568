"""Which batches of a shop's year are outliers, and which planted ones are."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from judged import Learner
from livefactor.wire import columns as wire
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import InteractionsChange
from livefactor_server.cli.demo.shop import load_shop
from livefactor_server.judging.screening import BATCHES_MIN, Outlier, Screen, ScreenSettings

ROWS = 500


def batch(users: np.ndarray, items: np.ndarray, weights: np.ndarray | None = None) -> InteractionsChange:
    return InteractionsChange.from_log(wire.encode_interactions(users, items, weights=weights))


def test_no_usual_batch_of_a_shop_is_held_and_planted_ones_are() -> None:
    """A hundred thousand events of a year: new customers and new seasons are usual."""
    shop = load_shop()
    learner = Learner(preset("clicks_sgd"), settings=None)
    screen = Screen("m", learner.state, ScreenSettings(8.0), nullcontext)
    held: list[Outlier] = []
    count = min(100_000, len(shop.users)) // ROWS
    for number in range(count):
        part = slice(number * ROWS, (number + 1) * ROWS)
        usual = batch(shop.users[part], shop.items[part])
        found = screen.outlier(usual)
        held += [found] if found else []
        learner.run([usual])
    assert not held, held
    rng = np.random.default_rng(3)
    known, new = shop.users[:ROWS], rng.integers(1 << 40, 1 << 41, ROWS, np.uint64)
    wrong_ids = screen.outlier(batch(new, shop.items[:ROWS]))
    assert wrong_ids is not None and wrong_ids.figure == "new_keys"
    heavy = screen.outlier(batch(known, shop.items[:ROWS], np.full(ROWS, 10, np.float32)))
    assert heavy is not None and heavy.figure in ("loss", "gradient")
    assert heavy.value > heavy.bound


def test_a_screen_decides_nothing_before_its_windows_are_filled() -> None:
    learner = Learner(preset("clicks_sgd"), settings=None)
    screen = Screen("m", learner.state, ScreenSettings(8.0), nullcontext)
    rng = np.random.default_rng(1)
    users = np.arange(64, dtype=np.uint64)
    learner.run([batch(users, users)])
    for _ in range(BATCHES_MIN - 1):
        assert screen.outlier(batch(rng.permutation(users), rng.permutation(users))) is None
    assert screen.outlier(batch(users + np.uint64(900), users)) is None
    assert screen.outlier(batch(users + np.uint64(900), users)) is not None
    # Another state begins anew.
    screen.judge(learner.state)
    assert screen.outlier(batch(users + np.uint64(900), users)) is None
