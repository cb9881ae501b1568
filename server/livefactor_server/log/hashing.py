"""BLAKE3, SHA-256 and CRC32C of short byte strings in compiled code.

One record has two hashes of a few hundred bytes. In compiled code they cost less than one call of a
library from Python. Longer strings are hashed by the libraries. Tests compare the results with the
libraries.

Every function reads `data`, uint8[:], whose bytes from `size` on are zero up to the next multiple
of 64 and 8 more. It overwrites nothing but its last argument and `words`, uint32[80].

BLAKE3 is described in "BLAKE3: one function, fast everywhere" (O'Connor, Aumasson, Neves and
Wilcox-O'Hearn, 2020), SHA-256 in FIPS 180-4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_server.log.crc32c import byte_table

SHORT_BYTES = 1024
"""Maximum length of a string in bytes: one chunk of BLAKE3, which needs no tree."""

SHA256, BLAKE3 = 1, 2
"""The numbers of the hashes, as in `format.HASH_IDS`."""

_BLOCK = 64
_CHUNK_START, _CHUNK_END, _ROOT = 1, 2, 8
_U = np.uint32
_WIDE = np.uint64
_IV = np.array(
    [
        0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
    ],
    np.uint32,
)  # fmt: skip
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_CRC_TABLE = byte_table()


def _schedule() -> np.ndarray:
    """The number of the message word at each place of each round: int64[7, 16]."""
    rounds = [list(range(16))]
    for _ in range(6):
        rounds.append([rounds[-1][place] for place in _PERMUTATION])
    return np.array(rounds, np.int64)


def _fractions() -> np.ndarray:
    """The first 32 bits of the fractional parts of the cube roots of the first 64 primes."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, n))]
    constants = []
    for prime in primes:
        root = round((prime << 96) ** (1 / 3))
        while root**3 > prime << 96:
            root -= 1
        while (root + 1) ** 3 <= prime << 96:
            root += 1
        constants.append(root & 0xFFFFFFFF)
    return np.array(constants, np.uint32)


_SCHEDULE, _K = _schedule(), _fractions()


@compiled
def crc32c_of(data: Any, start: Any, size: Any) -> Any:
    """CRC32C of `data[start : start + size]`, uint32."""
    register = _U(0xFFFFFFFF)
    for i in range(size):
        register = _U(_CRC_TABLE[(register ^ _U(data[start + i])) & _U(0xFF)] ^ (register >> _U(8)))
    return register ^ _U(0xFFFFFFFF)


@compiled
def hash_short(hash_id: Any, data: Any, size: Any, words: Any, out: Any) -> None:
    """Writes the hash of `data[:size]` to `out`, uint8[32]. `size` is at most `SHORT_BYTES`."""
    if hash_id == BLAKE3:
        _blake3(data, size, words)
    else:
        _sha256(data, size, words)
    for i in range(8):
        word = words[i]
        for byte in range(4):
            shift = _U(8 * byte) if hash_id == BLAKE3 else _U(24 - 8 * byte)
            out[4 * i + byte] = np.uint8((word >> shift) & _U(0xFF))


@compiled
def _rotated(word: Any, right: Any) -> Any:
    # Numba would compile a variant for every literal number of bits.
    return _U((word >> right) | (word << (_U(32) - right)))


