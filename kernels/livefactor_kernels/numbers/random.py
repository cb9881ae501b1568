"""Counter-based random numbers: initial rows, negative sampling, stochastic rounding.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011). Every draw is a function of
the seed, its purpose and its place, and never of a generator's state. A replay of the log with any
grouping therefore draws the same numbers. The functions run as plain Python on NumPy uint64, and
compile with Numba. All words are 32-bit values in a uint64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.parts import inlined

_U = np.uint64
_MASK = _U(0xFFFFFFFF)
_32 = _U(32)
_M0, _M1 = _U(0xD2511F53), _U(0xCD9E8D57)
_W0, _W1 = _U(0x9E3779B9), _U(0xBB67AE85)

INIT_DOMAIN = 0x6C66_696E_6974_0001
"""It is XORed with the seed for initial rows."""
NEGATIVE_DOMAIN = 0x6C66_6E65_6761_0002
"""It is XORed with the seed for sampled negatives."""
ROUNDING_DOMAIN = 0x6C66_726F_756E_0003
"""It is XORed with the seed for the rounding of steps of narrow factors."""
INIT_ROUNDING_DOMAIN = 0x6C66_696E_726F_0004
"""It is XORed with the seed for the rounding of initial rows."""
SHARED_DOMAIN = 0x6C66_7368_6172_0005
"""It is XORed with the seed for the negatives that a group of events shares (rule SOFTMAX)."""
REPLAY_DOMAIN = 0x6C66_7265_706C_0006
"""It is XORed with the seed for the reservoir of replayed events."""
DROPOUT_DOMAIN = 0x6C66_6472_6F70_0007
"""It is XORed with the seed for the columns that are dropped out for an event."""
MIX_DOMAIN = 0x6C66_6D69_7865_0008
"""It is XORed with the seed for the predictions from which a mix learns."""

_EIGHT, _FOUR, _ONE, _ZERO = _U(8), _U(4), _U(1), _U(0)
_13, _16 = _U(13), _U(16)
_COLUMN = _U(0x9E3779B1)
_MIX1, _MIX2 = _U(0x85EBCA6B), _U(0xC2B2AE35)
_TO_UNIT = np.float32(2.0**-24)
_HALF = np.float32(0.5)
_DRAW_BLOCK = _U(256)


@inlined
def philox(c0: Any, c1: Any, c2: Any, c3: Any, key: Any) -> Any:
    """Four random 32-bit words (uint64) for a counter of four such words and a 64-bit key."""
    k0, k1 = key & _MASK, key >> _32
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _MASK, (p0 >> _32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@inlined
def initial_factor(word: Any, scale: Any) -> Any:
    """((word >> 8) * 2**-24 - 0.5) * scale as float32: uniform in [-scale/2, scale/2)."""
    return (np.float32(word >> _EIGHT) * _TO_UNIT - _HALF) * scale


@inlined
def draw_negative(key: Any, revision: Any, event: Any, draw: Any, positive: Any, items: Any) -> Any:
    """Samples item row `draw` of an event's negatives, as uint64.

    It is mulhi64(word0 | word1 << 32, items), or the next row modulo items if that is the positive.
    `items` is 2..2**32-1, and `event` is the index in the stored payload. All arguments are uint64.
    """
    w0, w1, _, _ = philox(revision & _MASK, revision >> _32, event, draw, key)
    row = (w1 * items + ((w0 * items) >> _32)) >> _32
    if row == positive:
        row = _ZERO if row + _ONE == items else row + _ONE
    return row


@inlined
def draw_below(key: Any, revision: Any, step: Any, draw: Any, count: Any) -> Any:
    """Draw number `draw` of group `step` of a record: a uint64 in [0, count).

    It is mulhi64(word0 | word1 << 32, count). Philox's counter is (revision low, revision high,
    step, draw), and its key belongs to `SHARED_DOMAIN`. `count` is any uint64.
    """
    w0, w1, _, _ = philox(revision & _MASK, revision >> _32, step, draw, key)
    low, high = count & _MASK, count >> _32
    middle = w1 * low + ((w0 * low) >> _32)
    return w1 * high + (middle >> _32) + ((w0 * high + (middle & _MASK)) >> _32)


@inlined
def rounding_word(key: Any, revision: Any, step: Any, side: Any, row: Any) -> Any:
    """The random word for the rounding of a row's step.

    It is Philox's first word for the counter (revision low, revision high, 2 * step + side, row).

    Args:
        key: the key of `ROUNDING_DOMAIN`.
        revision: the revision of the record.
        step: number of the micro-batch in its record, below 2**31.
        side: 0 for users, 1 for items.
        row: the row.

    An initial row uses the counter (key low, key high, side, 0) with the key of
    `INIT_ROUNDING_DOMAIN`: its key replaces the revision, and step and row are 0. All arguments are
    uint64.
    """
    word, _, _, _ = philox(revision & _MASK, revision >> _32, step + step + side, row, key)
    return word


@inlined
def dropout_word(key: Any, revision: Any, event: Any) -> Any:
    """The random word for the dropout of an event.

    It is Philox's first word for the counter (revision low, revision high, event, 0) with the key
    of `DROPOUT_DOMAIN`. `event` is the index in the stored payload. All arguments are uint64.
    `column_word` gives the bits of a column.
    """
    word, _, _, _ = philox(revision & _MASK, revision >> _32, event, _ZERO, key)
    return word


@inlined
def column_word(word: Any, column: Any) -> Any:
    """The 32 random bits of a column: MurmurHash3's finaliser of word + column * 0x9E3779B1."""
    h = (column * _COLUMN + word) & _MASK
    h = ((h ^ (h >> _16)) * _MIX1) & _MASK
    h = ((h ^ (h >> _13)) * _MIX2) & _MASK
    return h ^ (h >> _16)


@compiled
def init_rows(keys: Any, factors: Any, k: Any, scale: Any, key: Any, table: Any) -> None:
    """Writes the initial factors of `keys` (uint64[n]) to `factors[:, :k]`, float32[n, kp]."""
    for i in range(_U(keys.size)):
        low, high = keys[i] & _MASK, keys[i] >> _32
        for j in range(_ZERO, k, _FOUR):
            words = philox(low, high, j // _FOUR, table, key)
            for lane in range(min(_FOUR, k - j)):
                factors[i, j + _U(lane)] = initial_factor(words[lane], scale)


@compiled
def draw_batch(key: Any, revision: Any, positives: Any, items: Any, out: Any) -> None:
    """Writes the negatives of a record's events to `out`, uint32[n, d].

    `positives` are uint32[n]; items >= 2.
    """
    n, items = _U(positives.size), items & _MASK
    # The buffer is contiguous, so that the compiler draws several events at once.
    drawn = np.empty(_DRAW_BLOCK, np.uint32)
    for start in range(_ZERO, n, _DRAW_BLOCK):
        count = min(_DRAW_BLOCK, n - start)
        for d in range(_U(out.shape[1])):
            for i in range(count):
                positive = _U(positives[start + i])
                drawn[i] = np.uint32(draw_negative(key, revision, start + i, d, positive, items))
            for i in range(count):
                out[start + i, d] = drawn[i]


def domain_key(seed: int, domain: int) -> np.uint64:
    """The Philox key of a purpose: seed XOR domain."""
    return _U((seed ^ domain) & 0xFFFF_FFFF_FFFF_FFFF)
