"""A secret in shares: any `threshold` of them give it back, and fewer say nothing about it.

The shares are values of a random polynomial over the integers modulo 2**255 - 19, whose value at 0
is the secret (Shamir, Communications of the ACM 22(11), 1979).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**255 - 19
SECRET_BYTES = 31
"""Bytes of a secret. The number is below PRIME."""

SHARE_BYTES = 32


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """The share of each holder. `holders` are distinct numbers from 1 on."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret: expected {SECRET_BYTES} bytes, got {len(secret)}")
    if len(set(holders)) != len(holders) or min(holders) < 1:
        raise ValueError("holders: expected distinct numbers from 1 on")
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"threshold: expected 1..{len(holders)}, got {threshold}")
    factors = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    factors.append(int.from_bytes(secret, "big"))
    shares = {}
    for holder in holders:
        value = 0
        for factor in factors:
            value = (value * holder + factor) % PRIME
        shares[holder] = value.to_bytes(SHARE_BYTES, "big")
    return shares


class Joiner:
    """Gives back secrets from the shares of the same holders, which are `threshold` or more."""

    def __init__(self, holders: Sequence[int]) -> None:
        self._weights = {holder: _weight(holder, holders) for holder in holders}

    def join(self, shares: Mapping[int, bytes]) -> bytes | None:
        """The secret, or None if the shares are of no secret.

        Shares of too few holders, or a wrong one among them, give None or another secret: compare
        what follows from it.
        """
        terms = (weight * int.from_bytes(shares[holder], "big") for holder, weight in self._weights.items())
        value = sum(terms) % PRIME
        return value.to_bytes(SECRET_BYTES, "big") if value < 1 << (8 * SECRET_BYTES) else None


def _weight(holder: int, holders: Sequence[int]) -> int:
    """The Lagrange polynomial of a holder at 0."""
    above = below = 1
    for other in holders:
        if other != holder:
            above = above * other % PRIME
            below = below * (other - holder) % PRIME
    return above * pow(below, -1, PRIME) % PRIME