@compiled
def _mixed(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Any:
    """The function G of BLAKE3."""
    a = _U(a + b + x)
    d = _rotated(_U(d ^ a), _U(16))
    c = _U(c + d)
    b = _rotated(_U(b ^ c), _U(12))
    a = _U(a + b + y)
    d = _rotated(_U(d ^ a), _U(8))
    c = _U(c + d)
    b = _rotated(_U(b ^ c), _U(7))
    return a, b, c, d


@compiled
def _blake3(data: Any, size: Any, words: Any) -> None:
    """Writes the eight words of the hash to `words[:8]`."""
    for i in range(8):
        words[i] = _IV[i]
    blocks = max(1, (size + _BLOCK - 1) // _BLOCK)
    for block in range(blocks):
        flags = (_CHUNK_START if block == 0 else 0) | (_CHUNK_END | _ROOT if block == blocks - 1 else 0)
        at = block * _BLOCK
        for i in range(16):
            place = at + 4 * i
            words[16 + i] = (
                _U(data[place])
                | _U(data[place + 1]) << _U(8)
                | _U(data[place + 2]) << _U(16)
                | _U(data[place + 3]) << _U(24)
            )
        _blake3_block(words, words[16:32], min(_BLOCK, size - at), flags)


@compiled
def _blake3_block(chain: Any, m: Any, size: Any, flags: Any) -> None:
    """Compresses the block `m`, uint32[16], into `chain[:8]`."""
    a0, a1, a2, a3 = chain[0], chain[1], chain[2], chain[3]
    b0, b1, b2, b3 = chain[4], chain[5], chain[6], chain[7]
    c0, c1, c2, c3 = _IV[0], _IV[1], _IV[2], _IV[3]
    d0, d1, d2, d3 = _U(0), _U(0), _U(size), _U(flags)
    for turn in range(7):
        s = _SCHEDULE[turn]
        a0, b0, c0, d0 = _mixed(a0, b0, c0, d0, m[s[0]], m[s[1]])
        a1, b1, c1, d1 = _mixed(a1, b1, c1, d1, m[s[2]], m[s[3]])
        a2, b2, c2, d2 = _mixed(a2, b2, c2, d2, m[s[4]], m[s[5]])
        a3, b3, c3, d3 = _mixed(a3, b3, c3, d3, m[s[6]], m[s[7]])
        a0, b1, c2, d3 = _mixed(a0, b1, c2, d3, m[s[8]], m[s[9]])
        a1, b2, c3, d0 = _mixed(a1, b2, c3, d0, m[s[10]], m[s[11]])
        a2, b3, c0, d1 = _mixed(a2, b3, c0, d1, m[s[12]], m[s[13]])
        a3, b0, c1, d2 = _mixed(a3, b0, c1, d2, m[s[14]], m[s[15]])
    chain[0], chain[1], chain[2], chain[3] = a0 ^ c0, a1 ^ c1, a2 ^ c2, a3 ^ c3
    chain[4], chain[5], chain[6], chain[7] = b0 ^ d0, b1 ^ d1, b2 ^ d2, b3 ^ d3


@compiled
def _sha256(data: Any, size: Any, words: Any) -> None:
    """Writes the eight words of the hash to `words[:8]`."""
    for i in range(8):
        words[i] = _IV[i]
    blocks = (size + 9 + _BLOCK - 1) // _BLOCK
    for block in range(blocks):
        for i in range(16):
            word = _U(0)
            for byte in range(4):
                place = block * _BLOCK + 4 * i + byte
                value = _U(data[place]) if place < size else (_U(0x80) if place == size else _U(0))
                word = _U(word << _U(8)) | value
            words[16 + i] = word
        if block == blocks - 1:
            words[31] = _U(8 * size)
        _sha256_block(words, words[16:80])


@compiled
def _sha256_block(chain: Any, w: Any) -> None:
    """Compresses the block `w[:16]`, uint32[64], into `chain[:8]`."""
    for i in range(16, 64):
        x, y = w[i - 15], w[i - 2]
        low = _rotated(x, _U(7)) ^ _rotated(x, _U(18)) ^ (x >> _U(3))
        high = _rotated(y, _U(17)) ^ _rotated(y, _U(19)) ^ (y >> _U(10))
        w[i] = _U(w[i - 16] + low + w[i - 7] + high)
    a, b, c, d = chain[0], chain[1], chain[2], chain[3]
    e, f, g, h = chain[4], chain[5], chain[6], chain[7]
    for i in range(64):
        high = _rotated(e, _U(6)) ^ _rotated(e, _U(11)) ^ _rotated(e, _U(25))
        first = _U(h + high + ((e & f) ^ (~e & g)) + _K[i] + w[i])
        low = _rotated(a, _U(2)) ^ _rotated(a, _U(13)) ^ _rotated(a, _U(22))
        second = _U(low + ((a & b) ^ (a & c) ^ (b & c)))
        h, g, f, e, d, c, b, a = g, f, e, _U(d + first), c, b, a, _U(first + second)
    chain[0], chain[1] = _U(chain[0] + a), _U(chain[1] + b)
    chain[2], chain[3] = _U(chain[2] + c), _U(chain[3] + d)
    chain[4], chain[5] = _U(chain[4] + e), _U(chain[5] + f)
    chain[6], chain[7] = _U(chain[6] + g), _U(chain[7] + h)
