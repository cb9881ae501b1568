"""Pseudonyms, randomised response and the report, beside their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from livefactor.federated.anonymity import anonymity, keep_share, pseudonyms, randomised

KEY = b"k" * 32


def test_a_pseudonym_depends_on_the_key_the_period_and_the_kind_of_the_id() -> None:
    periods = np.array([0, 0, 1], np.int64)
    one, two, later = pseudonyms(["ann", "bob", "ann"], periods, KEY)
    assert len({one, two, later}) == 3 and all(len(bytes.fromhex(each)) == 16 for each in (one, two))
    assert pseudonyms(["ann"], periods[:1], KEY) == [one]
    assert pseudonyms(["ann"], periods[:1], b"x" * 32) != [one]
    assert pseudonyms(["7"], periods[:1], KEY) != pseudonyms([7], periods[:1], KEY)
    with pytest.raises(ValueError, match="at least 16 bytes, got 3"):
        pseudonyms(["ann"], periods[:1], b"key")


def test_randomised_response_has_the_odds_that_epsilon_allows() -> None:
    epsilon, catalogue, n = math.log(9.0), 4, 200_000
    out = randomised(np.zeros(n, np.int64), catalogue, epsilon)
    shares = np.bincount(out, minlength=catalogue) / n
    # 9 to 1 between the true item and each other one: 9/12 and 1/12. Six standard errors.
    np.testing.assert_allclose(shares, [0.75, *[1 / 12] * 3], atol=0.006)
    assert keep_share(epsilon, catalogue) + (1 - keep_share(epsilon, catalogue)) / 4 == pytest.approx(0.75)
    assert (randomised(np.arange(50) % 4, 4, 64.0) == np.arange(50) % 4).all()
    for bad in (0.0, -1.0, 65.0, float("nan")):
        with pytest.raises(ValueError, match="epsilon"):
            randomised(np.zeros(1, np.int64), 4, bad)
    with pytest.raises(ValueError, match="catalogue"):
        randomised(np.zeros(1, np.int64), 0, 1.0)


def test_the_report_counts_users_behind_items_and_behind_sets() -> None:
    users = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    items = np.array([0, 1, 1, 0, 0, 1, 1, 2])
    found = anonymity(users, items, 2)
    # Item 2 has one user, who is alone with this set. The others share the set {0, 1}.
    assert (found.users, found.items, found.rare_items, found.events_of_rare_items) == (4, 3, 1, 1)
    assert (found.exposed_users, found.smallest) == (1, 1)
    assert anonymity(users, items, 4).exposed_users == 4
    assert anonymity(users, items, 4).rare_items == 3
    for bad in ((users[:0], items[:0], 2), (users, items, 0)):
        with pytest.raises(ValueError, match="expected events"):
            anonymity(*bad)
