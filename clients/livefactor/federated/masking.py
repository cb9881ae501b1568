"""Secure aggregation: a server gets the sum of vectors of participants, and no vector.

It follows Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal and Seth (CCS 2017),
for a server that follows the protocol. Each pair of participants agrees on a mask, which one adds
and the other subtracts, so that the masks cancel in the sum. Each participant also adds a mask of
its own. It shares the secrets of both among all, so that the server can take masks off if
participants drop out: of one who dropped out those with others, and of one who is there its own.
It never gets both.

    participant i                                     server
    advert()                     -- Advert ------->
    share(adverts)               -- Shares ------->   addressed_to(j, all shares)
    mask(shares to i, vector)    -- Masked ------->   who is there
    reveal(who is there)         -- Revealed ----->   unmask(...) gives the sum

Vectors are uint32[n], added modulo 2**32 (`fixed.FixedPoint`). Keys are X25519, derived with HKDF.
Shares travel through the server in AES-GCM. Masks are the key stream of AES-CTR. A share that is
revealed is compared with the SHA-256 that its owner sent, so a wrong one is found and named.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from livefactor.federated.shamir import SECRET_BYTES, SHARE_BYTES, Joiner, split

Vector = npt.NDArray[np.uint32]

_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
_KEY_BYTES, _NONCE_BYTES = 16, 12


class ProtocolError(Exception):
    """A message does not fit the protocol. The text names the participant."""


@dataclass(frozen=True, slots=True)
class Advert:
    """The public keys of a participant, 32 bytes each. `index` is its number, from 1 on."""

    index: int
    sealing: bytes
    masking: bytes


@dataclass(frozen=True, slots=True)
class Shares:
    """The shares of a participant's two secrets, sealed for each recipient.

    commitments: the SHA-256 of the share of each recipient, of the masking key and of the own mask.
    """

    sender: int
    sealed: Mapping[int, bytes]
    commitments: Mapping[int, tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Masked:
    """The masked vector of a participant."""

    sender: int
    vector: Vector


@dataclass(frozen=True, slots=True)
class Revealed:
    """The shares that a participant holds: of masking keys of who dropped out, and of own masks."""

    sender: int
    keys: Mapping[int, bytes]
    masks: Mapping[int, bytes]


class Participant:
    """One participant in one sum. Take a new one for each sum.

    index: its number, from 1 on. threshold: how many participants must stay to the end. context:
    names the sum, such as b"shop round 7"; it is the same for all.
    """

    def __init__(self, index: int, threshold: int, context: bytes) -> None:
        self.index, self._threshold, self._context = index, threshold, context
        self._secret, self._mask = os.urandom(SECRET_BYTES), os.urandom(SECRET_BYTES)
        self._sealing = X25519PrivateKey.generate()
        self._masking = _masking_key(self._secret)
        self._adverts: dict[int, Advert] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._has_revealed = False

    def advert(self) -> Advert:
        """The first message."""
        return Advert(self.index, _public(self._sealing), _public(self._masking))

    def share(self, adverts: Sequence[Advert]) -> Shares:
        """The second message, after the adverts of all participants.

        Raises ProtocolError if there are too few, if a number or a key occurs twice, or if the own
        advert is missing or changed.
        """
        found = {advert.index: advert for advert in adverts}
        check_threshold(len(found), self._threshold)
        keys = {key for advert in adverts for key in (advert.sealing, advert.masking)}
        if len(found) < len(adverts) or len(keys) < 2 * len(adverts):
            raise ProtocolError("adverts: a number or a key occurs twice")
        if found.get(self.index) != self.advert():
            raise ProtocolError(f"adverts: that of participant {self.index} is missing or changed")
        self._adverts = found
        parts = [split(secret, sorted(found), self._threshold) for secret in (self._secret, self._mask)]
        pairs = {index: (parts[0][index], parts[1][index]) for index in found}
        sealed = {
            index: self._seal(found[index], pair[0] + pair[1])
            for index, pair in pairs.items()
            if index != self.index
        }
        self._held = {self.index: pairs[self.index]}
        commitments = {index: (_digest(pair[0]), _digest(pair[1])) for index, pair in pairs.items()}
        return Shares(self.index, sealed, commitments)

    def mask(self, sealed: Mapping[int, bytes], vector: Vector) -> Masked:
        """The third message, after the shares of the others for this participant.

        sealed: what each sender sealed for it. Raises ProtocolError if there are too few, or if a
        share was changed on its way.
        """
        check_threshold(len(sealed) + 1, self._threshold)
        total = vector.copy()
        for sender, message in sealed.items():
            if sender == self.index or sender not in self._adverts:
                raise ProtocolError(f"shares: participant {sender} sent no advert")
            self._held[sender] = self._open(self._adverts[sender], message)
            _add(total, self._seed_with(self._adverts[sender]), is_added=sender > self.index)
        _add(total, _own_seed(self._mask, self._context), is_added=True)
        return Masked(self.index, total)

    def reveal(self, present: Collection[int]) -> Revealed:
        """The last message, after the server has said whose masked vectors it has.

        It reveals one share of each participant, and answers once: two answers could reveal both.
        Raises ProtocolError if it was asked before, or if too few are present.
        """
        if self._has_revealed:
            raise ProtocolError(f"participant {self.index} has revealed its shares before")
        there = set(present)
        if not there <= self._held.keys():
            raise ProtocolError(f"present: {sorted(there - self._held.keys())} sent no shares")
        check_threshold(len(there), self._threshold)
        self._has_revealed = True
        keys = {index: pair[0] for index, pair in self._held.items() if index not in there}
        masks = {index: pair[1] for index, pair in self._held.items() if index in there}
        return Revealed(self.index, keys, masks)

    def _seed_with(self, other: Advert) -> bytes:
        return _pair_seed(self._masking, other.masking, self._context)

    def _sealer(self, other: Advert) -> AESGCM:
        shared = _exchanged(self._sealing, other.sealing)
        return AESGCM(_derived(shared, b"seal", self._context, 32))

    def _seal(self, to: Advert, pair: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._sealer(to).encrypt(nonce, pair, _route(self.index, to.index))

    def _open(self, sender: Advert, message: bytes) -> tuple[bytes, bytes]:
        nonce, sealed = message[:_NONCE_BYTES], message[_NONCE_BYTES:]
        try:
            pair = self._sealer(sender).decrypt(nonce, sealed, _route(sender.index, self.index))
        except (InvalidTag, ValueError):
            raise ProtocolError(f"shares: what participant {sender.index} sealed was changed") from None
        if len(pair) != 2 * SHARE_BYTES:
            raise ProtocolError(f"shares: those of participant {sender.index} have a wrong length")
        return pair[:SHARE_BYTES], pair[SHARE_BYTES:]


# ------------------------------------------------------------------------------- of the server


def check_threshold(present: int, threshold: int) -> None:
    """Raises ProtocolError if too few are present.

    A threshold of at most half would let a server ask two groups for different shares.
    """
    if present < threshold:
        raise ProtocolError(f"{present} participants are left, and the threshold is {threshold}")
    if 2 * threshold <= present:
        raise ProtocolError(f"threshold: expected above half of {present} participants, got {threshold}")


def addressed_to(index: int, shares: Iterable[Shares]) -> dict[int, bytes]:
    """What each sender sealed for a participant.

    Raises ProtocolError if one sealed nothing for it.
    """
    others = [each for each in shares if each.sender != index]
    silent = [each.sender for each in others if index not in each.sealed]
    if silent:
        raise ProtocolError(f"shares: participants {silent} sealed nothing for {index}")
    return {each.sender: each.sealed[index] for each in others}


def unmask(
    adverts: Iterable[Advert],
    shares: Sequence[Shares],
    masked: Sequence[Masked],
    revealed: Sequence[Revealed],
    threshold: int,
    context: bytes,
) -> tuple[Vector, tuple[int, ...]]:
    """The sum of the vectors of all whose masked vectors arrived, and who revealed a wrong share.

    shares: of the participants whose shares reached the others. revealed: of at least `threshold`
    participants with right shares. Raises ProtocolError if there are fewer, or if a secret does
    not fit its owner's key.
    """
    by_index = {advert.index: advert for advert in adverts}
    commitments = {each.sender: each.commitments for each in shares}
    present = {each.sender for each in masked}
    if len(present) < len(masked) or not present <= commitments.keys() <= by_index.keys():
        raise ProtocolError("masked: a participant sent two vectors, or no shares or advert before")
    if len({each.vector.shape for each in masked}) > 1:
        raise ProtocolError("masked: the vectors differ in length")
    if len({each.sender for each in revealed}) < len(revealed):
        raise ProtocolError("revealed: a participant answered twice")
    liars = tuple(sorted(each.sender for each in revealed if not _is_right(each, commitments, present)))
    honest = [each for each in revealed if each.sender not in liars]
    check_threshold(len(honest), threshold)
    joiner = Joiner([each.sender for each in honest[:threshold]])
    total = masked[0].vector.copy()
    for each in masked[1:]:
        total += each.vector
    for index in sorted(commitments):
        if index in present:
            mask = joiner.join({each.sender: each.masks[index] for each in honest[:threshold]})
            if mask is None:
                raise ProtocolError(f"participant {index} gave shares of no mask")
            _add(total, _own_seed(mask, context), is_added=False)
            continue
        secret = joiner.join({each.sender: each.keys[index] for each in honest[:threshold]})
        key = None if secret is None else _masking_key(secret)
        if key is None or _public(key) != by_index[index].masking:
            raise ProtocolError(f"participant {index} gave shares of another key than its own")
        for other in present:
            # The one with the smaller number has added the mask.
            _add(total, _pair_seed(key, by_index[other].masking, context), is_added=index < other)
    return total, liars


def _is_right(
    revealed: Revealed, commitments: Mapping[int, Mapping[int, tuple[bytes, bytes]]], present: set[int]
) -> bool:
    """Whether a participant revealed the share that it was given, of everybody."""
    for index, of_holders in commitments.items():
        place, shares = (1, revealed.masks) if index in present else (0, revealed.keys)
        expected = of_holders.get(revealed.sender)
        if expected is None or index not in shares or _digest(shares[index]) != expected[place]:
            return False
    return True


# ------------------------------------------------------------------------------- keys and masks


def _masking_key(secret: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(_derived(secret, b"masking key", b"", 32))


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _exchanged(key: X25519PrivateKey, other: bytes) -> bytes:
    try:
        return key.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise ProtocolError(f"adverts: {other.hex()} is no public key") from None


def _digest(share: bytes) -> bytes:
    return sha256(share).digest()


def _route(sender: int, recipient: int) -> bytes:
    return sender.to_bytes(4, "big") + recipient.to_bytes(4, "big")


def _derived(secret: bytes, use: bytes, context: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, None, b"livefactor " + use + b"\0" + context).derive(secret)


def _own_seed(mask: bytes, context: bytes) -> bytes:
    return _derived(mask, b"own mask", context, _KEY_BYTES)


def _pair_seed(key: X25519PrivateKey, other: bytes, context: bytes) -> bytes:
    return _derived(_exchanged(key, other), b"pair mask", context, _KEY_BYTES)


def _add(total: Vector, seed: bytes, is_added: bool) -> None:
    """Adds the mask of a seed to a vector, or subtracts it. A seed makes one mask only."""
    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor()
    block = bytearray(_BLOCK + 16)
    numbers = np.frombuffer(block, "<u4")
    for start in range(0, len(total), _BLOCK // 4):
        part = total[start : start + _BLOCK // 4]
        stream.update_into(_ZEROS[: part.nbytes] if part.nbytes < _BLOCK else _ZEROS, block)
        if is_added:
            part += numbers[: len(part)]
        else:
            part -= numbers[: len(part)]
