"""Secure aggregation: the sum to the bit, dropouts, wrong shares, and what the protocol refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from livefactor.errors import ColumnError
from livefactor.federated import masking, shamir
from livefactor.federated.fixed import FixedPoint
from livefactor.federated.masking import (
    Advert,
    Masked,
    Participant,
    ProtocolError,
    Revealed,
    Shares,
    addressed_to,
    unmask,
)

N, THRESHOLD, LENGTH, CONTEXT = 6, 4, 40_000, b"shop round 7"
RNG = np.random.default_rng(3)
VECTORS = {index: RNG.integers(0, 1 << 32, LENGTH, np.uint32) for index in range(1, N + 1)}


class Round:
    """A sum up to the masked vectors. `shared` and `present` say who got so far."""

    def __init__(self, shared: set[int], present: set[int], context: bytes = CONTEXT) -> None:
        self.people = {index: Participant(index, THRESHOLD, context) for index in VECTORS}
        self.adverts = [each.advert() for each in self.people.values()]
        self.shares = [self.people[index].share(self.adverts) for index in sorted(shared)]
        self.present = present
        self.masked = [
            self.people[index].mask(addressed_to(index, self.shares), VECTORS[index])
            for index in sorted(present)
        ]

    def revealed(self, by: set[int]) -> list[Revealed]:
        return [self.people[index].reveal(self.present) for index in sorted(by)]

    def unmask(self, revealed: list[Revealed]) -> tuple[np.ndarray, tuple[int, ...]]:
        return unmask(self.adverts, self.shares, self.masked, revealed, THRESHOLD, CONTEXT)


def plain_sum(present: set[int]) -> np.ndarray:
    return np.sum([VECTORS[index] for index in present], axis=0, dtype=np.uint32)


@pytest.mark.parametrize(
    ("shared", "present", "last"),
    [
        ({1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6}),
        ({1, 2, 3, 4, 5, 6}, {1, 3, 4, 6}, {1, 3, 4, 6}),
        ({1, 2, 3, 5, 6}, {1, 2, 3, 5}, {1, 2, 3, 5}),
        ({1, 2, 3, 4, 5, 6}, {2, 3, 4, 5, 6}, {3, 4, 5, 6}),
    ],
    ids=["all", "two-without-vectors", "one-without-shares", "one-without-the-last-message"],
)
def test_the_masked_sum_is_the_plain_sum_to_the_bit(
    shared: set[int], present: set[int], last: set[int]
) -> None:
    done = Round(shared, present)
    total, liars = done.unmask(done.revealed(last))
    assert total.tobytes() == plain_sum(present).tobytes() and liars == ()
    for each in done.masked:
        # A masked vector has nothing of the vector: its bits are those of noise.
        different = np.unpackbits((each.vector ^ VECTORS[each.sender]).view(np.uint8)).mean()
        assert abs(different - 0.5) < 0.01


def test_a_wrong_share_is_named_and_the_others_still_give_the_sum() -> None:
    done = Round(set(VECTORS), {1, 2, 3, 4, 5})
    revealed = done.revealed({1, 2, 3, 4, 5})
    wrong = bytes(shamir.SHARE_BYTES)
    revealed[1] = replace(revealed[1], masks={**revealed[1].masks, 4: wrong})
    total, liars = done.unmask(revealed)
    assert total.tobytes() == plain_sum(done.present).tobytes() and liars == (2,)
    revealed[0] = replace(revealed[0], keys={6: wrong})
    with pytest.raises(ProtocolError, match="3 participants are left, and the threshold is 4"):
        done.unmask(revealed)


def test_who_shares_another_key_than_its_own_is_named() -> None:
    """Its shares fit their commitments, so no holder is to blame."""
    done = Round(set(VECTORS), {1, 2, 3, 4, 5})
    other = Participant(6, THRESHOLD, CONTEXT)
    done.adverts[5] = replace(done.adverts[5], masking=other.advert().masking)
    with pytest.raises(ProtocolError, match="participant 6 gave shares of another key"):
        done.unmask(done.revealed({1, 2, 3, 4, 5}))


def test_a_participant_reveals_once_and_never_to_too_few() -> None:
    done = Round(set(VECTORS), {1, 2, 3, 4})
    one = done.people[1]
    with pytest.raises(ProtocolError, match="3 participants are left"):
        one.reveal({1, 2, 3})
    with pytest.raises(ProtocolError, match=r"present: \[9\] sent no shares"):
        one.reveal({1, 2, 3, 9})
    found = one.reveal({1, 2, 3, 4})
    assert found.masks.keys() == {1, 2, 3, 4} and found.keys.keys() == {5, 6}
    with pytest.raises(ProtocolError, match="has revealed its shares before"):
        one.reveal({1, 2, 3, 4, 5})


def test_messages_that_do_not_fit_are_refused() -> None:
    one = Participant(1, 2, CONTEXT)
    others = [Participant(index, 2, CONTEXT).advert() for index in (2, 3)]
    for adverts, text in (
        ([one.advert()], "1 participants are left"),
        ([one.advert(), others[0], others[0]], "occurs twice"),
        (others, "that of participant 1 is missing or changed"),
        ([*others, replace(one.advert(), masking=bytes(32))], "missing or changed"),
        ([one.advert(), *others, Advert(4, b"a" * 32, b"b" * 32)], "threshold: expected above half of 4"),
    ):
        with pytest.raises(ProtocolError, match=text):
            one.share(adverts)
    done = Round(set(VECTORS), set())
    sealed = addressed_to(1, done.shares)
    with pytest.raises(ProtocolError, match="what participant 3 sealed was changed"):
        done.people[1].mask(sealed | {3: sealed[3][:-1] + b"?"}, VECTORS[1])
    with pytest.raises(ProtocolError, match="what participant 4 sealed was changed"):
        # Those of another sender under this number.
        done.people[2].mask(addressed_to(2, done.shares) | {4: addressed_to(2, done.shares)[5]}, VECTORS[2])
    with pytest.raises(ProtocolError, match="sent two vectors"):
        unmask(done.adverts, done.shares, [Masked(1, VECTORS[1])] * 2, [], THRESHOLD, CONTEXT)


def test_the_server_refuses_answers_that_do_not_fit() -> None:
    done = Round(set(VECTORS), set(VECTORS))
    revealed = done.revealed(set(VECTORS))
    with pytest.raises(ProtocolError, match="answered twice"):
        done.unmask([*revealed, revealed[0]])
    stranger = replace(revealed[0], sender=9)
    assert done.unmask([*revealed[1:], stranger])[1] == (9,)
    short = replace(done.masked[0], vector=VECTORS[1][:-1])
    with pytest.raises(ProtocolError, match="differ in length"):
        unmask(done.adverts, done.shares, [short, *done.masked[1:]], revealed, THRESHOLD, CONTEXT)
    with pytest.raises(ProtocolError, match=r"participants \[2\] sealed nothing for 1"):
        addressed_to(1, [replace(done.shares[1], sealed={})])
    people = [Participant(index, 2, CONTEXT) for index in (1, 2)]
    weak = replace(people[1].advert(), sealing=bytes(32))
    with pytest.raises(ProtocolError, match="is no public key"):
        people[0].share([people[0].advert(), weak])


def test_a_mask_depends_on_the_context() -> None:
    """The same keys in two sums give other masks, so their difference says nothing."""
    key = masking._masking_key(bytes(31))
    other = Participant(2, 2, b"").advert().masking
    assert masking._pair_seed(key, other, b"round 1") != masking._pair_seed(key, other, b"round 2")


def test_shares_below_the_threshold_say_nothing_of_the_secret() -> None:
    secret = bytes(range(shamir.SECRET_BYTES))
    shares = shamir.split(secret, [1, 2, 3, 4, 5], 3)
    assert shamir.Joiner([5, 1, 3]).join(shares) == secret
    assert shamir.Joiner([1, 2, 3, 4, 5]).join(shares) == secret
    assert shamir.Joiner([1, 2]).join(shares) != secret
    # Every secret fits two shares: a third one for any other value exists.
    assert shamir.split(secret, [1, 2, 3], 3)[1] != shares[1]
    for holders, threshold in (([1, 1], 1), ([0, 1], 1), ([1, 2], 3), ([1, 2], 0)):
        with pytest.raises(ValueError, match=r"holders|threshold"):
            shamir.split(secret, holders, threshold)


def test_fixed_point_sums_are_exact_up_to_the_rounding_of_each_number() -> None:
    code, rng = FixedPoint(8.0, 100), np.random.default_rng(4)
    vectors = rng.uniform(-8.0, 8.0, (100, 200))
    vectors[:, 0], vectors[:, 1] = 8.0, -8.0
    total = np.sum([code.encode(vector) for vector in vectors], axis=0, dtype=np.uint32)
    np.testing.assert_allclose(code.decode(total), vectors.sum(axis=0), atol=50 * code.resolution)
    assert code.resolution < 4e-7
    for bad in (8.001, float("nan"), float("inf")):
        with pytest.raises(ColumnError, match=r"numbers\[1\]: expected a number within"):
            code.encode([1.0, bad])
    for bound, terms in ((0.0, 3), (float("nan"), 3), (1.0, 0)):
        with pytest.raises(ValueError, match=r"bound|terms"):
            FixedPoint(bound, terms)


def test_messages_hold_no_secret_of_a_vector() -> None:
    """A server that has all messages up to the masked vectors cannot take one mask off alone."""
    done = Round(set(VECTORS), set(VECTORS))
    assert isinstance(done.shares[0], Shares)
    revealed = done.revealed({1, 2, 3})
    with pytest.raises(ProtocolError, match="3 participants are left"):
        done.unmask(revealed)
