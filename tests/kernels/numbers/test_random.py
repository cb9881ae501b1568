"""Counter-based draws: published answers of Philox, initial factors, negatives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livefactor_kernels.numbers import random
from livefactor_kernels.numbers.random import INIT_DOMAIN, NEGATIVE_DOMAIN, domain_key

U = np.uint64


# Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected) -> None:
    words = random.philox(*map(U, counter), U(key))
    assert tuple(int(word) for word in words) == expected


@given(
    seed=st.integers(0, 2**64 - 1),
    revision=st.integers(0, 2**64 - 1),
    items=st.integers(2, 2**32 - 1),
    event=st.integers(0, 2**20),
    draw=st.integers(0, 40),
    positive=st.integers(0, 2**32 - 2),
)
def test_a_negative_is_another_item(seed, revision, items, event, draw, positive) -> None:
    positive %= items
    args = (domain_key(seed, NEGATIVE_DOMAIN), U(revision), U(event), U(draw), U(positive), U(items))
    row = int(random.draw_negative(*args))
    words = random.philox(U(revision & 0xFFFFFFFF), U(revision >> 32), U(event), U(draw), args[0])
    drawn = ((int(words[0]) | int(words[1]) << 32) * items) >> 64
    assert row == (drawn if drawn != positive else (positive + 1) % items)
    assert row != positive


@pytest.mark.parametrize("items", [2, 3, 1000, 2**32 - 1])
def test_a_batch_of_negatives_is_the_single_draws(items: int) -> None:
    positives = (np.arange(300, dtype=np.uint64) * 7919 % items).astype(np.uint32)
    key, revision = domain_key(99, NEGATIVE_DOMAIN), U(5 << 32 | 17)
    out = np.empty((300, 3), np.uint32)
    random.draw_batch(key, revision, positives, U(items), out)
    expected = [
        [int(random.draw_negative(key, revision, U(i), U(d), U(p), U(items))) for d in range(3)]
        for i, p in enumerate(positives)
    ]
    assert out.tolist() == expected


def test_negatives_are_spread_evenly() -> None:
    out = np.empty((20_000, 4), np.uint32)
    random.draw_batch(U(1), U(2), np.zeros(20_000, np.uint32), U(10), out)
    counts = np.bincount(out.reshape(-1), minlength=10)
    # The positive is never drawn.
    assert counts[0] == 0
    # The row after the positive takes its place.
    assert counts[1] == pytest.approx(16_000, rel=0.05)
    assert counts[2:] == pytest.approx(np.full(8, 8_000), rel=0.06)


@pytest.mark.parametrize("k", [1, 4, 17, 64])
def test_initial_factors_follow_the_rule_and_leave_the_padding(k: int) -> None:
    keys = np.array([0, 1, 2**64 - 1, 0xDEAD_BEEF_0000_0001], np.uint64)
    factors = np.zeros((4, 64), np.float32)
    seed, scale = domain_key(7, INIT_DOMAIN), np.float32(0.3)
    random.init_rows(keys, factors, U(k), scale, seed, U(1))
    for key, row in zip(keys, factors, strict=True):
        for j in range(k):
            words = random.philox(key & U(0xFFFFFFFF), key >> U(32), U(j // 4), U(1), seed)
            unit = np.float32(int(words[j % 4]) >> 8) * np.float32(2.0**-24)
            assert row[j] == (unit - np.float32(0.5)) * scale
        assert not row[k:].any()


def test_initial_factors_are_uniform() -> None:
    factors = np.zeros((2_000, 64), np.float32)
    random.init_rows(np.arange(2_000, dtype=np.uint64), factors, U(64), np.float32(0.2), U(3), U(0))
    assert factors.min() >= -0.1 and factors.max() < 0.1
    assert abs(factors.mean()) < 1e-3
    assert factors.std() == pytest.approx(0.2 / 12**0.5, rel=0.01)
